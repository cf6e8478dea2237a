"""What is said of many parties at once, under the rule of attributes.py: the latest word of each origin counts."""

from collections.abc import Collection, Sequence
from datetime import datetime
from typing import Protocol
from uuid import UUID

import asyncpg

Row = tuple[UUID, str, str, str | None, datetime]
"""Party, name, origin, value (JSON text; None: taken back), said_at."""


class New(Protocol):
    """A party that was made in this transaction."""

    id: UUID | None


_SAID = """
with told as (
    select party, name collate "C" as name, origin collate "C" as origin, value::jsonb as value, said_at
    from unnest($1::uuid[], $2::text[], $3::text[], $4::text[], $5::timestamptz[])
        as told (party, name, origin, value, said_at)
), said as (
    select distinct on (party, name, origin) * from told
    order by party, name, origin, said_at desc, coalesce(value::text, '') collate "C" desc
)"""
_NEWS = """
select distinct said.party
from said left join party_attribute as held using (party, name, origin)
where held.value is distinct from said.value
  and (held.party is null or (said.said_at, coalesce(said.value::text, '') collate "C")
                           > (held.said_at, coalesce(held.value::text, '') collate "C"))"""
_TOO_MANY = """
select party from (
    select party, name, origin from said
    union
    select party, name, origin from party_attribute where party = any ($1::uuid[])
) as all_of_it
group by party having count(*) > $6"""
# The rule of attributes.py, for many.
_SAY = """
, kept as (
    insert into party_attribute as held (party, name, origin, value, said_at, asserted_by)
    select party, name, origin, value, said_at, $6 from said order by party, name, origin
    on conflict (party, name, origin) do update
    set value = excluded.value, said_at = excluded.said_at, recorded_at = excluded.recorded_at,
        asserted_by = excluded.asserted_by
    where (excluded.said_at, coalesce(excluded.value::text, '') collate "C")
        > (held.said_at, coalesce(held.value::text, '') collate "C")
    returning party, old.value is distinct from new.value as changed  -- `old` and `new` in returning: Postgres 18
)
select distinct party from kept where changed"""


_COLUMNS = ("party", "name", "origin", "value", "said_at", "recorded_at", "asserted_by")


async def copy_new(db: asyncpg.Connection, new: Collection[New], rows: Sequence[Row], asserted_by: str) -> list[Row]:
    """Write the first word on each attribute of parties that were made in this transaction; return all other rows.

    There is nothing yet to compare with, so it goes by COPY.
    """
    ids = {party.id for party in new}
    first: dict[tuple[UUID, str, str], Row] = {}
    rest = [row for row in rows if row[0] not in ids or first.setdefault(row[:3], row) is not row]
    if first:
        # Its default would be another for each row, which COPY then inserts one by one.
        now = await db.fetchval("select clock_timestamp()")
        await db.copy_records_to_table(
            "party_attribute", records=[(*row, now, asserted_by) for row in first.values()], columns=_COLUMNS
        )
    return rest


async def say(db: asyncpg.Connection, rows: Sequence[Row], asserted_by: str) -> set[UUID]:
    """Write what is later than what is known; return the parties of which something else is known now."""
    return await _parties(db, _SAY, rows, asserted_by)


async def news(db: asyncpg.Connection, rows: Sequence[Row]) -> set[UUID]:
    """Return what `say` would, and write nothing."""
    return await _parties(db, _NEWS, rows)


async def too_many(db: asyncpg.Connection, rows: Sequence[Row], attributes_max: int) -> set[UUID]:
    """Return the parties of which more would be known than may be."""
    return await _parties(db, _TOO_MANY, rows, attributes_max)


async def _parties(db: asyncpg.Connection, query: str, rows: Sequence[Row], *more: object) -> set[UUID]:
    if not rows:
        return set()
    columns = (list(column) for column in zip(*rows, strict=True))
    return {row["party"] for row in await db.fetch(_SAID + query, *columns, *more)}
