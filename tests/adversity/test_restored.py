"""Postgres is restored from a backup: attach reads on from the position in it, and nobody has to help."""

import asyncio
import contextlib
import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from pydantic import SecretStr
from tests.adversity.disks import as_superuser
from tests.adversity.parts import Parts
from tests.adversity.stored import until, value

from drm_ingest.settings import Settings
from drm_ingest.up.postgres import Postgres

Seen = Callable[[str], None]

RATE = 500.0  # events a second
MINUTES = 10.0
CAUGHT_UP_S = 300.0


@pytest.mark.row("restored")
@pytest.mark.parametrize(
    ("events_since", "events", "rate"),
    [
        pytest.param(1000, 4000, RATE, id="quick"),
        # What ten minutes bring; nothing here goes by the clock, so nobody waits for them.
        pytest.param(
            round(MINUTES * 60 * RATE), 400_000, 1e9, marks=[pytest.mark.slow, pytest.mark.timeout(900)], id="long"
        ),
    ],
)
async def test_after_a_restore_the_ledger_is_exact_again_without_anyones_help(
    settings: Settings,
    private_postgres: Callable[[], Postgres],
    start_parts: Callable[..., Parts],
    tmp_path: Path,
    seed: int,
    seen: Seen,
    events_since: int,
    events: int,
    rate: float,
) -> None:
    server = await asyncio.to_thread(private_postgres)
    parts = await asyncio.to_thread(start_parts, settings.model_copy(update={"postgres_dsn": SecretStr(server.dsn)}))
    async with parts.ledger(events=events, seed=seed, rate=rate):
        await until(server.dsn, "select count(*) > 200 from event")
        await back_up(server, tmp_path / "backup")
        kept = await value(server.dsn, "select count(*) from event")
        await until(server.dsn, "select count(*) > $1 from event", kept + events_since, within_s=CAUGHT_UP_S)
        newest = await value(server.dsn, "select count(*) from event")
        await asyncio.to_thread(server.kill)
        data = server.directory / "data"
        await asyncio.to_thread(shutil.rmtree, data)
        (tmp_path / "backup").rename(data)
        began = time.monotonic()
        await asyncio.to_thread(server.start)
        restored = await value(server.dsn, "select count(*) from event")
        assert restored < newest
        await until(server.dsn, "select count(*) > $1 from event", newest, within_s=CAUGHT_UP_S)
        caught_up_s = time.monotonic() - began
    seen(f"restored {newest - restored:,} events ago: all of them there again {caught_up_s:.1f} s later")


async def back_up(server: Postgres, to: Path) -> None:
    """Copy the running server's files, by the manual's "low-level API": what it writes meanwhile is in its log."""
    data = server.directory / "data"
    async with as_superuser(server) as connection:
        await connection.execute("select pg_backup_start('the test', fast => true)")
        await asyncio.to_thread(copy, data, to)
        label = await connection.fetchval("select labelfile from pg_backup_stop(wait_for_archive => false)")
        await asyncio.to_thread(copy, data / "pg_wal", to / "pg_wal")
    (to / "backup_label").write_text(label)
    owner = data.stat()
    await asyncio.to_thread(subprocess.run, ["chown", "-R", f"{owner.st_uid}:{owner.st_gid}", str(to)], check=True)


def copy(from_: Path, to: Path) -> None:
    """Copy files that may come and go meanwhile."""
    to.mkdir(mode=0o700, exist_ok=True)
    for path in from_.iterdir():
        if path.name in {"postmaster.pid", "postmaster.opts"}:
            continue
        if path.is_dir():
            copy(path, to / path.name)
        else:
            with contextlib.suppress(FileNotFoundError):
                shutil.copy2(path, to / path.name)
