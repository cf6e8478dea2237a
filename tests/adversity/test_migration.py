"""Migrations while the path runs: whoever waits for one starts by itself, and one under load stops nobody."""

import asyncio
import contextlib
import shutil
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import asyncpg
import httpx
import pytest
from pydantic import SecretStr
from tests.adversity.parts import KEY, PROCESSES, Parts
from tests.conftest import drop_database, run_aside

from drm_ingest.kafka import topics
from drm_ingest.postgres.credentials import ensure_key
from drm_ingest.postgres.migrate import MigrationFailed, migrate, shipped
from drm_ingest.schema import Schemas
from drm_ingest.settings import Settings
from drm_ingest.up.postgres import Postgres

ALL = (*PROCESSES, "serve")
MIGRATIONS = Path(__file__).parents[2] / "migrations"

# What a next release may bring: each takes a lock that writers wait for, the last one for longer than they do.
NEXT = {
    "9001_a_column.sql": "alter table event add column note text; alter table subject_day add column note text;",
    "9002_an_index.sql": "create index event_type_occurred_at on event (type, occurred_at);",
    "9003_a_table.sql": "create table remark (device text references device, text text not null);",
    "9004_a_long_lock.sql": "lock table event in access exclusive mode; select pg_sleep({seconds});"
    "alter table event alter column note set default '';",
}


@pytest.fixture
def unmigrated(postgres: Postgres, settings: Settings) -> Iterator[Settings]:
    """Settings with a database that has seen no migration."""
    name = f"unmigrated_{settings.topic_prefix.removeprefix('test-')}"
    run_aside(execute(postgres.dsn, f"create database {name}"))
    dsn = postgres.dsn.rpartition("/")[0] + f"/{name}"
    yield settings.model_copy(update={"postgres_dsn": SecretStr(dsn)})
    run_aside(drop_database(postgres.dsn, name))


async def execute(dsn: str, statement: str) -> None:
    connection = await asyncpg.connect(dsn)
    await connection.execute(statement)
    await connection.close()


@pytest.mark.row("migration")
async def test_processes_started_before_the_migrations_wait_for_them_and_then_work_without_a_restart(
    unmigrated: Settings, tmp_path: Path, seed: int
) -> None:
    parts = Parts(unmigrated, tmp_path, ALL)
    dsn = unmigrated.postgres_dsn.get_secret_value()
    await topics.create(unmigrated, Schemas.load(None).families)
    try:
        for process in ALL:
            parts[process].start()
        for process in ALL:
            await waits(parts, process)
        await asyncio.sleep(1)
        assert all(parts[process].alive for process in ALL), "it ended, and whoever starts it again does so for ever"
        assert await migrate(dsn) == [migration.name for migration in shipped()]
        connection = await asyncpg.connect(dsn)
        await ensure_key(connection, "tests", "sender", KEY)
        await connection.close()
        for process in ALL:
            await parts.ready(process)
        async with parts.ledger(events=500, seed=seed):
            pass
        assert all(parts[process].alive for process in ALL)
    finally:
        parts.end()


@pytest.mark.row("migration")
@pytest.mark.timeout(300)
@pytest.mark.parametrize("lock_s", [2.5, pytest.param(20, marks=pytest.mark.slow)])
async def test_migrations_under_load_lose_no_event_and_restart_nobody(
    settings: Settings,
    start_parts: Callable[..., Parts],
    tmp_path: Path,
    seed: int,
    lock_s: float,
    seen: Callable[[str], None],
) -> None:
    folder = tmp_path / "migrations"
    shutil.copytree(MIGRATIONS, folder, ignore=shutil.ignore_patterns("schema.sql"))
    for name, sql in NEXT.items():
        (folder / name).write_text(sql.format(seconds=lock_s))
    parts = await asyncio.to_thread(start_parts, settings, ALL)
    pids = {process: parts[process].pid for process in ALL}
    async with parts.ledger(events=round(1000 * (lock_s + 5)), seed=seed, rate=1000) as ledger, unready(parts) as told:
        await asyncio.sleep(1)
        began = time.monotonic()
        applied = await insist(settings.postgres_dsn.get_secret_value(), folder)
        took_s = time.monotonic() - began
    assert applied == sorted(NEXT)
    assert {process: parts[process].pid for process in ALL} == pids
    assert all(parts[process].alive for process in ALL)
    assert all(entry.sendings == 1 for entry in ledger.entries), "the edge waited for Postgres"
    assert "edge" not in told
    for process in ALL:
        await parts.ready(process)
    seen(f"{len(NEXT)} migrations in {took_s:.1f} s, one of which locks events for {lock_s:g} s")


async def waits(parts: Parts, process: str, within_s: float = 60.0) -> None:
    """Wait until a process has come so far as to say that it is not ready."""
    deadline = time.monotonic() + within_s
    async with httpx.AsyncClient(timeout=5) as client:
        while True:
            with contextlib.suppress(httpx.TransportError):
                assert (await client.get(parts.url(process) + "/health/ready")).status_code == 503
                return
            assert parts[process].alive, parts[process].last_lines(20)
            assert time.monotonic() < deadline, f"{process} does not answer:\n{parts[process].last_lines(20)}"
            await asyncio.sleep(0.05)


async def insist(dsn: str, folder: Path) -> list[str]:
    """Migrate as a person would who is told that the moment was not quiet enough: again."""
    applied: list[str] = []
    async with asyncio.timeout(120):
        while True:
            try:
                return applied + await migrate(dsn, directory=folder, lock_timeout_s=2.0)
            except MigrationFailed:
                done = await asyncpg.connect(dsn)
                names = [row["name"] for row in await done.fetch("select name from migration order by name")]
                await done.close()
                applied = [name for name in names if name in NEXT]
                await asyncio.sleep(0.5)


@contextlib.asynccontextmanager
async def unready(parts: Parts) -> AsyncIterator[set[str]]:
    """Collect which of the processes was not ready at some moment; the metrics say."""
    found: set[str] = set()

    async def look() -> None:
        while True:
            for process, samples in (await parts.samples()).items():
                if not samples["drm_ready"]:
                    found.add(process)
            await asyncio.sleep(0.2)

    looking = asyncio.create_task(look())
    try:
        yield found
    finally:
        looking.cancel()
        await asyncio.wait([looking])
