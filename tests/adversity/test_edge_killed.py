"""The edge dies under load, again and again: it is back at once, and nothing that it acknowledged is lost."""

import asyncio
import os
import random
import signal
import time
from collections.abc import Callable

import pytest
from tests.adversity.running import Running

KILL_AFTER_S = (0.2, 1.0)  # of being ready again, drawn evenly
BACKOFF_MAX_S = 5.0
START_S = 2.0  # beside the pause: seeing that it died, and starting a process, on a busy machine


@pytest.mark.row("edge-killed")
@pytest.mark.parametrize(
    ("kills", "events"),
    [
        pytest.param(2, 3000, id="quick"),
        pytest.param(20, 50_000, marks=[pytest.mark.slow, pytest.mark.timeout(900)], id="20 times"),
    ],
)
async def test_an_edge_killed_under_load_is_back_within_the_restart_backoff(
    path: Running, seed: int, kills: int, events: int, seen: Callable[[str], None]
) -> None:
    draw = random.Random(seed)
    pid_file = path.ready_file.parent / "data" / "pids" / "edge.pid"
    started_s, ready_s = [], []
    # Small requests, so that some are in flight whenever it dies.
    async with path.ledger(events=events, seed=seed, rate=400, sizes=(1,)) as ledger:
        for _ in range(kills):
            await asyncio.sleep(draw.uniform(*KILL_AFTER_S))
            old = path.kill("edge")
            killed_at = time.monotonic()
            while not pid_file.exists() or pid_file.read_text().split()[:1] in ([], [str(old)]):
                assert time.monotonic() - killed_at < 30, "nobody starts it again"
                await asyncio.sleep(0.02)
            started_s.append(time.monotonic() - killed_at)
            await path.back("edge", old)
            ready_s.append(time.monotonic() - killed_at)
    assert max(started_s) <= BACKOFF_MAX_S + START_S
    assert ledger.resent, "the edge was gone, and nobody noticed"
    assert "unknown" not in {entry.answer for entry in ledger.entries}, "somebody waited 90 s for it"
    seen(f"killed {kills} times: started again after {max(started_s):.1f} s at most, ready after {max(ready_s):.1f} s")


@pytest.mark.slow  # a process of its own, not one of `up`, is told to stop in test_goodbye.py
@pytest.mark.row("edge-killed")
async def test_an_edge_told_to_stop_under_load_is_started_again_by_up_and_nothing_is_unknown(
    path: Running, seed: int
) -> None:
    async with path.ledger(events=3000, seed=seed, rate=1000) as ledger:
        await asyncio.sleep(1)
        await path.back("edge", path.kill("edge", signal.SIGTERM))
    assert "unknown" not in {entry.answer for entry in ledger.entries}
    assert os.getpgid(int(path.where["pids"]["edge"]))
