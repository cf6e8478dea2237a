"""Small disks, full disks, and the superuser who puts tables on them."""

import contextlib
import os
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import asyncpg

from drm_ingest.up.postgres import SUPERUSER, Postgres


@contextlib.contextmanager
def filled(disk: Path, leaving_bytes: int) -> Iterator[None]:
    """Leave only so much room on a disk."""
    ballast = disk / "ballast"
    room = os.statvfs(disk)
    with ballast.open("wb", buffering=0) as file, contextlib.suppress(OSError):  # who writes there too was quicker
        left = room.f_bavail * room.f_frsize - leaving_bytes
        while left > 0:
            left -= file.write(bytes(min(left, 1 << 20)))
    try:
        yield
    finally:
        ballast.unlink()


@contextlib.asynccontextmanager
async def as_superuser(server: Postgres) -> AsyncIterator[asyncpg.Connection]:
    password = (server.directory / f"password-{SUPERUSER}").read_text().strip()
    connection = await asyncpg.connect(server.dsn, user=SUPERUSER, password=password)
    try:
        yield connection
    finally:
        await connection.close()
