"""attach: events in context become rows: `<prefix>.events.*` → Postgres, each exactly once in effect.

    reader ─▶ decode ─▶ one transaction: positions, identities, events, day counts ─▶ Kafka offset, for lag alone

While Postgres works on one batch, the next is read and decoded. Where a worker goes on from is written in Postgres
beside the rows, so whatever dies, in Kafka, here or there, the rows and the position agree. After a failure, whatever
it was, the way back is one: claim the partitions, read from the positions that Postgres holds.
"""

import asyncio
import contextlib
import gc
import os
import random
import secrets
import socket
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from time import monotonic, time

import asyncpg
import structlog
from aiokafka import ConsumerRecord, TopicPartition
from aiokafka.errors import KafkaError

from drm_ingest import health
from drm_ingest.kafka import dead_letters, topics
from drm_ingest.kafka.dead_letters import DeadLetter
from drm_ingest.kafka.reader import Batches, Reader
from drm_ingest.kafka.topics import Topics
from drm_ingest.kafka.writer import NotAcknowledged, Writer
from drm_ingest.metrics import Metrics
from drm_ingest.outcome import Outcome
from drm_ingest.pipeline.decode import Decoded, Decoder
from drm_ingest.pipeline.keep import Keeper
from drm_ingest.postgres.events import Dead, EventStore, Stored
from drm_ingest.postgres.pool import open_pool
from drm_ingest.postgres.positions import UNTOUCHED, Fenced, Move, Owner
from drm_ingest.postgres.rows import EPOCH
from drm_ingest.schema import Schemas
from drm_ingest.settings import Settings

GROUP = "attach"
RETRY_S = 0.1
RETRY_MAX_S = 5.0
COMMIT_INTERVAL_S = 1.0
EPOCH_S = EPOCH.timestamp()

PASSING = (asyncpg.PostgresError, asyncpg.InterfaceError, OSError, TimeoutError, NotAcknowledged)
"""What passes with time or by a person's hand: the batch is read again."""

log = structlog.get_logger(__name__)


async def run(settings: Settings, stop: asyncio.Event) -> None:
    """Attach until `stop` is set; then finish the batch in hand, commit and leave the group.

    Raises:
        KafkaUnreachable, TopicsWrong, BadMigrations: at the start.
        PositionLost: events were deleted unread.
    """
    metrics = Metrics("attach")
    schemas = Schemas.load(settings.schemas_dir)
    await topics.check(settings, schemas.families)
    names = Topics.of(settings)
    async with contextlib.AsyncExitStack() as stack:
        writer = Writer(settings, metrics)
        await writer.start()
        stack.push_async_callback(writer.stop, settings.drain_timeout_s)
        pool = await stack.enter_async_context(open_pool(settings, "drm attach keeper", connections_max=2))
        keeper = Keeper(settings, pool)
        # The name of its connection tells a successor which backend to end, so nobody else may ever have it.
        holder = f"drm attach {socket.gethostname()[:24]} {os.getpid()} {secrets.token_hex(4)}"
        owner = Owner(f"{settings.topic_prefix}.{GROUP}", holder)
        bury = Undertaker(writer, names.dead_letters)
        store = await stack.enter_async_context(EventStore(settings, owner, bury))
        worker = Worker(settings, metrics, store, [names.events(family) for family in schemas.families])
        address = await stack.enter_async_context(
            health.serve(settings.worker_host, settings.attach_port, metrics, lambda: keeper.unready() or worker.unready())
        )
        gc.collect()
        gc.freeze()  # schemas and modules stay: no reason to walk them at each collection
        log.info("attaching", families=schemas.families, holder=holder, health=address)
        async with _beside(keeper.keep()):
            if await _first(keeper.ready.wait(), stop.wait()):
                await worker.work(stop)
    log.info("stopped")
