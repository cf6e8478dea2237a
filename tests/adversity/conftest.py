"""The whole path as a person runs it (`drm-ingest up`), for tests that hurt it; as `path`."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator

import pytest
from tests.adversity.running import Running

from drm_ingest.up.ports import free_port

READY_WITHIN_S = 120.0


@pytest.fixture(scope="session")
def start_up(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[], Running]]:
    """Return a function that starts a whole path of its own; all end with the session."""
    started: list[subprocess.Popen[bytes]] = []

    def start() -> Running:
        folder = tmp_path_factory.mktemp("up")
        port = next(port for port in iter(free_port, None) if port < 65_000)
        ready = folder / "ready.json"
        environment = {name: value for name, value in os.environ.items() if not name.startswith("DRM_")}
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
def path(start_up: Callable[[], Running]) -> Running:
    """One whole path for all tests that leave it healthy."""
    return start_up()


@pytest.fixture
def seed() -> int:
    """A random seed; printed with a failure, so that the run can be repeated."""
    return int.from_bytes(os.urandom(3))
