"""Credentials in Postgres: keys are stored hashed, and a key is shown once."""

import hashlib
import secrets

KEY_PREFIX = "drm_"


def new_key() -> tuple[str, bytes, str]:
    """Return a new key (`drm_` and 43 characters), its hash to store, and its first characters to recognise it by."""
    key = KEY_PREFIX + secrets.token_urlsafe(32)
    return key, key_hash(key), key[:12]


def key_hash(key: str) -> bytes:
    """Return the SHA-256 of a key: no salt nor stretching is needed over 256 random bits."""
    return hashlib.sha256(key.encode()).digest()
