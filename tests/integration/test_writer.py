"""The writer on a real Kafka, on good days and bad ones."""

import asyncio
import signal
import time
import uuid
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import pytest
from aiokafka import AIOKafkaConsumer, ConsumerRecord, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from tests.integration.brokers import SecondBroker, strike

from drm_ingest.kafka.connection import KafkaUnreachable
from drm_ingest.kafka.topics import Topics, create
from drm_ingest.kafka.writer import (
    Delivery,
    NotAcknowledged,
    Outgoing,
    RecordTooLarge,
    RefusedForGood,
    Writer,
    WriterFull,
)
from drm_ingest.metrics import Metrics
from drm_ingest.settings import Settings
from drm_ingest.up.kafka import Kafka
from drm_ingest.up.ports import free_port


@asynccontextmanager
async def writing(settings: Settings, metrics: Metrics | None = None) -> AsyncIterator[Writer]:
    writer = Writer(settings, metrics or Metrics("edge"))
    await writer.start()
    try:
        yield writer
    finally:
        await writer.stop(1)


class Sent:
    """A delivery to wait for."""

    def __init__(self) -> None:
        self.settled = asyncio.Event()
        self.times = 0
        self.took_s = 0.0
        self._born = time.monotonic()
        self.delivery = Delivery(self._on_settled)

    def _on_settled(self, _: Delivery) -> None:
        self.times += 1
        self.took_s = time.monotonic() - self._born
        self.settled.set()

    async def done(self) -> "Sent":
        self.delivery.seal()
        await self.settled.wait()
        return self


def send(writer: Writer, topic: str, values: Iterable[bytes], key: bytes = b"meter-7", partition: int = 0) -> Sent:
    sent = Sent()
    for value in values:
        writer.append(topic, partition, key, value, [("receipt", b"{}")], sent.delivery)
    sent.delivery.seal()
    return sent


async def read_all(settings: Settings, topic: str) -> dict[int, list[ConsumerRecord]]:
    consumer = AIOKafkaConsumer(bootstrap_servers=settings.kafka_bootstrap, auto_offset_reset="earliest")
    await consumer.start()
    try:
        partitions = [TopicPartition(topic, number) for number in range(settings.topic_partitions)]
        consumer.assign(partitions)
        ends = await consumer.end_offsets(partitions)
        found: dict[int, list[ConsumerRecord]] = defaultdict(list)
        for partition in partitions:
            while await consumer.position(partition) < ends[partition]:
                for records in (await consumer.getmany(partition, timeout_ms=1000)).values():
                    found[partition.partition] += records
        return found
    finally:
        await consumer.stop()


@pytest.fixture
async def topic(settings: Settings) -> str:
    await create(settings, [])
    return Topics.of(settings).ingress


def with_broker(settings: Settings, bootstrap: str) -> Settings:
    return settings.model_copy(update={"kafka_bootstrap": bootstrap})


# -- good days ----------------------------------------------------------------------------------------------------


async def test_records_arrive_as_they_were_appended(settings: Settings, topic: str) -> None:
    async with writing(settings) as writer:
        sent = Sent()
        headers = [("receipt", b'{"a":1}'), ("content-hash", bytes(16))]
        writer.append(topic, 1, b"meter-7", b'{"id":"1"}', headers, sent.delivery)
        await sent.done()
    assert sent.delivery.failed == 0
    (record,) = (await read_all(settings, topic))[1]
    assert (record.key, record.value, list(record.headers)) == (b"meter-7", b'{"id":"1"}', headers)


async def test_one_key_keeps_its_order_over_many_rounds_and_full_batches(settings: Settings, topic: str) -> None:
    small = settings.model_copy(update={"writer_batch_bytes_max": 4096, "produce_deadline_s": 60})  # a busy machine
    async with writing(small) as writer:
        sent = []
        for request in range(200):
            sent.append(send(writer, topic, [b"%06d-%02d" % (request, event) + bytes(100) for event in range(20)]))
            if request % 7 == 0:
                await asyncio.sleep(0)
        for each in sent:
            await each.settled.wait()
    assert [each.delivery.failed for each in sent] == [0] * 200
    values = [record.value[:9] for record in (await read_all(settings, topic))[0]]
    assert values == [b"%06d-%02d" % (request, event) for request in range(200) for event in range(20)]


async def test_a_delivery_over_all_partitions_settles_once(settings: Settings, topic: str) -> None:
    async with writing(settings) as writer:
        sent = Sent()
        keys = [b"device-%d" % number for number in range(100)]
        for key in keys:
            writer.append(topic, writer.partition_for(topic, key), key, b"{}", (), sent.delivery)
        assert sent.delivery.pending == 100
        await sent.done()
        assert writer.buffered_bytes == 0
    assert (sent.times, sent.delivery.failed) == (1, 0)
    found = await read_all(settings, topic)
    assert sorted(record.key for records in found.values() for record in records) == sorted(keys)
    assert len(found) == settings.topic_partitions


async def test_what_collects_during_a_round_goes_out_together_in_the_next(settings: Settings, topic: str) -> None:
    metrics = Metrics("edge")
    async with writing(settings, metrics) as writer:
        await send(writer, topic, [b"connected"]).done()
        before = [metrics.registry.get_sample_value(f"drm_produce_batch_events_{what}") for what in ("count", "sum")]
        first = send(writer, topic, [b"first"])
        await asyncio.sleep(0)  # it is on its way, and no answer can have come
        await asyncio.sleep(0)
        others = [send(writer, topic, [b"%d" % number]) for number in range(100)]
        for sent in [first, *others]:
            await sent.settled.wait()
    after = [metrics.registry.get_sample_value(f"drm_produce_batch_events_{what}") for what in ("count", "sum")]
    assert before == [1, 1]
    assert after == [3, 102]


async def test_a_callback_may_append_the_next_records(settings: Settings, topic: str) -> None:
    async with writing(settings) as writer:
        finished = asyncio.Event()
        count = 0

        def again(delivery: Delivery) -> None:
            nonlocal count
            count += 1
            if count == 50:
                finished.set()
                return
            following = Delivery(again)
            writer.append(topic, count % 3, b"k", b"%d" % count, (), following)
            following.seal()

        again(Delivery(again))
        await finished.wait()
    assert sum(map(len, (await read_all(settings, topic)).values())) == 49


async def test_stopping_writes_out_what_is_buffered(settings: Settings, topic: str) -> None:
    writer = Writer(settings, Metrics("edge"))
    await writer.start()
    sent = send(writer, topic, [b"last"] * 10)
    await writer.stop(5)
    assert sent.settled.is_set()
    assert sent.delivery.failed == 0
    with pytest.raises(WriterFull):
        writer.append(topic, 0, b"k", b"v", (), Sent().delivery)
    assert len((await read_all(settings, topic))[0]) == 10


async def test_a_worker_writes_more_than_there_is_room_for(settings: Settings, topic: str) -> None:
    tight = settings.model_copy(update={"writer_buffered_bytes_max": 20_000, "writer_batch_bytes_max": 5000})
    async with writing(tight) as writer:
        await writer.write(Outgoing(topic, number % 3, b"k", bytes(1000)) for number in range(300))
    assert sum(map(len, (await read_all(settings, topic)).values())) == 300


# -- limits -------------------------------------------------------------------------------------------------------


async def test_a_full_writer_refuses_and_takes_again_when_there_is_room(settings: Settings, topic: str) -> None:
    tight = settings.model_copy(update={"writer_buffered_bytes_max": 10_000})
    async with writing(tight) as writer:
        sent = Sent()
        fill = partial(writer.append, topic, 0, b"k", bytes(1000), (), sent.delivery)
        for _ in range(9):
            fill()
        with pytest.raises(WriterFull):
            fill()
        assert sent.delivery.pending == 9
        assert 9000 < writer.buffered_bytes <= 10_000
        assert not writer.room_for(1000)
        await sent.done()
        assert writer.room_for(1000)
        assert (await send(writer, topic, [bytes(1000)]).done()).delivery.failed == 0
    assert len((await read_all(settings, topic))[0]) == 10


async def test_a_record_that_is_too_large_is_refused_and_the_next_is_taken(settings: Settings, topic: str) -> None:
    async with writing(settings) as writer:
        sent = Sent()
        with pytest.raises(RecordTooLarge):
            writer.append(topic, 0, b"k", bytes(settings.writer_batch_bytes_max), (), sent.delivery)
        with pytest.raises(RecordTooLarge):
            writer.append(topic, 0, b"k", b"", [("h", bytes(settings.writer_batch_bytes_max))], sent.delivery)
        assert (sent.delivery.pending, writer.buffered_bytes) == (0, 0)
        largest = bytes(settings.writer_batch_bytes_max - 1000)
        writer.append(topic, 0, b"k", largest, (), sent.delivery)
        writer.append(topic, 0, b"k", b"next", (), sent.delivery)
        await sent.done()
    assert sent.delivery.failed == 0
    assert [len(record.value) for record in (await read_all(settings, topic))[0]] == [len(largest), 4]


async def test_a_batch_that_kafka_refuses_for_good_fails_at_once(settings: Settings, topic: str) -> None:
    strict = f"{settings.topic_prefix}.strict"
    admin = AIOKafkaAdminClient(bootstrap_servers=settings.kafka_bootstrap)
    await admin.start()
    try:
        await admin.create_topics([NewTopic(strict, 1, 1, topic_configs={"max.message.bytes": "1000"})])
    finally:
        await admin.close()
    async with writing(settings) as writer:
        with pytest.raises(NotAcknowledged, match="MessageSizeTooLarge"):
            await asyncio.wait_for(writer.write([Outgoing(strict, 0, b"k", bytes(2000))]), 60)
        await writer.write([Outgoing(strict, 0, b"k", bytes(100)), Outgoing(topic, 0, b"k", b"v")])


async def test_of_a_batch_over_the_limit_of_the_topic_only_the_record_that_is_too_large_fails_and_order_is_kept(
    settings: Settings, topic: str
) -> None:
    strict = Topics.of(settings).events("strict")
    admin = AIOKafkaAdminClient(bootstrap_servers=settings.kafka_bootstrap)
    await admin.start()
    try:
        config = {"max.message.bytes": "1000"}
        await admin.create_topics([NewTopic(strict, settings.topic_partitions, 1, topic_configs=config)])
    finally:
        await admin.close()
    async with writing(settings) as writer:
        values = [b"%02d" % number + bytes(2000 if number == 13 else 300) for number in range(40)]
        each = [send(writer, strict, [value]) for value in values]
        for sent in each:
            await sent.settled.wait()
        assert [number for number, sent in enumerate(each) if sent.delivery.failed] == [13]
        assert isinstance(each[13].delivery.error, RefusedForGood)
        assert writer.ready
        assert writer.buffered_bytes == 0
    found = [record.value for record in (await read_all(settings, strict))[0]]
    assert found == values[:13] + values[14:]


# -- bad days -----------------------------------------------------------------------------------------------------


async def test_a_kafka_that_is_not_there_is_said_at_start(settings: Settings) -> None:
    nowhere = with_broker(settings, f"127.0.0.1:{free_port()}").model_copy(update={"produce_deadline_s": 0.5})
    with pytest.raises(KafkaUnreachable, match="DRM_KAFKA_BOOTSTRAP"):
        await Writer(nowhere, Metrics("edge")).start()


async def test_a_topic_that_does_not_exist_fails_its_own_records_at_the_deadline_and_delays_no_other(
    settings: Settings, topic: str
) -> None:
    brief = settings.model_copy(update={"produce_deadline_s": 2})
    missing = f"{settings.topic_prefix}.missing"
    async with writing(brief) as writer:
        lost = send(writer, missing, [b"x"] * 3)
        slowest_s = 0.0
        while not lost.settled.is_set():
            slowest_s = max(slowest_s, (await send(writer, topic, [b"y"]).done()).took_s)
            await asyncio.sleep(0.02)
        assert lost.delivery.failed == 3
        assert 1.5 < lost.took_s < 3
        assert slowest_s < 1
        assert writer.buffered_bytes == 0
        assert writer.ready
        # and when somebody makes the topic, it is written to
        admin = AIOKafkaAdminClient(bootstrap_servers=settings.kafka_bootstrap)
        await admin.start()
        await admin.create_topics([NewTopic(missing, 1, 1)])
        await admin.close()
        assert (await send(writer, missing, [b"x"]).done()).delivery.failed == 0


@pytest.mark.parametrize("what", [signal.SIGSTOP, signal.SIGKILL], ids=["frozen", "killed"])
async def test_a_broker_that_is_gone_fails_all_by_the_deadline_and_the_writer_recovers_by_itself(
    settings: Settings, spare_kafka: Callable[[], Kafka], what: signal.Signals
) -> None:
    kafka = await asyncio.to_thread(spare_kafka)
    settings = with_broker(settings, kafka.bootstrap).model_copy(
        update={"produce_deadline_s": 2, "produce_request_timeout_s": 1, "writer_buffered_bytes_max": 200_000}
    )
    await create(settings, [])
    topic = Topics.of(settings).ingress
    async with writing(settings) as writer:
        await send(writer, topic, [b"before"]).done()
        await strike(kafka, what)
        sent: list[Sent] = []
        refused = 0
        gone_until = time.monotonic() + 5.5
        while time.monotonic() < gone_until:
            try:
                sent.append(send(writer, topic, [b"during" + bytes(1000)] * 4, partition=len(sent) % 3))
            except WriterFull:
                refused += 1
            assert writer.buffered_bytes <= 200_000 + 5000
            await asyncio.sleep(0.01)
        settled = [each for each in sent if each.settled.is_set()]
        assert len(settled) > 50
        assert refused > 0
        assert max(each.took_s for each in settled) < 2 + 1
        assert all(each.delivery.failed for each in settled)
        assert not writer.ready

        if what is signal.SIGKILL:
            await asyncio.to_thread(kafka.kill)
            await asyncio.to_thread(kafka.start)
        else:
            kafka.signal(signal.SIGCONT)
        back_at = time.monotonic()
        while True:
            try:
                again = await send(writer, topic, [b"after"]).done()
            except WriterFull:
                await asyncio.sleep(0.05)
                continue
            if not again.delivery.failed:
                break
        assert time.monotonic() - back_at < 15  # the broker itself takes some seconds to lead again
        for each in sent:
            await each.settled.wait()
            assert each.times == 1
        while writer.buffered_bytes or not writer.ready:  # noqa: ASYNC110 - nothing tells it
            await asyncio.sleep(0.05)
        assert time.monotonic() - back_at < 20


@pytest.mark.parametrize("what", [signal.SIGSTOP, signal.SIGKILL], ids=["frozen", "killed"])
async def test_a_partition_whose_only_broker_is_gone_delays_no_other_and_is_written_to_when_it_is_back(
    settings: Settings, private_kafka: Callable[[], Kafka], tmp_path: Path, what: signal.Signals
) -> None:
    first = await asyncio.to_thread(private_kafka)
    second = SecondBroker(tmp_path / "second", first)
    await asyncio.to_thread(second.start)
    try:
        settings = with_broker(settings, first.bootstrap).model_copy(
            update={"produce_deadline_s": 3, "produce_request_timeout_s": 1.5}
        )
        topic = Topics.of(settings).ingress
        admin = AIOKafkaAdminClient(bootstrap_servers=first.bootstrap)
        await admin.start()
        await admin.create_topics([NewTopic(topic, -1, -1, replica_assignments={0: [1], 1: [2], 2: [1]})])
        await admin.close()
        async with writing(settings) as writer:
            for partition in range(3):
                await send(writer, topic, [b"before"], partition=partition).done()
            await strike(second, what)
            until = time.monotonic() + 6
            slowest_s, there, gone = 0.0, 0, []
            while time.monotonic() < until:
                gone.append(send(writer, topic, [b"gone"], partition=1))
                for partition in (0, 2):
                    sent = await send(writer, topic, [b"there"], partition=partition).done()
                    slowest_s = max(slowest_s, sent.took_s)
                    there += not sent.delivery.failed
                await asyncio.sleep(0.02)
            assert there > 100
            assert slowest_s < 1
            settled = [each for each in gone if each.settled.is_set()]
            assert len(settled) > 20
            assert all(each.delivery.failed for each in settled)
            assert max(each.took_s for each in settled) < 4
            assert writer.ready
            if what is signal.SIGKILL:
                second.kill()
                await asyncio.to_thread(second.start)
            else:
                second.signal(signal.SIGCONT)
            while (await send(writer, topic, [b"after"], partition=1).done()).delivery.failed:
                pass
    finally:
        second.kill()


async def test_a_restarted_broker_loses_nothing_that_was_acknowledged(
    settings: Settings, spare_kafka: Callable[[], Kafka]
) -> None:
    kafka = await asyncio.to_thread(spare_kafka)
    settings = with_broker(settings, kafka.bootstrap)
    await create(settings, [])
    topic = Topics.of(settings).ingress
    acknowledged: list[bytes] = []
    stop = asyncio.Event()

    async def device(name: bytes) -> None:
        number = 0
        while not stop.is_set():
            values = [b"%s-%06d" % (name, number + offset) for offset in range(10)]
            sent = send(writer, topic, values, key=name, partition=writer.partition_for(topic, name))
            await sent.done()
            if not sent.delivery.failed:
                acknowledged.extend(values)
                number += 10

    async with writing(settings) as writer:
        devices = [asyncio.create_task(device(uuid.uuid4().hex[:8].encode())) for _ in range(8)]
        await asyncio.sleep(1)
        await asyncio.to_thread(kafka.kill)
        await asyncio.to_thread(kafka.start)
        before = len(acknowledged)
        while len(acknowledged) < before + 100:  # noqa: ASYNC110 - nothing tells it
            await asyncio.sleep(0.05)
        stop.set()
        await asyncio.gather(*devices)
    found = [record.value for records in (await read_all(settings, topic)).values() for record in records]
    assert set(acknowledged) <= set(found)
    # Whatever was retried stands in order: the first time each is seen, the numbers of a device only rise.
    seen: dict[bytes, int] = {}
    for value in dict.fromkeys(found):
        name, _, number = value.partition(b"-")
        assert int(number) > seen.get(name, -1)
        seen[name] = int(number)
