"""What tests of attach share: events as `enrich` writes them, and the worker beside the test."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import asyncpg
import httpx
from aiokafka import AIOKafkaProducer
from aiokafka.partitioner import murmur2

from drm_ingest.event import content_hash, published_source
from drm_ingest.kafka.topics import Topics, create
from drm_ingest.metrics import Metrics
from drm_ingest.pipeline.attach.worker import run
from drm_ingest.schema import Schemas
from drm_ingest.settings import Settings

NOON = datetime(2026, 11, 20, 12, tzinfo=UTC)


def event(
    id_: str,
    subject: str = "meter-1",
    at: datetime = NOON,
    type_: str = "device.measurement",
    data: str | None = '{"temperature": 21.5}',
    source: str = "",
    **more: Any,
) -> bytes:
    """An event as `enrich` writes it; `data` is raw JSON, attributes in `more` come on top (None: left out)."""
    time = at.isoformat()
    attributes = {
        "specversion": "1.0",
        "type": type_,
        "id": id_,
        "subject": subject,
        "source": published_source(subject, source),
        "time": time,
        "receivedat": (at + timedelta(seconds=1)).isoformat(),
        "occurredat": time,
        "timequality": "sent",
        "contenthash": content_hash(type_, time, (data or "").encode()).hex(),
        "sender": "tests",
        "requestid": "r-1",
        "ingressposition": "0:0",
        **more,
    }
    text = json.dumps({name: value for name, value in attributes.items() if value is not None})
    return (text[:-1] + (f', "data": {data}' if data is not None else "") + "}").encode()


class Bench:
    """One test's topics and database."""

    def __init__(self, settings: Settings, producer: AIOKafkaProducer, connection: asyncpg.Connection) -> None:
        self.settings = settings
        self.topics = Topics.of(settings)
        self.producer = producer
        self.connection = connection

    async def put(self, *events: bytes, family: str = "measurement", partition: int | None = None) -> None:
        """Write events in this order, each to its subject's partition."""
        topic = self.topics.events(family)
        for value in events:
            await self.producer.send(topic, value, key=key_of(value), partition=self._partition(value, partition))
        await self.producer.flush()

    def _partition(self, value: bytes, partition: int | None) -> int:
        if partition is not None:
            return partition
        return int((murmur2(key_of(value)) & 0x7FFFFFFF) % self.settings.topic_partitions)

    async def fetch(self, sql: str, *arguments: object) -> list[asyncpg.Record]:
        records: list[asyncpg.Record] = await self.connection.fetch(sql, *arguments)
        return records

    async def value(self, sql: str, *arguments: object) -> Any:
        return await self.connection.fetchval(sql, *arguments)

    async def until(self, sql: str, *arguments: object, timeout_s: float = 40.0) -> None:
        """Wait until a query answers true."""
        async with asyncio.timeout(timeout_s):
            while not await self.value(sql, *arguments):  # noqa: ASYNC110  # the other end is a database
                await asyncio.sleep(0.05)

    async def passed(self, family: str = "measurement") -> None:
        """Wait until everything put so far has passed: a sentinel behind it in each partition is stored."""
        for number in range(self.settings.topic_partitions):
            await self.put(event(f"sentinel-{number}", subject="sentinel"), family=family, partition=number)
        for number in range(self.settings.topic_partitions):
            await self.until(
                "select exists (select from event where subject = 'sentinel' and id = $1)", f"sentinel-{number}"
            )
        await self.connection.execute("delete from event where subject = 'sentinel'")

    @contextlib.asynccontextmanager
    async def attaching(self, **changes: Any) -> AsyncIterator["Attaching"]:
        """Run the worker in this loop, on settings with these changes; it is told to stop at the end."""
        settings = self.settings.model_copy(update=changes)
        metrics, stop = Metrics("attach"), asyncio.Event()
        running = asyncio.create_task(run(settings, stop, metrics))
        worker = Attaching(metrics, f"http://{settings.worker_host}:{settings.attach_port}", running)
        try:
            yield worker
        finally:
            stop.set()
            await asyncio.wait_for(running, 30)


class Attaching:
    """A worker at work."""

    def __init__(self, metrics: Metrics, url: str, running: asyncio.Task[None]) -> None:
        self.metrics = metrics
        self.url = url
        self.running = running

    def sample(self, name: str, **labels: str) -> float:
        return self.metrics.registry.get_sample_value(name, labels) or 0.0

    def outcomes(self) -> dict[str, float]:
        return self._by("drm_events", "outcome")

    async def counted(self, expected: dict[str, float]) -> None:
        """Wait until it has counted as many events, and see that these are their outcomes.

        Rows are there for others to see before it counts them.
        """
        with contextlib.suppress(TimeoutError):
            await self.until(lambda: sum(self.outcomes().values()) >= sum(expected.values()))
        assert self.outcomes() == expected

    async def settled(self) -> None:
        """Wait until nothing is in flight, and see that received is the sum of outcomes; rows are there before that."""
        await self.until(lambda: not self.sample("drm_events_in_flight"))
        assert self.sample("drm_events_received_total") == sum(self.outcomes().values())

    def codes(self) -> dict[str, float]:
        return self._by("drm_event_codes", "code")

    def _by(self, name: str, label: str) -> dict[str, float]:
        (metric,) = [metric for metric in self.metrics.registry.collect() if metric.name == name]
        return {sample.labels[label]: sample.value for sample in metric.samples if sample.name == f"{name}_total"}

    async def until(self, true: Callable[[], bool]) -> None:
        """Wait until it is."""
        async with asyncio.timeout(40):
            while not true():  # noqa: ASYNC110  # it has no event to wait for
                await asyncio.sleep(0.05)

    async def until_ready(self, ready: bool = True, reason: str = "") -> str:
        """Wait until it says so, for a reason that contains this; return its reason."""
        async with asyncio.timeout(40), httpx.AsyncClient() as client:
            while True:
                with contextlib.suppress(httpx.TransportError):
                    answer = await client.get(self.url + "/health/ready")
                    detail = str(answer.json().get("detail", ""))
                    if answer.is_success is ready and reason in detail:
                        return detail
                await asyncio.sleep(0.05)


def key_of(value: bytes) -> bytes:
    try:
        subject = json.loads(value)["subject"]
    except (ValueError, KeyError, TypeError, RecursionError):
        subject = "unreadable"
    return str(subject).encode()


@contextlib.asynccontextmanager
async def bench(settings: Settings) -> AsyncIterator[Bench]:
    await create(settings, Schemas.load().families)
    producer = AIOKafkaProducer(bootstrap_servers=settings.kafka_bootstrap, acks="all")
    connection = await asyncpg.connect(settings.postgres_dsn.get_secret_value())
    await producer.start()
    made = Bench(settings, producer, connection)
    try:
        yield made
    finally:
        await producer.stop()
        await made.connection.close()  # a test may have made another
