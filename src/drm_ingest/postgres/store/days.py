"""Day counts: events of a subject by UTC day and type, with the latest of them.

Folding commutes: whatever the order and the grouping in which events arrive, the rows end the same. The latest is the
greatest of (occurred_at, sequence, content_hash); sequences compare by length, then byte by byte, which orders plain
integers as numbers and zero-padded ones as texts.
"""

from collections.abc import Iterable

import asyncpg
from msgspec import Raw

from drm_ingest.postgres.store.rows import DAY_COLUMNS, DAY_US, Row, copy_stream, pack_day

STAGE = "create temporary table staged_day (like subject_day) on commit delete rows"

_NEWER = """
    (new.last_at, length(coalesce(new.last_sequence, '')), coalesce(new.last_sequence, ''), new.last_hash)
    > (old.last_at, length(coalesce(old.last_sequence, '')), coalesce(old.last_sequence, ''), old.last_hash)
""".replace("new.", "excluded.")

# Sorted, so that two workers that meet on rows lock them in one order. Measured a row: this 8 µs, from arrays by
# unnest 9, an update with an insert of the rest 8.5.
_ADD = f"""
insert into subject_day as old (subject, day, type, events, last_at, last_hash, last_sequence, last_data)
select subject, day, type, events, last_at, last_hash, last_sequence, last_data
from staged_day order by subject, day, type
on conflict (subject, day, type) do update set
    events = old.events + excluded.events,
    last_at = greatest(old.last_at, excluded.last_at),
    last_hash = case when {_NEWER} then excluded.last_hash else old.last_hash end,
    last_sequence = case when {_NEWER} then excluded.last_sequence else old.last_sequence end,
    last_data = case when {_NEWER} then excluded.last_data else old.last_data end
"""


class _Day:
    """Count and latest of one subject, day and type."""

    __slots__ = ("data", "events", "hash", "sequence", "us")

    def __init__(self, row: Row) -> None:
        self.events = 1
        self.take(row)

    def take(self, row: Row) -> None:
        self.us: int = row.occurred_us
        self.hash: bytes = row.content_hash
        self.sequence: str | None = row.sequence
        self.data: Raw | None = row.data

    def is_older(self, row: Row) -> bool:
        mine, its = self.sequence or "", row.sequence or ""
        return (self.us, len(mine), mine, self.hash) < (row.occurred_us, len(its), its, row.content_hash)


def fold(rows: Iterable[Row]) -> list[bytes]:
    """Return the packed day counts of these rows, sorted."""
    days: dict[tuple[str, int, str], _Day] = {}
    for row in rows:
        key = (row.subject, row.occurred_us // DAY_US, row.type)
        day = days.get(key)
        if day is None:
            days[key] = _Day(row)
        else:
            day.events += 1
            if row.occurred_us >= day.us and day.is_older(row):
                day.take(row)
    return [
        pack_day(number, day.events, day.us, day.hash, subject, type_, day.sequence, day.data)
        for (subject, number, type_), day in sorted(days.items(), key=lambda item: item[0])
    ]


async def add(connection: asyncpg.Connection, packed: list[bytes]) -> None:
    """Add day counts to those in the table, in the transaction of the events they count."""
    await connection.copy_to_table("staged_day", source=copy_stream(packed), columns=DAY_COLUMNS, format="binary")
    await connection.execute(_ADD)
