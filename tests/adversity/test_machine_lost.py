"""A machine is gone without a word: Postgres lets go of what it held there, though nobody asks it to."""

import asyncio
import contextlib
import sys
from collections.abc import Callable

import asyncpg
import psutil
import pytest
from tests.adversity.separate import swallowed
from tests.conftest import make_environment

from drm_ingest.settings import Settings

NAME = "lost"
TABLE = "probe_of_a_lost_machine"
LOST = f"""
import asyncio, sys
from drm_ingest.postgres.pool import connect
from drm_ingest.settings import Settings

async def rows():
    yield b"1\\n"
    await asyncio.sleep(3600)

async def main():
    connection = await connect(Settings(), "{NAME}")
    if sys.argv[1] == "copying":
        await connection.copy_to_table("{TABLE}", source=rows(), timeout=3600)
    else:
        await connection.fetchval("select 1")
        await asyncio.sleep(3600)

asyncio.run(main())
"""
SILENT_S = 2
LET_GO_WITHIN_S = 15.0  # the kernel's probes, each on a second of its own


@pytest.mark.row("network")
@pytest.mark.slow
@pytest.mark.parametrize("doing", ["idle", "copying"])
async def test_postgres_ends_what_a_machine_had_open_that_is_gone(
    settings: Settings, seen: Callable[[str], None], doing: str
) -> None:
    """No time-out of a statement ends a COPY that waits for its client, and nothing ends who is idle."""
    dsn = settings.postgres_dsn.get_secret_value()
    changed = settings.model_copy(update={"connection_silent_max_s": SILENT_S, "postgres_statement_timeout_s": 4})
    async with asyncio.timeout(60), asyncpg.create_pool(dsn, min_size=1, max_size=1) as db:
        await db.execute(f"create table {TABLE} (n int)")
        command = [sys.executable, "-c", LOST, doing]
        process = await asyncio.create_subprocess_exec(*command, env=make_environment(changed))
        try:
            while not await held(db, doing):
                assert process.returncode is None
                await asyncio.sleep(0.05)
            ports = [at.laddr.port for at in psutil.Process(process.pid).net_connections("tcp")]
            with swallowed(*ports):
                process.kill()
                await process.wait()
                began = asyncio.get_running_loop().time()
                while await held(db, doing):
                    took_s = asyncio.get_running_loop().time() - began
                    assert took_s < LET_GO_WITHIN_S, "its backend is still there"
                    await asyncio.sleep(0.1)
                took_s = asyncio.get_running_loop().time() - began
            await db.execute(f"drop table {TABLE}", timeout=5)  # nobody has a lock on it
        finally:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()
    seen(f"a machine that was {doing} is gone: Postgres has let go after {took_s:.1f} s")


async def held(db: asyncpg.Pool, doing: str) -> bool:
    """Whether it has a backend, doing that."""
    statement = "select count(*) from pg_stat_activity where application_name = $1 and datname = current_database()"
    copying = " and query ilike 'copy%' and state = 'active'" if doing == "copying" else " and state = 'idle'"
    return bool(await db.fetchval(statement + copying, NAME))
