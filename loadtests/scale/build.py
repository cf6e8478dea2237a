"""The world into Postgres: through COPY, with what the indexes and constraints say added, and checked, at the end."""

import asyncio
import multiprocessing
from collections.abc import AsyncIterator, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import asynccontextmanager
from dataclasses import asdict
from datetime import timedelta

import asyncpg
import orjson
from rich.progress import Progress

from drm_ingest.postgres.migrate import migrate
from drm_ingest.postgres.store.rows import DAY_COLUMNS, EVENT_COLUMNS, IDENTITY_COLUMNS, copy_stream
from loadtests.scale import happenings
from loadtests.scale.world import RELATION_COLUMNS, World, device

CHUNK = 20_000  # rows a COPY
_EVENTS = ("event", "event_identity", "subject_day")
_REGISTRY = ("device", "party", "party_ref", "relationship")
# Indexes that no constraint needs, and constraints that nothing else refers to; those of partitions go with their own.
_INDEXES = """
select indexrelid::regclass::text as name, indrelid::regclass::text as of, pg_get_indexdef(indexrelid) as definition
from pg_index join pg_class on pg_class.oid = indexrelid
where indrelid = any ($1::regclass[]) and not relispartition
  and not exists (select from pg_constraint where conindid = indexrelid)"""
_CONSTRAINTS = """
select conname as name, conrelid::regclass::text as of, pg_get_constraintdef(oid) as definition
from pg_constraint as one
where conrelid = any ($1::regclass[]) and contype in ('p', 'x', 'f', 'u')
  and not exists (select from pg_constraint as other where other.confrelid = one.conrelid and one.contype in ('p', 'u'))
order by contype desc"""


async def build(world: World, dsn: str, workers: int, progress: Progress) -> None:
    """Fill an empty database."""
    await migrate(dsn)
    db = await asyncpg.connect(dsn, command_timeout=3600)
    try:
        await db.execute("set synchronous_commit = off; set maintenance_work_mem = '1GB'")
        async with _bare(db, (*_EVENTS, "relationship"), progress):
            for table in _REGISTRY:
                await db.execute(f"alter table {table} disable trigger user")  # nobody listens
            await _register(world, db, progress)
            for table in _REGISTRY:
                await db.execute(f"alter table {table} enable trigger user")
            for month in _months(world):
                await db.execute("select make_event_month($1)", month)
            await asyncio.to_thread(_happen, world, dsn, workers, progress)
        task = progress.add_task("vacuum, analyze", total=None)
        await db.execute("vacuum analyze")
        progress.update(task, total=1, completed=1)
        await db.execute("create schema loadtest; create table loadtest.scale (built jsonb)")
        await db.execute("insert into loadtest.scale values ($1)", orjson.dumps(built(world)).decode())
        await db.execute("checkpoint") if await db.fetchval("select pg_has_role('pg_checkpoint', 'usage')") else None
    finally:
        await db.close()


def built(world: World) -> dict[str, object]:
    """Return what a later run has to know to draw the same world."""
    return {"sizes": asdict(world.sizes), "until": world.until.isoformat()}


@asynccontextmanager
async def _bare(db: asyncpg.Connection, tables: Iterable[str], progress: Progress) -> AsyncIterator[None]:
    """Take indexes and constraints off for the time inside, and put them back, which checks all rows."""
    constraints = await db.fetch(_CONSTRAINTS, list(tables))
    indexes = await db.fetch(_INDEXES, list(tables))
    for row in reversed(constraints):
        await db.execute(f"alter table {row['of']} drop constraint {row['name']}")
    for row in indexes:
        await db.execute(f"drop index {row['name']}")
    yield
    task = progress.add_task("indexes and constraints", total=len(indexes) + len(constraints))
    for row in indexes:
        progress.update(task, description=f"index {row['name']}")
        await db.execute(row["definition"].replace(" ON ONLY ", " ON "))  # of all partitions too
        progress.advance(task)
    for row in constraints:
        progress.update(task, description=f"constraint {row['name']}")
        await db.execute(f"alter table {row['of']} add constraint {row['name']} {row['definition']}")
        progress.advance(task)


def _months(world: World) -> Iterator[object]:
    month = (world.until - timedelta(days=world.sizes.days)).replace(day=1)
    while month <= world.until:
        yield month
        month = (month + timedelta(days=32)).replace(day=1)


async def _register(world: World, db: asyncpg.Connection, progress: Progress) -> None:
    async def copy(table: str, columns: tuple[str, ...], records: list[tuple[object, ...]]) -> None:
        task = progress.add_task(table, total=len(records))
        for at in range(0, len(records), CHUNK):
            await db.copy_records_to_table(table, records=records[at : at + CHUNK], columns=columns)
            progress.advance(task, len(records[at : at + CHUNK]))

    models = [f"M {number}" for number in range(20)]
    await copy(
        "device", ("subject", "model", "firmware", "registered_by"),
        [(device(number), models[number % 20], "1.4.2", "registry") for number in range(world.sizes.devices)],
    )  # fmt: skip
    parties = [(id_, kind) for kind, ids in world.parties.items() for id_ in ids]
    parties.sort()
    await copy(
        "party", ("id", "kind", "name"), [(id_, kind, f"{kind.title()} {n}") for n, (id_, kind) in enumerate(parties)]
    )
    await copy(
        "party_ref", ("namespace", "ref", "party"), [("crm", str(id_.int & 0xFFFFFFFFFFFF), id_) for id_, _ in parties]
    )
    said_at = world.until - timedelta(days=60)
    await copy(
        "party_attribute", ("party", "name", "origin", "value", "said_at", "asserted_by"),
        [
            (id_, name, origin, f'"{name} {n % 500}"', said_at, "erp")
            for n, (id_, _) in enumerate(parties)
            for name, origin in (("city", "crm"), ("city", "shop"), ("segment", "crm"))
        ],
    )  # fmt: skip
    linked_at = asyncpg.Range(world.until - timedelta(days=50), None)
    await copy(
        "party_link", ("party", "other", "kind", "reason", "asserted_by", "recorded"),
        [(*sorted(pair), "customer", "the same address", "erp", linked_at) for pair in world.links],
    )  # fmt: skip
    await copy("relationship", RELATION_COLUMNS, world.relations)


# What children inherit.
_world: World
_dsn: str


def _happen(world: World, dsn: str, workers: int, progress: Progress) -> None:
    """Make all days: here, or in several processes, which have the world from us by fork."""
    global _world, _dsn
    _world, _dsn = world, dsn
    task = progress.add_task("events", total=world.sizes.events)
    for number in range(0 if workers else world.sizes.days):
        progress.advance(task, _day(number))
    if not workers:
        return
    with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("fork")) as pool:
        for done in as_completed([pool.submit(_day, number) for number in range(world.sizes.days)]):
            progress.advance(task, done.result())


def _day(number: int) -> int:
    return asyncio.run(_store_day(number))


async def _store_day(number: int) -> int:
    rows, counts = happenings.rows(_world, number)
    db = await asyncpg.connect(_dsn, command_timeout=600)
    try:
        await db.execute("set synchronous_commit = off")
        for at in range(0, len(rows), CHUNK):
            some = rows[at : at + CHUNK]
            await _copy(db, "event_identity", IDENTITY_COLUMNS, (row.identity for row in some))
            await _copy(db, "event", EVENT_COLUMNS, (row.event for row in some))
        for at in range(0, len(counts), CHUNK):
            await _copy(db, "subject_day", DAY_COLUMNS, counts[at : at + CHUNK])
    finally:
        await db.close()
    return len(rows)


async def _copy(db: asyncpg.Connection, table: str, columns: tuple[str, ...], packed: Iterable[bytes]) -> None:
    await db.copy_to_table(table, source=copy_stream(packed), columns=columns, format="binary")
