"""Postgres is killed, shut down at once, loses its sessions, is locked: nobody who sends events notices."""

import asyncio
import signal
import time
from collections.abc import Awaitable, Callable

import asyncpg
import pytest
from loadtests.clients import Ledger
from pydantic import SecretStr
from tests.adversity.parts import PROCESSES, Parts
from tests.adversity.stored import value

from drm_ingest.settings import Settings
from drm_ingest.up.postgres import Postgres

Seen = Callable[[str], None]
Fault = Callable[[Postgres, float], Awaitable[None]]

RATE = 600.0  # events a second
SHARE = 0.95
BEFORE_S = 2.0
MEMORY_MB = 128.0  # attach reads ahead, up to 64 MiB; Python keeps some of what it has freed
LEAK = 3  # connections more than before: a pool may have been asked twice at a time

CONNECTIONS = """
select count(*) from pg_stat_activity where application_name like 'drm%' and datname = current_database()
"""


async def killed(server: Postgres, seconds: float) -> None:
    await asyncio.to_thread(server.kill)
    await asyncio.sleep(seconds)
    await asyncio.to_thread(server.start)


async def shut_down_at_once(server: Postgres, seconds: float) -> None:
    server.signal(signal.SIGQUIT)
    assert await asyncio.to_thread(server.child.wait, 30)
    await asyncio.sleep(seconds)
    await asyncio.to_thread(server.start)


async def without_backends(server: Postgres, seconds: float) -> None:
    until, ended = time.monotonic() + seconds, 0
    while time.monotonic() < until:
        ended += await value(
            server.dsn,
            "select count(*) filter (where pg_terminate_backend(pid)) from pg_stat_activity "
            "where datname = current_database() and backend_type = 'client backend' and pid <> pg_backend_pid()",
        )
        await asyncio.sleep(2)
    assert ended >= seconds / 2, "there was nobody to end"  # who waits before it tries again has none for a moment


async def locked(server: Postgres, seconds: float) -> None:
    connection = await asyncpg.connect(server.dsn)
    try:
        async with connection.transaction():
            await connection.execute("lock table event in access exclusive mode")
            await asyncio.sleep(seconds)
    finally:
        await connection.close()


@pytest.mark.row("postgres-down")
@pytest.mark.parametrize(
    ("fault", "seconds"),
    [
        pytest.param(killed, 2.5, id="quick"),
        *(
            pytest.param(fault, 60.0, marks=[pytest.mark.slow, pytest.mark.timeout(600)], id=fault.__name__)
            for fault in (killed, shut_down_at_once, without_backends, locked)
        ),
    ],
)
async def test_the_edge_acknowledges_as_before_and_nothing_grows_or_leaks(
    settings: Settings,
    private_postgres: Callable[[], Postgres],
    start_parts: Callable[..., Parts],
    seed: int,
    seen: Seen,
    fault: Fault,
    seconds: float,
) -> None:
    server = await asyncio.to_thread(private_postgres)
    settings = settings.model_copy(update={"postgres_dsn": SecretStr(server.dsn)})
    parts = await asyncio.to_thread(start_parts, settings)
    events = round(RATE * (1 + BEFORE_S + seconds + 4))
    async with parts.ledger(events=events, seed=seed, rate=RATE, sizes=(1, 10)) as ledger:
        await asyncio.sleep(1)
        before = await acknowledged(ledger, asyncio.sleep(BEFORE_S))
        connections = await value(server.dsn, CONNECTIONS)
        grown = Grown(parts)
        meanwhile = await acknowledged(ledger, fault(server, seconds), grown)
        name = getattr(fault, "__name__", "").replace("_", " ")
        seen(f"{name} {seconds:g} s: {meanwhile:.0f} of {RATE:.0f}/s acknowledged")
        assert meanwhile >= SHARE * min(RATE, before), f"{name}: {meanwhile:.0f}/s, before {before:.0f}/s"
    grown.look()
    assert all(entry.sendings == 1 for entry in ledger.entries), "the edge waited for Postgres"
    for worker in PROCESSES:
        await parts.ready(worker)
    left = await value(server.dsn, CONNECTIONS)
    seen(f"memory {', '.join(f'{name} +{mb:.0f} MB' for name, mb in grown.most.items())}; "
         f"connections {connections} before, {left} after")  # fmt: skip
    assert max(grown.most.values()) < MEMORY_MB
    assert left <= connections + LEAK


class Grown:
    """How much memory each process took since this was made, at most."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self._before = {name: parts.memory_mb(name) for name in PROCESSES}
        self.most = dict.fromkeys(PROCESSES, 0.0)

    def look(self) -> None:
        for name, before in self._before.items():
            self.most[name] = max(self.most[name], self._parts.memory_mb(name) - before)


async def acknowledged(ledger: Ledger, meanwhile: Awaitable[None], grown: Grown | None = None) -> float:
    """Return how many events a second were acknowledged while something went on."""
    count, began = answered(ledger), time.monotonic()
    task = asyncio.ensure_future(meanwhile)
    while not task.done():
        await asyncio.wait([task], timeout=0.5)
        if grown is not None:
            grown.look()
    await task
    return (answered(ledger) - count) / (time.monotonic() - began)


def answered(ledger: Ledger) -> int:
    return sum(entry.acked > 0 for entry in ledger.entries)
