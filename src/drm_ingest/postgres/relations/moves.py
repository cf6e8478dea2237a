"""What a change of a relation moves onto or off the record of its party.

A party's record holds the events of a subject in the union of the ranges in which it held any role there. So a change
moves the events in the difference of that union before and after: what it holds through another role does not move.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Literal
from uuid import UUID

import asyncpg

from drm_ingest.event import PARTY_PREFIX
from drm_ingest.postgres.record.tally import TALLY
from drm_ingest.postgres.relations.links import group

Ranges = Sequence[asyncpg.Range]
"""Disjoint and in order: a tstzmultirange."""


@dataclass(frozen=True, slots=True)
class Move:
    """Events in [starts, ends) came onto the record of the party (`gained`), or went off it (`lost`)."""

    party: UUID
    direction: Literal["gained", "lost"]
    starts: datetime | None
    ends: datetime | None
    types: dict[str, int]


@dataclass(frozen=True, slots=True)
class Held:
    """When a party, or one that is linked with it, holds any role on a subject, or on one that is linked with that."""

    subjects: Sequence[str]
    parties: Sequence[UUID]
    ranges: Ranges


async def held(db: asyncpg.Connection, subject: str, party: UUID) -> Held:
    """Return when a subject's events are on the record of a party, as is known now."""
    subjects = [subject]
    if subject.startswith(PARTY_PREFIX):
        subjects = [f"{PARTY_PREFIX}{same}" for same in await group(db, UUID(subject.removeprefix(PARTY_PREFIX)))]
    return await _held(db, subjects, await group(db, party))


async def held_still(db: asyncpg.Connection, before: Held) -> Held:
    """Return the same for those who shared a record before: whom another links meanwhile is a change of its own."""
    return await _held(db, before.subjects, before.parties)


async def _held(db: asyncpg.Connection, subjects: Sequence[str], parties: Sequence[UUID]) -> Held:
    # A relation to oneself, now that they are linked, brings nothing.
    ranges: Ranges = await db.fetchval(
        "select coalesce(range_agg(valid), '{}') from relationship "
        "where subject = any ($1::text[]) and party = any ($2::uuid[]) and upper_inf(recorded) "
        "and (subject_party is null or subject_party <> all ($2))",
        subjects, parties,
    )  # fmt: skip
    return Held(subjects, parties, ranges)


_DIFFERENCE = """
select direction, lower(during) as starts, upper(during) as ends
from (
    select 'gained' as direction, unnest($2::tstzmultirange - $1::tstzmultirange) as during
    union all
    select 'lost', unnest($1::tstzmultirange - $2::tstzmultirange)
) as moved
order by lower(during) nulls first"""

# What is said of a party is said under its id and under each of its references, and those of whom it is linked with.
_COUNT = f"""
with span (subject, starts, ends) as (
    select name collate "C", $2::timestamptz, $3::timestamptz
    from (
        select subject from unnest($1::text[]) as about (subject)
        union all
        select 'party:' || ref.namespace || ':' || ref.ref
        from unnest($1::text[]) as about (subject)
        join party_ref ref on ref.party = case when starts_with(subject, 'party:') then substr(subject, 7)::uuid end
    ) as called (name)
), {TALLY}
select type, sum(events)::bigint as events from tally group by type order by type"""


async def between(db: asyncpg.Connection, party: UUID, before: Held, after: Held) -> list[Move]:
    """Return the moves that turn what a party held on a subject `before` into `after`, with their counts."""
    return [
        Move(party, **row, types=await counted(db, before.subjects, row["starts"], row["ends"]))
        for row in await db.fetch(_DIFFERENCE, before.ranges, after.ranges)
    ]


async def counted(
    db: asyncpg.Connection, subjects: Sequence[str], starts: datetime | None, ends: datetime | None
) -> dict[str, int]:
    """Return the events of subjects in [starts, ends), by type."""
    return {row["type"]: row["events"] for row in await db.fetch(_COUNT, subjects, starts, ends)}
