"""Whatever dies, and whenever: every acknowledged event is stored exactly once."""

import asyncio
import random

import pytest
from tests.adversity.running import Running

EVENTS = 12_000


async def test_the_ledger_is_exact_on_a_good_day(path: Running, seed: int) -> None:
    async with path.ledger(events=EVENTS, seed=seed) as ledger:
        pass
    answers = {entry.answer for entry in ledger.entries}
    assert "unknown" not in answers
    assert {entry.kind for entry in ledger.entries} == {"new", "repeat", "conflict", "invalid", "unclassified"}


@pytest.mark.slow  # the edge has tests of its own
@pytest.mark.parametrize("process", ["enrich", "attach"])
async def test_the_ledger_is_exact_when_a_process_is_killed_again_and_again_under_load(
    path: Running, seed: int, process: str
) -> None:
    draw = random.Random(seed)
    async with path.ledger(events=EVENTS, seed=seed):
        for _ in range(3):
            await asyncio.sleep(draw.uniform(0.1, 1.0))
            await path.back(process, path.kill(process))


@pytest.mark.slow
@pytest.mark.row("broker-killed")
async def test_the_ledger_is_exact_when_kafka_is_killed_and_comes_back_under_load(path: Running, seed: int) -> None:
    async with path.ledger(events=EVENTS, seed=seed) as ledger:
        await asyncio.sleep(1.5)
        await path.back("kafka", path.kill("kafka"))
    waited = max(ledger.ack_s) > 1.0  # within its deadline the edge waits for Kafka to come back
    assert waited or ledger.resent, "Kafka was gone, and nobody noticed"


@pytest.mark.slow
@pytest.mark.row("postgres-down")
async def test_the_ledger_is_exact_when_postgres_is_killed_and_comes_back_under_load(path: Running, seed: int) -> None:
    async with path.ledger(events=EVENTS, seed=seed) as ledger:
        await asyncio.sleep(1.5)
        await path.back("postgres", path.kill("postgres"))
    assert all(entry.sendings == 1 for entry in ledger.entries), "the edge waited for Postgres"
