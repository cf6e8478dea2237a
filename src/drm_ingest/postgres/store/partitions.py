"""Partitions of `event`, one a UTC month: made before they are needed, dropped when all in them is past keeping.

Rows outside every month lie in `event_default`: what happened longer ago than is kept, and what came while no keeper
ran. Making a month takes its rows from there. What came late, though longer ago than is kept, is kept as long as the
rest from when it was recorded.

A clock that is years ahead must not drop what is kept: nothing is old by the clock alone, but only beside newer events.
"""

import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

import asyncpg

LOCK_KEY = 0x64726D_6B656570  # "drm" "keep": the advisory lock of the one keeper at work
DELETED_AT_ONCE_MAX = 10_000
PAUSE_MAX = timedelta(days=366)  # without events; a month after a longer one tells the time once another month follows
_NEVER = datetime(1, 1, 1, tzinfo=UTC)
MONTH_TIMEOUT_S = 60.0  # some 2 million rows; whatever comes late waits for so long
_TOO_BUSY = (asyncpg.LockNotAvailableError, asyncpg.QueryCanceledError)  # the time-outs of a lock and of a statement
_NAME = re.compile(r"event_(\d{4})_(\d{2})")

_PARTITIONS = """
select c.relname from pg_inherits i join pg_class c on c.oid = i.inhrelid where i.inhparent = 'event'::regclass
"""

_MONTHS_IN_DEFAULT = """
select distinct date_trunc('month', occurred_at, 'UTC') from event_default where occurred_at >= $1 and occurred_at < $2
"""

_ANY = "select exists (select from event where occurred_at >= $1 and occurred_at < $2)"

_DELETE_OLD = """
delete from event_default where ctid = any(array(
    select ctid from event_default where occurred_at < $1 and recorded_at < $1 limit $2
))
"""


@dataclass(frozen=True, slots=True)
class Kept:
    """What one round of keeping did: names of partitions, and how many rows were deleted from the default one."""

    made: list[str]
    dropped: list[str]
    busy: list[str]  # left for the next round: a lock did not come free
    deleted: int
    spared: list[str] = field(default_factory=list)  # past keeping by the clock, and no events are as new as that
    too_large: list[str] = field(default_factory=list)  # left in the default partition


async def keep(
    pool: asyncpg.Pool,
    now: datetime,
    *,
    months_ahead: int,
    retention_days: int,
    month_timeout_s: float = MONTH_TIMEOUT_S,
    leave: Collection[str] = (),
) -> Kept | None:
    """Make and drop what is due; None where another keeper is at work.

    `now` is the time by the clock of Postgres, which all keepers share. What is dropped is older than kept by that and
    by the newest events too.

    `month_timeout_s` bounds how long moving one month's rows may take, for who writes others waits meanwhile. What is
    too large for that is as well off where it is: name it in `leave` from then on, or it is tried each time.

    Raises:
        asyncpg.PostgresError, asyncpg.InterfaceError, OSError, TimeoutError: what was done so far stands.
    """
    async with pool.acquire() as connection:
        if not await connection.fetchval("select pg_try_advisory_lock($1)", LOCK_KEY):
            return None
        try:
            return await _keep(connection, now, months_ahead, retention_days, month_timeout_s, leave)
        finally:
            await connection.execute("select pg_advisory_unlock($1)", LOCK_KEY)


async def _keep(
    connection: asyncpg.Connection,
    now: datetime,
    months_ahead: int,
    retention_days: int,
    month_timeout_s: float,
    leave: Collection[str],
) -> Kept:
    made: list[str] = []
    dropped: list[str] = []
    busy: list[str] = []
    too_large: list[str] = []
    oldest = now - timedelta(days=retention_days)
    there = {name for (name,) in await connection.fetch(_PARTITIONS)}
    wanted = [_first_of_month(now)]
    for _ in range(months_ahead):
        wanted.append(_next_month(wanted[-1]))

    async def make(months: Iterable[datetime]) -> None:
        for month in sorted(months):
            name = f"event_{month:%Y_%m}"
            if name not in there and name not in leave:
                try:
                    await _make(connection, month, month_timeout_s)
                    made.append(name)
                except asyncpg.LockNotAvailableError:
                    busy.append(name)
                except asyncpg.QueryCanceledError:
                    too_large.append(name)

    # First those that are needed next: no month of the past, however much came late, may keep them waiting.
    await make(wanted)
    strays = await connection.fetch(_MONTHS_IN_DEFAULT, _next_month(_first_of_month(oldest)), wanted[0])
    await make(month for (month,) in strays)
    months = {name: month for name in sorted(there.union(made)) if (month := _month_of(name)) is not None}
    newest = await _newest(connection, months)
    oldest_by_events = min(oldest, newest - timedelta(days=retention_days)) if newest else _NEVER
    spared: list[str] = []
    for name, month in months.items():
        if oldest_by_events < _next_month(month) <= oldest:
            spared.append(name)
        elif _next_month(month) <= oldest_by_events:
            try:
                await connection.execute("select drop_event_month($1)", month)
                dropped.append(name)
            except _TOO_BUSY:
                busy.append(name)
    deleted = 0
    while True:
        done = int((await connection.execute(_DELETE_OLD, oldest_by_events, DELETED_AT_ONCE_MAX)).split()[1])
        deleted += done
        if done < DELETED_AT_ONCE_MAX:
            return Kept(made, dropped, busy, deleted, spared, too_large)


async def _newest(connection: asyncpg.Connection, months: Mapping[str, datetime]) -> datetime | None:
    """Return the end of the newest month with events that another such month came before, at most a year earlier.

    Events of a single month may have their time from a clock that is wrong by years.
    """
    newest: datetime | None = None
    for month in sorted(months.values(), reverse=True):
        if await connection.fetchval(_ANY, month, _next_month(month)):
            if newest is not None and newest - month <= PAUSE_MAX:
                return _next_month(newest)
            newest = month
    return None


async def _make(connection: asyncpg.Connection, month: datetime, timeout_s: float) -> None:
    """Make one month with what the default partition has of it; see migrations/0004_roles.sql."""
    async with connection.transaction():
        await connection.execute(f"set local statement_timeout = {round(timeout_s * 1000)}")
        await connection.execute("select make_event_month($1)", month, timeout=2 * timeout_s)


def _month_of(name: str) -> datetime | None:
    match = _NAME.fullmatch(name)
    return datetime(int(match[1]), int(match[2]), 1, tzinfo=UTC) if match else None


def _first_of_month(time: datetime) -> datetime:
    return time.astimezone(UTC).replace(day=1, hour=0, minute=0, second=0, microsecond=0)


def _next_month(month: datetime) -> datetime:
    return _first_of_month(month + timedelta(days=31))
