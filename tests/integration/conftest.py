"""`serve` without its socket: the real application on the real Postgres."""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack

import asyncpg
import httpx
import pytest
from fastapi import FastAPI
from pydantic import SecretStr
from tests.integration.edge_fixtures import edge, quick_edge, start_edge

from drm_ingest.metrics import Metrics
from drm_ingest.postgres.credentials import ensure_key, new_key
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
        request_body_timeout_s=1,
        refused_body_discard_bytes_max=1_000_000,
    )


@pytest.fixture
async def serve_app(serve_settings: Settings) -> AsyncIterator[FastAPI]:
    app = build(serve_settings, Metrics("serve"))
    async with app.router.lifespan_context(app):
        yield app


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
