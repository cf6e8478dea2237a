"""The reader on a real Kafka: from where it reads, what a rebalance may not lose, and when it must stop."""

import asyncio
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from contextlib import asynccontextmanager

import pytest
from aiokafka import TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, RecordsToDelete

from drm_ingest.kafka import reader as reader_module
from drm_ingest.kafka.connection import KafkaUnreachable
from drm_ingest.kafka.reader import Batches, PositionLost, Reader
from drm_ingest.kafka.topics import Topics, create
from drm_ingest.kafka.writer import Outgoing, Writer
from drm_ingest.metrics import Metrics
from drm_ingest.settings import Settings
from drm_ingest.up.kafka import Kafka
from drm_ingest.up.ports import free_port

PARTITIONS = 3


@pytest.fixture
async def topic(settings: Settings) -> str:
    await create(settings, [])
    return Topics.of(settings).ingress


async def write(settings: Settings, topic: str, numbers: Iterable[int], partition: int | None = None) -> None:
    """Write each number as a record, to the partition or to all in turn."""
    writer = Writer(settings, Metrics("edge"))
    await writer.start()
    try:
        await writer.write(
            Outgoing(topic, number % PARTITIONS if partition is None else partition, b"k", b"%d" % number)
            for number in numbers
        )
    finally:
        await writer.stop(5)


def numbers(batch: Batches) -> list[int]:
    return [int(record.value or b"") for records in batch.values() for record in records]


def after(batch: Batches) -> dict[TopicPartition, int]:
    return {partition: records[-1].offset + 1 for partition, records in batch.items()}


def new_reader(settings: Settings, topic: str, **callbacks: Callable[..., object]) -> Reader:
    return Reader(settings, Metrics("enrich"), "test", [topic], **callbacks)  # type: ignore[arg-type]


async def read(reader: Reader, count: int, records_max: int = 100, *, commit: bool = True) -> list[int]:
    """Read that many records, committing each batch."""
    found: list[int] = []
    async for batch in reader.batches(records_max):
        found += numbers(batch)
        if commit:
            await reader.commit(after(batch))
        if len(found) >= count:
            break
    return found


# -- from where -----------------------------------------------------------------------------------------------------


async def test_a_group_that_never_committed_reads_from_the_beginning_in_order(settings: Settings, topic: str) -> None:
    await write(settings, topic, range(100), partition=1)
    async with new_reader(settings, topic) as reader:
        assert await read(reader, 100, records_max=7) == list(range(100))
        assert reader.ready
        assert reader.assigned == {TopicPartition(topic, number) for number in range(PARTITIONS)}


async def test_a_group_goes_on_where_it_committed(settings: Settings, topic: str) -> None:
    await write(settings, topic, range(100), partition=1)
    async with new_reader(settings, topic) as reader:
        first = await read(reader, 40, records_max=40)
    async with new_reader(settings, topic) as reader:
        second = await read(reader, 60)
    assert [*first, *second] == list(range(100))


async def test_what_was_not_committed_is_read_again(settings: Settings, topic: str) -> None:
    await write(settings, topic, range(30))
    async with new_reader(settings, topic) as reader:
        await read(reader, 30, commit=False)
    async with new_reader(settings, topic) as reader:
        assert sorted(await read(reader, 30)) == list(range(30))


async def test_rewinding_reads_again_from_the_last_commit_or_from_where_it_is_told(
    settings: Settings, topic: str
) -> None:
    await write(settings, topic, range(50), partition=0)
    partition = TopicPartition(topic, 0)
    async with new_reader(settings, topic) as reader:
        batches = reader.batches(10)
        assert numbers(await anext(batches)) == list(range(10))
        await reader.rewind()
        assert numbers(await anext(batches)) == list(range(10))
        await reader.commit({partition: 10})
        assert numbers(await anext(batches)) == list(range(10, 20))
        await reader.rewind([partition])
        assert numbers(await anext(batches)) == list(range(10, 20))
        await reader.rewind([partition], {partition: 45})
        assert numbers(await anext(batches)) == list(range(45, 50))


async def test_positions_kept_elsewhere_win_over_committed_ones(settings: Settings, topic: str) -> None:
    await write(settings, topic, range(90))
    async with new_reader(settings, topic) as reader:
        await read(reader, 90)
    kept = {TopicPartition(topic, 0): 10, TopicPartition(topic, 1): 30}  # nothing kept of partition 2

    async def on_assigned(partitions: frozenset[TopicPartition]) -> Mapping[TopicPartition, int]:
        assert partitions == {TopicPartition(topic, number) for number in range(PARTITIONS)}
        return kept

    async with new_reader(settings, topic, on_assigned=on_assigned) as reader:
        found = await read(reader, 50)
    assert sorted(found) == sorted([*range(30, 90, 3), *range(2, 90, 3)])


async def test_what_the_worker_raises_on_assignment_is_raised_where_it_reads(settings: Settings, topic: str) -> None:
    async def on_assigned(_: frozenset[TopicPartition]) -> None:
        raise ConnectionError("no Postgres")

    async with new_reader(settings, topic, on_assigned=on_assigned) as reader:
        with pytest.raises(ConnectionError, match="no Postgres"):
            await anext(reader.batches(10))


async def test_events_deleted_unread_stop_the_reader_and_it_says_so(settings: Settings, topic: str) -> None:
    await write(settings, topic, range(100), partition=2)
    async with new_reader(settings, topic) as reader:
        await read(reader, 10, records_max=10)
    await delete_before(settings, TopicPartition(topic, 2), 50)
    async with new_reader(settings, topic) as reader:
        with pytest.raises(PositionLost, match="from 10, but the topic holds 50 to 100: events were deleted before"):
            await read(reader, 1)


async def test_a_partition_first_seen_empty_notices_what_is_deleted_unread_later(
    settings: Settings, topic: str
) -> None:
    async with new_reader(settings, topic) as reader:
        await write(settings, topic, range(1), partition=0)
        await read(reader, 1)
    await write(settings, topic, range(100), partition=1)
    await delete_before(settings, TopicPartition(topic, 1), 50)
    async with new_reader(settings, topic) as reader:
        with pytest.raises(PositionLost, match="from 0, but the topic holds 50 to 100"):
            await read(reader, 1)


async def test_a_topic_made_anew_stops_the_reader_and_it_says_so(settings: Settings, topic: str) -> None:
    await write(settings, topic, range(100), partition=0)
    async with new_reader(settings, topic) as reader:
        await read(reader, 100)

    async def on_assigned(_: frozenset[TopicPartition]) -> Mapping[TopicPartition, int]:
        return {TopicPartition(topic, 0): 5000}

    async with new_reader(settings, topic, on_assigned=on_assigned) as reader:
        with pytest.raises(PositionLost, match="from 5000, but the topic holds 0 to 100: the topic was made anew"):
            await read(reader, 1)


async def test_a_kafka_that_is_not_there_is_said(settings: Settings, topic: str) -> None:
    nowhere = settings.model_copy(update={"kafka_bootstrap": f"127.0.0.1:{free_port()}"})
    with pytest.raises(KafkaUnreachable, match="DRM_KAFKA_BOOTSTRAP"):
        async with new_reader(nowhere, topic):
            pass


# -- batches ----------------------------------------------------------------------------------------------------------


async def test_a_batch_is_no_larger_than_asked_and_takes_from_all_partitions(settings: Settings, topic: str) -> None:
    await write(settings, topic, range(0, 1500, 3))  # partition 0: 500
    await write(settings, topic, [1, 4, 7])  # partition 1: 3
    await write(settings, topic, range(2, 1502, 3))  # partition 2: 500
    async with new_reader(settings, topic) as reader:
        async for batch in reader.batches(100):
            if len(batch) == PARTITIONS:
                break
        sizes = {partition.partition: len(records) for partition, records in batch.items()}
    assert sum(sizes.values()) == 100
    assert sizes[1] == 3
    assert abs(sizes[0] - sizes[2]) <= 1


async def test_a_held_partition_is_left_out_until_released_and_stops_no_other(settings: Settings, topic: str) -> None:
    held = TopicPartition(topic, 0)
    async with new_reader(settings, topic) as reader:
        await write(settings, topic, [0])
        batches = reader.batches(100)
        assert numbers(await anext(batches)) == [0]
        reader.hold([held])
        await write(settings, topic, range(1, 31))
        others: list[int] = []
        while len(others) < 20:
            others += numbers(await anext(batches))
        assert sorted(others) == [number for number in range(1, 31) if number % PARTITIONS]
        reader.release([held])
        assert numbers(await anext(batches)) == list(range(3, 31, 3))


async def test_the_lag_is_what_is_not_committed_yet(settings: Settings, topic: str) -> None:
    metrics = Metrics("enrich")
    await write(settings, topic, range(100), partition=1)

    def lag() -> float | None:
        return metrics.registry.get_sample_value("drm_consumer_lag_events", {"topic": topic, "partition": "1"})

    async with Reader(settings, metrics, "test", [topic]) as reader:
        await read(reader, 60, records_max=60)
        async with asyncio.timeout(10):
            while lag() != 40:  # noqa: ASYNC110 - the gauge is set once a second
                await asyncio.sleep(0.05)
    assert lag() is None


# -- rebalances -------------------------------------------------------------------------------------------------------


class Worker:
    """Reads until cancelled, committing each batch when it is done with it."""

    def __init__(self, settings: Settings, topic: str, batch_s: float = 0.0) -> None:
        self.done: list[int] = []
        self.assigned: list[frozenset[TopicPartition]] = []
        self.revoked: list[frozenset[TopicPartition]] = []
        self.reader = new_reader(settings, topic, on_assigned=self._on_assigned, on_revoked=self._on_revoked)
        self._batch_s = batch_s

    async def _on_assigned(self, partitions: frozenset[TopicPartition]) -> None:
        self.assigned.append(partitions)

    async def _on_revoked(self, partitions: frozenset[TopicPartition]) -> None:
        self.revoked.append(partitions)

    async def run(self) -> None:
        async with self.reader:
            async for batch in self.reader.batches(20):
                await asyncio.sleep(self._batch_s)
                self.done += numbers(batch)
                await self.reader.commit(after(batch))


@asynccontextmanager
async def running(*workers: Worker) -> AsyncIterator[None]:
    tasks = [asyncio.create_task(worker.run()) for worker in workers]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def until(condition: Callable[[], bool], timeout_s: float = 60) -> None:
    async with asyncio.timeout(timeout_s):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.02)


async def test_readers_that_come_and_go_lose_nothing_and_repeat_nothing(settings: Settings, topic: str) -> None:
    first, second, third = workers = [Worker(settings, topic, batch_s=0.02) for _ in range(3)]
    total = 0
    enough = asyncio.Event()

    async def write_on() -> None:
        nonlocal total
        while not enough.is_set():
            await write(settings, topic, range(total, total + 60))
            total += 60
            await asyncio.sleep(0.1)  # slowly: who has read all waits for the others only

    async with running(first):
        writing = asyncio.create_task(write_on())
        await until(lambda: len(first.done) > 60)
        async with running(second):
            await until(lambda: len(second.done) > 60)
            assert len(first.reader.assigned) + len(second.reader.assigned) == PARTITIONS
            async with running(third):
                await until(lambda: len(third.done) > 60)
        await until(lambda: len(first.reader.assigned) == PARTITIONS)
        enough.set()
        await writing
        await until(lambda: sum(len(worker.done) for worker in workers) >= total)
        # A sentinel behind it all: whatever was repeated would come before it.
        await write(settings, topic, range(total, total + PARTITIONS))
        await until(lambda: {*first.done} >= {*range(total, total + PARTITIONS)})
    counted = Counter(first.done + second.done + third.done)
    assert sorted(counted) == list(range(total + PARTITIONS))
    assert max(counted.values()) == 1
    assert len(first.assigned) >= 3
    assert len(first.revoked) >= 2
    assert first.assigned[: len(first.revoked)] == first.revoked


READ_AND_HANG = """
import asyncio, sys
from drm_ingest import logs
from drm_ingest.kafka.reader import Reader
from drm_ingest.metrics import Metrics
from drm_ingest.settings import Settings

async def main():
    logs.configure(Settings(), "reader")
    async with Reader(Settings(), Metrics("enrich"), "test", [sys.argv[1]]) as reader:
        async for batch in reader.batches(10):
            print(sum(map(len, batch.values())), flush=True)
            await asyncio.sleep(3600)

asyncio.run(main())
"""


async def test_the_partitions_of_a_killed_reader_go_to_another_with_what_it_had_not_committed(
    settings: Settings, topic: str, environment: dict[str, str]
) -> None:
    await write(settings, topic, range(300))
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", READ_AND_HANG, topic, env=environment, stdout=asyncio.subprocess.PIPE
    )
    assert process.stdout is not None
    try:
        assert int(await process.stdout.readline()) == 10
    finally:
        process.kill()
        await process.wait()
    worker = Worker(settings, topic)
    async with running(worker):
        await until(lambda: len(worker.done) >= 300)
    assert sorted(worker.done) == list(range(300))


async def test_a_commit_of_partitions_that_went_to_another_changes_nothing(
    settings: Settings, topic: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reader_module, "DRAIN_S", 0.1)  # the batch under way takes longer than a rebalance waits
    await write(settings, topic, range(30))
    async with new_reader(settings, topic) as slow:
        batches = slow.batches(30)
        stale: dict[TopicPartition, int] = {}
        while len(stale) < PARTITIONS:
            stale |= after(await anext(batches))
        other = Worker(settings, topic)
        async with running(other):
            await until(lambda: len(other.reader.assigned) > 0)
            lost = other.reader.assigned
            await until(lambda: len(other.done) >= 10 * len(lost))
            await slow.commit(dict.fromkeys(stale, 3))
            assert not slow.assigned & lost
            await until(lambda: bool(slow.assigned))
    seen: dict[TopicPartition, int] = {}

    async def on_assigned(_: frozenset[TopicPartition]) -> None:
        return None

    async with new_reader(settings, topic, on_assigned=on_assigned) as reader:
        await write(settings, topic, range(30, 33))
        async for batch in reader.batches(100):
            for partition, records in batch.items():
                seen.setdefault(partition, records[0].offset)
            if len(seen) == PARTITIONS:
                break
    assert {partition: seen[partition] for partition in lost} == dict.fromkeys(lost, 10)


async def test_a_worker_silent_for_too_long_loses_its_partitions_and_comes_back(settings: Settings, topic: str) -> None:
    impatient = settings.model_copy(update={"reader_poll_interval_max_s": 1.0})
    await write(settings, topic, range(30))
    async with new_reader(impatient, topic) as silent:
        batches = silent.batches(100)
        await anext(batches)
        other = Worker(settings, topic)
        async with running(other):
            await until(lambda: len(other.reader.assigned) == PARTITIONS)
            await until(lambda: len(other.done) >= 30)
        assert sorted(other.done) == list(range(30))
        assert silent.assigned == frozenset()
        await write(settings, topic, range(30, 33))
        found: list[int] = []
        while len(found) < 3:
            batch = await anext(batches)
            found += numbers(batch)
            await silent.commit(after(batch))
        assert sorted(found) == [30, 31, 32]


async def test_a_restarted_broker_is_read_on_from(settings: Settings, spare_kafka: Callable[[], Kafka]) -> None:
    kafka = await asyncio.to_thread(spare_kafka)
    settings = settings.model_copy(update={"kafka_bootstrap": kafka.bootstrap})
    await create(settings, [])
    topic = Topics.of(settings).ingress
    await write(settings, topic, range(30))
    worker = Worker(settings, topic)
    async with running(worker):
        await until(lambda: len(worker.done) >= 30)
        await asyncio.to_thread(kafka.kill)
        await asyncio.sleep(2)
        await asyncio.to_thread(kafka.start)
        await write(settings, topic, range(30, 60))
        back_at = time.monotonic()
        await until(lambda: {*worker.done} >= {*range(60)})
        assert time.monotonic() - back_at < 30
        await until(lambda: worker.reader.ready)


async def test_a_client_that_stopped_looking_for_brokers_looks_again(settings: Settings) -> None:
    await create(settings, [])
    topic = Topics.of(settings).ingress
    worker = Worker(settings, topic)
    async with running(worker):
        await until(lambda: worker.reader.ready)
        client = worker.reader._group._consumer._client
        update = client._metadata_update

        async def fails_once(*arguments: object) -> object:
            client._metadata_update = update
            raise RuntimeError("unable to perform operation; the handler is closed")  # as uvloop has it

        client._metadata_update = fails_once
        async with asyncio.timeout(10):
            assert await client.force_metadata_update()
        await write(settings, topic, range(3))
        await until(lambda: len(worker.done) >= 3)


async def delete_before(settings: Settings, partition: TopicPartition, offset: int) -> None:
    admin = AIOKafkaAdminClient(bootstrap_servers=settings.kafka_bootstrap)
    await admin.start()
    try:
        await admin.delete_records({partition: RecordsToDelete(offset)})
    finally:
        await admin.close()
