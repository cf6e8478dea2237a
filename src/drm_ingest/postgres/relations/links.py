"""Which parties are the same: links between them, of which each group shares one record.

A group is all parties that links lead to, over however many of them.
"""

from collections.abc import Sequence
from datetime import datetime
from uuid import UUID

import asyncpg

from drm_ingest.postgres.registry.parties import PARTY

OPEN = "upper_inf(recorded)"
# Two halves, each with a partial index of its own.
_KNOWN = (
    "((upper_inf(recorded) and lower(recorded) <= $2::timestamptz)"
    " or (not upper_inf(recorded) and recorded @> $2::timestamptz))"
)


def _group(condition: str) -> str:
    return f"""
with recursive grown (party) as (
    select $1::uuid
    union
    select next.party
    from grown cross join lateral (
        select other as party from party_link where party_link.party = grown.party and {condition}
        union all
        select party_link.party from party_link where party_link.other = grown.party and {condition}
    ) as next
)"""


GROWN, GROWN_KNOWN = _group(OPEN), _group(_KNOWN)
"""The step `grown (party)`: those of the group of $1; as known at $2."""
_IDS = "select array_agg(party order by party) from grown"
GROUP, GROUP_KNOWN = f"{GROWN} {_IDS}", f"{GROWN_KNOWN} {_IDS}"
_ROWS = f"{PARTY} where id = any (array(select party from grown)) order by id"
MEMBERS, MEMBERS_KNOWN = f"{GROWN} {_ROWS}", f"{GROWN_KNOWN} {_ROWS}"

LINK = "id, party, other, reason, asserted_by, lower(recorded) as linked_at"


async def group(db: asyncpg.Connection, party: UUID, known_at: datetime | None = None) -> list[UUID]:
    """Return the parties that share one record with this one, by age, itself among them; as known at a time, or now."""
    found: list[UUID]
    if known_at is None:
        found = await db.fetchval(GROUP, party)
    else:
        found = await db.fetchval(GROUP_KNOWN, party, known_at)
    return found


async def members(db: asyncpg.Connection, party: UUID, known_at: datetime | None = None) -> list[asyncpg.Record]:
    """Return the same parties with what they are called: id, kind, name, created_at, refs (JSON text)."""
    rows: list[asyncpg.Record]
    if known_at is None:
        rows = await db.fetch(MEMBERS, party)
    else:
        rows = await db.fetch(MEMBERS_KNOWN, party, known_at)
    return rows


async def links(
    db: asyncpg.Connection, group: Sequence[UUID], known_at: datetime | None = None
) -> list[asyncpg.Record]:
    """Return what holds a group together, as known then or now: id, party, other, reason, asserted_by, linked_at."""
    known, values = (OPEN, [group]) if known_at is None else (_KNOWN, [group, known_at])
    rows: list[asyncpg.Record] = await db.fetch(
        f"select {LINK} from party_link where party = any ($1::uuid[]) and {known} order by id", *values
    )
    return rows
