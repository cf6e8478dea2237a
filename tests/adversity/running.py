"""A whole path that tests hurt, a running `drm-ingest up` for one, and the ledger that judges it."""

import asyncio
import contextlib
import json
import os
import signal
import time
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
from loadtests.clients import Ledger
from loadtests.ledger import SIZES, generate
from loadtests.verify import verify
from prometheus_client.parser import text_string_to_metric_families
from tests.integration.edge import NO_TLS


class Whole(ABC):
    """Every part of the path, however they were started."""

    @property
    @abstractmethod
    def where(self) -> dict[str, Any]:
        """Where its parts are now: what the ready file of `drm-ingest up` tells."""

    async def samples(self) -> dict[str, dict[str, float]]:
        """The metrics of each process, as `name` or `name{label="value"}`."""
        found: dict[str, dict[str, float]] = {}
        async with httpx.AsyncClient(timeout=10, verify=NO_TLS) as client:
            for process, url in self.where["metrics"].items():
                samples = found[process] = {}
                for family in text_string_to_metric_families((await client.get(url)).text):
                    for sample in family.samples:
                        labels = ",".join(f'{name}="{value}"' for name, value in sorted(sample.labels.items()))
                        samples[sample.name + (f"{{{labels}}}" if labels else "")] = sample.value
        return found

    @contextlib.asynccontextmanager
    async def ledger(
        self, *, events: int, seed: int, rate: float = 3000.0, sizes: Sequence[int] = SIZES
    ) -> AsyncIterator[Ledger]:
        """Send while the body hurts something; then every promise must hold."""
        print(f"seed {seed}")
        where = self.where
        ledger = Ledger(give_up_after_s=90)
        sending = asyncio.create_task(
            generate(
                ledger, edge_url=where["edge_url"], key=where["sender_key"], events=events, seed=seed, rate=rate,
                sizes=sizes,
            )
        )  # fmt: skip
        try:
            yield ledger
            await sending
        finally:
            sending.cancel()
        findings = await verify(
            ledger.entries,
            kafka_bootstrap=where["kafka_bootstrap"],
            postgres_dsn=where["postgres_dsn"],
            prefix=where.get("topic_prefix", "drm"),
            metrics=where["metrics"],
        )
        assert not findings.counts, f"the ledger is not exact:\n{findings}"


@dataclass(frozen=True)
class Running(Whole):
    """A running `drm-ingest up`."""

    ready_file: Path

    @property
    def where(self) -> dict[str, Any]:
        """Its ready file, as it is now."""
        return dict(json.loads(self.ready_file.read_text()))

    def kill(self, name: str, number: signal.Signals = signal.SIGKILL) -> int:
        """Send a signal to one of its processes and return the pid it had.

        One that has ended by itself, as an edge does that is started without Kafka, is waited for.
        """
        deadline = time.monotonic() + 60
        while True:
            pid = int(self.where["pids"][name])
            try:
                os.kill(pid, number)
            except ProcessLookupError:
                assert time.monotonic() < deadline, f"{name} is not started again"
                time.sleep(0.1)
            else:
                return pid

    async def back(self, name: str, old_pid: int, within_s: float = 60.0) -> None:
        """Wait until a process has another pid in the ready file."""
        deadline = time.monotonic() + within_s
        while self.where["pids"][name] == old_pid:
            assert time.monotonic() < deadline, f"{name} did not come back within {within_s} s"
            await asyncio.sleep(0.1)
