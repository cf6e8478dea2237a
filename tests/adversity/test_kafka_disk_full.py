"""The disk of Kafka is full: it goes down, nobody is told a lie, and with space again everything goes on.

Needs root, for a small tmpfs of its own; elsewhere it fails, and says so.
"""

import asyncio
import contextlib
import errno
import os
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tests.adversity.parts import Parts
from tests.adversity.posting import posting, statuses
from tests.conftest import make_settings

from drm_ingest.settings import Settings
from drm_ingest.up.kafka import Kafka

DISK_MB = 256
DOWN_WITHIN_S = 60.0
AGAIN_WITHIN_S = 10.0

Seen = Callable[[str], None]


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A disk so small that a test can fill it."""
    path = tmp_path / "disk"
    path.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={DISK_MB}m", "drm-ingest-test", str(path)], check=True)
    try:
        yield path
    finally:
        subprocess.run(["umount", "--lazy", str(path)], check=True)


@pytest.fixture
def kafka_on_disk(disk: Path) -> Iterator[Kafka]:
    broker = Kafka(disk / "kafka", log_file=disk.parent / "kafka.log")
    try:
        broker.start()
        yield broker
    finally:
        broker.kill()


def fill(disk: Path) -> Path:
    """Take all the space that is left."""
    ballast = disk / "ballast"
    with ballast.open("wb", buffering=0) as out:
        for size in (1 << 20, 4096):
            with contextlib.suppress(OSError):
                while out.write(bytes(size)) == size:
                    pass
    left = os.statvfs(disk).f_bavail
    assert left == 0, f"{left} blocks are free still ({os.strerror(errno.ENOSPC)} is what was wanted)"
    return ballast


@pytest.mark.row("disk-full")
@pytest.mark.slow
@pytest.mark.timeout(600)
async def test_when_the_disk_of_kafka_is_full_nothing_is_acknowledged_falsely_and_with_space_all_goes_on(
    kafka_on_disk: Kafka, disk: Path, database: str, start_parts: Callable[[Settings], Parts], seed: int, seen: Seen
) -> None:
    kafka = kafka_on_disk
    settings = make_settings(kafka, database)
    parts = await asyncio.to_thread(start_parts, settings)
    pids = {name: parts[name].pid for name in ("edge", "enrich", "attach")}
    async with parts.ledger(events=12_000, seed=seed, rate=1500) as ledger, posting(parts) as posts:
        await posts.acknowledged(time.monotonic(), 10)
        await asyncio.sleep(2)
        ballast = await asyncio.to_thread(fill, disk)
        full_at = time.monotonic()
        while kafka.child.alive:  # it gives up a log directory it cannot write to, and it has one
            assert time.monotonic() < full_at + DOWN_WITHIN_S, "Kafka goes on with a full disk"
            await asyncio.sleep(0.1)
        down_at = time.monotonic()
        await asyncio.sleep(settings.produce_deadline_s + 2)
        gone = posts.answered(down_at + 1, time.monotonic())
        ballast.unlink()
        await asyncio.to_thread(kafka.start)
        back_at = time.monotonic()
        again_s = (await posts.acknowledged(back_at, 60)).answered_at - back_at
    await posts.check_stored()

    seen(
        f"Kafka down {down_at - full_at:.1f} s after its disk was full, {len(gone)} posts then {dict(statuses(gone))}; "
        f"the next 200 {again_s:.1f} s after it was back"
    )
    assert set(statuses(gone)) == {503}
    posts.check_in_time(settings.produce_deadline_s)
    assert again_s < AGAIN_WITHIN_S
    assert ledger.resent
    assert pids == {name: parts[name].pid for name in pids}, "nothing else was restarted"
    assert "offsets are missing" not in parts["attach"].log_file.read_text()
