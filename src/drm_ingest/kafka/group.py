"""Membership in a consumer group: which partitions are ours, from where to read them on, and their records."""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping, Sequence
from time import monotonic

import structlog
from aiokafka import AIOKafkaConsumer, ConsumerRecord, TopicPartition
from aiokafka.abc import ConsumerRebalanceListener
from aiokafka.coordinator.assignors.range import RangePartitionAssignor
from aiokafka.errors import (
    CommitFailedError,
    IllegalStateError,
    KafkaConnectionError,
    KafkaTimeoutError,
    OffsetOutOfRangeError,
)

from drm_ingest.kafka.connection import Hearing, KafkaUnreachable, connection
from drm_ingest.settings import Settings

log = structlog.get_logger(__name__)

OnAssigned = Callable[[frozenset[TopicPartition]], Awaitable[Mapping[TopicPartition, int] | None]]
OnRevoked = Callable[[frozenset[TopicPartition]], Awaitable[None]]

FETCH_WAIT_MS = 100  # one fetch at a time to a broker: partitions that got room wait for the one under way
FETCH_BYTES_MAX = 16 * 1024 * 1024
PARTITION_FETCH_BYTES_MAX = 1024 * 1024
REBALANCE_TIMEOUT_S = 15  # how long the group waits for a member that still finishes a batch
REQUEST_TIMEOUT_S = 20  # longer than that, since joining is one request
COMMIT_TIMEOUT_S = 10
CLOSE_TIMEOUT_S = 30  # longer than a request; aiokafka's fetcher may not have heard (connection.py)
TELL_TIMEOUT_S = 3


class PositionLost(Exception):
    """The position to read on from is not in the topic any more: events were deleted unread, or the topic is another.

    The worker stops; a person decides (the message says how).
    """


class Group(ConsumerRebalanceListener):  # type: ignore[misc]  # aiokafka has no types
    """One consumer of a group. Opened once; after an error make another."""

    def __init__(
        self,
        settings: Settings,
        name: str,
        topics: Sequence[str],
        on_assigned: OnAssigned,
        on_revoked: OnRevoked,
    ) -> None:
        """`on_revoked` is awaited while the partitions are still ours, so commits count until it returns."""
        self.assigned: frozenset[TopicPartition] = frozenset()  # ours, and positioned
        self.told: frozenset[TopicPartition] = frozenset()  # those that `on_assigned` was called with
        self.positions: dict[TopicPartition, int] = {}  # where they were when they became ours
        self.joined = False
        self.closed = False
        self.waiting_since: float | None = None  # for a word from Kafka, monotonic seconds
        self._settings = settings
        self._name = name
        self._topics = topics
        self._on_assigned = on_assigned
        self._on_revoked = on_revoked
        self._unpositioned: frozenset[TopicPartition] | None = None
        self._telling = asyncio.Lock()
        self._last_poll_ms = 0
        self._consumer: AIOKafkaConsumer
        self._hearing: Hearing

    async def open(self) -> None:
        """Connect and begin to join.

        Raises:
            KafkaUnreachable: no bootstrap server answers.
        """
        settings = self._settings
        self._consumer = AIOKafkaConsumer(
            **connection(settings),
            group_id=self._name,
            enable_auto_commit=False,
            auto_offset_reset="none",  # decided in `_position`; under way it stops the worker
            partition_assignment_strategy=[RangePartitionAssignor],  # partition p of all families to one worker
            session_timeout_ms=round(settings.reader_session_timeout_s * 1000),
            heartbeat_interval_ms=round(settings.reader_session_timeout_s * 300),
            rebalance_timeout_ms=REBALANCE_TIMEOUT_S * 1000,
            request_timeout_ms=REQUEST_TIMEOUT_S * 1000,
            max_poll_interval_ms=round(settings.reader_poll_interval_max_s * 1000),
            fetch_max_wait_ms=FETCH_WAIT_MS,
            fetch_max_bytes=FETCH_BYTES_MAX,
            max_partition_fetch_bytes=PARTITION_FETCH_BYTES_MAX,
        )
        self._hearing = Hearing(self._consumer._client, REQUEST_TIMEOUT_S)
        try:
            await self._consumer.start()
        except (KafkaConnectionError, OSError) as error:
            await self._consumer.stop()
            raise KafkaUnreachable(self._settings, error) from error
        self.waiting_since = monotonic()
        self._consumer.subscribe(topics=list(self._topics), listener=self)

    async def close(self) -> None:
        """Leave the group."""
        self.abandon()
        try:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(CLOSE_TIMEOUT_S):
                    await self._consumer.stop()
        except asyncio.CancelledError:  # Kafka does not answer, and nobody waits for it any longer: hang up
            await self._consumer._client.close()
            raise

    def abandon(self) -> None:
        """Nothing is ours any more; what a rebalance under way still does here does not count."""
        self.assigned = self.told = frozenset()
        self.joined, self.closed = False, True

    def look(self) -> None:
        """Hang up on brokers that do not answer; call it every second."""
        self._hearing.look()

    @property
    def positioning(self) -> bool:
        """Whether partitions were given to us that are not in `assigned` yet: where to read on is still being asked."""
        return self._unpositioned is not None

    # -- rebalances; aiokafka calls these and only logs what they raise -------------------------------------------

    async def on_partitions_revoked(self, revoked: Collection[TopicPartition]) -> None:
        """Let the batch under way end; then they are not ours any more."""
        self.joined = False
        self._unpositioned = None
        if self.told:
            log.info("partitions are given back", group=self._name, partitions=len(self.told))
            with contextlib.suppress(TimeoutError):  # a callback that hangs must not keep the others waiting
                async with asyncio.timeout(TELL_TIMEOUT_S), self._telling:
                    pass
            await self._on_revoked(self.told)
        self.assigned = self.told = frozenset()

    def on_partitions_assigned(self, assigned: Collection[TopicPartition]) -> None:
        """Note them; `fetch` positions them, since no heartbeat is sent while this runs.

        Until then they stand still, at a position that is not used: without one aiokafka would look for its own.
        """
        self._unpositioned = frozenset(assigned)
        for partition in assigned:
            self._consumer.seek(partition, 0)
        self._consumer.pause(*assigned)

    # -- reading --------------------------------------------------------------------------------------------------

    async def fetch(
        self, partitions: Collection[TopicPartition], timeout_s: float, records_max: int
    ) -> dict[TopicPartition, list[ConsumerRecord]]:
        """Return records of these (none: all) partitions that are ours, or nothing after that time.

        A rebalance may take longer. Raises:
            PositionLost: a position is not in the topic any more.
            KafkaError: this consumer cannot go on.
        """
        if self._unpositioned is not None:
            await self._position(self._unpositioned)
        self.waiting_since = self.waiting_since or monotonic()
        try:
            got: dict[TopicPartition, list[ConsumerRecord]] = await self._consumer.getmany(
                *partitions, timeout_ms=round(timeout_s * 1000), max_records=records_max
            )
        except OffsetOutOfRangeError as error:
            await self._check_lost(error.args[0])
            return {}
        if self._unpositioned is not None:
            return {}
        if got or self._polled() or (self.joined and not self.assigned):
            self.waiting_since = None
        return {partition: records for partition, records in got.items() if partition in self.assigned}

    def seek(self, partition: TopicPartition, offset: int) -> None:
        """Read on from there; what was fetched is forgotten."""
        self._consumer.seek(partition, offset)

    def end(self, partition: TopicPartition) -> int | None:
        """Return the offset of the next record to be written, as of the last fetch."""
        if partition not in self._consumer.assignment():
            return None
        end: int | None = self._consumer.highwater(partition)
        return end

    async def beginnings(self, partitions: Iterable[TopicPartition]) -> Mapping[TopicPartition, int]:
        """Return the offset of the first record that each of these holds now."""
        found: dict[TopicPartition, int] = await self._consumer.beginning_offsets(sorted(partitions))
        return found

    async def commit(self, offsets: Mapping[TopicPartition, int]) -> None:
        """Commit; when the partitions went to another member, say so and go on: that one reads them again.

        Raises:
            KafkaError: not committed: Kafka does not answer, or does not allow it. Commit again, or after a crash
                these are read twice.
        """
        try:
            async with asyncio.timeout(COMMIT_TIMEOUT_S):
                await self._consumer.commit(dict(offsets))
        except (CommitFailedError, IllegalStateError):
            log.info("a commit came too late: the partitions were given to another", group=self._name)
        except TimeoutError as error:
            raise KafkaTimeoutError(f"no answer to a commit within {COMMIT_TIMEOUT_S:.0f} s") from error

    # -- positions ------------------------------------------------------------------------------------------------

    async def _position(self, partitions: frozenset[TopicPartition]) -> None:
        self.waiting_since = None
        async with self._telling:
            if self._unpositioned is not partitions:
                return
            self.told = partitions
            kept = await self._on_assigned(partitions)
        self.waiting_since = monotonic()
        positions = await self._committed(partitions) if kept is None else {**kept}
        if new := sorted(partitions - positions.keys()):
            beginnings = await self.beginnings(new)
            for partition in new:
                if beginnings[partition]:
                    log.warning(
                        "never read before, and older records are deleted already",
                        group=self._name, topic=partition.topic, partition=partition.partition,
                        beginning=beginnings[partition],
                    )  # fmt: skip
            positions |= beginnings
            if kept is None:
                await self.commit(beginnings)  # so that whatever is deleted unread from now on is noticed
        if self._unpositioned is not partitions:
            return  # another rebalance came meanwhile
        for partition in partitions:
            self._consumer.seek(partition, positions[partition])
        self._consumer.resume(*partitions)
        self._unpositioned = None
        self.assigned, self.positions = partitions, positions
        self.joined = True
        log.info("partitions are ours", group=self._name, partitions=len(partitions))

    async def _committed(self, partitions: frozenset[TopicPartition]) -> dict[TopicPartition, int]:
        ordered = sorted(partitions)
        offsets = await asyncio.gather(*(self._consumer.committed(partition) for partition in ordered))
        return {partition: offset for partition, offset in zip(ordered, offsets, strict=True) if offset is not None}

    async def _check_lost(self, offsets: Mapping[TopicPartition, int]) -> None:
        """Raise PositionLost, unless the position is there after all (a new leader may lag for a moment)."""
        beginnings = await self.beginnings(offsets)
        ends = await self._consumer.end_offsets(list(offsets))
        for partition, offset in offsets.items():
            if beginnings[partition] <= offset <= ends[partition]:
                continue
            raise PositionLost(
                f"{self._name} should read {partition.topic}/{partition.partition} from {offset}, but the topic holds "
                f"{beginnings[partition]} to {ends[partition]}: "
                + (
                    "events were deleted before they were read"
                    if offset < beginnings[partition]
                    else "the topic was made anew, or lost its newest records"
                )
                + ". To go on with what is there, set its position: kafka-consumer-groups --reset-offsets "
                f"--to-earliest --group {self._name} --topic {partition.topic}:{partition.partition} --execute "
                "(for attach, delete the partition's row of consumer_position instead)."
            )

    def _polled(self) -> bool:
        polls = [self._consumer.last_poll_timestamp(partition) or 0 for partition in self._consumer.assignment()]
        latest = max(polls, default=0)
        changed = latest > self._last_poll_ms
        self._last_poll_ms = latest
        return changed
