"""enrich alone: what an event costs from the ingress to its family's topic, context and acknowledgement included.

    python -m loadtests.enrich --events 300000
    python -m loadtests.enrich --rate 12000 --seconds 30

Starts a Kafka and a Postgres of its own, fills the registry, lets the worker read each device once (so its cache is
warm), then either puts all events before a worker that stands still and lets it go, or sends them at a rate.
"""

import asyncio
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import asyncpg
import httpx
import msgspec
import typer
from pydantic import SecretStr
from rich.console import Console

from drm_ingest.event import Receipt, content_hash
from drm_ingest.kafka import topics
from drm_ingest.kafka.topics import Topics
from drm_ingest.kafka.writer import Outgoing, Writer
from drm_ingest.metrics import Metrics
from drm_ingest.postgres.migrate import migrate
from drm_ingest.schema import Schemas
from drm_ingest.settings import Settings
from drm_ingest.up.kafka import Kafka
from drm_ingest.up.ports import free_port
from drm_ingest.up.postgres import Postgres
from loadtests.usage import cpu_s, resident_mb

WAIT_S = 300
CHUNK = 5000
DATA = b'{"temperature":21.5,"humidity":44.25,"battery":87,"rssi":-71,"state":"ok","run":%d}'


async def register(dsn: str, devices: int) -> None:
    """Give every device a model, an owner and a vendor."""
    connection = await asyncpg.connect(dsn)
    await connection.execute(
        f"""
        insert into device (subject, model, firmware, registered_by)
            select 'meter-' || n, 'M 7', '1.2.3', 'registry' from generate_series(0, {devices - 1}) n;
        insert into party (kind, name) values ('vendor', 'shop');
        insert into party (kind, name) select 'customer', n::text from generate_series(0, {devices // 3}) n;
        insert into relationship (subject, role, party, exclusive, subject_kind, party_kind, valid)
            select 'meter-' || n, 'owner', party.id, true, 'device', kind, '[2020-01-01Z,)'
            from generate_series(0, {devices - 1}) n join party on party.name = (n / 3)::text;
        insert into relationship (subject, role, party, exclusive, subject_kind, party_kind, valid)
            select 'meter-' || n, 'sold_by', party.id, true, 'device', kind, '[2020-01-01Z,)'
            from generate_series(0, {devices - 1}) n join party on party.name = 'shop';
        analyze
        """
    )
    await connection.close()


class Source:
    """Makes events in the shape that the edge gives them, `batch` of a request."""

    def __init__(self, writer: Writer, topic: str, devices: int, batch: int) -> None:
        self._writer, self._topic, self._devices, self._batch = writer, topic, devices, batch
        self.made = 0
        self._receipt = b""

    def events(self, count: int) -> Iterator[Outgoing]:
        now = datetime.now(UTC)
        text = now.isoformat(timespec="milliseconds").removesuffix("+00:00").encode() + b"Z"
        for _ in range(count):
            number = self.made
            self.made += 1
            if number % self._batch == 0 or not self._receipt:
                receipt = Receipt(received_at=now, request_id=f"{number:016x}", sender="loadtest")
                self._receipt = msgspec.json.encode(receipt)
            key = b"meter-%d" % (number % self._devices)
            data = DATA % number
            value = (
                b'{"specversion":"1.0","id":"7f1c2a3e-4b5d-%012d","type":"device.measurement","subject":"%b",'
                b'"time":"%b","sequence":"%09d","data":%b}' % (number, key, text, number, data)
            )
            headers = [
                ("receipt", self._receipt),
                ("content-hash", content_hash("device.measurement", text.decode(), data)),
            ]
            yield Outgoing(self._topic, self._writer.partition_for(self._topic, key), key, value, headers)

    async def send(self, count: int) -> None:
        while count > 0:
            await self._writer.write(list(self.events(min(CHUNK, count))))
            count -= CHUNK


async def counted(http: httpx.AsyncClient) -> dict[str, float]:
    """The metrics without labels, and the outcomes."""
    text = (await http.get("/metrics")).text
    pairs = (line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))
    return {name: float(value) for name, value in pairs}


async def done(http: httpx.AsyncClient, worker: subprocess.Popen[bytes], events: int) -> None:
    """Wait until that many events are enriched."""
    async with asyncio.timeout(WAIT_S):
        while True:
            if worker.poll() is not None:
                raise RuntimeError("the worker has ended")
            try:
                if (await counted(http)).get('drm_events_total{outcome="enriched"}', 0) >= events:
                    return
            except httpx.TransportError:
                pass
            await asyncio.sleep(0.05)


async def measure(
    settings: Settings, events: int, rate: int | None, seconds: int, devices: int, batch: int, profile: Path | None
) -> None:
    """Load, and print."""
    console = Console(width=110)
    await migrate(settings.postgres_dsn.get_secret_value())
    await topics.create(settings, Schemas.load().families)
    await register(settings.postgres_dsn.get_secret_value(), devices)
    writer = Writer(settings, Metrics("edge"))
    await writer.start()
    source = Source(writer, Topics.of(settings).ingress, devices, batch)
    own = os.environ | {
        f"DRM_{name.upper()}": value.get_secret_value() if isinstance(value, SecretStr) else str(value)
        for name, value in settings.model_dump(exclude_unset=True).items()
    }
    profiler = ["-m", "cProfile", "-o", str(profile)] if profile else []
    worker = subprocess.Popen(  # noqa: ASYNC220 - it only starts
        [sys.executable, *profiler, "-m", "drm_ingest", "enrich"], env=own
    )
    try:
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{settings.enrich_port}") as http:
            await source.send(devices)
            await done(http, worker, devices)
            before = await counted(http)
            if rate is None:
                worker.send_signal(signal.SIGSTOP)
                await source.send(events)
                cpu, began = cpu_s(worker.pid), time.monotonic()
                worker.send_signal(signal.SIGCONT)
            else:
                events = rate * seconds
                cpu, began = cpu_s(worker.pid), time.monotonic()
                while (sent := source.made - devices) < events:
                    due = min(events, int((time.monotonic() - began) * rate) + 1)
                    if due > sent:
                        await writer.write(list(source.events(due - sent)))
                    await asyncio.sleep(0.005)
            await done(http, worker, devices + events)
            took, cpu = time.monotonic() - began, cpu_s(worker.pid) - cpu
            after = await counted(http)
        batches = after["drm_batch_seconds_count"] - before["drm_batch_seconds_count"]
        console.print(
            f"{events:,} events of {devices:,} devices, {batch} a request: {events / took:,.0f}/s, "
            f"[bold]{cpu / events * 1e5:.2f} CPU-s per 100k[/bold] ({cpu / took:.0%} of a core), "
            f"{events / batches:.0f} events a batch, {resident_mb(worker.pid):.0f} MB resident"
        )
        fresh = after["drm_freshness_seconds_sum"] - before["drm_freshness_seconds_sum"]
        count = after["drm_freshness_seconds_count"] - before["drm_freshness_seconds_count"]
        if rate is not None:
            console.print(f"from receipt to its topic, mean of the oldest of each batch: {fresh / count * 1000:.1f} ms")
    finally:
        worker.terminate()
        worker.wait(30)
        await writer.stop(1)


def main(
    events: Annotated[int, typer.Option(min=1, help="Without --rate: as many, as fast as it goes.")] = 300_000,
    rate: Annotated[int | None, typer.Option(min=1, help="Events a second.")] = None,
    seconds: Annotated[int, typer.Option(min=1, help="With --rate.")] = 20,
    devices: Annotated[int, typer.Option(min=1)] = 5000,
    batch: Annotated[int, typer.Option(min=1, help="Events of one request, sharing a receipt.")] = 100,
    profile: Annotated[Path | None, typer.Option(help="Write a cProfile of the worker there.")] = None,
) -> None:
    """Measure enrich: events a second and CPU seconds per 100,000 events, on a Kafka and a Postgres of its own."""
    with tempfile.TemporaryDirectory(prefix="drm-enrich-") as folder:
        Path(folder).chmod(0o755)  # Postgres runs as another user where we are root
        kafka, postgres = Kafka(Path(folder) / "kafka"), Postgres(Path(folder) / "postgres")
        kafka.start()
        try:
            postgres.start()
            settings = Settings(
                kafka_bootstrap=kafka.bootstrap,
                postgres_dsn=SecretStr(postgres.dsn),
                topic_replication_factor=1,
                topic_min_insync_replicas=1,
                enrich_port=free_port(),
                reader_session_timeout_s=120,  # it stands still while its events are put before it
            )
            asyncio.run(measure(settings, events, rate, seconds, devices, batch, profile))
        finally:
            postgres.stop()
            kafka.stop()


if __name__ == "__main__":
    typer.run(main)
