"""Positions in Kafka, kept in Postgres: what is committed of each partition, and who may move it.

Fenced     another worker owns a partition now, or moved it meanwhile: roll back
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import asyncpg
from aiokafka import TopicPartition

UNTOUCHED = -1
"""The position of a partition of which nothing is committed yet."""

_OTHER_HOLDERS = """
select distinct p.holder
from consumer_position p
join unnest($3::text[], $4::int[]) as wanted (topic, "partition") using (topic, "partition")
where p.consumer_group = $1 and p.holder not in ('', $2)
"""

# A zombie stuck in the middle of a batch holds its rows, and no time-out of ours frees them; waits until it is gone.
# So may a connection of our own that we gave up while the network swallowed everything.
_END_BACKENDS = """
select pg_terminate_backend(pid, $2)
from pg_stat_activity
where application_name = any($1::text[]) and datname = current_database() and pid <> pg_backend_pid()
"""

_CLAIM = """
insert into consumer_position as p (consumer_group, topic, "partition", next_offset, holder)
select $1, topic, "partition", -1, $2 from unnest($3::text[], $4::int[]) as wanted (topic, "partition")
order by topic, "partition"
on conflict (consumer_group, topic, "partition") do update set holder = excluded.holder
returning topic, "partition", next_offset
"""

_GIVE_UP = """
update consumer_position p set holder = ''
from unnest($3::text[], $4::int[]) as mine (topic, "partition")
where p.consumer_group = $1 and p.holder = $2 and p.topic = mine.topic and p."partition" = mine."partition"
"""

_MOVE = """
update consumer_position p set next_offset = m.next_offset, moved_at = now()
from unnest($3::text[], $4::int[], $5::bigint[], $6::bigint[]) as m (topic, "partition", from_offset, next_offset)
where p.consumer_group = $1 and p.holder = $2 and p.topic = m.topic and p."partition" = m."partition"
    and p.next_offset = m.from_offset
returning p.topic, p."partition"
"""


class Fenced(Exception):
    """Another worker owns these partitions now; what was done for them must be rolled back."""

    def __init__(self, partitions: frozenset[TopicPartition]) -> None:
        super().__init__(", ".join(sorted(f"{p.topic}/{p.partition}" for p in partitions)))
        self.partitions = partitions


@dataclass(frozen=True, slots=True)
class Move:
    """From where to where a batch moves a partition, by compare and set."""

    from_offset: int
    next_offset: int


@dataclass(frozen=True, slots=True)
class Owner:
    """A worker as the table of positions knows it; `holder` is the application_name of its one writing connection."""

    group: str
    holder: str


async def claim(
    connection: asyncpg.Connection, owner: Owner, partitions: Iterable[TopicPartition], *, end_wait_s: float
) -> dict[TopicPartition, int]:
    """Become the holder of these partitions and return their positions (`UNTOUCHED`: none yet).

    A predecessor that has not given them up is ended first, so that nothing of it can still commit.
    """
    topics, numbers = _columns(partitions)
    others = await connection.fetch(_OTHER_HOLDERS, owner.group, owner.holder, topics, numbers)
    names = [owner.holder, *(row["holder"] for row in others)]
    await connection.execute(_END_BACKENDS, names, round(end_wait_s * 1000))
    rows = await connection.fetch(_CLAIM, owner.group, owner.holder, topics, numbers)
    return {TopicPartition(topic, number): next_offset for topic, number, next_offset in rows}


async def give_up(connection: asyncpg.Connection, owner: Owner, partitions: Iterable[TopicPartition]) -> None:
    """Tell the successor that it need not end us."""
    await connection.execute(_GIVE_UP, owner.group, owner.holder, *_columns(partitions))


async def move(connection: asyncpg.Connection, owner: Owner, moves: Mapping[TopicPartition, Move]) -> None:
    """Move positions, in the transaction of what was read; from here on their rows are locked.

    Raises:
        Fenced: at least one was not where we left it, or is not ours.
    """
    topics, numbers = _columns(moves)
    from_offsets, next_offsets = [m.from_offset for m in moves.values()], [m.next_offset for m in moves.values()]
    moved = await connection.fetch(_MOVE, owner.group, owner.holder, topics, numbers, from_offsets, next_offsets)
    if len(moved) < len(moves):
        raise Fenced(frozenset(moves) - {TopicPartition(topic, number) for topic, number in moved})


def _columns(partitions: Iterable[TopicPartition]) -> tuple[list[str], list[int]]:
    partitions = list(partitions)
    return [p.topic for p in partitions], [p.partition for p in partitions]
