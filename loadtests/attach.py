"""attach alone: from topics that are full already into Postgres, each event exactly once in effect.

    python -m loadtests.attach --events 300000

Starts a Kafka and a Postgres of its own. For each kind of traffic it makes a database and topics, fills them through
the product's own writer with events as `enrich` leaves them (about 680 bytes), then starts one `drm-ingest attach` and
prints, once the topics are empty: rows a second, CPU seconds of attach and of Postgres per 100,000 rows (the steadier
figures: what else runs on the machine does not count), what Postgres wrote, and the memory of attach.

"few devices" puts 500 devices into each 2,000 events, "many devices" 2,000; a duplicate repeats one of the last 1,000.
`--profile` prints where attach spends its CPU instead of how fast it is.
"""

import asyncio
import os
import pstats
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated

import asyncpg
import msgspec
import typer
import uvloop
from pydantic import SecretStr
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from drm_ingest.event import content_hash, published_source
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

BATCH = 2000  # of which the kinds of traffic tell how many devices they hold
FILL_AT_ONCE = 4000


@dataclass(frozen=True)
class Traffic:
    """One kind of traffic."""

    name: str
    devices_a_batch: int
    duplicates: float


KINDS = (
    Traffic("few devices", 500, 0.0),
    Traffic("few devices, 2 % duplicates", 500, 0.02),
    Traffic("many devices", 2000, 0.0),
    Traffic("many devices, 2 % duplicates", 2000, 0.02),
)


def made(traffic: Traffic, events: int, devices: int, seed: int) -> Iterator[tuple[str, bytes]]:
    """Yield subjects and events as `enrich` writes them, in the order in which they happen."""
    draw = random.Random(seed)
    now = datetime.now(UTC) - timedelta(hours=6)
    recent: list[tuple[str, bytes]] = []
    batch: list[int] = []
    for number in range(events):
        if recent and draw.random() < traffic.duplicates:
            yield draw.choice(recent)
            continue
        if not batch:
            batch = draw.sample(range(devices), traffic.devices_a_batch) * (BATCH // traffic.devices_a_batch)
        subject = f"meter-{batch.pop():06d}"
        time = (now + timedelta(milliseconds=number / 10)).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        data = (
            f'{{"values":{{"temperature":{draw.uniform(-10, 35):.2f},"humidity":{draw.randrange(100)},'
            f'"battery":{draw.random():.2f}}},"units":{{"temperature":"Cel","humidity":"%RH","battery":"/"}}}}'
        ).encode()
        type_ = "device.measurement"
        head = {
            "specversion": "1.0", "id": f"{seed}-{number:08d}", "type": type_, "subject": subject, "time": time,
            "sequence": f"{number:010d}",
        }  # fmt: skip
        tail = {
            "source": published_source(subject, ""), "receivedat": time, "occurredat": time, "timequality": "sent",
            "contenthash": content_hash(type_, time, data).hex(), "sender": "loadtest",
            "requestid": "0f8fad5b-d9cb-469f-a165-70867728950e", "ingressposition": f"{number % 6}:{number}",
            "devicemodel": "TH-200", "devicefirmware": "1.4.2",
            "partyroles": "owner:0199a1b2-7f3c-7e51-9d5a-3f2b1c0d9e8f sold_by:0199a1b2-7f3c-7e51-9d5a-3f2b1c0d9e90",
        }  # fmt: skip
        event = msgspec.json.encode(head)[:-1] + b',"data":' + data + b"," + msgspec.json.encode(tail)[1:]
        recent = [*recent[-999:], (subject, event)] if traffic.duplicates else recent
        yield subject, event


async def fill(settings: Settings, traffic: Traffic, events: int, devices: int, progress: Progress) -> int:
    """Write the events; return how many bytes."""
    schemas = Schemas.load()
    await topics.create(settings, schemas.families)
    writer, topic = Writer(settings, Metrics("attach")), Topics.of(settings).events("measurement")
    await writer.start()
    task = progress.add_task(f"filling: {traffic.name}", total=events)
    size = 0
    records: list[Outgoing] = []
    for subject, event in made(traffic, events, devices, random.randrange(1 << 30)):
        key = subject.encode()
        size += len(event)
        records.append(Outgoing(topic, writer.partition_for(topic, key), key, event))
        if len(records) == FILL_AT_ONCE:
            await writer.write(records)
            progress.advance(task, len(records))
            records = []
    await writer.write(records)
    progress.advance(task, len(records))
    await writer.stop(30)
    return size


def _start(command: list[str], environment: dict[str, str]) -> subprocess.Popen[bytes]:
    return subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL)


@dataclass
class Measured:
    """What a run took."""

    rows: int
    seconds: float
    attach_cpu_s: float
    postgres_cpu_s: float
    wal_bytes: int
    attach_mb: float


async def drain(
    settings: Settings, postgres_pid: int, events: int, profile: Path | None, progress: Progress
) -> Measured:
    """Start attach and wait until the topics are empty; measured from the first rows to the last."""
    command = [
        sys.executable,
        *(("-m", "cProfile", "-o", str(profile)) if profile else ()),
        "-m",
        "drm_ingest",
        "attach",
    ]
    environment = {**os.environ, "DRM_ATTACH_PORT": str(free_port())}
    for name in ("kafka_bootstrap", "topic_prefix", "topic_replication_factor", "topic_min_insync_replicas"):
        environment[f"DRM_{name.upper()}"] = str(getattr(settings, name))
    environment["DRM_POSTGRES_DSN"] = dsn = settings.postgres_dsn.get_secret_value()
    connection = await asyncpg.connect(dsn)
    task = progress.add_task("attaching", total=events)
    process = await asyncio.to_thread(_start, command, environment)

    async def state() -> tuple[float, int, int, float, float]:
        # One small query four times a second: nothing beside the load.
        read, wal = await connection.fetchrow(
            "select coalesce(sum(next_offset) filter (where next_offset > 0), 0)::bigint, pg_current_wal_lsn() - '0/0' "
            "from consumer_position"
        )
        return time.monotonic(), read, int(wal), cpu_s(process.pid), cpu_s(postgres_pid)

    try:
        first = last = await state()
        while last[1] < events:
            if process.poll() is not None:
                raise RuntimeError("attach ended; run it by hand to see why")
            await asyncio.sleep(0.25)
            last = await state()
            if not first[1]:
                first = last
            progress.update(task, completed=last[1])
        memory = resident_mb(process.pid)
    finally:
        process.terminate()
        await asyncio.to_thread(process.wait, 60)
        await connection.close()
    differences = [b - a for a, b in zip(first, last, strict=True)]
    return Measured(int(differences[1]), differences[0], differences[3], differences[4], int(differences[2]), memory)


async def measure(
    traffic: Traffic, kafka: Kafka, postgres: Postgres, events: int, devices: int, batch: int, profile: Path | None,
    progress: Progress,
) -> Measured:  # fmt: skip
    """Make topics and a database, fill them, drain them."""
    name = f"load_{random.randrange(1 << 40):x}"
    connection = await asyncpg.connect(postgres.dsn)
    await connection.execute(f"create database {name}")
    dsn = postgres.dsn.rpartition("/")[0] + f"/{name}"
    settings = Settings(
        kafka_bootstrap=kafka.bootstrap, postgres_dsn=SecretStr(dsn), topic_prefix=name,
        topic_replication_factor=1, topic_min_insync_replicas=1,
    )  # fmt: skip
    os.environ["DRM_ATTACH_BATCH_RECORDS_MAX"] = str(batch)
    await migrate(dsn)
    await fill(settings, traffic, events, devices, progress)
    await connection.close()
    assert postgres.pid is not None
    measured = await drain(settings, postgres.pid, events, profile, progress)
    connection = await asyncpg.connect(dsn)
    stored, counted = await connection.fetchrow(
        "select (select count(*) from event), (select sum(events) from subject_day)::bigint"
    )
    assert stored == counted, f"{stored} events, but {counted} in day counts"
    assert stored >= events * (1 - 2 * traffic.duplicates), f"only {stored} of {events} events"
    await connection.close()
    return measured


def main(
    events: Annotated[int, typer.Option(min=10_000, help="Events of each kind.")] = 300_000,
    devices: Annotated[int, typer.Option(min=2000, help="Devices in all.")] = 100_000,
    batch: Annotated[int, typer.Option(min=1, help="DRM_ATTACH_BATCH_RECORDS_MAX.")] = BATCH,
    kind: Annotated[str, typer.Option(help="Only kinds whose name contains this.")] = "",
    repeat: Annotated[int, typer.Option(min=1, help="Runs of each kind.")] = 1,
    profile: Annotated[bool, typer.Option(help="Print where attach spends its CPU (slower).")] = False,
) -> None:
    """Measure, and print a table."""
    console = Console(width=120)
    table = Table("traffic", "rows/s", "attach CPU-s/100k", "Postgres CPU-s/100k", "WAL B/row", "attach MB")
    with tempfile.TemporaryDirectory() as folder, Progress(console=console, transient=True) as progress:
        kafka, postgres = Kafka(Path(folder) / "kafka"), Postgres(Path(folder) / "postgres")
        try:
            kafka.start()
            postgres.start()
            for traffic in [traffic for traffic in KINDS for _ in range(repeat) if kind in traffic.name]:
                report = Path(folder) / "profile" if profile else None
                did = uvloop.run(measure(traffic, kafka, postgres, events, devices, batch, report, progress))
                share = 100_000 / did.rows
                table.add_row(
                    traffic.name, f"{did.rows / did.seconds:,.0f}", f"{did.attach_cpu_s * share:.2f}",
                    f"{did.postgres_cpu_s * share:.2f}", f"{did.wal_bytes / did.rows:,.0f}", f"{did.attach_mb:.0f}",
                )  # fmt: skip
                if report:
                    pstats.Stats(str(report), stream=sys.stdout).sort_stats("tottime").print_stats(35)
        finally:
            kafka.stop()
            postgres.stop()
    console.print(table)


if __name__ == "__main__":
    typer.run(main)
