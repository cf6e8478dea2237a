"""Migrations: plain SQL files in `migrations/`, forward only, each applied once.

    BadMigrations          the files and the database contradict each other; nothing was changed
    MigrationFailed        Postgres refused a file; that file left no trace, those before it stand

Safe to run twice and at the same time from several machines: an advisory lock lets one of them work, and each file is
one transaction together with its row in the table `migration`.
"""

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import asyncpg

LOCK_KEY = 0x64726D_6D696772  # "drm" "migr": the advisory lock of whoever migrates
_NAME = re.compile(r"\d{4}_[a-z0-9_]+\.sql")

_TABLE = """
create table if not exists migration (
    name       text primary key,
    checksum   bytea not null,
    applied_at timestamptz not null default clock_timestamp()
);
comment on table migration is 'The files of migrations/ that this database has seen, with the SHA-256 of each.';
"""


class BadMigrations(Exception):
    """The files and the database contradict each other: which file, and what to do."""


class MigrationFailed(Exception):
    """Postgres refused a file: which, why, and what to do."""


@dataclass(frozen=True, slots=True)
class Migration:
    """One file."""

    name: str
    sql: str

    @property
    def checksum(self) -> bytes:
        """SHA-256 of the text."""
        return hashlib.sha256(self.sql.encode()).digest()


def shipped(directory: Path | None = None) -> list[Migration]:
    """Return the migrations in order; None: those of the package.

    Raises:
        BadMigrations: the folder is not there, or a file in it is not named like `0001_what_it_does.sql`.
    """
    directory = directory or _shipped_directory()
    files = sorted(path for path in directory.glob("*.sql") if path.name != "schema.sql")
    if not files:
        raise BadMigrations(f"{directory} holds no migration; is the package complete?")
    for file in files:
        if not _NAME.fullmatch(file.name):
            raise BadMigrations(f"{file} must be named like 0001_what_it_does.sql, in lower case")
    numbers = [file.name[:4] for file in files]
    for file, number in zip(files, numbers, strict=True):
        if numbers.count(number) > 1:
            raise BadMigrations(f"{file} has the number of another migration; give it the next one")
    return [Migration(file.name, file.read_text(encoding="utf-8")) for file in files]


async def migrate(
    dsn: str, *, directory: Path | None = None, wait_s: float = 60.0, lock_timeout_s: float = 5.0
) -> list[str]:
    """Apply what is pending and return the names of the files applied, in order.

    `wait_s` is for another migrate that is at work, `lock_timeout_s` for tables that running processes hold.

    Raises:
        BadMigrations, MigrationFailed: see above.
        OSError, asyncpg.PostgresConnectionError: Postgres cannot be reached.
    """
    migrations = shipped(directory)
    connection = await asyncpg.connect(
        dsn, timeout=10.0, server_settings={"application_name": "drm migrate", "statement_timeout": "0"}
    )
    try:
        await _set_lock_timeout(connection, wait_s)
        try:
            await connection.execute("select pg_advisory_lock($1)", LOCK_KEY)
        except asyncpg.LockNotAvailableError:
            raise MigrationFailed(
                f"another migrate has been at work for more than {wait_s:g} s; wait for it, then run this again"
            ) from None
        await _set_lock_timeout(connection, lock_timeout_s)
        if await connection.fetchval("select to_regclass('migration')") is None:
            await connection.execute(_TABLE)
        todo = _pending(migrations, await _applied(connection))
        for migration in todo:
            await _apply(connection, migration, lock_timeout_s)
        return [migration.name for migration in todo]
    finally:
        await connection.close(timeout=5.0)  # and with it the advisory lock


async def pending(connection: asyncpg.Connection | asyncpg.Pool, *, directory: Path | None = None) -> list[str]:
    """Return the names of the migrations that this database still needs; a process works only when there are none.

    Migrations that the database has and this package does not know are no hindrance: a newer release is being rolled
    out, and migrations leave room for the release before them.

    Raises:
        BadMigrations: a file was changed after it was applied.
    """
    migrations = shipped(directory)
    there = await connection.fetchval("select to_regclass('migration')") is not None
    return [migration.name for migration in _pending(migrations, await _applied(connection) if there else {})]


async def _applied(connection: asyncpg.Connection | asyncpg.Pool) -> dict[str, bytes]:
    rows = await connection.fetch("select name, checksum from migration")
    return {row["name"]: row["checksum"] for row in rows}


def _pending(migrations: Sequence[Migration], applied: dict[str, bytes]) -> list[Migration]:
    todo = [migration for migration in migrations if migration.name not in applied]
    for migration in migrations:
        if migration.name in applied and applied[migration.name] != migration.checksum:
            raise BadMigrations(
                f"{migration.name} was changed after it was applied; restore it and put the change in a new file"
            )
    newest = max(applied, default="")
    for migration in todo:
        if migration.name < newest:
            raise BadMigrations(
                f"{migration.name} sorts before {newest}, which is applied already; give it the next number"
            )
    return todo


async def _apply(connection: asyncpg.Connection, migration: Migration, lock_timeout_s: float) -> None:
    try:
        async with connection.transaction():
            await connection.execute(migration.sql)
            await connection.execute(
                "insert into migration (name, checksum) values ($1, $2)", migration.name, migration.checksum
            )
    except asyncpg.LockNotAvailableError as error:
        raise MigrationFailed(
            f"{migration.name}: a running transaction held a table for more than {lock_timeout_s:g} s ({error}); "
            "nothing of it was applied, run it again in a quieter moment"
        ) from error
    except asyncpg.PostgresError as error:
        place = f" at character {error.position}" if error.position else ""
        raise MigrationFailed(
            f"{migration.name}{place}: {error} [{error.sqlstate}]; nothing of it was applied"
        ) from error


async def _set_lock_timeout(connection: asyncpg.Connection, seconds: float) -> None:
    await connection.execute("select set_config('lock_timeout', $1, false)", str(round(seconds * 1000)))


def _shipped_directory() -> Path:
    """In a wheel the migrations are package data; in a checkout they stand at the top of the repository."""
    packaged = Path(__file__).parents[1] / "_migrations"
    return packaged if packaged.is_dir() else Path(__file__).parents[3] / "migrations"
