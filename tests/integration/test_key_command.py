"""The first key of a new installation."""

import subprocess
import sys

import asyncpg

from drm_ingest.postgres.credentials import key_hash
from drm_ingest.settings import Settings


async def test_a_key_is_shown_once_and_stored_hashed(settings: Settings, environment: dict[str, str]) -> None:
    done = [
        subprocess.run(  # noqa: ASYNC221 - the test has nothing else to do
            [sys.executable, "-m", "drm_ingest", "key", "office", *options],
            env=environment,
            capture_output=True,
            text=True,
            check=True,
        )
        for options in (["--role", "admin"], [])
    ]
    keys = [one.stdout.strip() for one in done]
    assert "role admin" in done[1].stderr
    connection = await asyncpg.connect(settings.postgres_dsn.get_secret_value())
    rows = await connection.fetch(
        "SELECT name, role, hash FROM sender_key JOIN sender ON sender.id = sender_key.sender"
    )
    await connection.close()
    assert {(row["name"], row["role"], row["hash"]) for row in rows} == {
        ("office", "admin", key_hash(key)) for key in keys
    }
    assert len(rows) == 2
