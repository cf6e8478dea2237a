"""The whole path, for tests that hurt it: as a person runs it (`path`), or part by part (`start_parts`).

What the tests of a row of docs/reliability.md saw is told at the end (rows.py).
"""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

import pytest
from tests.adversity import rows
from tests.adversity.abuse import holds, subject
from tests.adversity.parts import PROCESSES, Parts, Place
from tests.adversity.running import Running
from tests.integration.edge_fixtures import start_edge

from drm_ingest.settings import Settings
from drm_ingest.up.ports import free_port

__all__ = ["holds", "start_edge", "subject"]  # fixtures for the tests of abuse, and of the edge alone

READY_WITHIN_S = 120.0


@pytest.fixture
def seen(request: pytest.FixtureRequest) -> Callable[[str], None]:
    """Return a function that keeps a figure for the row of this test: `seen("back 3.2 s after the broker")`."""
    return rows.figures(request.node).append


@pytest.fixture(scope="session")
def start_up(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Running]]:
    """Return a function that starts a whole path of its own, with these variables; all end with the session."""
    started: list[subprocess.Popen[bytes]] = []

    def start(**variables: str) -> Running:
        folder = tmp_path_factory.mktemp("up")
        port = next(port for port in iter(free_port, None) if port < 65_000)
        ready = folder / "ready.json"
        environment = {name: value for name, value in os.environ.items() if not name.startswith("DRM_")}
        environment |= variables
        command = [
            sys.executable, "-m", "drm_ingest", "up", "--data-dir", str(folder / "data"), "--port", str(port),
            "--ready-file", str(ready),
        ]  # fmt: skip
        with (folder / "up.log").open("wb") as log:
            started.append(subprocess.Popen(command, stdout=log, stderr=log, env=environment))
        deadline = time.monotonic() + READY_WITHIN_S
        while not ready.exists():
            said = (folder / "up.log").read_text()
            assert started[-1].poll() is None, said
            assert time.monotonic() < deadline, f"not ready within {READY_WITHIN_S} s:\n{said}"
            time.sleep(0.1)
        return Running(ready)

    yield start
    for process in started:
        process.send_signal(signal.SIGTERM)
    for process in started:
        process.wait(30)


@pytest.fixture(scope="session")
def path(start_up: Callable[..., Running]) -> Running:
    """One whole path for all tests that leave it healthy."""
    return start_up()


@pytest.fixture
def start_parts(tmp_path: Path) -> Iterator[Callable[..., Parts]]:
    """Return a function that starts the parts, with these settings, on whatever they name; all end with the test."""
    started: list[Parts] = []

    def start(
        settings: Settings, processes: Sequence[str] = PROCESSES, places: Mapping[str, Place] = MappingProxyType({})
    ) -> Parts:
        started.append(Parts(settings, tmp_path / f"parts-{len(started)}", processes, places))
        started[-1].start()
        return started[-1]

    yield start
    for parts in started:
        parts.end()


@pytest.fixture
def seed() -> int:
    """A random seed; printed with a failure, so that the run can be repeated."""
    return int.from_bytes(os.urandom(3))
