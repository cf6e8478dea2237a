"""`serve` without its socket: the real application on the real Postgres."""

from collections.abc import AsyncIterator

import asyncpg
import httpx
import pytest
from fastapi import FastAPI
from pydantic import SecretStr

from drm_ingest.metrics import Metrics
from drm_ingest.postgres.credentials import ensure_key, new_key
from drm_ingest.serve.app import build
from drm_ingest.settings import Settings


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
        postgres_lock_timeout_s=2,
        serve_body_bytes_max=100_000,
        request_body_timeout_s=1,
    )


@pytest.fixture
async def serve_app(serve_settings: Settings) -> AsyncIterator[FastAPI]:
    app = build(serve_settings, Metrics("serve"))
    async with app.router.lifespan_context(app):
        yield app


@pytest.fixture
async def admin(serve_app: FastAPI, db: asyncpg.Connection) -> AsyncIterator[httpx.AsyncClient]:
    """A client with an administrator's key."""
    async with client(serve_app, await key(db, "admin", "admin")) as made:
        yield made


def client(app: FastAPI, key: str | None) -> httpx.AsyncClient:
    headers = {"authorization": f"Bearer {key}"} if key else {}
    return httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://serve", headers=headers)


async def key(db: asyncpg.Connection, name: str, role: str) -> str:
    plain, _, _ = new_key()
    await ensure_key(db, name, role, plain)
    return plain
