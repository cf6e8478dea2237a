"""The keeper on a real Postgres: months are made before they are needed, and dropped when past keeping."""

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta

import asyncpg
import pytest

from drm_ingest.postgres.pool import Pool, open_pool
from drm_ingest.postgres.store.partitions import LOCK_KEY, Kept, keep
from drm_ingest.settings import Settings

NOW = datetime(2026, 12, 31, 23, 30, tzinfo=UTC)
YEARS = 730


@pytest.fixture
async def pool(settings: Settings) -> AsyncIterator[Pool]:
    async with open_pool(settings, "keeper") as opened:
        yield opened


@pytest.fixture
async def other(database: str) -> AsyncIterator[asyncpg.Connection]:
    connection = await asyncpg.connect(database)
    yield connection
    await connection.close()


async def kept(pool: Pool, now: datetime = NOW, days: int = YEARS) -> Kept:
    did = await keep(pool, now, months_ahead=2, retention_days=days)
    assert did is not None
    return did


async def put(pool: Pool, *times: datetime, recorded_at: datetime = NOW) -> None:
    await pool.executemany(
        "insert into event (occurred_at, received_at, recorded_at, content_hash, subject, source, id, type, "
        "time_quality, sender) values ($1, $1, $2, gen_random_uuid(), 's', '', 'e', 't', 'sent', 'x')",
        [(time, recorded_at) for time in times],
    )


async def receive(pool: Pool, now: datetime) -> None:
    """Put events into this month and the one before, as where devices send all the time."""
    await put(pool, now, now - timedelta(days=31), recorded_at=now)


async def where(pool: Pool) -> list[tuple[str, int]]:
    rows = await pool.fetch("select tableoid::regclass::text as part, count(*) as n from event group by 1 order by 1")
    return [(row["part"], row["n"]) for row in rows]


async def test_this_month_and_the_next_ones_are_made_once(pool: Pool) -> None:
    assert (await kept(pool)).made == ["event_2026_12", "event_2027_01", "event_2027_02"]
    assert await kept(pool) == Kept([], [], [], 0)
    assert (await kept(pool, NOW + timedelta(hours=1))).made == ["event_2027_03"]
    await put(pool, NOW, NOW + timedelta(minutes=30), NOW - timedelta(days=31))
    assert await where(pool) == [("event_2026_12", 1), ("event_2027_01", 1), ("event_default", 1)]


async def test_a_month_takes_its_rows_from_the_default_partition_with_their_index(pool: Pool) -> None:
    await put(pool, NOW, NOW - timedelta(days=100), NOW - timedelta(days=100, seconds=1), NOW + timedelta(days=60))
    assert (await kept(pool)).made == ["event_2026_12", "event_2027_01", "event_2027_02", "event_2026_09"]
    assert await where(pool) == [("event_2026_09", 2), ("event_2026_12", 1), ("event_default", 1)]
    indexes = await pool.fetch("select tablename from pg_indexes where indexdef like '%(subject, occurred_at)'")
    assert {row["tablename"] for row in indexes} >= {"event_2026_09", "event_2026_12"}


async def test_a_month_is_dropped_when_all_of_it_is_past_keeping_and_not_before(pool: Pool) -> None:
    for now in (NOW, NOW + timedelta(days=60)):
        await kept(pool, now)
    await put(pool, NOW)
    first_of_january = datetime(2027, 1, 1, tzinfo=UTC)
    last = first_of_january + timedelta(days=YEARS)
    await receive(pool, last)
    did = await kept(pool, last - timedelta(seconds=1))
    assert (did.dropped, did.spared) == ([], [])
    assert await pool.fetchval("select count(*) from event") == 3
    did = await kept(pool, last)
    assert (did.dropped, did.spared) == (["event_2026_12"], [])
    assert await pool.fetchval("select count(*) from event") == 2


async def test_what_came_late_is_kept_as_long_as_the_rest_from_when_it_was_recorded(pool: Pool) -> None:
    long_ago = NOW - timedelta(days=3000)
    await put(pool, long_ago)
    await put(pool, long_ago - timedelta(days=1), recorded_at=long_ago)
    await receive(pool, NOW)
    assert (await kept(pool)).deleted == 1
    assert ("event_default", 1) in await where(pool)
    later = NOW + timedelta(days=YEARS, seconds=1)
    await receive(pool, later)
    assert (await kept(pool, later)).deleted == 1


async def test_a_clock_that_is_ten_years_ahead_drops_nothing_and_retention_goes_on_when_it_is_right(pool: Pool) -> None:
    await receive(pool, NOW)
    assert await kept(pool) == Kept(["event_2026_12", "event_2027_01", "event_2027_02", "event_2026_11"], [], [], 0)
    ahead = NOW + timedelta(days=3653)
    did = await kept(pool, ahead)
    assert (did.dropped, did.deleted) == ([], 0)
    assert did.spared == ["event_2026_11", "event_2026_12", "event_2027_01", "event_2027_02"]
    await put(pool, ahead, ahead, recorded_at=ahead)  # the edge's clock too, and what is received then
    did = await kept(pool, ahead + timedelta(hours=1))
    assert (did.dropped, did.deleted) == ([], 0)
    assert sum(count for _, count in await where(pool)) == 4
    right = NOW + timedelta(days=YEARS)
    await receive(pool, right)
    assert (await kept(pool, right)).dropped == ["event_2026_11"]


async def test_after_a_pause_of_years_retention_goes_on_with_the_second_month(pool: Pool) -> None:
    await receive(pool, NOW)
    await kept(pool)
    later = NOW + timedelta(days=3 * YEARS)
    await put(pool, later, recorded_at=later)
    assert (await kept(pool, later)).dropped == []
    later += timedelta(days=31)
    await put(pool, later, recorded_at=later)
    assert (await kept(pool, later)).dropped == ["event_2026_11", "event_2026_12", "event_2027_01", "event_2027_02"]


async def test_one_keeper_at_a_time(pool: Pool, other: asyncpg.Connection) -> None:
    await other.execute("select pg_advisory_lock($1)", LOCK_KEY)
    assert await keep(pool, NOW, months_ahead=2, retention_days=YEARS) is None
    await other.execute("select pg_advisory_unlock($1)", LOCK_KEY)
    results = await asyncio.gather(*(keep(pool, NOW, months_ahead=2, retention_days=YEARS) for _ in range(3)))
    assert [name for did in results if did for name in did.made] == ["event_2026_12", "event_2027_01", "event_2027_02"]


async def test_a_lock_that_does_not_come_free_leaves_the_month_for_the_next_round(
    settings: Settings, other: asyncpg.Connection
) -> None:
    async with open_pool(settings.model_copy(update={"postgres_lock_timeout_s": 0.1}), "keeper") as pool:
        async with other.transaction():
            await other.execute("select from event_default")
            did = await kept(pool)
            assert (did.made, did.busy) == ([], ["event_2026_12", "event_2027_01", "event_2027_02"])
        assert (await kept(pool)).made == ["event_2026_12", "event_2027_01", "event_2027_02"]


async def test_readers_of_other_months_hold_nobody_up(pool: Pool, other: asyncpg.Connection) -> None:
    await kept(pool)
    async with other.transaction():
        await other.execute("select from event_2026_12")
        assert (await kept(pool, NOW + timedelta(hours=1))).made == ["event_2027_03"]


async def test_a_month_of_the_past_with_too_much_in_it_keeps_no_other_waiting(pool: Pool) -> None:
    await put(pool, NOW - timedelta(days=100), NOW - timedelta(days=200))
    await slow_down(pool)
    did = await keep(pool, NOW, months_ahead=2, retention_days=YEARS, month_timeout_s=0.5)
    assert did == Kept(
        made=["event_2026_12", "event_2027_01", "event_2027_02", "event_2026_09"],
        dropped=[], busy=[], deleted=0, too_large=["event_2026_06"],
    )  # fmt: skip
    did = await keep(pool, NOW, months_ahead=2, retention_days=YEARS, month_timeout_s=0.5, leave=did.too_large)
    assert did == Kept([], [], [], 0)
    assert ("event_default", 1) in await where(pool)


async def test_a_month_with_much_in_it_is_given_more_time_than_other_statements(settings: Settings) -> None:
    async with open_pool(settings.model_copy(update={"postgres_statement_timeout_s": 0.5}), "keeper") as pool:
        await put(pool, NOW - timedelta(days=200))
        await slow_down(pool)
        assert "event_2026_06" in (await kept(pool)).made


async def slow_down(pool: Pool) -> None:
    """Let each row of a month long ago take two seconds to be moved."""
    await pool.execute(
        "create function wait() returns trigger language plpgsql as "
        "$$ begin if old.occurred_at < '2026-08-01' then perform pg_sleep(2); end if; return old; end $$"
    )
    await pool.execute("create trigger slow before delete on event_default for each row execute function wait()")
