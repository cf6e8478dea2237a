"""One device at a hundred times its quota: it gets its quota, and the others get what they always got."""

import asyncio
import json
import sys
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
from tests.adversity.good import Good, exact
from tests.adversity.noisy import SUBJECT
from tests.integration.edge import Edge
from tests.integration.test_edge_quotas import set_quota

RATE, BURST_S = 20, 1
TIMES = 100
NOISY_KEY = "the-key-of-the-noisy-one"
pytestmark = pytest.mark.row("noisy-neighbour")


@pytest.mark.parametrize(
    ("rounds", "seconds"),
    [
        pytest.param(1, 3, id="quick"),
        pytest.param(8, 6, id="ratio", marks=[pytest.mark.slow, pytest.mark.timeout(600)]),
    ],
)
async def test_a_device_far_over_its_quota_changes_nothing_for_the_others(
    start_edge: Callable[..., Edge], seen: Callable[[str], None], rounds: int, seconds: float
) -> None:
    edge = start_edge()
    await set_quota(edge, "noisy fleet", NOISY_KEY, device_events_per_s=RATE, burst_s=BURST_S)
    quiet, beside = Good(edge), Good(edge)
    answers: Counter[str] = Counter()
    for _ in range(rounds):  # in turns: a machine that is busy is so for both
        async with quiet.sending():
            await asyncio.sleep(seconds)
        async with beside.sending():
            told = await be_noisy(edge, seconds)
        answers.update(told["answers"])
        assert told["answers"]["200"] <= RATE * (told["seconds"] + BURST_S) + 2
    assert set(answers) == {"200", "429"}
    times = sum(answers.values()) / (rounds * seconds * RATE)
    assert times > TIMES / 10  # as far as this machine sends that fast
    await exact(edge, quiet, beside)
    assert len(await edge.stored(SUBJECT)) == answers["200"]
    seen(f"at {times:.0f} times its quota; p99 of the others {quiet.p99_ms():.1f} → {beside.p99_ms():.1f} ms")
    if rounds > 1:
        assert times > 0.9 * TIMES
        assert beside.p99_ms() <= 1.5 * quiet.p99_ms()


async def be_noisy(edge: Edge, seconds: float) -> Any:
    command = ["-m", "tests.adversity.noisy", str(edge.settings.edge_port), NOISY_KEY, str(seconds), str(TIMES * RATE)]
    process = await asyncio.create_subprocess_exec(sys.executable, *command, stdout=asyncio.subprocess.PIPE)
    out, _ = await process.communicate()
    assert process.returncode == 0
    return json.loads(out)
