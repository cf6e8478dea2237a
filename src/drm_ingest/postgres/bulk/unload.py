"""Everything there is, a part at a time, for whoever takes it elsewhere.

Rows come through a cursor, in one snapshot a part, so that memory is bounded and no part is half before a change.
"""

from collections.abc import AsyncIterator, Sequence
from datetime import datetime

import asyncpg

ROWS = 5_000
"""Brought at once."""

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


async def rows(db: asyncpg.Connection, part: str, *arguments: object) -> AsyncIterator[Sequence[asyncpg.Record]]:
    """Yield the rows of a part, some at a time."""
    async with db.transaction(isolation="repeatable_read", readonly=True):
        cursor = await db.cursor(part, *arguments)
        while found := await cursor.fetch(ROWS):
            yield found
