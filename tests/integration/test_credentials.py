"""The snapshot of credentials follows Postgres, and outlives it."""

import asyncio
import base64
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta

import asyncpg
from pydantic import SecretStr

from drm_ingest.edge.credentials import Credential, Credentials
from drm_ingest.metrics import Metrics
from drm_ingest.postgres.credentials import new_key
from drm_ingest.settings import Settings
from drm_ingest.up.postgres import Postgres

REFRESH_S = 0.1


def bearer(key: str) -> bytes:
    return f"Bearer {key}".encode()


async def make_key(
    dsn: str, name: str, *, role: str = "sender", device: str | None = None, expires_at: datetime | None = None
) -> str:
    key, hash_, prefix = new_key()
    connection = await asyncpg.connect(dsn)
    try:
        await connection.execute(
            "WITH made AS (INSERT INTO sender (name, role, device) VALUES ($1, $2, $3) RETURNING id) "
            "INSERT INTO sender_key (sender, hash, prefix, expires_at) SELECT id, $4, $5, $6 FROM made",
            name, role, device, hash_, prefix, expires_at,
        )  # fmt: skip
    finally:
        await connection.close()
    return key


async def revoke_all(dsn: str) -> None:
    connection = await asyncpg.connect(dsn)
    try:
        await connection.execute("UPDATE sender_key SET revoked_at = now()")
    finally:
        await connection.close()


async def until(true: Callable[[], object]) -> None:
    async with asyncio.timeout(20):
        while not true():  # noqa: ASYNC110 — nothing tells when the snapshot is new
            await asyncio.sleep(0.01)


@asynccontextmanager
async def following(dsn: str, refresh_s: float = REFRESH_S) -> AsyncIterator[Credentials]:
    settings = Settings(
        postgres_dsn=SecretStr(dsn), credential_refresh_s=refresh_s, postgres_acquire_timeout_s=1,
        postgres_statement_timeout_s=1,
    )  # fmt: skip
    credentials = Credentials(settings, Metrics("edge"))
    await credentials.start()
    try:
        yield credentials
    finally:
        await credentials.stop()


async def test_a_key_tells_whose_it_is_however_it_is_sent(database: str) -> None:
    key = await make_key(database, "fleet", device="meter-7")
    basic = base64.b64encode(f"{key}:".encode())
    async with following(database) as credentials:
        await until(lambda: credentials.ready)
        found = credentials.find(bearer(key))
        assert isinstance(found, Credential)
        assert (found.sender, found.role, found.device) == ("fleet", "sender", "meter-7")
        for header in (b"bEARER  %b " % key.encode(), b"Basic " + basic, b"basic " + basic):
            assert credentials.find(header) == found, header


async def test_what_is_no_key_finds_nobody(database: str) -> None:
    key = await make_key(database, "fleet")
    async with following(database) as credentials:
        await until(lambda: credentials.ready)
        for header in (
            None, b"", b"Bearer", b"Bearer ", key.encode(), b"Token " + key.encode(), bearer(key[:-1]),
            bearer(key + "x"), b"Basic " + key.encode(), b"Basic !",
            b"Basic " + base64.b64encode(b"user:" + key.encode()), b"Bearer \xff\xfe", b"\xff",
        ):  # fmt: skip
            assert credentials.find(header) is None, header


async def test_a_revoked_key_stops_working_within_the_refresh_time(database: str) -> None:
    key = await make_key(database, "fleet")
    async with following(database) as credentials:
        await until(lambda: credentials.find(bearer(key)))
        await revoke_all(database)
        async with asyncio.timeout(REFRESH_S + 2):  # and what a busy machine takes to read it
            await until(lambda: credentials.find(bearer(key)) is None)


async def test_a_new_key_works_without_a_restart(database: str) -> None:
    async with following(database) as credentials:
        await until(lambda: credentials.ready)
        key = await make_key(database, "late")
        await until(lambda: credentials.find(bearer(key)))


async def test_what_changes_of_a_sender_is_seen(database: str) -> None:
    key = await make_key(database, "fleet")
    other = await make_key(database, "other")
    async with following(database) as credentials:
        await until(lambda: credentials.find(bearer(key)))
        connection = await asyncpg.connect(database)
        try:
            await connection.execute("UPDATE sender SET role = 'reader' WHERE name = 'fleet'")
            await until(lambda: (found := credentials.find(bearer(key))) and found.role == "reader")
            await connection.execute("DELETE FROM sender WHERE name = 'fleet'")
            await until(lambda: credentials.find(bearer(key)) is None)
        finally:
            await connection.close()
        assert credentials.find(bearer(other))


async def test_postgres_going_away_keeps_the_snapshot(private_postgres: Callable[[], Postgres]) -> None:
    server = private_postgres()
    key = await make_key(server.dsn, "fleet")
    soon = datetime.now(UTC) + timedelta(seconds=3)
    expiring = await make_key(server.dsn, "guest", expires_at=soon)
    async with following(server.dsn) as credentials:
        await until(lambda: credentials.find(bearer(key)) and credentials.find(bearer(expiring)))
        await asyncio.to_thread(server.stop)
        await until(lambda: credentials.find(bearer(expiring)) is None)  # expires all the same
        assert datetime.now(UTC) >= soon
        assert credentials.find(bearer(key))
        assert credentials.ready

        await asyncio.to_thread(server.start)
        late = await make_key(server.dsn, "late")
        await until(lambda: credentials.find(bearer(late)))  # the sentinel: what is read now is new
        assert credentials.find(bearer(key))


async def test_without_postgres_it_starts_and_is_not_ready() -> None:
    async with following("postgresql://drm@127.0.0.1:1/drm") as credentials:
        await asyncio.sleep(3 * REFRESH_S)
        assert not credentials.ready
        assert credentials.find(b"Bearer drm_x") is None
