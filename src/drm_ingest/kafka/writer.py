"""Write records to Kafka with acks=all: sent at once while nothing is in flight, collected while something is.

    append ─▶ a batch of the partition's lane ─▶ the next round of the leader ─▶ acknowledged ─▶ the delivery settles

No transactions, and no idempotence: aiokafka's waits for ever for a broker that is down (aiokafka #1101) and loses a
partition after one batch that failed (#1017). A retry may therefore write a batch twice, in order; the identity of the
events takes care of it.
"""

import asyncio
import contextlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from time import monotonic

import structlog

from drm_ingest.kafka.batch import Batch, Delivery, Headers, Lane, RecordTooLarge, RefusedForGood
from drm_ingest.kafka.cluster import Cluster
from drm_ingest.kafka.leader import Leader
from drm_ingest.kafka.partition import Partitions
from drm_ingest.kafka.topics import Topics
from drm_ingest.metrics import Metrics
from drm_ingest.settings import Settings

__all__ = [
    "Delivery", "Headers", "NotAcknowledged", "Outgoing", "RecordTooLarge", "RefusedForGood", "Writer", "WriterFull",
]  # fmt: skip

log = structlog.get_logger(__name__)

SWEEP_S = 0.25  # how often deadlines are looked at
BATCH_OPEN_MAX_S = 1.0  # its deadline counts from its first record, so the last must not be much younger


class WriterFull(Exception):
    """More than `writer_buffered_bytes_max` would wait for Kafka; nothing was appended. Try again later."""


class NotAcknowledged(Exception):
    """Kafka did not acknowledge at least one record in time; its fate is unknown. Writing all of it again is safe."""


@dataclass(frozen=True, slots=True)
class Outgoing:
    """One record for `Writer.write`."""

    topic: str
    partition: int
    key: bytes
    value: bytes
    headers: Sequence[tuple[str, bytes]] = ()


class Writer:
    """Writes records; one a process, used from one event loop."""

    def __init__(self, settings: Settings, metrics: Metrics) -> None:
        """Nothing is opened before `start`."""
        self.buffered_bytes = 0
        self._settings = settings
        self._metrics = metrics
        self._bytes_max = settings.writer_buffered_bytes_max
        self._batch_bytes_max = settings.writer_batch_bytes_max
        self.partitions = Partitions(settings.topic_partitions)
        """What `partition_for` returns, for whoever cannot afford a call a record."""
        self._cluster = Cluster(settings, self._route_all)
        self._lanes: dict[tuple[str, int], Lane] = {}
        self._leaders: dict[int, Leader] = {}
        self._tasks: list[asyncio.Task[None]] = []
        self._done_something = asyncio.Event()
        self._closed = True

    async def start(self) -> None:
        """Connect and learn the leaders.

        Raises:
            KafkaUnreachable: no bootstrap server answered within `produce_deadline_s`.
        """
        await self._cluster.start(Topics.of(self._settings).ingress, self._settings.produce_deadline_s)
        self._closed = False
        self._metrics.writer_bytes.set_function(lambda: self.buffered_bytes)
        self._tasks = [asyncio.create_task(self._cluster.run()), asyncio.create_task(self._sweep())]

    async def stop(self, deadline_s: float) -> None:
        """Write out what is buffered, at most for `deadline_s`; fail the rest; close."""
        until = monotonic() + deadline_s
        while self.buffered_bytes and monotonic() < until:
            await self._something_done(until)
        self._closed = True
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for lane in list(self._lanes.values()):
            self._fail(lane, everything=True)
        for leader in self._leaders.values():
            await leader.close()
        await self._cluster.close()

    @property
    def ready(self) -> bool:
        """Whether a record appended now would be acknowledged, as far as is known."""
        leaders = self._leaders.values()
        return (
            not self._closed
            and self._cluster.reachable
            and (not leaders or any(leader.healthy for leader in leaders))
            and self.room_for(1)
        )

    def room_for(self, bytes_: int) -> bool:
        """Whether that many bytes of keys, values and headers can be appended now, all of them, without WriterFull."""
        # A quarter for the lengths and offsets around them, so that a request is taken whole or not at all.
        return self.buffered_bytes + bytes_ + bytes_ // 4 <= self._bytes_max

    def append(
        self, topic: str, partition: int, key: bytes, value: bytes, headers: Headers, delivery: Delivery
    ) -> None:
        """Add a record to the next round; `delivery` settles within `produce_deadline_s` (+ 1 s), whatever happens.

        The hot path: about 1 µs a record in batches.

        Raises:
            WriterFull: nothing was appended.
            RecordTooLarge: nothing was appended.
        """
        if self.buffered_bytes + len(value) > self._bytes_max or self._closed:
            raise WriterFull
        if type(headers) is not list:
            headers = list(headers)
        lane = self._lanes.get((topic, partition)) or self._lane(topic, partition)
        batch = lane.open
        if batch is None or (record := batch.append(batch.records, batch.timestamp_ms, key, value, headers)) is None:
            batch = Batch(self._batch_bytes_max, monotonic())
            record = batch.append(0, batch.timestamp_ms, key, value, headers)
            if record.size > self._batch_bytes_max:
                raise RecordTooLarge(f"{record.size} bytes; at most {self._batch_bytes_max}")
            lane.open = batch
            lane.waiting.append(batch)
            self._route(lane)
        size = record.size
        batch.records += 1
        batch.bytes += size
        self.buffered_bytes += size
        delivery.pending += 1
        if batch.newest is delivery:
            batch.counts[-1] += 1
        else:
            batch.begin(delivery)

    def partition_for(self, topic: str, key: bytes) -> int:
        """Return the partition that Java clients choose for this key (murmur2).

        All topics have the partition count of the settings (`topics.check`). It is not read from the cluster, so that
        a key stays where it is even if somebody adds partitions under way.
        """
        return self.partitions[key]

    async def write(self, records: Iterable[Outgoing]) -> None:
        """Append all and wait until all are acknowledged; waits for room rather than raise WriterFull.

        Raises:
            NotAcknowledged: at least one was not; their fate is unknown.
            RecordTooLarge: one can never be written; the fate of those before it is unknown.
        """
        settled: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        delivery = Delivery(lambda _: None if settled.done() else settled.set_result(None))
        until = monotonic() + self._settings.produce_deadline_s
        for record in records:
            while True:
                with contextlib.suppress(WriterFull):
                    self.append(record.topic, record.partition, record.key, record.value, record.headers, delivery)
                    break
                if self._closed or monotonic() > until:
                    raise NotAcknowledged("no room in the writer before the deadline")
                await self._something_done(until)
        delivery.seal()
        await settled
        if delivery.failed:
            raise NotAcknowledged(f"{delivery.failed} records: {delivery.error}") from delivery.error

    # -- where a lane is queued -----------------------------------------------------------------------------------

    def _lane(self, topic: str, partition: int) -> Lane:
        lane = self._lanes[topic, partition] = Lane(topic, partition)
        return lane

    def _route(self, lane: Lane) -> None:
        """Queue a lane at the partition's leader; without one it waits for metadata, apart from all others."""
        if lane.in_flight is not None or not lane.waiting or self._closed:
            return  # never at two brokers; `_route` comes again when nothing is in flight
        node = self._cluster.leader(lane.topic, lane.partition)
        if lane.leader is not None and lane.leader != node:
            self._leaders[lane.leader].lanes.pop(lane, None)
        lane.leader = node
        if node is None:
            return  # the sweep asks for metadata
        leader = self._leaders.get(node)
        if leader is None:
            leader = self._leaders[node] = Leader(
                node, self._cluster, self._settings, self._metrics, self._done, self._route
            )
            self._tasks.append(asyncio.create_task(leader.run()))
        leader.add(lane)

    def _route_all(self) -> None:
        for lane in self._lanes.values():
            self._route(lane)

    # -- how a batch ends -----------------------------------------------------------------------------------------

    def _done(self, lane: Lane, batch: Batch, error: BaseException | None) -> None:
        self.buffered_bytes -= batch.bytes
        self._done_something.set()
        batch.settle(error)
        self._route(lane)

    async def _something_done(self, until: float) -> None:
        self._done_something.clear()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(max(0, until - monotonic())):
                await self._done_something.wait()

    def _fail(self, lane: Lane, *, everything: bool = False) -> None:
        """Settle what is past its deadline; what is in flight holds its bytes until the round ends."""
        born_before = monotonic() - (0 if everything else self._settings.produce_deadline_s)
        reason = NotAcknowledged(f"{lane.topic}/{lane.partition}: {lane.error or 'no leader, or no answer yet'}")
        if lane.in_flight is not None and lane.in_flight.born <= born_before:
            lane.in_flight.settle(reason)
        while lane.waiting and lane.waiting[0].born <= born_before:
            batch = lane.waiting.popleft()
            if batch is lane.open:
                lane.open = None
            self._done(lane, batch, reason)

    async def _sweep(self) -> None:
        """Look at the deadlines, a few times a second."""
        while True:
            await asyncio.sleep(SWEEP_S)
            try:
                for lane in list(self._lanes.values()):  # a callback may append, and so add one
                    self._fail(lane)
                    if lane.open is not None and lane.open.born < monotonic() - BATCH_OPEN_MAX_S:
                        lane.open = None
                    if lane.waiting and lane.leader is None:
                        self._cluster.refresh_soon()
            except Exception:
                log.exception("the sweep failed in a way nobody foresaw")  # without it no deadline would be kept
