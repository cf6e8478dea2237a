"""Which devices there are, whoever told of them first."""

import asyncpg


async def put_device(db: asyncpg.Connection, subject: str, model: str | None, firmware: str | None) -> bool:
    """Register a device, or say anew what it is; return whether it was unknown."""
    created: bool = await db.fetchval(
        "insert into device (subject, model, firmware, registered_by) values ($1, $2, $3, 'registry') "
        "on conflict (subject) do update "
        "set model = excluded.model, firmware = excluded.firmware, registered_by = excluded.registered_by "
        "returning old.subject is null",  # `old` in returning: Postgres 18
        subject, model, firmware,
    )  # fmt: skip
    return created


async def device(db: asyncpg.Connection, subject: str) -> asyncpg.Record | None:
    return await db.fetchrow(
        "select subject, model, firmware, registered_at, registered_by from device where subject = $1", subject
    )


_DEVICE = "subject, model, firmware, registered_at, registered_by"
DEVICES = f"select {_DEVICE} from device where subject > $1 order by subject limit $2"
# Each looked at by its own index. Whose time has not come or is over holds nothing.
UNCLAIMED = f"""
with seen as materialized (select {_DEVICE} from device where subject > $1 order by subject limit $3),
reach as (select count(*) as seen, max(subject) as last_seen from seen)
select unclaimed.*, reach.*
from reach left join lateral (
    select * from seen
    where not exists (
        select from relationship
        where relationship.subject = seen.subject and upper_inf(recorded) and valid @> now()
    )
    order by subject limit $2
) as unclaimed on true
order by unclaimed.subject"""


async def devices(db: asyncpg.Connection, after: str | None, limit: int) -> list[asyncpg.Record]:
    """Return devices by their ids, those after `after`."""
    rows: list[asyncpg.Record] = await db.fetch(DEVICES, after or "", limit)
    return rows


async def unclaimed(
    db: asyncpg.Connection, after: str | None, limit: int, seen_max: int
) -> tuple[list[asyncpg.Record], str | None]:
    """Return those of the next `seen_max` devices on which nobody holds a role now, and the last that was looked at.

    That is None where no device is left behind it.
    """
    rows = await db.fetch(UNCLAIMED, after or "", limit, seen_max)
    last = rows[0]["last_seen"] if rows[0]["seen"] == seen_max else None
    return [row for row in rows if row["subject"] is not None], last
