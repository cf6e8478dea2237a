"""The machine's clock is off, or steps: order by offset, no negative age, no partition lost."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import MappingProxyType
from typing import Any

import asyncpg
import httpx
import pytest
from tests.adversity.parts import KEY, PROCESSES, Parts, Place
from tests.attaching import Bench, bench, event
from tests.conftest import run_aside
from tests.integration.edge import an_event, until

from drm_ingest.pipeline.attach import accounts
from drm_ingest.postgres.migrate import migrate
from drm_ingest.postgres.pool import open_pool
from drm_ingest.postgres.store.partitions import keep
from drm_ingest.settings import Settings
from drm_ingest.up.postgres import Postgres

Seen = Callable[[str], None]
StartParts = Callable[..., Parts]

DAYS_AGO = (0, 40, 100)  # three months at least
pytestmark = pytest.mark.row("clock")


def faketime(**how: str) -> dict[str, str]:
    """Return the variables that give a process another clock, and leave it the monotonic one, as a machine does."""
    found = sorted(Path("/usr/lib").glob("**/faketime/libfaketimeMT.so.1"))
    assert found, "libfaketime is missing; `make tools` installs it"
    return {"LD_PRELOAD": str(found[0]), "FAKETIME_DONT_FAKE_MONOTONIC": "1", **how}


# -- without another clock than ours -----------------------------------------------------------------------------------


@pytest.fixture
async def attached(settings: Settings) -> AsyncIterator[Bench]:
    async with bench(settings) as made:
        yield made


async def test_an_age_is_never_negative_when_the_clock_of_the_worker_is_behind_or_steps_back(
    attached: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    now, before_s = datetime.now(UTC), 0.0
    async with attached.attaching() as worker:
        for number, off_s in enumerate((0, -3600, 3600, -10 * 365 * 86_400)):
            monkeypatch.setattr(accounts, "time", lambda off_s=off_s: time.time() + off_s)
            await attached.put(*(event(f"e-{number}-{n}", at=now - timedelta(seconds=1)) for n in range(20)))
            await attached.until("select count(*) = $1 from event", 20 * (number + 1))
            await worker.counted({"attached": 20.0 * (number + 1)})
            ages_s = worker.sample("drm_freshness_seconds_sum")
            if off_s == -3600:
                assert ages_s == before_s
            before_s = ages_s
        assert worker.sample("drm_freshness_seconds_count") == 80
        assert before_s == pytest.approx(20 * 3600, rel=0.1)


async def test_a_clock_that_is_ten_years_ahead_drops_no_month(settings: Settings) -> None:
    now = datetime.now(UTC)
    ahead = now + timedelta(days=3653)
    async with open_pool(settings, "keeper") as pool:
        for at in (now, now - timedelta(days=31), ahead):  # one that was received by that clock
            await pool.execute(
                "insert into event (occurred_at, received_at, content_hash, subject, source, id, type, time_quality, "
                "sender) values ($1, $1, gen_random_uuid(), 's', '', 'e', 't', 'sent', 'x')",
                at,
            )
        await keep(pool, now, months_ahead=2, retention_days=730)
        for _ in range(2):
            kept = await keep(pool, ahead, months_ahead=2, retention_days=730)
            assert kept is not None
            assert (kept.dropped, kept.deleted) == ([], 0)
            assert len(kept.spared) >= 2
        assert await pool.fetchval("select count(*) from event") == 3


# -- the clocks of processes -------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("off", ["-1h", "+1h", "+10y"])
@pytest.mark.parametrize("whose", [("edge",), ("enrich",), ("attach",), PROCESSES], ids="+".join)
async def test_the_ledger_is_exact_and_nothing_is_dropped_when_a_clock_is_off(
    settings: Settings, start_parts: StartParts, seed: int, seen: Seen, whose: tuple[str, ...], off: str
) -> None:
    places = {name: Place(environment=faketime(FAKETIME=off)) for name in whose}
    settings = settings.model_copy(update={"keeper_interval_s": 1})
    parts = await asyncio.to_thread(start_parts, settings, PROCESSES, places)
    async with kept_all(parts), parts.ledger(events=1500, seed=seed):
        pass
    ages = await check_ages(parts)
    seen(f"{'+'.join(whose)} {off}: mean age {ages:.1f} s")


@pytest.mark.slow
@pytest.mark.parametrize("whose", [("edge",), PROCESSES], ids="+".join)
async def test_the_ledger_is_exact_when_clocks_step_to_and_fro_under_way(
    settings: Settings, start_parts: StartParts, tmp_path: Path, seed: int, seen: Seen, whose: tuple[str, ...]
) -> None:
    clock = tmp_path / "clock"
    clock.write_text("+0")
    environment = faketime(FAKETIME_TIMESTAMP_FILE=str(clock), FAKETIME_CACHE_DURATION="1")
    settings = settings.model_copy(update={"keeper_interval_s": 1})
    places = {name: Place(environment=environment) for name in whose}
    parts = await asyncio.to_thread(start_parts, settings, PROCESSES, places)
    steps = ("+1h", "+0", "-1h", "+10y", "+0")
    async with kept_all(parts), parts.ledger(events=1000 * 3 * len(steps), seed=seed, rate=1000):
        for step in steps:
            await asyncio.sleep(3)  # libfaketime looks once a second
            clock.write_text(step)
    await check_ages(parts)
    seen(f"{'+'.join(whose)} stepped {', '.join(steps)}")


# -- the clock of Postgres ---------------------------------------------------------------------------------------------


class PostgresByAnotherClock(Postgres):
    """It gets its clock when it is no longer root: what libfaketime shares between processes belongs to who began."""

    clock: Mapping[str, str] = MappingProxyType({})

    def prepare(self) -> None:
        super().prepare()
        self.child.argv = ["/usr/bin/env", *(f"{name}={value}" for name, value in self.clock.items()), *self.child.argv]


@pytest.mark.slow
async def test_when_the_clock_of_postgres_is_ten_years_ahead_nothing_is_dropped_and_it_goes_on_when_that_is_right(
    settings: Settings, start_parts: StartParts, tmp_path: Path, seed: int
) -> None:
    server = PostgresByAnotherClock(tmp_path / "postgres")
    server.start()
    try:
        run_aside(_migrate(server.dsn))
        settings = settings.model_copy(
            update={"keeper_interval_s": 1, "postgres_dsn": type(settings.postgres_dsn)(server.dsn)}
        )
        parts = await asyncio.to_thread(start_parts, settings)
        async with kept_all(parts):
            for clock in (faketime(FAKETIME="+10y"), {}):
                server.stop()
                server.clock = clock
                await asyncio.to_thread(server.start)
                async with parts.ledger(events=1000, seed=seed):
                    pass
                await asyncio.sleep(3)  # the keeper has had its rounds
                await check_ages(parts)
                ahead = await fetchval(parts, "select clock_timestamp() > '2034-01-01'")
                assert ahead == bool(clock)
    finally:
        server.kill()


# -- what all of them hold ---------------------------------------------------------------------------------------------


@contextlib.asynccontextmanager
async def kept_all(parts: Parts) -> AsyncIterator[None]:
    """Store events of some months; each is still there, in its month, when the body is done and the keeper has run."""
    now = datetime.now(UTC)
    sent = [an_event(time=(now - timedelta(days=days)).isoformat()) for days in DAYS_AGO]
    subjects = [event["subject"] for event in sent]
    ahead = an_event(time=(now + timedelta(days=20 * 365)).isoformat())
    assert await post(parts, sent) == []
    assert [result["code"] for result in await post(parts, [ahead])] == ["time_clamped"]
    count = "select count(*) = $2 from event where subject = any($1)"

    async def all_there() -> bool:
        return bool(await fetchval(parts, count, subjects, len(sent)))

    await until(all_there, 60)
    yield
    before = time.monotonic()
    while time.monotonic() < before + 2.5:  # noqa: ASYNC110 - the keeper has had its rounds
        await asyncio.sleep(0.5)
    assert await all_there(), "retention dropped what is to be kept"
    in_the_future = "select count(*) from event where subject = $1 and occurred_at > received_at + interval '24 h'"
    assert await fetchval(parts, in_the_future, ahead["subject"]) == 0


async def check_ages(parts: Parts) -> float:
    """Hold that no age, no lag and no duration is negative; return the mean age of what `attach` stored."""
    samples = await parts.samples()
    negative = {
        f"{process} {name}": value
        for process, own in samples.items()
        for name, value in own.items()
        if value < 0 and ("seconds" in name or "lag" in name)
    }
    assert not negative
    attach = samples["attach"]
    assert attach["drm_freshness_seconds_count"] > 0
    return attach["drm_freshness_seconds_sum"] / attach["drm_freshness_seconds_count"]


async def post(parts: Parts, events: list[dict[str, Any]]) -> list[dict[str, Any]]:
    async with httpx.AsyncClient(timeout=30) as client:
        answer = await client.post(
            parts.url("edge") + "/v1/events", json=events, headers={"authorization": f"Bearer {KEY}"}
        )
    assert answer.status_code == 200, answer.text
    return list(answer.json()["results"])


async def fetchval(parts: Parts, query: str, *values: object) -> object:
    connection = await asyncpg.connect(parts.where["postgres_dsn"])
    try:
        return await connection.fetchval(query, *values)
    finally:
        await connection.close()


async def _migrate(dsn: str) -> None:
    assert await migrate(dsn)
