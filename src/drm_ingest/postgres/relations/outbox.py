"""Changes on their way out: which are published, who publishes them, and what each says.

One relay at a time holds an advisory lock in its session; with the session it loses the lock. It moves the position
only once Kafka has what is before it, so a change is published at least once, and after those with lower numbers.
"""

from collections.abc import Sequence

import asyncpg

_LOCK = 0x64726D_6F7574  # "drm" "out": the seed of the hash of the topic, so that each has a relay of its own


class NotTheRelay(Exception):
    """Another moved the position: it publishes, or a zombie of ours does."""


async def become_relay(db: asyncpg.Connection, topic: str) -> bool:
    """Become the relay of a topic for as long as this session lasts; False: another is."""
    mine: bool = await db.fetchval("select pg_try_advisory_lock(hashtextextended($2, $1))", _LOCK, topic)
    if mine:
        # Not from the beginning of time: from before the first change.
        await db.execute(
            "insert into relay_position (topic, number) values ($1, 0) "
            "on conflict (topic) do update set seen_at = clock_timestamp()",
            topic,
        )
    return mine


async def position(db: asyncpg.Connection, topic: str) -> int:
    """Return the number of the last change that is published for good."""
    number: int = await db.fetchval("select number from relay_position where topic = $1", topic)
    return number


async def tell_alive(db: asyncpg.Connection, topic: str) -> None:
    """Tell that the relay lives, whether or not it can publish."""
    await db.execute("update relay_position set seen_at = clock_timestamp() where topic = $1", topic)


async def move(db: asyncpg.Connection, topic: str, number: int, to: int) -> None:
    """Note that everything up to `to` is published.

    Raises:
        NotTheRelay: it is not at `number` any more.
    """
    moved = await db.fetchval(
        "update relay_position set number = $3, seen_at = clock_timestamp() where topic = $1 and number = $2 "
        "returning true",
        topic, number, to,
    )  # fmt: skip
    if not moved:
        raise NotTheRelay(f"the position of {topic} is not {number}")


async def lag_s(db: asyncpg.Connection, topic: str) -> float:
    """Return for how long the oldest change that is not published has been waiting, in seconds; 0: none is."""
    age: float = await db.fetchval(
        "select coalesce((select extract(epoch from clock_timestamp() - recorded_at) from relationship_change "
        "where number > coalesce((select number from relay_position where topic = $1), 0) order by number limit 1), 0)"
        "::float8",
        topic,
    )
    return max(0.0, age)


_END_ZOMBIE = """
select pg_terminate_backend(pid, 1000)
from pg_locks join relay_position on topic = $2
where locktype = 'advisory' and granted and objsubid = 1 and pid <> pg_backend_pid()
    and database = (select oid from pg_database where datname = current_database())
    and (classid::bigint << 32 | objid::bigint) = hashtextextended($2, $1)
    and seen_at < clock_timestamp() - make_interval(secs => $3)
"""


async def end_silent_relay(db: asyncpg.Connection, topic: str, silent_s: float) -> bool:
    """End the session of a relay that has given no sign of life for so long: its process hangs, and keeps the lock."""
    return bool(await db.fetch(_END_ZOMBIE, _LOCK, topic, silent_s))


_CHANGES = """
select change.number, change.change, change.subject, change.party, change.role, change.recorded_at, change.detail,
       change.relationship, change.version,
       case when change.change <> 'withdrawn' then row_to_json(it) end as after,
       row_to_json(before) as before,
       coalesce((
           select json_agg(json_build_object(
               'party', party, 'direction', direction, 'starts', starts, 'ends', ends, 'events', events,
               'events_by_type', types) order by starts nulls first)
           from relationship_move where number = change.number
       ), '[]') as moved
from relationship_change change
left join lateral (
    select id, version, subject, role, party, batch, lower(valid) as valid_from, upper(valid) as valid_to,
           lower(recorded) as recorded_at, asserted_by, reason
    from relationship where id = change.relationship and version = change.version
) as it on true
left join lateral (
    select id, version, subject, role, party, batch, lower(valid) as valid_from, upper(valid) as valid_to,
           lower(recorded) as recorded_at, asserted_by, reason
    from relationship where id = change.relationship
        and version = change.version - case when change.change = 'withdrawn' then 0 else 1 end
) as before on true
where change.number > $1 order by change.number limit $2
"""


async def changes(db: asyncpg.Connection, after: int, limit: int) -> Sequence[asyncpg.Record]:
    """Return the changes after a number, in order.

    Each has number, change, subject, party, role, recorded_at, relationship, version and, as JSON text: detail, before
    and after (the versions of the relation; None where there is none) and moved.
    """
    rows: Sequence[asyncpg.Record] = await db.fetch(_CHANGES, after, limit)
    return rows
