"""Which hardware a device took the place of: what happened on that, until then, is its history."""

import asyncpg

from drm_ingest.postgres.record.known import AT, NOW, REPLACED, View

PREDECESSORS_MAX = 100
"""So many replacements, one after the other; a longer line is refused when it would be made."""

LINE = f"""
line (subject, ends) as (
    select $1::text collate "C", null::timestamptz
    union all
    select replaced.device, least(line.ends, replaced.at)
    from line cross join lateral (
        select * from {REPLACED} as replacement where replacement.by = line.subject and replacement.at <= {AT}
    ) as replaced
)"""
"""The device $1 and those before it, each until it was replaced, at the two times $2 and $3 (record/known.py)."""

REPLACEMENT = (
    "id, device, by, at, asserted_by, reason, lower(recorded) as recorded_at, upper(recorded) as undone_at, "
    "undone_by, undone_why"
)


_TOLD = "($2::timestamptz is null or replaced.at <= $2)"
PREDECESSORS = f"""
with recursive earlier as (
    select replaced.*, 1 as step from {REPLACED} as replaced where replaced.by = $1 and {_TOLD}
    union all
    select before.*, step + 1
    from earlier cross join lateral (
        select * from {REPLACED} as replaced where replaced.by = earlier.device and {_TOLD}
    ) as before
)
select {REPLACEMENT} from earlier order by step"""
REPLACED_BY = f"select {REPLACEMENT} from {REPLACED} as replaced where replaced.device = $1 and {_TOLD}"


async def predecessors(db: asyncpg.Connection, device: str, view: View = NOW) -> list[asyncpg.Record]:
    """Return the replacements that led to a device, the last first; those that are planned too."""
    rows: list[asyncpg.Record] = await db.fetch(PREDECESSORS, device, view.as_of, view.known_at)
    return rows


async def replaced_by(db: asyncpg.Connection, device: str, view: View = NOW) -> asyncpg.Record | None:
    """Return the replacement that took a device out of use, or will, if any."""
    return await db.fetchrow(REPLACED_BY, device, view.as_of, view.known_at)
