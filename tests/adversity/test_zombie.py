"""A worker is frozen for longer than its group waits, then goes on: it is fenced, and nothing is stored twice."""

import asyncio
import signal
from collections.abc import Callable

import pytest
from tests.adversity.blocking import AT_COMMIT, IN_COPY, held
from tests.adversity.parts import Parts
from tests.adversity.stored import committed, positions, until, value

from drm_ingest.settings import Settings
from drm_ingest.up.ports import free_port

Seen = Callable[[str], None]
StartParts = Callable[..., Parts]

HOLDERS = "select count(distinct holder) from consumer_position where holder <> ''"
BACKEND = "select count(*) from pg_stat_activity where pid = $1"


def another(settings: Settings) -> Settings:
    """The same path, with ports of their own for another of its workers."""
    return settings.model_copy(update={"enrich_port": free_port(), "attach_port": free_port()})


@pytest.mark.row("zombie")
@pytest.mark.parametrize("at", [IN_COPY, pytest.param(AT_COMMIT, marks=pytest.mark.slow)], ids=["copy", "commit"])
async def test_attach_frozen_in_its_transaction_is_ended_by_its_successor_and_stores_nothing_more_of_it(
    settings: Settings, start_parts: StartParts, seed: int, seen: Seen, at: tuple[str, int]
) -> None:
    settings = settings.model_copy(update={"postgres_lock_timeout_s": 300, "postgres_statement_timeout_s": 600})
    parts = await asyncio.to_thread(start_parts, settings)
    dsn = settings.postgres_dsn.get_secret_value()
    async with parts.ledger(events=8000, seed=seed):
        async with held(dsn, at) as backend:
            zombie = await value(dsn, "select application_name from pg_stat_activity where pid = $1", backend)
            parts["attach"].signal(signal.SIGSTOP)
            second = await asyncio.to_thread(start_parts, another(settings), ["attach"])
            took_s = await until(dsn, f"select ({BACKEND}) = 0", backend)
            assert await value(dsn, "select count(*) from consumer_position where holder = $1", zombie) == 0
        await until(dsn, "select count(*) > 3000 from event")  # the other does the work
        parts["attach"].signal(signal.SIGCONT)
        await until(dsn, f"select ({HOLDERS}) = 2")  # and the zombie has its share again
    assert parts["attach"].alive
    assert second["attach"].alive
    seen(f"attach frozen in its transaction ({at[0]}): ended {took_s:.1f} s after its successor was ready")


@pytest.mark.row("zombie")
@pytest.mark.slow
@pytest.mark.timeout(400)
@pytest.mark.parametrize("frozen_s", [0, 60])
async def test_attach_frozen_under_load_is_fenced_when_it_goes_on(
    settings: Settings, start_parts: StartParts, seed: int, seen: Seen, frozen_s: float
) -> None:
    parts = await asyncio.to_thread(start_parts, settings)
    dsn = settings.postgres_dsn.get_secret_value()
    async with parts.ledger(events=8000, seed=seed, rate=max(8000 / (frozen_s + 5), 100)):
        await until(dsn, "select count(*) > 500 from event")
        parts["attach"].signal(signal.SIGSTOP)
        (zombie,) = [await value(dsn, "select distinct holder from consumer_position where holder <> ''")]
        second = await asyncio.to_thread(start_parts, another(settings), ["attach"])
        await until(dsn, "select not exists (select from consumer_position where holder = $1)", zombie)
        await asyncio.sleep(frozen_s)
        parts["attach"].signal(signal.SIGCONT)
        await until(dsn, f"select ({HOLDERS}) = 2")
    assert parts["attach"].alive
    assert second["attach"].alive
    told = [line for line in parts["attach"].log_file.read_text().splitlines() if "batch failed" in line]
    seen(f"attach frozen {frozen_s + settings.reader_session_timeout_s:.0f} s: {len(told)} batches refused")


@pytest.mark.row("zombie")
@pytest.mark.slow
async def test_enrich_frozen_under_load_repeats_at_most_what_attach_suppresses(
    settings: Settings, start_parts: StartParts, seed: int, seen: Seen
) -> None:
    parts = await asyncio.to_thread(start_parts, settings)
    dsn = settings.postgres_dsn.get_secret_value()
    async with parts.ledger(events=8000, seed=seed, rate=1500):
        await until(dsn, "select count(*) > 500 from event")
        parts["enrich"].signal(signal.SIGSTOP)
        before = await committed(settings, "enrich")
        await asyncio.to_thread(start_parts, another(settings), ["enrich"])
        while await committed(settings, "enrich") == before:  # noqa: ASYNC110  # the other end is Kafka
            await asyncio.sleep(0.1)
        stored = sum((await positions(dsn)).values())
        parts["enrich"].signal(signal.SIGCONT)
        await until(dsn, "select sum(next_offset) filter (where next_offset > 0) > $1 from consumer_position", stored)
        await parts.ready("enrich")
    repeated = (await parts.samples())["attach"].get('drm_events_total{outcome="duplicate"}', 0.0)
    assert parts["enrich"].alive
    seen(f"enrich frozen: attach had {repeated:.0f} repeats to suppress")
