"""The parts of the path, each a process of its own that nobody restarts, on a Kafka and a Postgres of the test's own.

`drm-ingest up` brings back what dies; here a test decides what is gone, and for how long.
"""

import asyncio
import contextlib
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

import asyncpg
import httpx
import psutil
from tests.adversity.running import Whole
from tests.conftest import make_environment, run_aside

from drm_ingest.kafka import topics
from drm_ingest.postgres.credentials import ensure_key
from drm_ingest.schema import Schemas
from drm_ingest.settings import Settings
from drm_ingest.up.child import Child

PROCESSES = ("edge", "enrich", "attach")
KEY = "the-key-of-the-tests"
READY_WITHIN_S = 60.0


@dataclass(frozen=True)
class Place:
    """Where a process runs, if not here as all the others."""

    host: str = "127.0.0.1"
    command: Sequence[str] = ()  # in front of its own
    environment: Mapping[str, str] = field(default_factory=dict)  # beside that of the settings


HERE = Place()


class Parts(Whole):
    """`edge`, `enrich` and `attach` as children: `parts["edge"].kill()`, `.signal(…)`, `.start()`."""

    def __init__(
        self,
        settings: Settings,
        folder: Path,
        processes: Sequence[str] = PROCESSES,
        places: Mapping[str, Place] = MappingProxyType({}),
    ) -> None:
        self.settings = settings
        self._places = {name: places.get(name, HERE) for name in processes}
        environment = make_environment(settings)
        self._children = {
            name: Child(
                name,
                [*place.command, sys.executable, "-m", "drm_ingest", name],
                log_file=folder / f"{name}.log",
                pid_file=folder / f"{name}.pid",
                env={**environment, **place.environment},
            )
            for name, place in self._places.items()
        }

    def __getitem__(self, process: str) -> Child:
        return self._children[process]

    @property
    def where(self) -> dict[str, Any]:
        """What the ready file of `drm-ingest up` tells."""
        return {
            "edge_url": self.url("edge"),
            "sender_key": KEY,
            "kafka_bootstrap": self.settings.kafka_bootstrap,
            "postgres_dsn": self.settings.postgres_dsn.get_secret_value(),
            "topic_prefix": self.settings.topic_prefix,
            "metrics": {name: self.url(name) + "/metrics" for name in self._children},
        }

    def url(self, process: str) -> str:
        return f"http://{self._places[process].host}:{getattr(self.settings, f'{process}_port')}"

    def start(self) -> None:
        """Create topics and key, start all and wait until all are ready."""
        run_aside(self._prepare())
        for child in self._children.values():
            child.start()
        for name in self._children:
            run_aside(self.ready(name))

    async def ready(self, process: str, within_s: float = READY_WITHIN_S) -> float:
        """Wait until a process is ready; return the seconds that took."""
        began = time.monotonic()
        async with httpx.AsyncClient(timeout=5) as client:
            while True:
                with contextlib.suppress(httpx.TransportError):
                    if (await client.get(self.url(process) + "/health/ready")).status_code == 200:
                        return time.monotonic() - began
                child = self._children[process]
                assert child.alive, f"{process} ended with {child.exit_code}:\n{child.last_lines(20)}"
                assert time.monotonic() - began < within_s, f"{process} is not ready:\n{child.last_lines(20)}"
                await asyncio.sleep(0.05)

    def memory_mb(self, process: str) -> float:
        """Return its resident memory, and that of what it started."""
        pid = self._children[process].pid
        assert pid is not None
        root = psutil.Process(pid)
        bytes_: int = sum(each.memory_info().rss for each in [root, *root.children(recursive=True)])
        return bytes_ / 1e6

    def end(self) -> None:
        for child in self._children.values():
            child.kill()

    async def _prepare(self) -> None:
        await topics.create(self.settings, Schemas.load(self.settings.schemas_dir).families)
        connection = await asyncpg.connect(self.settings.postgres_dsn.get_secret_value())
        await ensure_key(connection, "tests", "sender", KEY)
        await connection.close()
