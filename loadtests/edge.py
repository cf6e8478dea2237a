"""The edge alone on one core, with authentication and validation on, acks=all to a real Kafka.

    python -m loadtests.edge --seconds 10

Starts a Kafka, a Postgres (for the key) and one edge of its own; the edge is pinned to the first core, everything else
to the second. For 1 and for 100 events a request it prints requests and events a second, CPU seconds of the edge per
100,000 events (the steadier figure: what else runs on the machine does not count), the time to the answer, and memory.
"""

import asyncio
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Annotated

import httpx
import typer
from rich.console import Console
from rich.table import Table

from drm_ingest.kafka import topics
from drm_ingest.postgres.credentials import ensure_key, new_key
from drm_ingest.postgres.migrate import migrate
from drm_ingest.postgres.pool import connect
from drm_ingest.schema import Schemas
from drm_ingest.settings import Settings
from drm_ingest.up.kafka import Kafka
from drm_ingest.up.ports import free_port
from drm_ingest.up.postgres import Postgres
from loadtests.usage import cpu_s, family, resident_mb

ROUNDS = ((1, 64), (100, 16))  # events a request, connections


async def _prepare(settings: Settings, key: str) -> None:
    await migrate(settings.postgres_dsn.get_secret_value())
    await topics.create(settings, Schemas.load().families)
    connection = await connect(settings, "loadtest")
    try:
        await ensure_key(connection, "loadtest", "sender", key)
    finally:
        await connection.close()


def _pin(pids: list[int], cores: set[int]) -> None:
    for pid in pids:
        for task in Path(f"/proc/{pid}/task").iterdir():
            os.sched_setaffinity(int(task.name), cores)


def _load(url: str, key: str, batch: int, connections: int, seconds: float) -> dict[str, float]:
    command = [
        sys.executable, "-m", "loadtests.load", "--url", url, "--key", key, "--batch", str(batch),
        "--connections", str(connections), "--seconds", str(seconds),
    ]  # fmt: skip
    done = subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True)
    return dict(json.loads(done.stdout))


def main(
    seconds: Annotated[float, typer.Option(min=1, max=600, help="How long each round takes.")] = 10,
    repeat: Annotated[int, typer.Option(min=1, max=50, help="Rounds of each kind.")] = 3,
) -> None:
    """Measure, and print a table."""
    console = Console(width=110)
    first, *others = sorted(os.sched_getaffinity(0))
    rest = set(others) or {first}
    os.sched_setaffinity(0, rest)  # inherited by all but the edge
    with tempfile.TemporaryDirectory() as folder:
        kafka, postgres = Kafka(Path(folder) / "kafka"), Postgres(Path(folder) / "postgres")
        kafka.start()
        postgres.start()
        key, port = new_key()[0], free_port()
        environment = {
            "DRM_KAFKA_BOOTSTRAP": kafka.bootstrap, "DRM_POSTGRES_DSN": postgres.dsn, "DRM_EDGE_PORT": str(port),
            "DRM_TOPIC_REPLICATION_FACTOR": "1", "DRM_TOPIC_MIN_INSYNC_REPLICAS": "1",
        }  # fmt: skip
        os.environ.update(environment)
        asyncio.run(_prepare(Settings(), key))
        edge = subprocess.Popen([sys.executable, "-m", "drm_ingest", "edge"], stderr=subprocess.DEVNULL)
        url = f"http://127.0.0.1:{port}"
        try:
            _wait(url)
            _pin(family(edge.pid), {first})
            table = Table("events a request", "requests/s", "events/s", "CPU-s per 100k", "ack p50 ms", "p99 ms", "MB")
            for batch, connections in ROUNDS:
                _load(url, key, batch, connections, 2)  # warm
                for _ in range(repeat):
                    before = cpu_s(edge.pid)
                    told = _load(url, key, batch, connections, seconds)
                    used = cpu_s(edge.pid) - before
                    table.add_row(
                        str(batch), f"{told['requests_per_s']:,}", f"{told['events_per_s']:,}",
                        f"{used / told['events_acked'] * 100_000:.2f}", str(told["ack_p50_ms"]),
                        str(told["ack_p99_ms"]), f"{resident_mb(edge.pid):.0f}",
                    )  # fmt: skip
            console.print(table)
        finally:
            edge.terminate()
            edge.wait(30)
            kafka.stop()
            postgres.stop()


def _wait(url: str) -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        try:
            if httpx.get(f"{url}/health/ready").status_code == httpx.codes.OK:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.2)
    raise TimeoutError("the edge did not become ready")


if __name__ == "__main__":
    typer.run(main)
