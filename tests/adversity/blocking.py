"""Hold attach at an exact point of its transaction, by a trigger that waits for a lock which only the test holds."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator

import asyncpg

HELD_WITHIN_S = 40.0
LOCK = 0x6261_6461  # "bada"

IN_COPY = ("event", 20)
"""In the middle of the COPY of events: 19 rows are in, the rest are not."""
AT_COMMIT = ("subject_day", 1)
"""Its events are in, its day counts are not, and it has not committed."""

_HELD = """
select pid from pg_locks join pg_stat_activity using (pid)
where not granted and locktype = 'advisory' and application_name like 'drm attach%' and datname = current_database()
"""


@contextlib.asynccontextmanager
async def held(dsn: str, at: tuple[str, int]) -> AsyncIterator[int]:
    """Hold attach before that row of a transaction into that table; yields the pid of its backend once it waits."""
    table, row = at
    connection = await asyncpg.connect(dsn)
    try:
        await connection.execute(f"select pg_advisory_lock({LOCK})")
        await connection.execute(f"""
            create function wait_for_test() returns trigger language plpgsql as $$
            declare
                number int := coalesce(nullif(current_setting('bad.row', true), ''), '0')::int + 1;
            begin
                perform set_config('bad.row', number::text, true);
                if number = {row} then perform pg_advisory_xact_lock_shared({LOCK}); end if;
                return new;
            end $$;
            create trigger wait_for_test before insert on {table} for each row execute function wait_for_test();
        """)
        yield await _waiting(connection)
    finally:
        await connection.execute(f"select pg_advisory_unlock({LOCK})")
        await connection.execute("drop function wait_for_test() cascade")
        await connection.close()


async def _waiting(connection: asyncpg.Connection) -> int:
    deadline = time.monotonic() + HELD_WITHIN_S
    while (pid := await connection.fetchval(_HELD)) is None:
        assert time.monotonic() < deadline, f"attach did not come there within {HELD_WITHIN_S} s"
        await asyncio.sleep(0.01)
    return int(pid)
