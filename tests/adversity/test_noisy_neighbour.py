"""One device at a hundred times its quota: it gets its quota, and the others get what they always got."""

import asyncio
import json
import sys
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
from tests.adversity.good import Good, exact
from tests.adversity.noisy import AT_ONCE, SUBJECT
from tests.integration.edge import Edge
from tests.integration.test_edge_quotas import set_quota

from drm_ingest.edge.replies import INSISTENT_PAUSE_S

RATE, BURST_S = 20, 1
TIMES = 100
NOISY_KEY = "the-key-of-the-noisy-one"
pytestmark = pytest.mark.row("noisy-neighbour")


@pytest.mark.parametrize("connections", [1, 250])
@pytest.mark.parametrize(
    ("rounds", "seconds"),
    [
        pytest.param(1, 3, id="quick"),
        pytest.param(8, 6, id="ratio", marks=[pytest.mark.slow, pytest.mark.timeout(600)]),
    ],
)
async def test_a_device_far_over_its_quota_changes_nothing_for_the_others(
    start_edge: Callable[..., Edge], seen: Callable[[str], None], rounds: int, seconds: float, connections: int
) -> None:
    """On one connection it waits for each 429; with hundreds it has all the answers it wants, each of them cheap."""
    edge = start_edge()
    await set_quota(edge, "noisy fleet", NOISY_KEY, device_events_per_s=RATE, burst_s=BURST_S)
    quiet, beside = Good(edge), Good(edge)
    answers: Counter[str] = Counter()
    for _ in range(rounds):  # in turns: a machine that is busy is so for both
        async with quiet.sending():
            await asyncio.sleep(seconds)
        async with beside.sending():
            told = await be_noisy(edge, seconds, connections)
        answers.update(told["answers"])
        assert told["answers"]["200"] <= RATE * (told["seconds"] + BURST_S) + 2 * connections
    assert set(answers) == {"200", "429"}
    times = sum(answers.values()) / (rounds * seconds * RATE)
    if connections == 1:
        assert answers["429"] <= rounds * (seconds / INSISTENT_PAUSE_S + 2)
    else:
        assert times > TIMES / 10  # as far as this machine sends that fast
    await exact(edge, quiet, beside)
    # Of the last ones the answers were not waited for.
    assert 0 <= len(await edge.stored(SUBJECT)) - answers["200"] <= rounds * connections * AT_ONCE
    way = f"on {connections} connections it tries {TIMES} times its quota and is answered {times:.1f} times it"
    seen(f"{way}; p99 of the others {quiet.p99_ms():.1f} → {beside.p99_ms():.1f} ms")
    if rounds > 1:
        assert beside.p99_ms() <= 1.5 * quiet.p99_ms()


async def be_noisy(edge: Edge, seconds: float, connections: int) -> Any:
    """Be it in a process of its own; return what that tells."""
    arguments = [edge.settings.edge_port, NOISY_KEY, seconds, TIMES * RATE, connections]
    command = [sys.executable, "-m", "tests.adversity.noisy", *map(str, arguments)]
    process = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE)
    out, _ = await process.communicate()
    assert process.returncode == 0
    return json.loads(out)
