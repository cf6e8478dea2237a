"""Credentials in Postgres: keys are stored hashed, and a key is shown once."""

import asyncio
import contextlib
import hashlib
import secrets
from dataclasses import dataclass

import asyncpg

from drm_ingest.postgres.pool import connect
from drm_ingest.settings import Settings

KEY_PREFIX = "drm_"
PREFIX_CHARACTERS = 12

CHANNEL = "drm_credentials"
"""Where triggers tell of every change."""

# Each insert or update gives a row a new xmin, each delete takes one away: no change leaves all six as they were.
_STATE = """
    select keys.count, keys.xmins, fleets.count, fleets.xmins, senders.count, senders.xmins
    from (select count(*), sum(xmin::text::bigint) as xmins from sender_key) keys,
         (select count(*), sum(xmin::text::bigint) as xmins from fleet_key) fleets,
         (select count(*), sum(xmin::text::bigint) as xmins from sender) senders
"""
_USABLE_KEYS = """
    select key.id, key.hash, key.expires_at, key.devices, key.types, key.parties, key.identities,
           sender.id as sender_id, sender.name as sender, sender.role, sender.device,
           sender.events_per_s, sender.bytes_per_s, sender.device_events_per_s, sender.device_bytes_per_s,
           sender.burst_s
    from sender_key key join sender on sender.id = key.sender
    where key.revoked_at is null and (key.expires_at is null or key.expires_at > now())
"""
_USABLE_FLEET_KEYS = """
    select key.id, key.kid, key.algorithm, key.public_key, key.expires_at, key.devices, key.types, key.identities,
           sender.id as sender_id, sender.name as sender, sender.role,
           sender.events_per_s, sender.bytes_per_s, sender.device_events_per_s, sender.device_bytes_per_s,
           sender.burst_s
    from fleet_key key join sender on sender.id = key.sender
    where key.revoked_at is null and (key.expires_at is null or key.expires_at > now())
"""


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
            "insert into sender (name, role) values ($1, $2) on conflict (name) do nothing", sender, role
        )
        row = await connection.fetchrow("select id, role from sender where name = $1", sender)
        await connection.execute(
            "insert into sender_key (sender, hash, prefix) values ($1, $2, $3) on conflict (hash) do nothing",
            row["id"],
            key_hash(key),
            key[:PREFIX_CHARACTERS],
        )
        return str(row["role"])


@dataclass(frozen=True, slots=True)
class Snapshot:
    """All credentials that may be used now.

    A row of `keys` has `id`, `hash`, `expires_at` (or None), its scope (`devices`, `types`, `parties`, `identities`),
    and of its sender `sender_id`, `sender` (the name), `role` and `device` (or None).
    A row of `fleet_keys` has `id`, `kid`, `algorithm`, `public_key` (PEM), `expires_at`, `devices`, `types`,
    `identities`, `sender_id`, `sender` and `role`. Both have the quotas of the sender.
    """

    keys: list[asyncpg.Record]
    fleet_keys: list[asyncpg.Record]


class StoredCredentials:
    """Reads all credentials, over a connection of its own that it makes again when it broke; hears of changes."""

    def __init__(self, settings: Settings, application_name: str) -> None:
        """Nothing is opened before `read`."""
        self._settings = settings
        self._application_name = application_name
        self._connection: asyncpg.Connection | None = None
        self._state: tuple[object, ...] | None = None
        self._told = asyncio.Event()

    async def read(self) -> Snapshot | None:
        """Return the credentials, or None where nothing has changed since they were last read over this connection.

        That a key expires is no change: whoever keeps it looks at the clock.

        Raises:
            OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError: Postgres cannot be asked now.
        """
        try:
            if self._connection is None or self._connection.is_closed():
                self._state = None
                self._connection = await connect(self._settings, self._application_name)
                await self._connection.add_listener(CHANNEL, lambda *_: self._told.set())
            self._told.clear()
            # First the state, then the rows: a change in between is read now and, at worst, once more.
            state = tuple(await self._connection.fetchrow(_STATE))
            if state == self._state:
                return None
            snapshot = Snapshot(
                list(await self._connection.fetch(_USABLE_KEYS)), list(await self._connection.fetch(_USABLE_FLEET_KEYS))
            )
        except BaseException:
            self.close()
            raise
        self._state = state
        return snapshot

    async def wait_for_change(self, seconds_max: float) -> None:
        """Wait until Postgres tells of a change, or for so long."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds_max):
                await self._told.wait()

    def close(self) -> None:
        """Hang up at once."""
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.terminate()
