"""What a Postgres is, for `drm-ingest doctor`: its version, its clock, and which migrations it still needs."""

from dataclasses import dataclass
from datetime import UTC, datetime

import asyncpg

from drm_ingest.postgres.migrate import pending


@dataclass(frozen=True, slots=True)
class Probe:
    """One look at a database."""

    version: int  # 18 for 18.x
    version_text: str
    ahead_s: float  # how far its clock is ahead of ours
    pending: list[str]  # migrations not applied yet


async def probe(dsn: str, timeout_s: float) -> Probe:
    """Connect and look.

    Raises:
        BadMigrations: a file was changed after it was applied.
        OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError: it cannot be reached, or says no.
    """
    connection = await asyncpg.connect(
        dsn, timeout=timeout_s, command_timeout=timeout_s, server_settings={"application_name": "drm doctor"}
    )
    try:
        number, text = await connection.fetchrow(
            "select current_setting('server_version_num')::int, current_setting('server_version')"
        )
        before = datetime.now(UTC)
        theirs = await connection.fetchval("select clock_timestamp()")
        ours = before + (datetime.now(UTC) - before) / 2
        return Probe(number // 10_000, text, (theirs - ours).total_seconds(), await pending(connection))
    finally:
        await connection.close(timeout=timeout_s)
