"""Credentials in Postgres: keys are stored hashed, and a key is shown once."""

import hashlib
import secrets

import asyncpg

KEY_PREFIX = "drm_"
PREFIX_CHARACTERS = 12


def new_key() -> tuple[str, bytes, str]:
    """Return a new key (`drm_` and 43 characters), its hash to store, and its first characters to recognise it by."""
    key = KEY_PREFIX + secrets.token_urlsafe(32)
    return key, key_hash(key), key[:PREFIX_CHARACTERS]


def key_hash(key: str) -> bytes:
    """Return the SHA-256 of a key: no salt nor stretching is needed over 256 random bits."""
    return hashlib.sha256(key.encode()).digest()


async def ensure_key(connection: asyncpg.Connection, sender: str, role: str, key: str) -> str:
    """Let this sender exist and own that key, whose plain text somebody keeps; safe to repeat.

    Returns the role it has: the one it was made with, by whomever.
    """
    async with connection.transaction():
        await connection.execute(
            "INSERT INTO sender (name, role) VALUES ($1, $2) ON CONFLICT (name) DO NOTHING", sender, role
        )
        row = await connection.fetchrow("SELECT id, role FROM sender WHERE name = $1", sender)
        await connection.execute(
            "INSERT INTO sender_key (sender, hash, prefix) VALUES ($1, $2, $3) ON CONFLICT (hash) DO NOTHING",
            row["id"],
            key_hash(key),
            key[:PREFIX_CHARACTERS],
        )
        return str(row["role"])
