"""The worker of attach, with a consumer and a Postgres made up for the test."""

import asyncio
from collections.abc import Collection, Iterable, Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import pytest
from aiokafka import ConsumerRecord, TopicPartition
from aiokafka.errors import KafkaTimeoutError
from tests.attaching import event

from drm_ingest.metrics import Metrics
from drm_ingest.pipeline.attach.worker import Worker
from drm_ingest.postgres.store.events import Batch, Stored
from drm_ingest.postgres.store.positions import UNTOUCHED
from drm_ingest.postgres.store.rows import Row
from drm_ingest.settings import Settings

PARTITION = TopicPartition("drm.events.measurement", 0)
SETTINGS = Settings()


class Consumer:
    """Gives the only member of its group the only partition, and what is in it; does not answer the first commit."""

    def __init__(self, **_: Any) -> None:
        self.commits: list[int] = []
        self.committed_again = asyncio.Event()
        self._client = SimpleNamespace(_get_conn=None)  # it connects to nobody
        self._at = 0
        self._paused: set[TopicPartition] = set()
        self._given = False

    async def start(self) -> None: ...

    async def stop(self) -> None: ...

    def subscribe(self, topics: Collection[str], listener: Any) -> None:
        self._listener = listener

    def assignment(self) -> set[TopicPartition]:
        return {PARTITION} if self._given else set()

    def pause(self, *partitions: TopicPartition) -> None:
        self._paused.update(partitions)

    def resume(self, *partitions: TopicPartition) -> None:
        self._paused.difference_update(partitions)

    def seek(self, partition: TopicPartition, offset: int) -> None:
        self._at = offset

    def highwater(self, partition: TopicPartition) -> int:
        return 3

    def last_poll_timestamp(self, partition: TopicPartition) -> int:
        return 1

    async def beginning_offsets(self, partitions: Iterable[TopicPartition]) -> dict[TopicPartition, int]:
        await asyncio.sleep(0.05)  # Kafka is a network away
        return dict.fromkeys(partitions, 0)

    async def commit(self, offsets: Mapping[TopicPartition, int]) -> None:
        if offsets[PARTITION] == 0:  # the reader's own, of a partition that nobody has read before
            return
        self.commits.append(offsets[PARTITION])
        if len(self.commits) == 1:
            raise KafkaTimeoutError("a broker that is mute for a moment")
        self.committed_again.set()

    async def getmany(
        self, *_: TopicPartition, timeout_ms: int, max_records: int
    ) -> dict[TopicPartition, list[ConsumerRecord]]:
        await asyncio.sleep(0.01)
        if not self._given:
            self._given = True
            self._listener.on_partitions_assigned({PARTITION})
        if self._paused or self._at >= self.highwater(PARTITION):
            return {}
        offsets, self._at = range(self._at, self.highwater(PARTITION)), self.highwater(PARTITION)
        return {PARTITION: [record(offset) for offset in offsets]}


class Store:
    """Refuses the first claim, as a lock that does not come free or a connection that broke would."""

    def __init__(self) -> None:
        self.claims = 0
        self.stored: list[int] = []
        self.has_all = asyncio.Event()

    async def claim(self, partitions: Iterable[TopicPartition]) -> dict[TopicPartition, int]:
        self.claims += 1
        if self.claims == 1:
            raise ConnectionError("the connection broke while nobody looked")
        return dict.fromkeys(partitions, UNTOUCHED)

    async def give_up(self, partitions: Iterable[TopicPartition]) -> None: ...

    async def store(self, batch: Batch) -> Stored:
        self.stored += [row.record.offset for row in batch.rows]
        if len(self.stored) == 3:
            self.has_all.set()
        return Stored(list(batch.rows))


class Keeper:
    """All is well with Postgres."""

    def unready(self) -> None: ...

    def notice(self, rows: Sequence[Row]) -> None: ...


def record(offset: int) -> ConsumerRecord:
    value = event(f"e-{offset}")
    return ConsumerRecord(*PARTITION, offset, 0, 1, b"meter-1", value, None, 0, len(value), ())


async def test_a_share_that_could_not_be_claimed_at_once_is_claimed_when_it_is_in_place(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The second claim may come before the reader stands anywhere: it must not be taken for a claim of nothing."""
    monkeypatch.setattr("drm_ingest.kafka.group.AIOKafkaConsumer", Consumer)
    store, stop = Store(), asyncio.Event()
    worker = Worker(SETTINGS, Metrics("attach"), Keeper(), store, [PARTITION.topic])  # type: ignore[arg-type]
    working = asyncio.create_task(worker.work(stop))
    try:
        await asyncio.wait_for(store.has_all.wait(), 5)
        assert store.stored == [0, 1, 2]
    finally:
        stop.set()
        await working


async def test_a_commit_that_was_not_answered_is_made_again_though_nothing_more_arrives(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    consumers: list[Consumer] = []

    def make(**arguments: Any) -> Consumer:
        consumers.append(Consumer(**arguments))
        return consumers[-1]

    monkeypatch.setattr("drm_ingest.kafka.group.AIOKafkaConsumer", make)
    monkeypatch.setattr("drm_ingest.pipeline.attach.worker.COMMIT_INTERVAL_S", 0.02)
    store, stop = Store(), asyncio.Event()
    worker = Worker(SETTINGS, Metrics("attach"), Keeper(), store, [PARTITION.topic])  # type: ignore[arg-type]
    working = asyncio.create_task(worker.work(stop))
    try:
        await asyncio.wait_for(store.has_all.wait(), 5)
        await asyncio.wait_for(consumers[-1].committed_again.wait(), 5)
        assert consumers[-1].commits == [3, 3]
    finally:
        stop.set()
        await working
