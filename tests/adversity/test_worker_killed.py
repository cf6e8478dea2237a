"""A worker is killed at the worst moments: nothing is stored twice or left out, and the backlog is caught up."""

import asyncio
import time
from collections.abc import Callable, Sequence

import pytest
from loadtests.verify import quiet
from tests.adversity.blocking import AT_COMMIT, IN_COPY, held
from tests.adversity.parts import Parts
from tests.adversity.stored import committed, positions, until, value

from drm_ingest.settings import Settings

Seen = Callable[[str], None]
StartParts = Callable[..., Parts]

BACKLOG = 60_000
CAUGHT_UP_S = 30.0
BACKEND = "select count(*) from pg_stat_activity where pid = $1"


@pytest.mark.row("worker-killed")
async def test_attach_killed_in_copy_and_before_its_commit_and_after_it_stores_each_event_once(
    settings: Settings, start_parts: StartParts, seed: int, seen: Seen
) -> None:
    # No time-out of Postgres frees what the dead one holds: its successor has to.
    settings = settings.model_copy(update={"postgres_lock_timeout_s": 300, "postgres_statement_timeout_s": 600})
    parts = await asyncio.to_thread(start_parts, settings)
    dsn = settings.postgres_dsn.get_secret_value()
    async with parts.ledger(events=6000, seed=seed, rate=1000):
        for point, at in {"in the middle of COPY": IN_COPY, "between COPY and commit": AT_COMMIT}.items():
            async with held(dsn, at) as backend:
                parts["attach"].kill()
                assert await value(dsn, BACKEND, backend) == 1, "Postgres noticed by itself"
                parts["attach"].start()
                took_s = await until(dsn, f"select ({BACKEND}) = 0", backend)
            seen(f"killed {point}: what it held was free {took_s:.1f} s after its successor was started")
        reached = sum((await positions(dsn)).values())
        await until(dsn, "select sum(greatest(next_offset, 0)) > $1 from consumer_position", reached)
        parts["attach"].kill()
        stored, known = await positions(dsn), await committed(settings, "attach")
        ahead = sum(offset - known.get(partition, 0) for partition, offset in stored.items())
        assert ahead > 0, "Kafka knew all of it"
        parts["attach"].start()
    seen(f"killed between commit and offset: {ahead} events ahead of it")


@pytest.mark.row("worker-killed")
async def test_enrich_killed_between_the_acknowledgement_and_its_offset_repeats_what_attach_suppresses(
    settings: Settings, start_parts: StartParts, seed: int, seen: Seen
) -> None:
    parts = await asyncio.to_thread(start_parts, settings, ["edge", "attach"])
    dsn = settings.postgres_dsn.get_secret_value()
    never_commits = settings.model_copy(update={"enrich_commit_interval_s": 3600})
    first = await asyncio.to_thread(start_parts, never_commits, ["enrich"])
    async with parts.ledger(events=6000, seed=seed):
        await until(dsn, "select count(*) >= 1000 from event")
        first["enrich"].kill()
        assert not await committed(settings, "enrich"), "an offset was committed"
        await asyncio.to_thread(start_parts, settings, ["enrich"])
    repeated = (await parts.samples())["attach"]['drm_events_total{outcome="duplicate"}']
    assert repeated >= 1000
    seen(f"enrich killed before its offset: {repeated:.0f} events came to attach again")


@pytest.mark.row("worker-killed")
@pytest.mark.slow
@pytest.mark.timeout(400)
@pytest.mark.parametrize("workers", [["attach"], ["enrich"], ["enrich", "attach"]], ids=" and ".join)
async def test_a_backlog_that_grew_while_a_worker_was_dead_is_caught_up(
    settings: Settings, start_parts: StartParts, seed: int, seen: Seen, workers: Sequence[str]
) -> None:
    parts = await asyncio.to_thread(start_parts, settings)
    dsn = settings.postgres_dsn.get_secret_value()
    for worker in workers:
        parts[worker].kill()
    caught_up_s = 0.0
    async with parts.ledger(events=BACKLOG, seed=seed, rate=1e9) as ledger:
        while sum(entry.acked > 0 for entry in ledger.entries) < BACKLOG * 0.99:  # noqa: ASYNC110  # polls a list
            await asyncio.sleep(0.2)
        if "attach" not in workers:
            assert await value(dsn, "select count(*) from event") == 0
        began = time.monotonic()
        for worker in workers:
            parts[worker].start()
        await quiet(settings.kafka_bootstrap, dsn, settings.topic_prefix)
        caught_up_s = time.monotonic() - began
    seen(f"{BACKLOG:,} events behind, {' and '.join(workers)} caught up in {caught_up_s:.1f} s")
    assert caught_up_s < CAUGHT_UP_S
