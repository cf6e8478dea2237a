"""The load generator: it lasts as long as it is told to, and one that dies says so."""

import sys
import time

import pytest
from loadtests import load
from loadtests.path import loaded
from rich.console import Console
from tests.integration.edge import KEY, Edge


async def test_only_what_comes_after_the_load_counts_as_waiting_for_an_answer(
    edge: Edge, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(load, "ANSWERED_WITHIN_S", 2.0)
    until = time.perf_counter() + 2.5
    made = load.Load(KEY, batch=10, devices=10, host="127.0.0.1", connections=2, until=until)
    await load.drive(made, edge.settings.edge_port)
    assert time.perf_counter() >= until
    assert set(made.statuses) == {200}
    assert made.lost == 0


@pytest.mark.parametrize(
    ("ends", "how"),
    [
        ("raise SystemExit(3)", "exit code 3"),
        ("import os; os.kill(os.getpid(), 9)", "signal 9"),
    ],
)
def test_a_load_generator_that_dies_says_so(ends: str, how: str) -> None:
    began = time.monotonic()
    with pytest.raises(SystemExit, match=how):
        loaded([sys.executable, "-c", ends], 600, lambda: None, Console(quiet=True))
    assert time.monotonic() - began < 60
