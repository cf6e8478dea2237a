"""How relations are changed, whatever the change: what it is asked for with, what it may meet, what is written down.

    HeldAlready       the role is held at that time; the row that says so
    EmptyRange        it would end before it begins
    Withdrawn         it was withdrawn, and can be changed no more
    WithItself        it is one of a party to itself, as the first release took them: it can only be withdrawn
    ChangedMeanwhile  it is not the version that the caller has seen

The rules are constraints of the tables; here is only the order of a change, which is one transaction: lock the subject,
then take one time, then close the open version and write the next, count what that moved, and write it down under the
lock of all changes, so that their numbers are in the order of commit. Whoever changes relations of several subjects in
one transaction locks all of them first, in order.
"""

from collections.abc import AsyncIterator, Collection, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

import asyncpg
import orjson

from drm_ingest.postgres.relations import moves
from drm_ingest.postgres.relations.relationships import ROW

Locked = tuple[datetime, datetime]
"""The time, and when changes are recorded, once a subject is locked."""

_NUMBERS = 0x64726D_72656C63  # "drm" "relc": the advisory lock under which changes get their numbers


class HeldAlready(Exception):
    """The role is held at that time; `row` says by whom, from when and until when."""

    def __init__(self, row: asyncpg.Record) -> None:
        super().__init__(f"held by {dict(row)}")
        self.row = row


class EmptyRange(Exception):
    """It would end before it begins."""


class Withdrawn(Exception):
    """It was withdrawn; `row` is its last version."""

    def __init__(self, row: asyncpg.Record) -> None:
        super().__init__(f"{row['id']} was withdrawn at {row['superseded_at']}")
        self.row = row


class WithItself(Exception):
    """It is one of a party to itself, as the first release took them; `row` is its open version."""

    def __init__(self, row: asyncpg.Record) -> None:
        super().__init__(f"{row['id']} relates {row['subject']} to itself")
        self.row = row


class ChangedMeanwhile(Exception):
    """It is not the version that the caller has seen; `row` is the one there is."""

    def __init__(self, row: asyncpg.Record) -> None:
        super().__init__(f"{row['id']} is at version {row['version']}")
        self.row = row


@dataclass(frozen=True, slots=True)
class Claim:
    """That `party` holds `role` on `subject` from `valid_from` (None: ever) to `valid_to` (None: no end known)."""

    subject: str
    role: str
    party: UUID
    valid_from: datetime | None
    valid_to: datetime | None
    asserted_by: str
    reason: str | None
    from_now: bool = False
    """It begins with this change, at the time it is recorded, and `valid_from` says nothing."""
    batch: str | None = None
    """Of what a supplier delivered."""


@dataclass(frozen=True, slots=True)
class Say:
    """Who asks for a change of a relation that is there, why, and what they have seen of it."""

    asserted_by: str
    reason: str | None
    versions: Collection[int] | None = None
    """The change is made only if one of these is the open one; None: whichever it is."""


def empty(starts: datetime | None, ends: datetime | None) -> bool:
    return starts is not None and ends is not None and starts >= ends


async def lock(db: asyncpg.Connection, subject: str) -> Locked:
    """Lock the relations of a subject until the transaction ends; return the time, and when a change is recorded.

    Both are taken after the wait: now() is older than that. A change is recorded after the one before it even where the
    clock has been set back, so that what we knew is told in the order in which we came to know it.
    """
    await db.execute("select pg_advisory_xact_lock(hashtextextended($1, 0))", subject)
    row = await db.fetchrow(
        """
        select now, greatest(
            now,
            (select max(lower(recorded)) + interval '1 microsecond' from relationship
             where subject = $1 and upper_inf(recorded)),
            (select max(upper(recorded)) from relationship where subject = $1 and not upper_inf(recorded))
        ) as recorded_at
        from (select clock_timestamp() as now offset 0) as clock
        """,
        subject,
    )
    return row["now"], row["recorded_at"]


@asynccontextmanager
async def excluded(db: asyncpg.Connection, claim: Claim, but: UUID | None = None) -> AsyncIterator[None]:
    """Undo what is done inside where the claim is excluded by a relation other than `but`, and raise HeldAlready."""
    try:
        async with db.transaction():
            yield
        return
    except asyncpg.ExclusionViolationError:
        pass
    # Its subject is still locked: what was in the way still is.
    raise HeldAlready(
        await db.fetchrow(
            f"{ROW} where subject = $1 and role = $2 and (exclusive or party = $3 and batch is not distinct from $4) "
            "and upper_inf(recorded) and valid && tstzrange($5, $6) and id is distinct from $7 "
            "order by lower(valid) nulls first limit 1",
            claim.subject, claim.role, claim.party, claim.batch, claim.valid_from, claim.valid_to, but,
        )
    )  # fmt: skip


async def note(
    db: asyncpg.Connection,
    change: str,
    row: asyncpg.Record,
    recorded_at: datetime,
    before: moves.Held,
    asserted_by: str,
    reason: str | None,
    *,
    instead_of: asyncpg.Record | None = None,
) -> None:
    """Write down a change, with what it moved since the party held the subject at `before`."""
    after = await moves.held_still(db, before)
    moved = await moves.between(db, row["party"], before, after)
    detail = {
        "valid_from": row["valid_from"],
        "valid_to": row["valid_to"],
        "batch": row["batch"],
        "asserted_by": asserted_by,
        "reason": reason,
    }
    if instead_of is not None:
        detail["instead_of"] = {name: instead_of[name] for name in ("valid_from", "valid_to")}
    of = {name: row[name] for name in ("subject", "party", "role", "id", "version")}
    await write(db, change, of, detail, recorded_at, moved)


# Of `locked` there is one row; the number is drawn after it, and the lock is kept for this statement and the commit.
_WRITE = """
with locked as materialized (select pg_advisory_xact_lock($1)),
change as (
    insert into relationship_change (relationship, version, subject, party, role, change, detail, recorded_at)
    select $2, $3, $4, $5, $6, $7, $8, $9 from locked returning number
),
move as (
    insert into relationship_move (number, party, direction, starts, ends, events, types)
    select number, moved.*
    from change, unnest($10::uuid[], $11::text[], $12::timestamptz[], $13::timestamptz[], $14::bigint[], $15::jsonb[])
        as moved
)
select number from change"""


async def write(
    db: asyncpg.Connection,
    change: str,
    of: Mapping[str, object],
    detail: Mapping[str, object],
    recorded_at: datetime,
    moved: Sequence[moves.Move],
) -> int:
    """Write down a change and what it moved; return its number. Then commit: nobody else gets a number before.

    `of` has subject and party, and for a change of a relation its id, version and role.
    """
    number: int = await db.fetchval(
        _WRITE, _NUMBERS, of.get("id"), of.get("version"), of["subject"], of["party"], of.get("role"), change,
        orjson.dumps(detail, option=orjson.OPT_UTC_Z).decode(), recorded_at,
        [move.party for move in moved], [move.direction for move in moved],
        [move.starts for move in moved], [move.ends for move in moved],
        [sum(move.types.values()) for move in moved], [orjson.dumps(move.types).decode() for move in moved],
    )  # fmt: skip
    return number


_WRITE_BEGUN = """
with locked as materialized (select pg_advisory_xact_lock($1))
insert into relationship_change (relationship, version, subject, party, role, change, detail, recorded_at)
select begun.relationship, 1, begun.subject, begun.party, begun.role, 'begun', begun.detail, $2
from locked, unnest($3::uuid[], $4::text[], $5::uuid[], $6::text[], $7::jsonb[])
    with ordinality as begun (relationship, subject, party, role, detail, line)
order by line
returning relationship, number"""


async def write_begun(
    db: asyncpg.Connection,
    begun: Sequence[tuple[UUID, str, UUID, str, str]],
    recorded_at: datetime,
    moved: Sequence[tuple[UUID, moves.Move]],
) -> None:
    """Write down many beginnings (relation, subject, party, role, detail), numbered in this order; then commit.

    `moved` says of relations among them what they moved.
    """
    rows = await db.fetch(_WRITE_BEGUN, _NUMBERS, recorded_at, *(list(column) for column in zip(*begun, strict=True)))
    numbers = {row["relationship"]: row["number"] for row in rows}
    await db.execute(
        "insert into relationship_move (number, party, direction, starts, ends, events, types) "
        "select * from unnest($1::bigint[], $2::uuid[], $3::text[], $4::timestamptz[], $5::timestamptz[], "
        "$6::bigint[], $7::jsonb[])",
        [numbers[relation] for relation, _ in moved], [move.party for _, move in moved],
        [move.direction for _, move in moved], [move.starts for _, move in moved], [move.ends for _, move in moved],
        [sum(move.types.values()) for _, move in moved], [orjson.dumps(move.types).decode() for _, move in moved],
    )  # fmt: skip
