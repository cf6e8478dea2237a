"""A million sends of ten thousand ids: exactly ten thousand rows, and a repeat costs no more than twice a first."""

import asyncio
import itertools
import random
import secrets
from collections.abc import Callable, Sequence
from urllib.parse import urlsplit

import pytest
from loadtests.clients import Http, Ledger
from loadtests.traffic import Entry, devices
from loadtests.usage import cpu_s
from loadtests.verify import quiet, verify
from tests.adversity.parts import PROCESSES, Parts
from tests.adversity.stored import value

from drm_ingest.settings import Settings

Seen = Callable[[str], None]

CONNECTIONS = 8
BATCH = 100
COST_RATIO = 2.0


def some_events(count: int, seed: int) -> list[Entry]:
    """Make valid events, each once, of a hundred devices."""
    made = devices(f"repeated-{secrets.token_hex(4)}", 100, seed, duplicates=0, invalid=0, conflicts=0)
    return list(itertools.chain.from_iterable(device.events(count // 100) for device in made))


async def send(parts: Parts, ledger: Ledger, entries: Sequence[Entry]) -> None:
    """Send in this order, over several connections at once."""
    url = urlsplit(parts.where["edge_url"])
    batches = iter([entries[at : at + BATCH] for at in range(0, len(entries), BATCH)])

    async def one() -> None:
        client = Http(str(url.hostname), url.port or 80, parts.where["sender_key"], ledger)
        try:
            for batch in batches:  # shared: each takes the next
                await client.send([batch])
        finally:
            await client.close()

    await asyncio.gather(*(one() for _ in range(CONNECTIONS)))


async def settled(parts: Parts) -> None:
    await quiet(parts.settings.kafka_bootstrap, parts.where["postgres_dsn"], parts.settings.topic_prefix, 600)


@pytest.mark.row("million-repeats")
@pytest.mark.parametrize(
    ("sends", "ids", "remembered"),
    [
        # Without a memory enrich lets all of them pass, and Postgres has to tell.
        pytest.param(20_000, 1000, 1, id="quick"),
        pytest.param(1_000_000, 10_000, 1, marks=[pytest.mark.slow, pytest.mark.timeout(1800)], id="attach"),
        pytest.param(1_000_000, 10_000, 200_000, marks=[pytest.mark.slow, pytest.mark.timeout(1800)], id="enrich"),
    ],
)
async def test_however_often_an_event_is_sent_it_is_one_row(
    settings: Settings,
    start_parts: Callable[..., Parts],
    seed: int,
    seen: Seen,
    sends: int,
    ids: int,
    remembered: int,
) -> None:
    settings = settings.model_copy(update={"enrich_remembered_events_max": remembered})
    parts = await asyncio.to_thread(start_parts, settings)
    dsn = settings.postgres_dsn.get_secret_value()
    ledger, draw = Ledger(give_up_after_s=90), random.Random(seed)
    firsts = some_events(ids, seed)
    await send(parts, ledger, firsts)
    repeats = [entry for _ in range(sends // ids) for entry in draw.sample(firsts, len(firsts))]
    await send(parts, ledger, repeats)
    await settled(parts)
    assert await value(dsn, "select count(*) from event") == ids
    assert await value(dsn, "select count(*) from event_identity") == ids
    assert await value(dsn, "select sum(events) from subject_day") == ids
    findings = await verify(
        ledger.entries,
        kafka_bootstrap=settings.kafka_bootstrap,
        postgres_dsn=dsn,
        prefix=settings.topic_prefix,
        metrics=parts.where["metrics"],
    )
    assert not findings.counts, f"the ledger is not exact:\n{findings}"
    outcomes = await parts.samples()
    passed = outcomes["attach"].get('drm_events_total{outcome="duplicate"}', 0.0)
    seen(f"{len(repeats) + ids:,} sends of {ids:,} ids: {ids:,} rows; {passed:,.0f} repeats came as far as attach")


@pytest.mark.row("million-repeats")
@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("remembered", [1, 200_000], ids=["attach", "enrich"])
async def test_a_repeat_costs_at_most_twice_what_a_first_does(
    settings: Settings, start_parts: Callable[..., Parts], seed: int, seen: Seen, remembered: int
) -> None:
    settings = settings.model_copy(update={"enrich_remembered_events_max": remembered})
    parts = await asyncio.to_thread(start_parts, settings)
    ledger = Ledger(give_up_after_s=90)
    await send(parts, ledger, some_events(10_000, seed))  # all is warm
    await settled(parts)
    firsts = some_events(50_000, seed + 1)

    async def cost(entries: Sequence[Entry]) -> float:
        before = await used_cpu_s(parts)
        await send(parts, ledger, entries)
        await settled(parts)
        return (await used_cpu_s(parts) - before) / len(entries)

    first, repeat = await cost(firsts), await cost(firsts)
    seen(f"a repeat costs {repeat / first:.2f} of a first, told apart by {'attach' if remembered == 1 else 'enrich'}")
    assert repeat <= COST_RATIO * first


async def used_cpu_s(parts: Parts) -> float:
    """Return what our processes and the backend that attach writes through have used."""
    backend = await value(
        parts.where["postgres_dsn"], "select pid from pg_stat_activity where application_name like 'drm attach%' "
        "and datname = current_database()"
    )  # fmt: skip
    pids = [parts[name].pid for name in PROCESSES]
    return sum(cpu_s(pid) for pid in [*pids, backend] if pid is not None)
