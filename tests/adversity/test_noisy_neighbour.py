"""One device at a hundred times its quota: it gets its quota, and the others get what they always got."""

import asyncio
import json
import sys
from collections import Counter
from collections.abc import Callable
from statistics import median
from typing import Any

import pytest
from tests.adversity.good import PATIENT, Good, exact
from tests.adversity.noisy import AT_ONCE, SUBJECT
from tests.integration.edge import Edge
from tests.integration.test_edge_quotas import set_quota

from drm_ingest.edge.replies import INSISTENT_PAUSE_S
from drm_ingest.up.ports import free_port

RATE, BURST_S = 5, 1
TIMES = 100
NOISY_KEY = "the-key-of-the-noisy-one"
pytestmark = pytest.mark.row("noisy-neighbour")


@pytest.mark.parametrize("connections", [1, 250])
@pytest.mark.parametrize(
    ("rounds", "seconds"),
    [
        pytest.param(1, 3, id="quick"),
        pytest.param(11, 4, id="ratio", marks=[pytest.mark.slow, pytest.mark.timeout(600)]),
    ],
)
async def test_a_device_far_over_its_quota_changes_nothing_for_the_others(
    start_edge: Callable[..., Edge], seen: Callable[[str], None], rounds: int, seconds: float, connections: int
) -> None:
    """On one connection it waits for each 429; with hundreds it has all the answers it wants, each of them cheap."""
    edge, elsewhere = start_edge(**PATIENT), start_edge(**PATIENT, edge_port=free_port()) if rounds > 1 else None
    await set_quota(edge, "noisy fleet", NOISY_KEY, device_events_per_s=RATE, burst_s=BURST_S)
    quiet, beside = [Good(edge) for _ in range(rounds)], [Good(edge) for _ in range(rounds)]
    answers: Counter[str] = Counter()
    taken = 0
    for alone, disturbed in zip(quiet, beside, strict=True):  # in turns: a machine that is busy is so for both
        if elsewhere is not None:  # the noise is on our machine, for once: what it costs that, it costs in both
            async with alone.sending():
                taken += (await be_noisy(elsewhere, seconds, connections))["answers"].get("200", 0)
        async with disturbed.sending():
            told = await be_noisy(edge, seconds, connections)
        answers.update(told["answers"])
        assert told["answers"]["200"] <= RATE * (told["seconds"] + BURST_S) + 2 * connections
    assert set(answers) == {"200", "429"}
    times = sum(answers.values()) / (rounds * seconds * RATE)
    if connections == 1:
        # The first after a 200 does not wait.
        assert answers["429"] <= rounds * (seconds / INSISTENT_PAUSE_S + 2) + answers["200"]
    else:
        assert times > TIMES / 10  # as far as this machine sends that fast
    taken += answers["200"]
    await exact(edge, *(good for good in (*quiet, *beside) if good.answers))
    # Of the last ones the answers were not waited for.
    assert 0 <= len(await edge.stored(SUBJECT)) - taken <= 2 * rounds * connections * AT_ONCE
    way = f"on {connections} connections it tries {TIMES} times its quota and is answered {times:.1f} times it"
    if elsewhere is None:
        seen(f"{way}; p99 of the others {beside[0].p99_ms():.1f} ms")
        return
    # That of the middle round: what else the machine does for a second or two spoils one or two of them.
    before, after = (median(good.p99_ms() for good in each) for each in (quiet, beside))
    seen(f"{way}; p99 of the others, with it elsewhere and here, {before:.1f} → {after:.1f} ms")
    assert after <= 1.5 * before


async def be_noisy(edge: Edge, seconds: float, connections: int) -> Any:
    """Be it in a process of its own; return what that tells."""
    arguments = [edge.settings.edge_port, NOISY_KEY, seconds, TIMES * RATE, connections]
    command = [sys.executable, "-m", "tests.adversity.noisy", *map(str, arguments)]
    process = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE)
    out, _ = await process.communicate()
    assert process.returncode == 0
    return json.loads(out)
