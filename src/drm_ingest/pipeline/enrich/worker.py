"""enrich: events as sent become events in context: `<prefix>.ingress` → `<prefix>.events.<family>`.

    reader ─▶ directory ─▶ steps ─▶ writer ─▶ acknowledged ─▶ offset committed

Each partition is a lane of its own: its next batch goes out only after the last was acknowledged, in order, into the
partition of the same number; a partition whose leader is slow holds up no other. A batch that is not acknowledged is
enriched and written again until it is, or until the partition goes to another worker, which begins where the last
commit left it. So product teams see each event at least once, and drop repeats by `ingressposition`.
"""

import asyncio
import contextlib
import gc
from collections.abc import Mapping
from datetime import UTC, datetime
from time import monotonic

import structlog
from aiokafka import ConsumerRecord, TopicPartition
from aiokafka.errors import KafkaError

from drm_ingest import health
from drm_ingest.errors import EventCode
from drm_ingest.kafka import topics
from drm_ingest.kafka.reader import Reader
from drm_ingest.kafka.topics import Topics
from drm_ingest.kafka.writer import Delivery, Writer
from drm_ingest.metrics import Metrics
from drm_ingest.outcome import Outcome
from drm_ingest.pipeline.brake import Brake, Braked
from drm_ingest.pipeline.enrich.directory import Contexts, Directory
from drm_ingest.pipeline.enrich.remembered import Remembered
from drm_ingest.pipeline.enrich.steps import Done, Steps
from drm_ingest.pipeline.enrich.user_agent import UserAgents
from drm_ingest.schema import Schemas
from drm_ingest.settings import Settings

GROUP = "enrich"
OUTCOMES = (Outcome.ENRICHED, Outcome.DUPLICATE, Outcome.DEAD_LETTER, Outcome.RETRIED)
RETRY_S = 0.1
RETRY_MAX_S = 2.0
BRAKED_LOOK_S = 0.1
LAST_COMMIT_S = 1.0
CLOSE_S = 1.0  # of a writer from which nobody waits for an answer any more

log = structlog.get_logger(__name__)


async def run(settings: Settings, stop: asyncio.Event) -> None:
    """Enrich until `stop` is set; then finish the batch in hand and commit.

    Raises:
        KafkaUnreachable, TopicsWrong: at the start.
        PositionLost: events were deleted unread.
    """
    metrics = Metrics("enrich")
    schemas = Schemas.load(settings.schemas_dir)
    await topics.check(settings, schemas.families)
    user_agents = UserAgents(settings.enrich_user_agents_max)
    async with contextlib.AsyncExitStack() as stack:
        writer = Writer(settings, metrics)
        await writer.start()
        stack.push_async_callback(writer.stop, CLOSE_S)
        directory = await stack.enter_async_context(Directory(settings, metrics))
        steps = Steps(settings, schemas, writer, user_agents, Brake(settings))
        worker = Worker(settings, metrics, writer, directory, steps)
        address = await stack.enter_async_context(
            health.serve(settings.worker_host, settings.enrich_port, metrics, worker.unready)
        )
        gc.collect()
        gc.freeze()  # schemas, patterns and modules stay: no reason to walk them at each collection
        log.info("enriching", topic=Topics.of(settings).ingress, health=address)
        await worker.work(stop)
    log.info("stopped")


class Lane:
    """One partition while it is ours."""

    def __init__(self, remembered: Remembered) -> None:
        self.remembered = remembered
        self.acknowledged: int | None = None  # the offset to commit
        self.failing = False
        self.braked: str | None = None  # why nothing moves
        self.gone = False


class Worker:
    """Keeps the order, the offsets and the accounts."""

    def __init__(
        self, settings: Settings, metrics: Metrics, writer: Writer, directory: Directory, steps: Steps
    ) -> None:
        self._settings = settings
        self._metrics = metrics
        self._writer = writer
        self._directory = directory
        self._steps = steps
        self._lanes: dict[TopicPartition, Lane] = {}
        self._rebalances = 0
        self._outcomes = {outcome: metrics.outcomes.labels(outcome.value) for outcome in OUTCOMES}
        self._stopping = asyncio.Event()
        self._carrying: set[asyncio.Task[None]] = set()
        self._committing = asyncio.Lock()
        metrics.braked.set_function(lambda: any(lane.braked for lane in self._lanes.values()))
        self._reader = Reader(
            settings, metrics, GROUP, [Topics.of(settings).ingress], on_assigned=self._take, on_revoked=self._give_back
        )

    def unready(self) -> str | None:
        """Return why no event could be made durable now; None: it could. Postgres plays no part in it.

        Nor does it matter whether there are more workers than partitions: one without any stands by.
        """
        if self._stopping.is_set():
            return "stopping"
        if not self._reader.ready:
            return "the group has not given this worker its share yet, or Kafka does not answer"
        if not self._writer.ready:
            return "Kafka does not acknowledge"
        for partition, lane in self._lanes.items():
            if lane.braked is not None:
                return f"partition {partition.partition} of the ingress topic is held: {lane.braked}"
        failing = [partition.partition for partition, lane in self._lanes.items() if lane.failing]
        return f"the last write from partition {min(failing)} was not acknowledged" if failing else None

    async def work(self, stop: asyncio.Event) -> None:
        """Enrich until `stop` is set; what Kafka has not acknowledged `drain_timeout_s` later is read again."""
        async with self._reader:
            async with asyncio.TaskGroup() as tasks:
                endless = [tasks.create_task(self._read_on(tasks)), tasks.create_task(self._commit_regularly())]
                await stop.wait()
                self._stopping.set()
                for task in endless:
                    task.cancel()
                asyncio.get_running_loop().call_later(self._settings.drain_timeout_s, self._give_up)
            # The batches in hand are done here, or failed.
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(LAST_COMMIT_S):
                    await self._commit(self._lanes)

    def _give_up(self) -> None:
        for task in self._carrying:
            task.cancel()

    # -- reading ------------------------------------------------------------------------------------------------------

    async def _read_on(self, tasks: asyncio.TaskGroup) -> None:
        async for batches in self._reader.batches(self._settings.reader_batch_records_max):
            began, rebalances = monotonic(), self._rebalances
            contexts = await self._directory.look_up(
                {record.key for records in batches.values() for record in records if record.key is not None}
            )
            if rebalances != self._rebalances:
                continue  # while we asked, others may have been given these; whoever has them reads them again
            self._reader.hold(batches)
            for partition, records in batches.items():
                lane = self._lanes[partition]
                carrying = tasks.create_task(self._carry(partition, lane, records, contexts))
                self._carrying.add(carrying)
                carrying.add_done_callback(self._carrying.discard)
            # Under load a few larger batches cost far less than many small ones; the first after a pause goes at once.
            await asyncio.sleep(began + self._settings.enrich_pace_s - monotonic())

    # -- one batch of one partition -----------------------------------------------------------------------------------

    async def _carry(
        self, partition: TopicPartition, lane: Lane, records: list[ConsumerRecord], contexts: Contexts
    ) -> None:
        """Enrich and write until all is acknowledged, or the partition is another's."""
        retry_s = RETRY_S
        # Together the lanes leave room in the writer, so that no lane without a leader takes it all.
        bytes_max = self._settings.writer_buffered_bytes_max // (2 * max(1, len(self._lanes)))
        while records and not (lane.gone or self._stopping.is_set()):
            began = monotonic()
            try:
                done, delivery = await self._write(records, contexts, lane.remembered, bytes_max)
            except Braked as braked:
                lane.braked = str(braked)
                log.error("braked", partition=partition.partition, reason=lane.braked, retry_s=retry_s)
                if not await self._wait_braked(partition, lane, retry_s):
                    break
                retry_s = min(2 * retry_s, self._settings.brake_retry_max_s)
                continue
            if delivery.failed:
                lane.failing = True
                log.warning(
                    "not acknowledged; the batch is written again",
                    partition=partition.partition, events=done.records, error=str(delivery.error),
                )  # fmt: skip
            if delivery.failed or not done.records:
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._stopping.wait(), retry_s)
                retry_s = min(2 * retry_s, RETRY_MAX_S)
                continue
            retry_s = RETRY_S
            if lane.braked is not None:
                log.info("goes on", partition=partition.partition)
            lane.failing, lane.braked = False, None
            self._steps.passed(done)
            lane.remembered.add(done.identities)
            lane.acknowledged = records[done.records - 1].offset + 1
            self._metrics.batch_seconds.observe(monotonic() - began)
            records = records[done.records :] if done.records < len(records) else []
        if not lane.gone:
            self._reader.release([partition])

    async def _wait_braked(self, partition: TopicPartition, lane: Lane, wait_s: float) -> bool:
        """Wait with the batch in hand; False where a rebalance or the end wants it out of our hands."""
        until = monotonic() + wait_s
        while monotonic() < until:
            if lane.gone or self._stopping.is_set() or self._reader.draining:
                return False
            self._reader.hold([partition])  # we are alive
            await asyncio.sleep(BRAKED_LOOK_S)
        return True

    async def _write(
        self, records: list[ConsumerRecord], contexts: Contexts, remembered: Remembered, bytes_max: int
    ) -> tuple[Done, Delivery]:
        """Enrich some or all of the records and wait for the acknowledgement; keep the accounts."""
        settled: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        delivery = Delivery(lambda _: None if settled.done() else settled.set_result(None))
        done = self._steps.enrich(records, contexts, remembered, delivery, bytes_max)
        self._metrics.received.inc(done.records)
        self._metrics.in_flight.inc(done.records)
        delivery.seal()
        try:
            await settled
        finally:
            self._account(done, delivery, acknowledged=settled.done() and not delivery.failed)
        return done, delivery

    def _account(self, done: Done, delivery: Delivery, *, acknowledged: bool) -> None:
        metrics = self._metrics
        metrics.in_flight.dec(done.records)
        if not acknowledged:
            self._outcomes[Outcome.RETRIED].inc(done.records)
            return
        self._outcomes[Outcome.ENRICHED].inc(done.enriched)
        self._outcomes[Outcome.DUPLICATE].inc(done.duplicates)
        self._outcomes[Outcome.DEAD_LETTER].inc(done.dead_letters)
        if done.dead_letters:
            metrics.codes.labels(EventCode.UNREADABLE.value).inc(done.dead_letters)
        if done.received_at is not None:  # the first of the batch waited longest
            # Never below 0: the clock may be another than the edge's, and may have been set back.
            age_s = (datetime.now(UTC) - done.received_at).total_seconds()
            metrics.freshness_seconds.observe(max(0.0, age_s))

    # -- offsets, and who has which partition -------------------------------------------------------------------------

    async def _commit_regularly(self) -> None:
        """Commit now and then: a commit for each batch would cost as much as a small batch does."""
        while True:
            await asyncio.sleep(self._settings.enrich_commit_interval_s)
            await self._commit(self._lanes)

    async def _commit(self, lanes: Mapping[TopicPartition, Lane]) -> None:
        async with self._committing:  # one after the other, or an older offset could come last
            done = [(partition, lane, lane.acknowledged) for partition, lane in lanes.items()]
            offsets = {partition: offset for partition, _, offset in done if offset is not None}
            if not offsets:
                return
            try:
                await self._reader.commit(offsets)
            except KafkaError as error:
                log.warning("offsets not committed; the next time will do", error=repr(error))
                return
            for _, lane, offset in done:  # not by partition: meanwhile some may be another worker's
                if lane.acknowledged == offset:
                    lane.acknowledged = None

    async def _take(self, partitions: frozenset[TopicPartition]) -> None:
        self._rebalances += 1
        lanes = len(self._lanes.keys() | partitions)
        for partition in partitions:
            self._lanes[partition] = Lane(Remembered(self._settings.enrich_remembered_events_max // max(1, lanes)))

    async def _give_back(self, partitions: frozenset[TopicPartition]) -> None:
        """Commit what is done; the reader let the batches under way end before, as far as they would."""
        self._rebalances += 1
        lanes = {partition: self._lanes.pop(partition) for partition in partitions if partition in self._lanes}
        for lane in lanes.values():
            lane.gone = True
        await self._commit(lanes)
