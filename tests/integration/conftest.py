"""`serve` without its socket and `attach` without Kafka: the real application on the real Postgres."""

import json
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from datetime import datetime
from itertools import count

import asyncpg
import httpx
import pytest
from aiokafka import ConsumerRecord
from fastapi import FastAPI
from msgspec import Raw
from pydantic import SecretStr
from tests.integration.edge_fixtures import edge, quick_edge, start_edge

from drm_ingest.event import content_hash, identity_key
from drm_ingest.metrics import Metrics
from drm_ingest.postgres.credentials import ensure_key, new_key
from drm_ingest.postgres.pool import Pool
from drm_ingest.postgres.store.dead import Dead
from drm_ingest.postgres.store.events import Batch, EventStore, Stored
from drm_ingest.postgres.store.positions import Owner
from drm_ingest.postgres.store.rows import Packer, Row
from drm_ingest.serve.app import build
from drm_ingest.settings import Settings

__all__ = ["edge", "quick_edge", "start_edge"]  # fixtures for the tests of the edge

Ask = Callable[..., Awaitable[httpx.AsyncClient]]


@pytest.fixture
async def db(database: str) -> AsyncIterator[asyncpg.Connection]:
    """A connection of the test's own."""
    connection = await asyncpg.connect(database, server_settings={"timezone": "UTC"})
    yield connection
    await connection.close()


@pytest.fixture
def serve_settings(database: str) -> Settings:
    return Settings(
        postgres_dsn=SecretStr(database),
        postgres_connections_max=4,
        postgres_acquire_timeout_s=2,
        postgres_statement_timeout_s=10,
        postgres_lock_timeout_s=0.5,
        serve_body_bytes_max=100_000,
        serve_page_bytes_max=50_000,
        live_timeline_relations_max=4,  # so that timelines of parties with totals are read either way
        request_body_timeout_s=1,
        refused_body_discard_bytes_max=1_000_000,
    )


@pytest.fixture
async def serve_app(serve_settings: Settings) -> AsyncIterator[FastAPI]:
    app = build(serve_settings, Metrics("serve"))
    async with app.router.lifespan_context(app):
        yield app
        await _expect_clean_sessions(app.state.store.pool)


async def _expect_clean_sessions(pool: Pool) -> None:
    """Nothing is cleaned up where a connection of serve is handed back, so nothing may be left."""
    async with AsyncExitStack() as stack:
        for _ in range(pool.get_idle_size()):
            db = await stack.enter_async_context(pool.acquire())
            left = await db.fetchval(
                # jit is what asyncpg turns off, and on again, to look at types.
                "select array(select name from pg_settings where source = 'session' and name <> 'jit') || "
                "array(select locktype from pg_locks where locktype = 'advisory' and pid = pg_backend_pid()) || "
                "array(select pg_listening_channels())"
            )
            assert left == []


@pytest.fixture
async def ask(serve_app: FastAPI, db: asyncpg.Connection) -> AsyncIterator[Ask]:
    """Return a function that makes a client: with a key of a sender of that name and role, or with that key."""
    async with AsyncExitStack() as clients:

        async def make(name: str = "office", role: str = "admin", *, key: str | None = None) -> httpx.AsyncClient:
            if key is None:
                key = new_key()[0]
                await ensure_key(db, name, role, key)
            client = httpx.AsyncClient(
                transport=httpx.ASGITransport(serve_app),
                base_url="http://serve",
                headers={"authorization": f"Bearer {key}"} if key else {},
            )
            return await clients.enter_async_context(client)

        yield make


@pytest.fixture
async def admin(ask: Ask) -> httpx.AsyncClient:
    return await ask()


@dataclass(frozen=True, slots=True)
class Sent:
    """An event as it comes out of its topic, in few words."""

    subject: str
    id: str
    at: datetime
    type: str = "device.measurement"
    data: str | None = '{"temperature": 21.5}'
    source: str = ""
    sequence: str | None = None
    sender: str = "fleet"

    @property
    def hash(self) -> bytes:
        return content_hash(self.type, self.at.isoformat(), (self.data or "").encode())


Attach = Callable[..., Awaitable[Stored]]


@asynccontextmanager
async def storing(settings: Settings) -> AsyncIterator[Attach]:
    """Yield a function that stores events as `attach` does; dead letters go nowhere but into their table."""
    packer, offset = Packer(), count()

    async def bury(_: Sequence[Dead]) -> None:
        pass

    def packed(event: Sent) -> Row:
        value = json.dumps({"sender": event.sender}).encode()
        record = ConsumerRecord("events", 0, next(offset), 0, 0, None, value, None, 0, 0, ())
        key = identity_key(event.subject, event.source, event.id)
        return packer.pack(
            record, key, event.hash, event.at, event.at, event.subject, event.source, event.id, event.type,
            event.at.isoformat(), "sent", event.sequence, event.sender, "1.0",
            None if event.data is None else Raw(event.data.encode()),
        )  # fmt: skip

    async with EventStore(settings, Owner("tests", "tests"), bury) as store:

        async def attach(*events: Sent) -> Stored:
            return await store.store(Batch({}, [packed(event) for event in events]))

        yield attach


@pytest.fixture
async def attach(serve_settings: Settings) -> AsyncIterator[Attach]:
    async with storing(serve_settings) as attach:
        yield attach
