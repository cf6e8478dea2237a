"""Who is sending: a snapshot of all credentials in memory, so that no request waits for Postgres."""

import asyncio
import base64
import binascii
import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from time import monotonic
from typing import Literal

import asyncpg
import structlog

from drm_ingest.metrics import Metrics
from drm_ingest.postgres.credentials import KEY_PREFIX, PREFIX_CHARACTERS, StoredKeys, key_hash
from drm_ingest.settings import Settings

_HEADERS_MAX = 10_000  # remembered as they came, to save hashing the same key again and again
_ROWS_AT_ONCE = (
    1000  # then others have their turn: a hundred thousand keys would hold up the loop for a tenth of a second
)
_UNREACHABLE = (OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError)

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Credential:
    """A key that may be used now, and whose it is."""

    id: str
    sender: str
    role: Literal["sender", "reader", "admin"]
    device: str | None
    """The only subject it may write for, and the one meant where an event names none; None: any subject."""


class Credentials:
    """All credentials, read anew every `credential_refresh_s`; while Postgres is down the last ones stay."""

    def __init__(self, settings: Settings, metrics: Metrics) -> None:
        """Nothing is opened before `start`."""
        self._refresh_s = settings.credential_refresh_s
        self._stored = StoredKeys(settings, "drm edge")
        self._by_hash: dict[bytes, Credential] = {}
        self._by_header: dict[bytes, Credential] = {}
        self._expiring: list[tuple[datetime, bytes]] = []
        self._read_at: float | None = None
        self._refreshing: asyncio.Task[None] | None = None
        started_at = monotonic()
        metrics.credentials_age_seconds.set_function(lambda: monotonic() - (self._read_at or started_at))

    async def start(self) -> None:
        """Begin to refresh in the background; returns at once, whether Postgres is there or not."""
        self._refreshing = asyncio.create_task(self._refresh_for_ever(), name="credentials")

    async def stop(self) -> None:
        """Stop refreshing and hang up."""
        if self._refreshing is not None:
            self._refreshing.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._refreshing
        self._stored.close()

    @property
    def ready(self) -> bool:
        """Whether a first snapshot has been read."""
        return self._read_at is not None

    def find(self, authorization: bytes | None) -> Credential | None:
        """Return whose `Authorization` header that is: `Bearer <key>`, or Basic with the key as user name.

        None for a key that is unknown, revoked or expired, for another scheme, and for no header.
        """
        if authorization is None:
            return None
        found = self._by_header.get(authorization)
        if found is None and (key := _key_in(authorization)) and (found := self.find_key(key)):
            if len(self._by_header) >= _HEADERS_MAX:
                self._by_header.clear()
            self._by_header[authorization] = found
        return found

    def find_key(self, key: str) -> Credential | None:
        """Return whose key that is; None for one that is unknown, revoked or expired."""
        return self._by_hash.get(key_hash(key)) if key.isascii() else None

    async def _refresh_for_ever(self) -> None:
        reachable = True
        while True:
            started_at = monotonic()
            try:
                rows = await self._stored.read()
                if rows is not None:
                    await self._take(rows)
                self._read_at = started_at
                if not reachable:
                    log.info("credentials are read again")
                reachable = True
            except _UNREACHABLE as error:
                if reachable:
                    log.warning("credentials cannot be read; those known stay", error=repr(error), ready=self.ready)
                reachable = False
            except Exception:
                log.exception("credentials cannot be read; those known stay")
                reachable = False
            self._drop_expired()
            await asyncio.sleep(max(0.0, started_at + self._refresh_s - monotonic()))

    async def _take(self, rows: Sequence[asyncpg.Record]) -> None:
        by_hash: dict[bytes, Credential] = {}
        expiring: list[tuple[datetime, bytes]] = []
        for number, row in enumerate(rows, 1):
            by_hash[row["hash"]] = Credential(str(row["id"]), row["sender"], row["role"], row["device"])
            if row["expires_at"] is not None:
                expiring.append((row["expires_at"], row["hash"]))
            if not number % _ROWS_AT_ONCE:
                await asyncio.sleep(0)
        self._by_hash, self._by_header, self._expiring = by_hash, {}, expiring

    def _drop_expired(self) -> None:
        """A key expires on time even while Postgres cannot be asked."""
        now = datetime.now(UTC)
        expired = [hash_ for expires_at, hash_ in self._expiring if expires_at <= now]
        if expired:
            for hash_ in expired:
                self._by_hash.pop(hash_, None)
            self._expiring = [entry for entry in self._expiring if entry[0] > now]
            self._by_header = {}


def key_prefix(authorization: bytes) -> str | None:
    """Return what the registry shows of the key in a header, if it looks like one of ours."""
    key = _key_in(authorization)
    ours = key is not None and key.isascii() and key.startswith(KEY_PREFIX) and len(key) > 3 * PREFIX_CHARACTERS
    return key[:PREFIX_CHARACTERS] if key is not None and ours else None


def _key_in(authorization: bytes) -> str | None:
    """Return the key in a header's value, if it looks like one."""
    scheme, _, value = authorization.partition(b" ")
    value = value.strip()
    match scheme.lower():
        case b"basic":
            try:
                value = base64.b64decode(value, validate=True).partition(b":")[0]
            except binascii.Error:
                return None
        case b"bearer":
            pass
        case _:
            return None
    return value.decode("latin-1")
