"""The rounds to one broker: one produce request in flight, all its partitions in it; what collects goes next."""

import asyncio
from collections.abc import Callable, Iterable
from time import monotonic

import structlog
from aiokafka.errors import KafkaError, for_code

from drm_ingest.kafka.batch import Batch, Lane, RefusedForGood
from drm_ingest.kafka.cluster import Cluster
from drm_ingest.kafka.produce import BrokerConnection
from drm_ingest.metrics import Metrics
from drm_ingest.settings import Settings

log = structlog.get_logger(__name__)

ROUND_BYTES_MAX = 16 * 1024 * 1024
RETRY_PAUSE_S = 0.1  # a partition or a broker that failed is left alone for that long,
RETRY_PAUSE_MAX_S = 1.0  # a broker that fails again and again up to that
TRUST_AGAIN_S = 5.0  # an idle broker's last failure says nothing about now after that

# A retry changes nothing: too large (10, 18), not allowed (17, 29, 31, 44), not a record (2, 32, 42, 43, 76, 87).
# Every other refusal may pass until the deadline.
PERMANENT = frozenset({2, 10, 17, 18, 29, 31, 32, 42, 43, 44, 76, 87})
TOO_LARGE = frozenset({10, 18})  # with fewer records it may pass: somebody lowered the topic's max.message.bytes
TELL_EVERY_S = 10.0

Round = dict[tuple[str, int], tuple[Lane, Batch]]


class Leader:
    """A broker that leads partitions.

    Its own produce requests rather than aiokafka's producer: that one waits with everything of a broker while one of
    its partitions is retried, stops looking at new batches while any partition has no leader, and asks for metadata in
    a tight loop meanwhile. It also costs less: 1.2 µs an event of 400 bytes in deliveries of a hundred and 3.9 in
    single ones, encoding and sending included, where `send_batch` takes 1.9 and 5.3 (loadtests/writer.py measures it,
    produce.py says why).
    """

    def __init__(
        self,
        node: int,
        cluster: Cluster,
        settings: Settings,
        metrics: Metrics,
        on_done: Callable[[Lane, Batch, BaseException | None], None],
        on_free: Callable[[Lane], None],
    ) -> None:
        """`on_done` gets a batch that is acknowledged or failed for good, `on_free` a lane with nothing in flight."""
        self.node = node
        self.lanes: dict[Lane, None] = {}  # those with something to send, in the order they came
        self._cluster = cluster
        self._timeout_ms = round(
            settings.produce_request_timeout_s * 800
        )  # the broker gives up before we do, and says so
        self._metrics = metrics
        self._on_done = on_done
        self._on_free = on_free
        self._work = asyncio.Event()
        self._connection: BrokerConnection | None = None
        self._acknowledges = True
        self._failures = 0  # in a row, to reach it at all
        self._failed_at = 0.0
        self._told_at = 0.0  # of batches that had to be split

    @property
    def healthy(self) -> bool:
        """Whether its last round did not fail, as far as that still tells something."""
        return self._acknowledges or (not self.lanes and monotonic() - self._failed_at > TRUST_AGAIN_S)

    def add(self, lane: Lane) -> None:
        """The lane has something to send: at once when nothing is in flight, else with the next round."""
        self.lanes[lane] = None
        self._work.set()

    async def run(self) -> None:
        """Send rounds until cancelled."""
        while True:
            await self._work.wait()
            try:
                if await self._send():
                    self._failures = 0
                    continue
            except Exception:
                log.exception("a round failed in a way nobody foresaw", broker=self.node)
                if self._connection is not None:
                    self._connection.close()
            self._failures += 1
            self._cluster.refresh_soon()
            await asyncio.sleep(min(RETRY_PAUSE_S * 2 ** (self._failures - 1), RETRY_PAUSE_MAX_S))

    async def close(self) -> None:
        """Close the connection; the caller has cancelled `run`."""
        if self._connection is not None:
            await self._connection.close()

    async def _send(self) -> bool:
        """Send one round; False if the broker did not answer."""
        if not self.lanes:  # nothing, or it went to another leader; the broker may be gone for good
            self._work.clear()
            return True
        connection = self._connection
        if connection is None or not connection.connected():
            try:
                connection = self._connection = await self._cluster.connect(self.node)
            except (OSError, KafkaError) as error:
                self._unreachable(error, self.lanes)
                return False
        round_ = self._collect()
        if not round_:
            self._work.clear()
            return True
        try:
            return await self._exchange(connection, round_)
        finally:  # whatever was not acknowledged waits again, in its place
            for lane, batch in round_.values():
                self._again(lane, batch)

    def _collect(self) -> Round:
        """Take the oldest batch of each lane, in turn when all are too much for one request."""
        round_: Round = {}
        bytes_ = 0
        for lane in list(self.lanes):
            del self.lanes[lane]
            if not lane.waiting or lane.blocked:
                continue  # what unblocks it adds it again
            batch = lane.take()
            round_[lane.key] = lane, batch
            bytes_ += batch.bytes
            if lane.waiting:
                self.lanes[lane] = None
            if bytes_ >= ROUND_BYTES_MAX:
                break
        return round_

    async def _exchange(self, connection: BrokerConnection, round_: Round) -> bool:
        topics: dict[str, list[tuple[int, bytes]]] = {}
        for lane, batch in round_.values():
            topics.setdefault(lane.topic, []).append((lane.partition, batch.wire()))
        sent, sent_at = len(round_), monotonic()
        try:
            answer = await connection.produce(topics, self._timeout_ms)
        except (OSError, KafkaError) as error:
            # A late answer would be taken for the next request's: start afresh.
            connection.close()
            self._unreachable(error, [lane for lane, _ in round_.values()])
            return False
        self._metrics.produce_seconds.observe(monotonic() - sent_at)
        refused: BaseException | None = None
        for topic, partition, code in answer:
            lane, batch = round_[topic, partition]
            if code:
                refused = lane.error = for_code(code)(f"{topic}/{partition}, code {code}")
                self._metrics.produce_failures.labels(type(refused).__name__).inc()
                if code not in PERMANENT:
                    self._cluster.refresh_soon()
                    continue
                if code in TOO_LARGE and batch.records > 1 and not batch.settled:
                    del round_[topic, partition]
                    self._split(lane, batch)
                    continue
                log.error(
                    "Kafka refuses a batch for good; mend what it says, nothing needs a restart",
                    topic=topic, partition=partition, records=batch.records, bytes=batch.bytes, error=repr(refused),
                )  # fmt: skip
                refused = lane.error = RefusedForGood(f"{type(refused).__name__}: {refused}")
            else:
                self._acknowledges = True
                self._metrics.batch_events.observe(batch.records)
                lane.error = None
            del round_[topic, partition]
            lane.in_flight = None
            self._on_done(lane, batch, lane.error)
        if refused is not None and len(round_) == sent:
            self._fails(refused)
        return True

    def _unreachable(self, error: BaseException, lanes: Iterable[Lane]) -> None:
        self._metrics.produce_failures.labels(type(error).__name__).inc()
        self._fails(error)
        for lane in lanes:
            lane.error = error

    def _again(self, lane: Lane, batch: Batch) -> None:
        lane.in_flight = None
        if batch.settled:  # its deadline passed while it was in flight
            self._on_done(lane, batch, lane.error)
        else:
            lane.waiting.appendleft(batch)
        lane.blocked = True
        asyncio.get_running_loop().call_later(RETRY_PAUSE_S, self._unblock, lane)

    def _split(self, lane: Lane, batch: Batch) -> None:
        """Send its halves in its place, in order, so that only a record which is too large by itself fails."""
        if monotonic() - self._told_at > TELL_EVERY_S:
            self._told_at = monotonic()
            log.warning(
                "Kafka takes no batch that large, it is split; raise the topic's max.message.bytes",
                topic=lane.topic, partition=lane.partition, records=batch.records, bytes=batch.bytes,
            )  # fmt: skip
        lane.in_flight = None
        lane.waiting.extendleft(reversed(batch.split()))
        self._on_free(lane)

    def _unblock(self, lane: Lane) -> None:
        # By the timer alone and never by the clock: uvloop's timers are up to a millisecond early.
        lane.blocked = False
        self._on_free(lane)

    def _fails(self, error: BaseException) -> None:
        if self._acknowledges:
            log.warning("Kafka does not acknowledge", broker=self.node, error=repr(error))
        self._acknowledges = False
        self._failed_at = monotonic()
