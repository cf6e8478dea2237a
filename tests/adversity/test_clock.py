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
from tests.conftest import run_aside
from tests.integration.edge import an_event, until

from drm_ingest.postgres.migrate import migrate
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
