"""The worker on a real Kafka and a real Postgres: what arrives in the ingress topic appears in context, in order."""

import asyncio
import contextlib
import signal
import sys
import uuid
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

import asyncpg
import httpx
import msgspec
import orjson
import pytest
from aiokafka import AIOKafkaConsumer, ConsumerRecord, TopicPartition
from prometheus_client.parser import text_string_to_metric_families
from pydantic import SecretStr

from drm_ingest.doctor import State, workers_ready
from drm_ingest.event import Receipt, content_hash
from drm_ingest.kafka import topics
from drm_ingest.kafka.dead_letters import reason_of
from drm_ingest.kafka.topics import Topics
from drm_ingest.kafka.writer import Delivery, Headers, Outgoing, Writer
from drm_ingest.metrics import Metrics
from drm_ingest.pipeline.brake import Brake
from drm_ingest.pipeline.enrich.directory import Directory
from drm_ingest.pipeline.enrich.steps import Steps
from drm_ingest.pipeline.enrich.user_agent import UserAgents
from drm_ingest.pipeline.enrich.worker import Worker, run
from drm_ingest.schema import Schemas
from drm_ingest.settings import Settings
from drm_ingest.up.kafka import Kafka
from drm_ingest.up.ports import free_port
from drm_ingest.up.postgres import Postgres

TYPE = "device.measurement"
FAMILY = "measurement"
WITHIN_S = 60


@dataclass
class Path:
    """The topics before and behind enrich."""

    settings: Settings
    writer: Writer
    names: Topics
    sent: int = 0
    sentinels: int = 0
    subjects: dict[int, str] = field(default_factory=dict)  # one for each partition

    async def send(self, *events: dict[str, Any]) -> None:
        """Put events into the ingress as the edge does."""
        await self.writer.write([self.record(event) for event in events])

    def record(self, event: dict[str, Any]) -> Outgoing:
        self.sent += 1
        event = {"id": str(self.sent), "type": TYPE, "data": {}} | event
        key = event["subject"].encode()
        data = orjson.dumps(event["data"])
        receipt = Receipt(received_at=datetime.now(UTC), request_id=f"r-{self.sent}", sender="fleet")
        headers = [
            ("receipt", msgspec.json.encode(receipt)),
            ("content-hash", content_hash(event["type"], event.get("time"), data)),
        ]
        partition = self.writer.partition_for(self.names.ingress, key)
        return Outgoing(self.names.ingress, partition, key, orjson.dumps(event), headers)

    async def send_raw(self, partition: int, value: bytes) -> None:
        """Put something into the ingress that no edge would."""
        await self.writer.write([Outgoing(self.names.ingress, partition, b"poison", value)])

    async def arrived(self, *topics: str) -> dict[str, list[ConsumerRecord]]:
        """All that is in these topics up to a sentinel that was sent behind everything else, in each partition."""
        self.sentinels += 1
        name = f"sentinel {self.sentinels}"
        await self.send(*({"subject": subject, "id": name} for subject in self.subjects.values()))
        await self.read([self.names.events(FAMILY)], lambda record: attributes(record)["id"] == name)
        records: dict[str, list[ConsumerRecord]] = {topic: [] for topic in topics}
        for record in await self.read(topics, None):
            if record.topic != self.names.events(FAMILY) or not attributes(record)["id"].startswith("sentinel"):
                records[record.topic].append(record)
        return records

    async def read(
        self,
        topics: Iterable[str],
        is_last: Callable[[ConsumerRecord], bool] | None,
        numbers: Iterable[int] | None = None,
    ) -> list[ConsumerRecord]:
        """Read these partitions (default: all) from the beginning: until each one's last, or to the present ends."""
        consumer = AIOKafkaConsumer(bootstrap_servers=self.settings.kafka_bootstrap, auto_offset_reset="earliest")
        await consumer.start()
        records: list[ConsumerRecord] = []
        try:
            partitions = {TopicPartition(topic, p) for topic in topics for p in numbers or self.subjects}
            consumer.assign(partitions)
            ends = await consumer.end_offsets(partitions)
            waiting = set(partitions) if is_last else {p for p in partitions if ends[p]}
            async with asyncio.timeout(WITHIN_S):
                while waiting:
                    for partition, got in (await consumer.getmany(timeout_ms=200)).items():
                        records += got
                        if any(map(is_last, got)) if is_last else got[-1].offset >= ends[partition] - 1:
                            waiting.discard(partition)
        finally:
            await consumer.stop()
        return records

    async def events(self, family: str = FAMILY) -> list[dict[str, Any]]:
        topic = self.names.events(family)
        return [attributes(record) for record in (await self.arrived(topic))[topic]]


def attributes(record: ConsumerRecord) -> dict[str, Any]:
    event: dict[str, Any] = orjson.loads(record.value)
    return event


async def make_path(settings: Settings) -> AsyncIterator[Path]:
    await topics.create(settings, Schemas.load().families)
    writer = Writer(settings, Metrics("enrich"))
    await writer.start()
    path = Path(settings, writer, Topics.of(settings))
    number = 0
    while len(path.subjects) < settings.topic_partitions:
        subject = f"sentinel-{(number := number + 1)}"
        path.subjects.setdefault(writer.partition_for(path.names.ingress, subject.encode()), subject)
    yield path
    await writer.stop(5)


@pytest.fixture
async def path(settings: Settings) -> AsyncIterator[Path]:
    async for path in make_path(settings):
        yield path


@contextlib.asynccontextmanager
async def enriching(settings: Settings) -> AsyncIterator[None]:
    """A worker in this process; ends as after SIGTERM."""
    stop = asyncio.Event()
    work = asyncio.create_task(run(settings, stop))
    try:
        yield
        assert not work.done(), work
    finally:
        stop.set()
        await work


@contextlib.asynccontextmanager
async def process(environment: dict[str, str], **settings: str) -> AsyncIterator[asyncio.subprocess.Process]:
    """A worker as a process of its own; killed in the end if it still runs."""
    own = environment | {f"DRM_{name.upper()}": value for name, value in settings.items()}
    worker = await asyncio.create_subprocess_exec(sys.executable, "-m", "drm_ingest", "enrich", env=own)
    try:
        yield worker
    finally:
        if worker.returncode is None:
            worker.kill()
        await worker.wait()


async def counted(settings: Settings) -> dict[str, float]:
    """The ledger of the worker when nothing is in flight: events are there for others before it counts them."""
    async with asyncio.timeout(WITHIN_S):
        while (ledger := await counts(settings))["drm_events_in_flight"]:  # noqa: ASYNC110 - it is asked over HTTP
            await asyncio.sleep(0.05)
    return ledger


async def counts(settings: Settings) -> dict[str, float]:
    """Received, in flight, and each outcome."""
    async with httpx.AsyncClient() as http:
        text = (await http.get(f"http://{settings.worker_host}:{settings.enrich_port}/metrics")).text
    ledger: dict[str, float] = {}
    for metric in text_string_to_metric_families(text):
        for sample in metric.samples:
            if sample.name in ("drm_events_received_total", "drm_events_in_flight"):
                ledger[sample.name] = sample.value
            elif sample.name == "drm_events_total":
                ledger[sample.labels["outcome"]] = sample.value
    return ledger


def balanced(ledger: dict[str, float]) -> bool:
    received = ledger.pop("drm_events_received_total")
    return received == sum(ledger.values())


async def ready(settings: Settings) -> int:
    """Wait until the worker is ready; return how often it said that it is not."""
    unready = 0
    async with asyncio.timeout(WITHIN_S), httpx.AsyncClient() as http:
        while True:
            with contextlib.suppress(httpx.TransportError):
                url = f"http://{settings.worker_host}:{settings.enrich_port}/health/ready"
                if (await http.get(url)).status_code == 200:
                    return unready
            unready += 1
            await asyncio.sleep(0.05)


def without_repeats(records: Iterable[ConsumerRecord]) -> list[ConsumerRecord]:
    """What a product team keeps that compares one number a partition, as design §4 says."""
    last: dict[int, int] = defaultdict(lambda: -1)
    kept = []
    for record in records:
        partition, offset = (int(part) for part in attributes(record)["ingressposition"].split(":"))
        assert partition == record.partition, "partition numbers are kept"
        if offset > last[partition]:
            last[partition] = offset
            kept.append(record)
    return kept


def in_order(records: Iterable[ConsumerRecord], subjects: int) -> dict[str, list[int]]:
    numbers: dict[str, list[int]] = defaultdict(list)
    for record in records:
        event = attributes(record)
        numbers[event["subject"]].append(event["data"]["n"])
    assert len(numbers) == subjects
    return numbers


# -- what it does with events -----------------------------------------------------------------------------------------


async def test_an_event_appears_in_context(path: Path) -> None:
    registry = await asyncpg.connect(path.settings.postgres_dsn.get_secret_value())
    await registry.execute("insert into device (subject, model, registered_by) values ('m1', 'M 7', 'registry')")
    owner = await registry.fetchval("insert into party (kind, name) values ('customer', 'Ada') returning id")
    await registry.execute(
        "insert into relationship (subject, role, party, exclusive, subject_kind, party_kind, valid)"
        " values ('m1', 'owner', $1, true, 'device', 'customer', '[2026-01-01Z,)')",
        owner,
    )
    await registry.close()
    async with enriching(path.settings):
        await path.send({"subject": "m1", "time": "2026-11-22T10:00:00Z", "data": {"a": 1}})
        (event,) = await path.events()
    assert (event["devicemodel"], event["partyroles"]) == ("M 7", f"owner:{owner}")
    assert (event["data"], event["source"], event["sender"]) == ({"a": 1}, "/devices/m1", "fleet")
    assert "contextquality" not in event


async def test_a_relation_shows_in_the_event_that_is_sent_right_after_it(path: Path) -> None:
    registry = await asyncpg.connect(path.settings.postgres_dsn.get_secret_value())
    insert = (
        "insert into relationship (subject, role, party, exclusive, subject_kind, party_kind, valid)"
        " values ('m1', 'owner', $1, true, 'device', 'customer', tstzrange($2, $3))"
    )
    expected = []
    async with enriching(path.settings):
        await ready(path.settings)
        for number in range(50):
            party = await registry.fetchval("insert into party (kind, name) values ('customer', 'x') returning id")
            begin = datetime(2026, 1, 1, tzinfo=UTC) + timedelta(days=number)
            await registry.execute(insert, party, begin, begin + timedelta(days=1))
            await path.send({"subject": "m1", "time": begin.isoformat()})
            expected.append(f"owner:{party}")
        assert [event.get("partyroles") for event in await path.events()] == expected
    await registry.close()


async def test_a_type_without_a_schema_is_kept_and_marked(path: Path) -> None:
    async with enriching(path.settings):
        await path.send({"subject": "m1", "type": "com.example.new"})
        (event,) = await path.events("unclassified")
    assert event["unclassified"] is True


async def test_a_retry_is_written_once_and_counted(path: Path) -> None:
    async with enriching(path.settings):
        await path.send({"subject": "m1", "id": "a"}, {"subject": "m1", "id": "a"})
        assert [event["id"] for event in await path.events()] == ["a"]
        await path.send({"subject": "m1", "id": "a"}, {"subject": "m1", "id": "a", "data": {"other": 1}})
        assert [event["data"] for event in await path.events()] == [{}, {"other": 1}]
        ledger = await counted(path.settings)
        assert ledger["duplicate"] == 2
        assert balanced(ledger)


async def test_poison_becomes_a_dead_letter_and_stops_nobody(path: Path) -> None:
    poison = [b"", b"{", b"\xff\xfe", b"\x00", b"[" * 100_000, b'{"type":"a\\u0000"}', b"x" * 700_000]
    async with enriching(path.settings):
        for value in poison:
            for partition in path.subjects:
                await path.send_raw(partition, value)
        await path.send({"subject": "m1"})
        await path.events()  # a batch begins after all of the last one is acknowledged, in every topic
        arrived = await path.arrived(path.names.events(FAMILY), path.names.dead_letters)
        ledger = await counted(path.settings)
    assert [attributes(record)["subject"] for record in arrived[path.names.events(FAMILY)]] == ["m1"]
    letters = arrived[path.names.dead_letters]
    assert sorted(letter.value for letter in letters) == sorted(poison * len(path.subjects))
    for letter in letters:
        reason = reason_of(letter)
        assert (reason["stage"], reason["code"], reason["topic"]) == ("enrich", "unreadable", path.names.ingress)
    assert len({(reason_of(letter)["partition"], reason_of(letter)["offset"]) for letter in letters}) == len(letters)
    assert ledger["dead_letter"] == len(letters)
    assert balanced(ledger)


async def test_large_events_pass_through_a_small_writer(path: Path) -> None:
    """More than the writer may hold is in the ingress: it goes in pieces, in order."""
    settings = path.settings.model_copy(
        update={"writer_buffered_bytes_max": 2 << 20, "writer_batch_bytes_max": 512 << 10}
    )
    for number in range(60):
        await path.send({"subject": "m1", "data": {"n": number, "x": "x" * 200_000}})
    async with enriching(settings):
        assert [event["data"]["n"] for event in await path.events()] == list(range(60))


class Stuck(Writer):
    """A writer that holds back what goes to one partition, as a leader does that answers no more."""

    partition: int | None = None

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings, Metrics("enrich"))
        self.held: list[tuple[str, int, bytes, bytes, Headers, Delivery]] = []

    def append(
        self, topic: str, partition: int, key: bytes, value: bytes, headers: Headers, delivery: Delivery
    ) -> None:
        if partition != self.partition:
            super().append(topic, partition, key, value, headers, delivery)
        else:
            delivery.pending += 1
            self.held.append((topic, partition, key, value, headers, delivery))

    def let_go(self) -> None:
        self.partition = None
        for topic, partition, key, value, headers, delivery in self.held:
            super().append(topic, partition, key, value, headers, delivery)
            delivery.pending -= 1


async def test_a_partition_whose_leader_hangs_holds_up_no_other(path: Path) -> None:
    writer = Stuck(path.settings)
    await writer.start()
    stop = asyncio.Event()
    async with Directory(path.settings, Metrics("enrich")) as directory:
        steps = Steps(path.settings, Schemas.load(), writer, UserAgents(1), Brake(path.settings))
        worker = Worker(path.settings, Metrics("enrich"), writer, directory, steps)
        work = asyncio.create_task(worker.work(stop))
        try:
            await path.events()  # it is at work
            writer.partition = slow = 0
            for number in range(20):
                await path.send(*({"subject": subject, "data": {"n": number}} for subject in path.subjects.values()))
            topic = path.names.events(FAMILY)
            others = path.subjects.keys() - {slow}
            await path.read([topic], lambda record: attributes(record)["data"].get("n") == 19, others)
            assert {record[1] for record in writer.held} == {slow}
            assert len(writer.held) < 20, "its next batch waits for the last"
            writer.let_go()
            numbers = in_order((await path.arrived(topic))[topic], len(path.subjects))
            assert all(sequence == list(range(20)) for sequence in numbers.values())
        finally:
            stop.set()
            await work
            await writer.stop(1)


# -- the bad day ------------------------------------------------------------------------------------------------------


async def test_with_postgres_down_events_go_on_and_say_so(path: Path, private_postgres: Callable[[], Postgres]) -> None:
    server = private_postgres()
    settings = path.settings.model_copy(update={"postgres_dsn": SecretStr(server.dsn), "directory_timeout_s": 0.3})
    async with enriching(settings):
        await path.send({"subject": "m1"})
        await path.events()
        await asyncio.to_thread(server.kill)
        await path.send({"subject": "m1"}, {"subject": "m2"})
        qualities = defaultdict(list)
        for event in await path.events():
            qualities[event["subject"]].append(event.get("contextquality", "complete"))
        assert qualities == {"m1": ["complete", "stale"], "m2": ["missing"]}
        assert await ready(settings) == 0, "Postgres plays no part in readiness"
        await asyncio.to_thread(server.start)
        async with asyncio.timeout(WITHIN_S):
            while qualities["m1"][-1] != "complete":
                await asyncio.sleep(0.2)
                await path.send({"subject": "m1"})
                qualities["m1"] = [
                    event.get("contextquality", "complete") for event in await path.events() if event["subject"] == "m1"
                ]


async def test_killed_at_any_moment_nothing_is_lost_and_order_is_kept(path: Path, environment: dict[str, str]) -> None:
    events, subjects, kills = 6000, 40, 3
    sending = asyncio.create_task(send_numbered(path, events, subjects, pause_s=0.02))
    for _ in range(kills):
        async with process(environment) as worker:
            await ready(path.settings)
            await asyncio.sleep(0.7)
            worker.kill()
    async with process(environment) as worker:
        await sending
        topic = path.names.events(FAMILY)
        records = (await path.arrived(topic))[topic]
        worker.terminate()
        assert await worker.wait() == 0
    assert len(records) >= events
    numbers = in_order(without_repeats(records), subjects)
    assert all(sequence == list(range(events // subjects)) for sequence in numbers.values())


async def send_numbered(path: Path, events: int, subjects: int, pause_s: float) -> None:
    for first in range(0, events // subjects, 5):
        await path.send(
            *(
                {"subject": f"m{subject}", "data": {"n": number}}
                for number in range(first, first + 5)
                for subject in range(subjects)
            )
        )
        await asyncio.sleep(pause_s)


async def test_workers_that_come_and_go_lose_nothing_and_keep_order(path: Path) -> None:
    events, subjects = 6000, 40
    second, third = (path.settings.model_copy(update={"enrich_port": 0}) for _ in range(2))
    async with enriching(path.settings):
        await ready(path.settings)
        sending = asyncio.create_task(send_numbered(path, events, subjects, pause_s=0.1))
        async with enriching(second):
            await asyncio.sleep(4)
            async with enriching(third):
                await asyncio.sleep(4)
        await sending
        topic = path.names.events(FAMILY)
        records = (await path.arrived(topic))[topic]
    numbers = in_order(without_repeats(records), subjects)
    assert all(sequence == list(range(events // subjects)) for sequence in numbers.values())


async def test_a_worker_more_than_there_are_partitions_is_ready_too(path: Path) -> None:
    workers = path.settings.topic_partitions + 1
    all_ = [path.settings.model_copy(update={"enrich_port": free_port()}) for _ in range(workers)]
    async with contextlib.AsyncExitStack() as stack:
        for settings in all_:
            await stack.enter_async_context(enriching(settings))
        for settings in all_:
            await ready(settings)
        await path.send({"subject": "m1"})
        assert len(await path.events()) == 1


async def test_after_sigterm_everything_done_is_committed_and_nothing_comes_twice(
    path: Path, environment: dict[str, str]
) -> None:
    sending = asyncio.create_task(send_numbered(path, 4000, 40, pause_s=0.02))
    for _ in range(2):
        async with process(environment) as worker:
            await ready(path.settings)
            await asyncio.sleep(0.5)
            worker.send_signal(signal.SIGTERM)
            assert await worker.wait() == 0
    async with process(environment):
        await sending
        topic = path.names.events(FAMILY)
        records = (await path.arrived(topic))[topic]
    assert len(records) == 4000
    assert without_repeats(records) == records


async def test_a_broker_that_restarts_costs_nothing(
    settings: Settings, spare_kafka: Callable[[], Kafka], database: str
) -> None:
    broker = spare_kafka()
    own = settings.model_copy(update={"kafka_bootstrap": broker.bootstrap, "topic_prefix": f"own-{uuid.uuid4().hex}"})
    async for path in make_path(own):
        async with enriching(own):
            await path.send({"subject": "m1", "data": {"n": 0}})
            await path.events()
            await asyncio.to_thread(broker.kill)
            await asyncio.to_thread(broker.start)
            async with asyncio.timeout(WITHIN_S):
                while True:
                    with contextlib.suppress(Exception):
                        await path.send({"subject": "m1", "data": {"n": 1}})
                        break
            numbers = [event["data"]["n"] for event in await path.events()]
            assert (numbers[0], numbers[-1], set(numbers)) == (0, 1, {0, 1})
            await ready(own)


# -- the brake --------------------------------------------------------------------------------------------------------


async def test_a_partition_full_of_poison_is_held_and_told_of_until_a_person_says_go_on(path: Path) -> None:
    for _ in range(200):
        await path.send_raw(0, b"poison")
    behind = {"subject": path.subjects[0], "id": "behind"}
    other = {"subject": path.subjects[1], "id": "other"}
    await path.send(behind, other)
    events, letters = path.names.events(FAMILY), path.names.dead_letters
    async with enriching(path.settings):
        await path.read([events], lambda record: attributes(record)["id"] == "other", [1])
        async with asyncio.timeout(WITHIN_S), httpx.AsyncClient() as http:
            url = f"http://{path.settings.worker_host}:{path.settings.enrich_port}"
            while "events fail" not in (answer := await http.get(url + "/health/ready")).text:  # noqa: ASYNC110 - it is far away
                await asyncio.sleep(0.05)
            assert answer.status_code == 503
            assert "partition 0 of the ingress topic is held" in answer.json()["detail"]
            assert "drm_braked 1.0" in (await http.get(url + "/metrics")).text
            (finding,) = [found for found in await workers_ready(path.settings) if found.subject == "enrich"]
            assert (finding.state, "events fail" in finding.what) == (State.WRONG, True)
        assert balanced(await counted(path.settings))
        assert await path.read([events, letters], None, [0]) == []
    async with enriching(path.settings.model_copy(update={"brake_share_max": 1.0})):
        await path.read([events], lambda record: attributes(record)["id"] == "behind", [0])
        assert (await counted(path.settings))["dead_letter"] == 200
    assert len(await path.read([letters], None)) == 200
