"""Postgres' disk is full: events wait in Kafka, no offset is skipped, and none of them goes to the dead letters."""

import asyncio
import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest
from pydantic import SecretStr
from tests.adversity.disks import as_superuser, filled
from tests.adversity.parts import Parts
from tests.adversity.stored import until, value

from drm_ingest.settings import Settings
from drm_ingest.up.child import StartFailed
from drm_ingest.up.postgres import Postgres

Seen = Callable[[str], None]

RECOVERY_S = 30.0


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Callable[[int], Path]]:
    """Return a function that makes a file system of that many MiB, in memory; gone with the test."""
    made: list[Path] = []

    def make(mib: int) -> Path:
        folder = tmp_path / f"disk-{len(made)}"
        folder.mkdir()
        done = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", f"size={mib}m", "tmpfs", str(folder)], capture_output=True, check=False
        )
        if done.returncode:
            pytest.skip(f"only root may mount a small disk: {done.stderr.decode().strip()}")
        made.append(folder)
        return folder

    yield make
    for folder in made:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


async def not_ready(parts: Parts, reason: str, within_s: float = 60.0) -> str:
    """Wait until attach says that it is not ready, and why; return its words."""
    deadline = time.monotonic() + within_s
    told = ""
    async with httpx.AsyncClient(timeout=5) as client:
        while reason not in told:
            assert time.monotonic() < deadline, f"attach does not say {reason!r}, but {told!r}"
            told = str((await client.get(parts.url("attach") + "/health/ready")).json().get("detail", ""))
            await asyncio.sleep(0.05)
    return told


@pytest.mark.row("disk-full")
async def test_with_no_room_for_rows_attach_waits_says_so_and_goes_on_when_there_is_room(
    settings: Settings,
    private_postgres: Callable[[], Postgres],
    small_disk: Callable[[int], Path],
    start_parts: Callable[..., Parts],
    seed: int,
    seen: Seen,
) -> None:
    server = await asyncio.to_thread(private_postgres)
    disk = small_disk(64)
    space = disk / "space"
    space.mkdir()
    owner = (server.directory / "data").stat()
    os.chown(space, owner.st_uid, owner.st_gid)
    async with as_superuser(server) as connection:
        await connection.execute(f"create tablespace small location '{space}'")
        await connection.execute("alter table event_identity set tablespace small")
        await connection.execute("alter index event_identity_pkey set tablespace small")
    parts = await asyncio.to_thread(start_parts, settings.model_copy(update={"postgres_dsn": SecretStr(server.dsn)}))
    async with parts.ledger(events=6000, seed=seed):
        await until(server.dsn, "select exists (select from event)")
        with filled(disk, 128 * 1024):
            told = await not_ready(parts, "No space left on device")
            await asyncio.sleep(1)  # some more rounds
            full = await value(server.dsn, "select count(*) from event")
        began = time.monotonic()
        await until(server.dsn, "select count(*) > $1 from event", full)
        await parts.ready("attach")
        back_s = time.monotonic() - began
    assert await value(server.dsn, "select count(*) from dead_letter where code <> 'id_conflict'") == 0
    seen(f"Postgres' disk full at {full} events ({told}): back {back_s:.1f} s after there was room")
    assert back_s < RECOVERY_S


@pytest.mark.row("disk-full")
@pytest.mark.slow
@pytest.mark.timeout(600)
async def test_with_no_room_for_its_log_postgres_dies_and_when_it_can_start_again_nothing_is_missing(
    settings: Settings,
    private_postgres: Callable[[], Postgres],
    small_disk: Callable[[int], Path],
    start_parts: Callable[..., Parts],
    seed: int,
    seen: Seen,
) -> None:
    server = await asyncio.to_thread(private_postgres)
    disk = small_disk(512)
    await asyncio.to_thread(move_log, server, disk)
    parts = await asyncio.to_thread(start_parts, settings.model_copy(update={"postgres_dsn": SecretStr(server.dsn)}))
    async with parts.ledger(events=60_000, seed=seed) as ledger:
        await until(server.dsn, "select exists (select from event)")
        with filled(disk, 1024 * 1024):
            assert await asyncio.to_thread(server.child.wait, 240), "it had room enough"
            with pytest.raises(StartFailed):
                await asyncio.to_thread(server.start)
            await not_ready(parts, "Postgres cannot be used")
        began = time.monotonic()
        await asyncio.to_thread(server.start)
        started_s = time.monotonic() - began
        await parts.ready("attach")
        back_s = time.monotonic() - began
    assert all(entry.sendings == 1 for entry in ledger.entries), "the edge waited for Postgres"
    assert await value(server.dsn, "select count(*) from dead_letter where code <> 'id_conflict'") == 0
    seen(f"no room for Postgres' log: it died; with room it started in {started_s:.1f} s, attach ready {back_s:.1f} s")
    assert back_s - started_s < RECOVERY_S


def move_log(server: Postgres, disk: Path) -> None:
    """Put the server's write-ahead log on another disk."""
    assert server.stop()
    log = server.directory / "data" / "pg_wal"
    subprocess.run(["cp", "-a", str(log), str(disk)], check=True)
    shutil.rmtree(log)
    log.symlink_to(disk / "pg_wal")
    server.start()
