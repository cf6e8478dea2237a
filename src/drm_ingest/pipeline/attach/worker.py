"""attach: events in context become rows: `<prefix>.events.*` → Postgres, each exactly once in effect.

    reader ─▶ decode ─▶ one transaction: positions, identities, events, day counts ─▶ Kafka offset, for lag alone
                                             ├─▶ link: relations from identity events ─▶ relay: what changed, published
                                             └─▶ total: totals of large parties

While Postgres works on one batch, the next is read and decoded. Where a worker goes on from is written in Postgres
beside the rows, so whatever dies, in Kafka, here or there, the rows and the position agree. After a failure, whatever
it was, the way back is one: claim the partitions, read from the positions that Postgres holds.
"""

import asyncio
import contextlib
import gc
import os
import secrets
import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from time import monotonic
from typing import Any

import structlog
from aiokafka import TopicPartition
from aiokafka.errors import KafkaError

from drm_ingest import health
from drm_ingest.event import LINKED
from drm_ingest.kafka import topics
from drm_ingest.kafka.reader import Reader
from drm_ingest.kafka.topics import Topics
from drm_ingest.kafka.writer import NotAcknowledged, Writer
from drm_ingest.metrics import Metrics
from drm_ingest.pipeline.attach.accounts import Accounts
from drm_ingest.pipeline.attach.bury import Undertaker
from drm_ingest.pipeline.attach.decode import Decoded, Decoder
from drm_ingest.pipeline.attach.follow import Followed, OutOfStep
from drm_ingest.pipeline.attach.keep import Keeper
from drm_ingest.pipeline.attach.link import Linker
from drm_ingest.pipeline.attach.relay import Relay
from drm_ingest.pipeline.attach.total import Totaller
from drm_ingest.pipeline.brake import Brake, Braked
from drm_ingest.postgres.pool import PASSING, open_pool
from drm_ingest.postgres.store.events import Batch, EventStore
from drm_ingest.postgres.store.positions import UNTOUCHED, Fenced, Move, Owner
from drm_ingest.postgres.trouble import in_words
from drm_ingest.schema import Schemas
from drm_ingest.settings import Settings

GROUP = "attach"
RETRY_S = 0.1
RETRY_MAX_S = 5.0
COMMIT_INTERVAL_S = 1.0
LAST_COMMIT_S = 1.0
CLOSE_S = 1.0  # of a writer from which nobody waits for an answer any more

TRY_AGAIN = (*PASSING, NotAcknowledged, OutOfStep)


log = structlog.get_logger(__name__)


async def run(settings: Settings, stop: asyncio.Event, metrics: Metrics | None = None) -> None:
    """Attach until `stop` is set; then finish the batch in hand, commit and leave the group.

    Raises:
        KafkaUnreachable, TopicsWrong, BadMigrations: at the start.
        PositionLost: events were deleted unread.
    """
    metrics = metrics or Metrics("attach")
    schemas = Schemas.load(settings.schemas_dir)
    await topics.check(settings, schemas.families)
    names = Topics.of(settings)
    # The name of its connection tells a successor which backend to end, so nobody else may ever have it.
    holder = f"drm attach {socket.gethostname()[:24]} {os.getpid()} {secrets.token_hex(4)}"
    async with contextlib.AsyncExitStack() as stack:
        writer = Writer(settings, metrics)
        await writer.start()
        stack.push_async_callback(writer.stop, CLOSE_S)
        keeper = Keeper(settings, await stack.enter_async_context(open_pool(settings, "drm keeper", connections_max=2)))
        owner = Owner(f"{settings.topic_prefix}.{GROUP}", holder)
        undertaker = Undertaker(settings, writer, Brake(settings))
        linker = Linker(
            settings, metrics, await stack.enter_async_context(open_pool(settings, "drm link", connections_max=1))
        )
        relay = Relay(settings, metrics, writer)
        totaller = Totaller(settings, metrics)
        store = await stack.enter_async_context(
            EventStore(
                settings, owner, undertaker.bury, undertaker.allow, undertaker.passed, linker.wake,
                names.events(schemas.family(LINKED)),
            )
        )  # fmt: skip
        names_of_events = [names.events(family) for family in schemas.families]
        worker = Worker(settings, metrics, keeper, store, names_of_events)
        address = await stack.enter_async_context(
            health.serve(
                settings.worker_host, settings.attach_port, metrics, lambda: worker.unready() or relay.unready()
            )
        )
        gc.collect()
        gc.freeze()  # schemas and modules stay: no reason to walk them at each collection
        if await keeper.prepare(stop):
            log.info("attaching", families=schemas.families, holder=holder, health=address)
            async with asyncio.TaskGroup() as tasks:
                beside = [tasks.create_task(work()) for work in (keeper.work, linker.work, relay.work, totaller.work)]
                await worker.work(stop)
                for task in beside:
                    task.cancel()
    log.info("stopped")


@dataclass(slots=True)
class Read:
    """A batch on its way: what was read, and in which generation of our share of the partitions."""

    generation: int
    records: int
    moves: dict[TopicPartition, Move]
    decoded: Decoded
    began: float


class Worker:
    """Keeps the positions, the way back, and the accounts."""

    def __init__(
        self, settings: Settings, metrics: Metrics, keeper: Keeper, store: EventStore, topics: Sequence[str]
    ) -> None:
        self._braked: str | None = None
        metrics.braked.set_function(lambda: self._braked is not None)
        self._settings = settings
        self._metrics = metrics
        self._keeper = keeper
        self._store = store
        self._decoder = Decoder()
        self._reader = Reader(settings, metrics, GROUP, topics, on_assigned=self._take, on_revoked=self._give_back)
        self._generation = 0  # rises whenever what was read before must not be stored any more
        self._followed = Followed()
        self._to_commit: dict[TopicPartition, int] = {}
        self._unsettled = asyncio.Event()  # set: claim and seek before anything else
        self._storing = asyncio.Lock()  # held while a batch is in hand
        self._accounts = Accounts(metrics)
        self._trouble: str | None = None
        self._retry_s = RETRY_S
        self._stopping = False

    def unready(self) -> str | None:
        """Return why no event could be made durable now; None: it could."""
        if self._stopping:
            return "stopping"
        if (trouble := self._keeper.unready()) is not None:
            return trouble
        if not self._reader.ready:
            return "the group has not given this worker its share yet, or Kafka does not answer"
        return self._braked or self._trouble

    async def work(self, stop: asyncio.Event) -> None:
        """Attach until `stop` is set.

        Raises:
            PositionLost: events were deleted unread.
        """
        async with self._reader:
            while not stop.is_set():
                try:
                    if self._unsettled.is_set():
                        await self._settle()
                    await self._attach(stop)
                    continue
                except Fenced as error:
                    self._metrics.fenced.inc()
                    self._fail(f"another worker owns {error}", error)
                    # If the group has given our share to another, the next heartbeat tells us; only then claim.
                    self._retry_s = self._settings.reader_session_timeout_s / 3
                except Braked as error:
                    self._braked = str(error)
                    log.error("braked", reason=self._braked, retry_s=self._retry_s)
                    self._unsettled.set()
                except TRY_AGAIN as error:
                    self._fail(_reason(error), error)
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(stop.wait(), self._retry_s)
                retry_max_s = RETRY_MAX_S if self._braked is None else self._settings.brake_retry_max_s
                self._retry_s = min(2 * self._retry_s, retry_max_s)
            self._stopping = True
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(LAST_COMMIT_S):
                    await self._commit()
            await self._give_back(self._followed.partitions)

    def _fail(self, reason: str, error: Exception) -> None:
        self._trouble = reason
        self._unsettled.set()
        log.warning("batch failed, to be read again", reason=reason, error=repr(error))

    # -- partitions come and go ----------------------------------------------------------------------------------------

    async def _take(self, partitions: frozenset[TopicPartition]) -> Mapping[TopicPartition, int]:
        self._generation += 1
        try:
            async with self._storing:
                claimed = await self._store.claim(partitions)
        except TRY_AGAIN as error:
            self._fail(_reason(error), error)
            return {}
        self._followed.claim(claimed)
        self._trouble = None
        log.info("partitions taken", partitions=len(claimed), begun=len(_seekable(claimed)))
        return _seekable(claimed)

    async def _give_back(self, partitions: frozenset[TopicPartition]) -> None:
        self._generation += 1
        partitions &= self._followed.partitions
        self._followed.leave(partitions)
        if not partitions:
            return
        try:
            # Long enough for the batch in hand; whoever waits for us may end our connection after it.
            async with asyncio.timeout(self._settings.postgres_lock_timeout_s), self._storing:
                await self._store.give_up(partitions)
        except TRY_AGAIN as error:
            log.warning("partitions left, not given up", reason=_reason(error))
        else:
            log.info("partitions given up", partitions=len(partitions))

    async def _settle(self) -> None:
        """Claim what the group has given us, and read from there.

        Raises:
            OutOfStep: that is not in place yet; a claim now would miss it, and nobody would make another.
        """
        if self._reader.positioning:
            raise OutOfStep("the reader is not in place yet")
        self._generation = generation = self._generation + 1
        self._followed.leave(self._followed.partitions)
        self._unsettled.clear()
        partitions = self._reader.assigned
        async with self._storing:
            claimed = await self._store.claim(partitions)
        try:
            await self._reader.rewind(partitions, _seekable(claimed))
        except KafkaError as error:
            raise OutOfStep(f"Kafka does not tell where to begin: {error!r}") from error
        if generation == self._generation:  # else the group has given us another share meanwhile, and that is claimed
            self._followed.claim(claimed)
            self._trouble = None

    # -- one batch after another ---------------------------------------------------------------------------------------

    async def _attach(self, stop: asyncio.Event) -> None:
        """Read and store until `stop` is set, something fails, or partitions must be claimed anew."""
        batches: asyncio.Queue[Read] = asyncio.Queue(maxsize=1)
        tasks = [
            asyncio.create_task(work)
            for work in (
                self._read_on(batches), self._store_on(batches), self._commit_regularly(),
                stop.wait(), self._unsettled.wait(),
            )
        ]  # fmt: skip
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            async with asyncio.timeout(self._settings.drain_timeout_s), self._storing:  # finish the batch in hand
                _cancel(tasks)
        finally:
            _cancel(tasks)
            results = await asyncio.gather(*tasks, return_exceptions=True)
            self._accounts.give_back()
        for result in results:
            if isinstance(result, BaseException) and not isinstance(result, asyncio.CancelledError):
                raise result

    async def _read_on(self, batches: asyncio.Queue[Read]) -> None:
        records_max = self._settings.attach_batch_records_max
        async for arrived in self._reader.batches(records_max):
            began, generation = monotonic(), self._generation
            moves, records = self._followed.follow(arrived)
            if records:
                self._accounts.receive(len(records))
                decoded = await self._decoder.decode(records)
                await batches.put(Read(generation, len(records), moves, decoded, began))
                if len(records) < records_max:
                    # A transaction costs as much as 150 rows: a few larger ones leave the machine to others. The
                    # first event after a pause goes at once.
                    await asyncio.sleep(began + self._settings.attach_pace_s - monotonic())

    async def _store_on(self, batches: asyncio.Queue[Read]) -> None:
        while True:
            read = await batches.get()
            async with self._storing:
                if read.generation != self._generation:  # partitions came or went since
                    self._accounts.give_back(read.records)
                    continue
                decoded = read.decoded
                stored = await self._store.store(Batch(read.moves, decoded.rows, decoded.dead, decoded.rivals))
                self._accounts.store(read.decoded, stored, read.began)
                self._keeper.notice(stored.attached)
                if self._braked is not None:
                    log.info("goes on")
                self._retry_s, self._braked = RETRY_S, None
            self._to_commit.update({partition: move.next_offset for partition, move in read.moves.items()})

    async def _commit_regularly(self) -> None:
        while True:
            await asyncio.sleep(COMMIT_INTERVAL_S)
            await self._commit()

    async def _commit(self) -> None:
        """Tell Kafka, for those who look at lag there; nothing depends on it."""
        offsets, self._to_commit = self._to_commit, {}
        if offsets:
            try:
                await self._reader.commit(offsets)
            except KafkaError as error:
                self._to_commit = offsets | self._to_commit  # with the next, or an idle partition would seem behind
                log.info("offsets not committed", reason=str(error) or type(error).__name__)


def _reason(error: Exception) -> str:
    return in_words(error) if isinstance(error, PASSING) else str(error) or type(error).__name__


def _cancel(tasks: list[asyncio.Task[Any]]) -> None:
    for task in tasks:
        task.cancel()


def _seekable(claimed: Mapping[TopicPartition, int]) -> dict[TopicPartition, int]:
    """Leave out partitions of which nothing is committed yet: those are read from their beginning."""
    return {partition: position for partition, position in claimed.items() if position != UNTOUCHED}
