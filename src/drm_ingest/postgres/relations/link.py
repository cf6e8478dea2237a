"""Linking parties found to be the same, and unlinking them: nothing of either is changed.

OtherKind      parties of different kinds are not the same
TooManyLinked  more parties would share one record than may
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Literal
from uuid import UUID

import asyncpg

from drm_ingest.event import PARTY_PREFIX
from drm_ingest.postgres.record import tally
from drm_ingest.postgres.relations import moves
from drm_ingest.postgres.relations.changes import write
from drm_ingest.postgres.relations.links import LINK, OPEN, group

_LINKS = 0x64726D_6C696E6B  # "drm" "link": the advisory lock of whoever changes a link; two could join too many parties


class OtherKind(Exception):
    """Parties of different kinds are not the same; nothing was changed."""

    def __init__(self, kind: str, other: str) -> None:
        super().__init__(f"{kind} and {other}")
        self.kind, self.other = kind, other


class TooManyLinked(Exception):
    """So many parties would share one record; nothing was changed."""

    def __init__(self, parties: int) -> None:
        super().__init__(f"{parties} parties")
        self.parties = parties


@dataclass(frozen=True, slots=True)
class Claim:
    """That two parties are the same, or are not: who says so, and why."""

    party: UUID
    other: UUID
    asserted_by: str
    reason: str | None

    @property
    def pair(self) -> tuple[UUID, UUID]:
        """In the order in which they are kept: by age."""
        return min(self.party, self.other), max(self.party, self.other)


async def expect_possible(db: asyncpg.Connection, party: UUID, other: UUID, parties_max: int) -> None:
    """See that two parties, which exist, can be linked.

    Raises:
        OtherKind, TooManyLinked.
    """
    kinds = dict(await db.fetch("select id, kind from party where id = any ($1::uuid[])", [party, other]))
    if kinds[party] != kinds[other]:
        raise OtherKind(kinds[party], kinds[other])
    here, there = await group(db, party), await group(db, other)
    if here != there and len(here) + len(there) > parties_max:
        raise TooManyLinked(len(here) + len(there))


async def link(
    db: asyncpg.Connection, claim: Claim, parties_max: int, relations_counted_max: int = 1000
) -> tuple[asyncpg.Record, bool]:
    """Join the records of two parties, which exist; return the link, and whether it is new.

    What that brings either record is counted, unless they have more relations than that together: links are locked
    meanwhile.

    Raises:
        OtherKind, TooManyLinked: and nothing was changed.
    """
    async with db.transaction():
        await db.execute("select pg_advisory_xact_lock($1)", _LINKS)
        await expect_possible(db, claim.party, claim.other, parties_max)
        known = await db.fetchrow(
            f"select {LINK} from party_link where party = $1 and other = $2 and {OPEN}", *claim.pair
        )
        if known is not None:
            return known, False
        apart = [await group(db, party) for party in claim.pair]
        # Not before the last time they were linked ended, should a clock have stepped back.
        row = await db.fetchrow(
            "insert into party_link (party, other, kind, reason, asserted_by, recorded) "
            "select $1, $2, kind, $3, $4, tstzrange(greatest(clock_timestamp(), "
            "    (select max(upper(recorded)) from party_link where party = $1 and other = $2)), null) "
            f"from party where id = $1 returning {LINK}",
            *claim.pair, claim.reason, claim.asserted_by,
        )  # fmt: skip
        differences = await _differences(db, apart, await group(db, claim.party), relations_counted_max)
        await _note(db, "linked", claim, row["linked_at"], differences)
        return row, True


async def unlink(db: asyncpg.Connection, claim: Claim, relations_counted_max: int = 1000) -> bool:
    """Take two parties apart again, counting what that takes off their records as `link` does; return whether it did.

    False: they were not linked.
    """
    async with db.transaction():
        await db.execute("select pg_advisory_xact_lock($1)", _LINKS)
        together = await group(db, claim.party)
        row = await db.fetchrow(
            "update party_link set recorded = tstzrange(lower(recorded), "
            "    greatest(clock_timestamp(), lower(recorded) + interval '1 microsecond')) "
            f"where party = $1 and other = $2 and {OPEN} returning id, upper(recorded) as unlinked_at",
            *claim.pair,
        )  # fmt: skip
        if row is None:
            return False
        apart = [await group(db, party) for party in claim.pair]
        differences = await _differences(db, apart, together, relations_counted_max)
        await _note(db, "unlinked", claim, row["unlinked_at"], differences)
        return True


_Difference = dict[str, int]

# In one statement all three records see the same events, though some arrive meanwhile.
_COUNTS = " union all ".join(
    f"select {number} as record, type, events from ({tally.COUNTS.replace('$1', group)}) as of_{number}"
    for number, group in enumerate(("$1", "$4", "$5"))
)


async def _differences(
    db: asyncpg.Connection, apart: Sequence[Sequence[UUID]], together: Sequence[UUID], relations_max: int
) -> list[_Difference | None]:
    """Return what the joint record has beside that of each of the two groups, by type; None: it was not counted."""
    relations = await db.fetchval(
        "select count(*) from (select from relationship where party = any ($1::uuid[]) and upper_inf(recorded) "
        "limit $2) as first",
        together, relations_max + 1,
    )  # fmt: skip
    if relations > relations_max:
        return [None for _ in apart]
    counted: list[_Difference] = [{}, {}, {}]
    for row in await db.fetch(_COUNTS, together, None, None, *apart):
        counted[row["record"]][row["type"]] = row["events"]
    joint, *own = counted
    # Where another link joins them too, nothing moves.
    more = [{type_: count - mine.get(type_, 0) for type_, count in joint.items()} for mine in own]
    return [{type_: count for type_, count in each.items() if count > 0} for each in more]


async def _note(
    db: asyncpg.Connection, change: str, claim: Claim, at: datetime, differences: Sequence[_Difference | None]
) -> None:
    """Write the change down, for each of the two parties: which of its readers follows which is not known."""
    direction: Literal["gained", "lost"] = "gained" if change == "linked" else "lost"
    for (party, other), types in zip((claim.pair, claim.pair[::-1]), differences, strict=True):
        detail = {"asserted_by": claim.asserted_by, "reason": claim.reason, "counted": types is not None}
        moved = [moves.Move(party, direction, None, None, types)] if types else []
        await write(db, change, {"subject": f"{PARTY_PREFIX}{other}", "party": party}, detail, at, moved)
