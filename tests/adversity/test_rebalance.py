"""Workers join and leave all the time: the others go on, and the ledger is exact."""

import asyncio
import contextlib
import itertools
import signal
import time
from collections.abc import Callable
from pathlib import Path

import asyncpg
import pytest
from tests.adversity.parts import Parts
from tests.adversity.test_zombie import another

from drm_ingest.settings import Settings

Seen = Callable[[str], None]

RATE = 400.0
GAP_S = 15.0


@pytest.mark.row("rebalance")
@pytest.mark.parametrize(
    ("times", "every_s"),
    [
        pytest.param(4, 1.5, id="quick"),  # one of each joins and leaves
        pytest.param(40, 3.0, marks=[pytest.mark.slow, pytest.mark.timeout(600)], id="long"),
    ],
)
async def test_while_workers_join_and_leave_there_is_progress(
    settings: Settings,
    start_parts: Callable[..., Parts],
    tmp_path: Path,
    seed: int,
    seen: Seen,
    times: int,
    every_s: float,
) -> None:
    parts = await asyncio.to_thread(start_parts, settings)
    guests: dict[str, Parts] = {}
    left: list[tuple[str, Parts]] = []
    gaps = Gaps(settings.postgres_dsn.get_secret_value())
    try:
        async with parts.ledger(events=round(RATE * (times * every_s + 3)), seed=seed, rate=RATE, sizes=(1, 10)):
            watching = asyncio.create_task(gaps.watch())
            for number, worker in enumerate(itertools.islice(itertools.cycle(["enrich", "attach"]), times)):
                began = time.monotonic()
                if worker in guests:
                    left.append((worker, guest := guests.pop(worker)))
                    await guest.ready(worker)
                    guest[worker].signal(signal.SIGTERM)
                else:
                    guests[worker] = Parts(another(settings), tmp_path / f"guest-{number}", [worker])
                    await asyncio.to_thread(guests[worker][worker].start)
                await asyncio.sleep(began + every_s - time.monotonic())
            watching.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await watching
        for worker, guest in left:
            assert await asyncio.to_thread(guest[worker].wait, 30)
            assert guest[worker].exit_code == 0, guest[worker].last_lines(20)
    finally:
        for _, guest in (*left, *guests.items()):
            guest.end()
    shared = sum(rebalances(parts, worker) for worker in ("enrich", "attach"))
    seen(f"{times} times a worker joined or left, {shared} rebalances: {gaps.longest_s:.1f} s without a row at most")
    assert shared >= times
    assert gaps.longest_s < GAP_S


def rebalances(parts: Parts, worker: str) -> int:
    """Return how often this worker got its share."""
    return parts[worker].log_file.read_text().count("partitions are ours")


class Gaps:
    """How long nothing was stored, at most."""

    def __init__(self, dsn: str) -> None:
        self._dsn = dsn
        self.longest_s = 0.0

    async def watch(self) -> None:
        connection = await asyncpg.connect(self._dsn)
        try:
            stored, since = 0, time.monotonic()
            while True:
                now = await connection.fetchval("select coalesce(sum(next_offset), 0) from consumer_position")
                if now != stored:
                    stored, since = now, time.monotonic()
                self.longest_s = max(self.longest_s, time.monotonic() - since)
                await asyncio.sleep(0.05)
        finally:
            await connection.close()
