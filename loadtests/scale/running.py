"""`drm-ingest up` on the data, and live load through its edge."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

READY_WITHIN_S = 300.0
STOPPED_WITHIN_S = 120.0


@contextmanager
def up(folder: Path, port: int) -> Iterator[dict[str, Any]]:
    """Run everything on the Postgres in `folder`, with a new Kafka; yields what its ready file says.

    Raises:
        SystemExit: it could not be started; what it said stands in `folder`/up.log.
    """
    ready, log = folder / "ready.json", folder / "up.log"
    ready.unlink(missing_ok=True)
    shutil.rmtree(folder / "kafka", ignore_errors=True)  # of an earlier run; positions are by topic, and its are new
    prefix = f"scale{time.time_ns()}"
    command = [sys.executable, "-m", "drm_ingest", "up", "--data-dir", str(folder), "--port", str(port)]
    with log.open("w") as out:
        process = subprocess.Popen(
            [*command, "--ready-file", str(ready)], env=os.environ | {"DRM_TOPIC_PREFIX": prefix}, stdout=out,
            stderr=out, start_new_session=True,
        )  # fmt: skip
    try:
        deadline = time.monotonic() + READY_WITHIN_S
        while not ready.exists():
            if process.poll() is not None:
                raise SystemExit(f"it ended before it was ready; {log} says why")
            if time.monotonic() > deadline:
                raise SystemExit(f"it was not ready within {READY_WITHIN_S:g} s; {log} says why")
            time.sleep(0.1)
        yield json.loads(ready.read_text()) | {"topic_prefix": prefix}
    finally:
        process.send_signal(signal.SIGINT)
        try:
            process.wait(STOPPED_WITHIN_S)
        except subprocess.TimeoutExpired:
            process.kill()


class Load:
    """Events of all devices in turn through the edge, at a rate, from a process of its own, while it is entered."""

    def __init__(self, where: dict[str, Any], rate: float, devices: int) -> None:
        self._command = [
            sys.executable, "-m", "loadtests.load", "--url", where["edge_url"], "--key", where["sender_key"],
            "--batch", "20", "--devices", str(devices), "--subjects", "meter", "--rate", str(rate),
            "--seconds", "7200",
        ]  # fmt: skip

    def __enter__(self) -> Self:
        self._process = subprocess.Popen(self._command, stdout=subprocess.DEVNULL)
        return self

    def check(self) -> None:
        """Raise SystemExit if it has ended."""
        if self._process.poll() is not None:
            raise SystemExit("the load generator has ended; if it said why, that stands above")

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        self._process.wait()
