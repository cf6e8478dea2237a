"""Topics full of events as `enrich` leaves them, and an attach that empties them; what that took."""

import asyncio
import os
import random
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import asyncpg
import msgspec
from pydantic import SecretStr
from rich.progress import Progress

from drm_ingest.event import content_hash, published_source
from drm_ingest.kafka import topics
from drm_ingest.kafka.topics import Topics
from drm_ingest.kafka.writer import Outgoing, Writer
from drm_ingest.metrics import Metrics
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


def made(
    traffic: Traffic, events: int, devices: int, seed: int, identities: float = 0.0
) -> Iterator[tuple[str, bytes, str]]:
    """Yield subjects, events as `enrich` writes them, in the order in which they happen, and their families.

    `identities` is the share of sign-ins among them.
    """
    draw = random.Random(seed)
    now = datetime.now(UTC) - timedelta(hours=6)
    recent: list[tuple[str, bytes, str]] = []
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
        type_, family = "device.measurement", "measurement"
        if identities and draw.random() < identities:
            type_, family = "identity.linked", "identity"
            data = b'{"party":"crm:%d","method":"sign_in"}' % draw.randrange(devices)
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
        recent = [*recent[-999:], (subject, event, family)] if traffic.duplicates else recent
        yield subject, event, family


async def fill(
    settings: Settings, traffic: Traffic, events: int, devices: int, progress: Progress, identities: float = 0.0
) -> None:
    """Write the events."""
    schemas = Schemas.load()
    await topics.create(settings, schemas.families)
    writer, topics_ = Writer(settings, Metrics("attach")), Topics.of(settings)
    await writer.start()
    task = progress.add_task(f"filling: {traffic.name}", total=events)
    records: list[Outgoing] = []
    for subject, event, family in made(traffic, events, devices, random.randrange(1 << 30), identities):
        key, topic = subject.encode(), topics_.events(family)
        records.append(Outgoing(topic, writer.partition_for(topic, key), key, event))
        if len(records) == FILL_AT_ONCE:
            await writer.write(records)
            progress.advance(task, len(records))
            records = []
    await writer.write(records)
    progress.advance(task, len(records))
    await writer.stop(30)


@dataclass(frozen=True)
class Version:
    """Whose attach it is: the interpreter and what it is told."""

    python: tuple[str, ...]
    environment: Mapping[str, str]


OURS = Version((sys.executable,), {})


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
    settings: Settings,
    postgres_pid: int,
    events: int,
    profile: Path | None,
    progress: Progress,
    version: Version = OURS,
) -> Measured:
    """Start attach and wait until the topics are empty; measured from the first rows to the last."""
    command = [
        *version.python,
        *(("-m", "cProfile", "-o", str(profile)) if profile else ()),
        "-m",
        "drm_ingest",
        "attach",
    ]
    environment = {**os.environ, **version.environment, "DRM_ATTACH_PORT": str(free_port())}
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


async def database(postgres: Postgres) -> str:
    """Make a database; return its DSN."""
    name = f"load_{random.randrange(1 << 40):x}"
    connection = await asyncpg.connect(postgres.dsn)
    await connection.execute(f"create database {name}")
    await connection.close()
    return postgres.dsn.rpartition("/")[0] + f"/{name}"


def settings_of(kafka: Kafka, dsn: str, prefix: str) -> Settings:
    return Settings(
        kafka_bootstrap=kafka.bootstrap, postgres_dsn=SecretStr(dsn), topic_prefix=prefix,
        topic_replication_factor=1, topic_min_insync_replicas=1,
    )  # fmt: skip


async def check(dsn: str, events: int, traffic: Traffic) -> None:
    connection = await asyncpg.connect(dsn)
    stored, counted = await connection.fetchrow(
        "select (select count(*) from event), (select sum(events) from subject_day)::bigint"
    )
    await connection.close()
    assert stored == counted, f"{stored} events, but {counted} in day counts"
    assert stored >= events * (1 - 2 * traffic.duplicates), f"only {stored} of {events} events"
