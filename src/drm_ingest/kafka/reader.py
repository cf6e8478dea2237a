"""Read records of a consumer group: nothing is committed but what the worker says is durable.

aiokafka's consumer (group.py) ─▶ a buffer for each partition ─▶ batches ─▶ the worker ─▶ commit
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from time import monotonic
from types import TracebackType
from typing import Self

import structlog
from aiokafka import TopicPartition

from drm_ingest.kafka.buffers import Batches, Buffers
from drm_ingest.kafka.connection import KafkaUnreachable
from drm_ingest.kafka.group import Group, OnAssigned, OnRevoked, PositionLost
from drm_ingest.metrics import Metrics
from drm_ingest.settings import Settings

__all__ = ["Batches", "OnAssigned", "OnRevoked", "PositionLost", "Reader"]

log = structlog.get_logger(__name__)

FETCH_TIMEOUT_S = 1.0
FETCH_OTHERS_TIMEOUT_S = 0.1  # while some buffers are full, look again soon whether they got room
REOPEN_PAUSE_S = 1.0
WATCH_S = 1.0  # as often as a group wants to look
LAG_EVERY_S = 0.5
SILENT_S = 10.0  # without a word from Kafka: not ready
STUCK_S = 60.0  # then join anew: a rebalance takes less, and aiokafka can miss the end of one (aiokafka #1154)
DRAIN_S = 10.0  # a rebalance waits that long for the batch under way; below the group's rebalance timeout
CLOSE_TIMEOUT_S = 2.0  # leaving is a courtesy: without it the group takes us for dead a little later


class Reader:
    """A member of a consumer group; an async context manager.

    Two ways to use it:

    - all partitions as one batch: `async for batch in reader.batches(n)`; asking for the next batch says that the last
      one is done;
    - each partition on its own: `reader.hold(...)` the partitions of a batch, hand them to tasks, and
      `reader.release(...)` each when it is durable; held partitions are left out of the batches.

    In a rebalance the group waits (a little) for the batch under way, so that its commit still counts.
    """

    def __init__(
        self,
        settings: Settings,
        metrics: Metrics,
        group: str,
        topics: Sequence[str],
        *,
        on_assigned: OnAssigned | None = None,
        on_revoked: OnRevoked | None = None,
    ) -> None:
        """`group` gets the topic prefix in front.

        `on_assigned` is awaited before any record of those partitions is handed out. It may return positions kept
        elsewhere: then the committed ones do not count, and a partition it leaves out is read from its beginning. What
        it raises, `batches` raises. `on_revoked` is awaited, with the same partitions, before they go to another.
        """
        self._settings = settings
        self._metrics = metrics
        self._topics = topics
        self._group_name = f"{settings.topic_prefix}.{group}"
        self._user_on_assigned = on_assigned
        self._user_on_revoked = on_revoked
        self._group = self._new_group()
        self._task: asyncio.Task[None] | None = None
        self._closing: set[asyncio.Task[None]] = set()
        self._records_max = settings.reader_batch_records_max
        self._buffers = Buffers(settings.reader_buffered_bytes_max)
        self._done: dict[TopicPartition, int] = {}  # where to read on from after a failure
        self._busy_since: float | None = None  # the worker has a batch
        self._draining = False
        self._measured_at = 0.0
        self._failure: BaseException | None = None
        self._arrived = asyncio.Event()  # records, or a failure
        self._moved = asyncio.Event()  # the worker: something was taken, released or done

    async def __aenter__(self) -> Self:
        """Begin to join the group.

        Raises:
            KafkaUnreachable: no bootstrap server answers.
        """
        await self._group.open()
        self._task = asyncio.create_task(self._keep_reading(), name=f"reader {self._group_name}")
        self._task.add_done_callback(self._ended)
        await asyncio.sleep(0)  # from here on the task closes what was opened
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Leave the group, so that others take over at once."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait({self._task})
        if self._closing:
            _, late = await asyncio.wait(self._closing, timeout=CLOSE_TIMEOUT_S)
            for task in late:
                task.cancel()
            if late:
                await asyncio.wait(late, timeout=CLOSE_TIMEOUT_S)

    @property
    def assigned(self) -> frozenset[TopicPartition]:
        """The partitions that are ours now; records of others must be dropped."""
        return self._group.assigned

    @property
    def positioning(self) -> bool:
        """Whether the group has given us partitions that are not among the assigned ones yet."""
        return self._group.positioning

    @property
    def draining(self) -> bool:
        """Whether a rebalance waits for what is under way; who cannot get done with it should let go."""
        return self._draining

    @property
    def ready(self) -> bool:
        """Whether the group has given us our share (it may be none) and Kafka answers."""
        since = self._group.waiting_since
        return self._failure is None and self._group.joined and (since is None or monotonic() - since < SILENT_S)

    async def batches(self, records_max: int) -> AsyncIterator[Batches]:
        """Yield what has arrived, at most `records_max` records at a time, in order within each partition.

        Raises:
            PositionLost: stop, and tell a person.
            Exception: what `on_assigned` raised.
        """
        self._records_max = records_max
        self._busy_since = None  # a worker that failed in the loop comes back here
        while True:
            batch = await self._next(records_max)
            self._metrics.read_batch_events.observe(sum(map(len, batch.values())))
            self._busy_since = monotonic()
            try:
                yield batch
            finally:
                self._busy_since = None
                self._moved.set()

    def hold(self, partitions: Iterable[TopicPartition]) -> None:
        """Leave these out of the batches until released."""
        self._buffers.hold(partitions)

    def release(self, partitions: Iterable[TopicPartition]) -> None:
        """Hand out records of these again."""
        self._buffers.release(partitions)
        self._arrived.set()
        self._moved.set()

    async def commit(self, offsets: Mapping[TopicPartition, int]) -> None:
        """Commit the offsets to read on from; those of partitions no longer ours are left out.

        Raises:
            KafkaError: not committed; the same offsets, or later ones, are to be committed again.
        """
        ours = {partition: offset for partition, offset in offsets.items() if partition in self.assigned}
        if ours:
            self._done |= ours
            await self._group.commit(ours)

    async def rewind(
        self,
        partitions: Iterable[TopicPartition] | None = None,
        positions: Mapping[TopicPartition, int] | None = None,
    ) -> None:
        """Read these (default: all) again from the offset committed last.

        Or from `positions`: then the committed ones do not count, and a partition that is left out is read from its
        beginning, as on assignment.

        Raises:
            KafkaError: Kafka does not tell where they begin.
        """
        again = self.assigned if partitions is None else self.assigned.intersection(partitions)
        if positions is None:
            positions = {**self._group.positions, **self._done}
        elif unknown := again - positions.keys():
            positions = {**positions, **await self._group.beginnings(unknown)}
        for partition in again & self.assigned:
            self._group.seek(partition, positions[partition])
            self._done[partition] = positions[partition]
            self._buffers.forget(partition)

    # -- handing out ----------------------------------------------------------------------------------------------

    async def _next(self, records_max: int) -> Batches:
        while True:
            if self._failure is not None:
                raise self._failure
            if not self._draining and (batch := self._buffers.take(records_max)):
                self._moved.set()
                return batch
            self._arrived.clear()
            await self._arrived.wait()

    # -- reading --------------------------------------------------------------------------------------------------

    def _new_group(self) -> Group:
        async def drain(partitions: frozenset[TopicPartition]) -> None:
            await self._drain(group, partitions)

        group = Group(self._settings, self._group_name, self._topics, self._assign, drain)
        return group

    async def _keep_reading(self) -> None:
        """Read, and join anew when aiokafka cannot go on or seems stuck."""
        while True:
            reading = asyncio.create_task(self._read())
            try:
                reason = await self._watch(reading)
            finally:
                reading.cancel()
                await asyncio.wait({reading})
                lost = self._group.told
                self._close(self._group)
                await self._lose(lost)
            if self._failure is not None:
                return
            log.warning("joining the group anew", group=self._group_name, reason=reason)
            while self._busy_since is not None:  # silent for too long: nothing is read for a worker that hangs
                await self._next_move(None)
            await self._reopen()

    def _ended(self, task: asyncio.Task[None]) -> None:
        """Tell the worker, who would wait for ever otherwise."""
        if not task.cancelled() and self._failure is None:
            self._failure = task.exception()
        self._arrived.set()

    async def _watch(self, reading: asyncio.Task[None]) -> str:
        """Return why reading cannot go on; sets `_failure` if it never can."""
        while True:
            await asyncio.wait({reading}, timeout=WATCH_S)
            if reading.done():
                error = reading.exception()
                if isinstance(error, PositionLost):
                    self._failure = error
                return repr(error)
            self._group.look()
            now = monotonic()
            silent_s = self._settings.reader_poll_interval_max_s
            if any(
                now - since > silent_s
                for since in (self._busy_since, *self._buffers.held.values())
                if since is not None
            ):
                return "the worker was silent for longer than DRM_READER_POLL_INTERVAL_MAX_S"
            since = self._group.waiting_since
            if since is not None and now - since > STUCK_S:
                return f"no word from Kafka for {STUCK_S:.0f} s"

    async def _read(self) -> None:
        while True:
            assigned = self.assigned
            roomy = self._buffers.roomy(assigned, self._records_max)
            if assigned and not roomy:
                await self._next_move(FETCH_TIMEOUT_S)
                continue
            all_ = len(roomy) == len(assigned)
            timeout_s = FETCH_TIMEOUT_S if all_ else FETCH_OTHERS_TIMEOUT_S
            got = await self._group.fetch(() if all_ else roomy, timeout_s, self._records_max)
            self._buffers.fill(got)
            if got:
                self._arrived.set()
            self._measure_lag()

    async def _reopen(self) -> None:
        while True:
            await asyncio.sleep(REOPEN_PAUSE_S)
            group = self._new_group()
            try:
                await group.open()
            except KafkaUnreachable as error:
                log.warning("Kafka does not answer", group=self._group_name, error=str(error))
            except BaseException:
                self._close(group)
                raise
            else:
                self._group = group
                return

    def _close(self, group: Group) -> None:
        """Leave in the background: with Kafka away it takes as long as its requests do."""
        group.abandon()
        self._moved.set()
        task = asyncio.create_task(group.close())
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)

    # -- rebalances -----------------------------------------------------------------------------------------------

    async def _assign(self, partitions: frozenset[TopicPartition]) -> Mapping[TopicPartition, int] | None:
        if self._user_on_assigned is None or not partitions:
            return None
        try:
            return await self._user_on_assigned(partitions)
        except Exception as error:
            self._failure = error
            raise

    async def _drain(self, group: Group, partitions: frozenset[TopicPartition]) -> None:
        """Hand out no more and wait for what is under way."""
        self._draining = True
        until = monotonic() + DRAIN_S
        while not group.closed and (self._busy_since is not None or self._buffers.held) and monotonic() < until:
            await self._next_move(until - monotonic())
        if not group.closed:
            await self._lose(partitions)
        self._draining = False

    async def _lose(self, partitions: frozenset[TopicPartition]) -> None:
        """Forget everything about partitions that go to another."""
        self._buffers.clear()
        self._done.clear()
        for topic, partition in partitions:
            with contextlib.suppress(KeyError):
                self._metrics.lag.remove(topic, str(partition))
        if partitions and self._user_on_revoked is not None:
            try:
                await self._user_on_revoked(partitions)
            except Exception as error:
                log.exception("on_revoked failed", group=self._group_name)
                self._failure = error
                self._arrived.set()

    async def _next_move(self, timeout_s: float | None) -> None:
        self._moved.clear()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                await self._moved.wait()

    def _measure_lag(self) -> None:
        if monotonic() - self._measured_at < LAG_EVERY_S:
            return
        self._measured_at = monotonic()
        for partition in self.assigned:
            end, done = self._group.end(partition), self._done.get(partition, self._group.positions[partition])
            if end is not None:
                self._metrics.lag.labels(partition.topic, str(partition.partition)).set(max(0, end - done))
