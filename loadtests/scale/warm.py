"""What pages read, in memory before they are read: as on a server that has run for a while, and has the memory.

A machine may take back what it holds of files that were not read lately; it leaves `shared_buffers` alone.
"""

from pathlib import Path

import asyncpg
from rich.progress import Progress

# Nobody reads identities of events to tell of a party. Events come first, and of them the oldest: if there is not room
# for all, these go again.
_READ = """
select oid::regclass::text as name, pg_relation_size(oid) as bytes from pg_class
where relnamespace = 'public'::regnamespace and relkind in ('r', 'i') and relname not like 'event\\_identity%'
  and pg_relation_size(oid) > 0
order by relkind = 'r' and relname like 'event\\_2%' desc, relname"""


def give(folder: Path, buffers: str) -> None:
    """Let the Postgres in `folder`, which does not run, have so much of `shared_buffers`; empty: as it was made.

    And a log to match: events of a million devices touch as many pages, and what is written whole after a checkpoint
    would else bring on the next within two minutes.
    """
    settings = folder / "postgres" / "data" / "postgresql.auto.conf"
    ours = ("shared_buffers", "max_wal_size")
    lines = [line for line in settings.read_text().splitlines() if not line.startswith(ours)]
    if buffers:
        lines += [f"shared_buffers = '{buffers}'", "max_wal_size = '16GB'"]
    settings.write_text("".join(f"{line}\n" for line in lines))


async def fill(folder: Path, dsn: str, progress: Progress) -> None:
    """Read what pages read into them."""
    password = (folder / "postgres" / "password-postgres").read_text().strip()
    db = await asyncpg.connect(dsn, user="postgres", password=password, command_timeout=600)
    try:
        await db.execute("create extension if not exists pg_prewarm")
        found = await db.fetch(_READ)
        task = progress.add_task("filling shared_buffers, MB", total=sum(row["bytes"] for row in found) // 1_000_000)
        for row in found:
            await db.execute("select pg_prewarm($1::regclass)", row["name"])
            progress.advance(task, row["bytes"] // 1_000_000)
    finally:
        await db.close()
