"""Everything there is, a part at a time, for whoever takes it elsewhere.

Rows come through a cursor, so that memory is bounded.
"""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from datetime import datetime

import asyncpg

ROWS = 500
"""Brought at once: 128 MiB where each is as large as an event may be. More at once is hardly faster."""

EVENTS = """
select subject, source, id, type, occurred_at, occurred_at_raw, received_at, recorded_at, time_quality, sequence,
       sender, dataschema, data::text as data
from event where occurred_at >= $1 and occurred_at < $2"""
PARTIES = """
select id::text as id, kind, name, created_at,
       coalesce((select jsonb_object_agg(namespace, refs) from (
           select namespace, jsonb_agg(ref order by ref collate "C") as refs from party_ref where party = party.id
           group by namespace) as named), '{}')::text as refs,
       coalesce((select jsonb_agg(jsonb_build_object('name', name, 'origin', origin, 'value', value, 'said_at', said_at)
                                  order by name, origin)
                 from party_attribute where party = party.id and value is not null), '[]')::text as attributes,
       coalesce((select jsonb_agg(other order by other) from (
           select other from party_link where party_link.party = party.id and upper_inf(recorded)
           union all
           select party from party_link where party_link.other = party.id and upper_inf(recorded)) as same (other)
       ), '[]')::text as linked
from party"""
RELATIONSHIPS = """
select id::text as id, version, subject, subject_kind, role, party::text as party, party_kind, batch,
       lower(valid) as valid_from, upper(valid) as valid_to, lower(recorded) as recorded_at,
       upper(recorded) as superseded_at, asserted_by, reason
from relationship"""
DEVICES = "select subject, model, firmware, registered_at, registered_by from device"


async def months(db: asyncpg.Connection) -> list[tuple[datetime, datetime]]:
    """Return the UTC months that have events, each as [starts, ends), by day counts: an event is counted on its day."""
    return [
        (row["starts"], row["ends"])
        for row in await db.fetch(
            """
            select month at time zone 'UTC' as starts, (month + interval '1 month') at time zone 'UTC' as ends
            from (select distinct date_trunc('month', day::timestamp) as month from subject_day) as months
            order by month
            """
        )
    ]


@asynccontextmanager
async def snapshot(db: asyncpg.Connection) -> AsyncIterator[None]:
    """Let everything that is read within be as it was at one moment; where that fails, `db` is to be closed."""
    reading = db.transaction(isolation="repeatable_read", readonly=True)
    await reading.start()
    yield  # to roll back would hide why it failed: where the connection was closed, that fails as well
    await reading.commit()


async def rows(db: asyncpg.Connection, part: str, *arguments: object) -> AsyncIterator[Sequence[asyncpg.Record]]:
    """Yield the rows of a part, some at a time; in a transaction."""
    cursor = await db.cursor(part, *arguments)
    while found := await cursor.fetch(ROWS):
        yield found
