"""Who is sending: a snapshot of all credentials in memory, so that no request waits for Postgres."""

import asyncio
import base64
import binascii
import contextlib
import hashlib
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from math import inf
from time import monotonic, time
from typing import Literal

import asyncpg
import structlog

from drm_ingest.edge.quota import Quota, Rates
from drm_ingest.edge.scope import Scope
from drm_ingest.edge.token import FleetKey
from drm_ingest.metrics import Metrics
from drm_ingest.postgres.credentials import KEY_PREFIX, PREFIX_CHARACTERS, Snapshot, StoredCredentials, key_hash
from drm_ingest.public_key import load
from drm_ingest.settings import Settings

STALE_AFTER_REFRESHES = 5
"""A snapshot older than that says nothing about who is not in it."""
_BEARER = b"Bearer "
_HEADERS_MAX = 10_000  # remembered as they came, to save hashing the same key again and again
_KEY_HEADER_BYTES_MAX = 120  # a longer one holds a token, or blanks that are not worth their memory
_TOKEN_HEADER_BYTES_MAX = 1024  # and nothing but a token: to hash it again takes 2 µs of the 40 of a request
_GONE_MAX = 100_000
# A hundred thousand rows at a stretch would hold up the loop for a tenth of a second.
_ROWS_AT_ONCE = 1000
_PAUSE_MIN_S, _PAUSE_OF_READING = 0.05, 5.0  # between two readings, however often a change is told
_UNREACHABLE = (OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError)

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Credential:
    """A key or token that may be used now, and whose it is."""

    id: str
    """Of the key; of a token: of the fleet's key that signed it."""
    sender: str
    role: Literal["sender", "reader", "admin"]
    device: str | None
    """The only subject it may write for, and the one meant where an event names none; None: any subject."""
    scope: Scope | None = None
    """What it may send; None: everything."""
    sender_id: str = ""
    expires_at: float = inf
    """Seconds since 1970."""
    quota: Quota | None = None
    """What its sender may send; None: as much as it likes."""
    bucket: bytes = field(init=False, repr=False, compare=False)
    """What the device's own bucket is called; empty where there is no device. Made once and not with each request:
    Python remembers the hash of bytes, and finds the same object again without comparing it."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "bucket", (self.device or "").encode())


class Credentials:
    """All credentials, read anew with each change; while Postgres is down the last ones stay."""

    def __init__(self, settings: Settings, metrics: Metrics) -> None:
        """Nothing is opened before `start`."""
        self._refresh_s = settings.credential_refresh_s
        self._stored = StoredCredentials(settings, "drm edge")
        self._by_hash: dict[bytes, Credential] = {}
        self._by_header: dict[bytes, Credential] = {}
        self._fleet_keys: dict[str, FleetKey] = {}
        self._ids: frozenset[str] = frozenset()
        self._fleet_rows: dict[str, asyncpg.Record] = {}
        self._gone: OrderedDict[bytes | str, None] = OrderedDict()
        self._tokens: OrderedDict[bytes, tuple[Credential, FleetKey]] = OrderedDict()
        self._tokens_max = settings.tokens_remembered_max
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

    @property
    def stale(self) -> bool:
        """Whether somebody unknown may have come since the snapshot: it is not there, or was read too long ago."""
        return self._read_at is None or monotonic() - self._read_at > STALE_AFTER_REFRESHES * self._refresh_s

    def find(self, authorization: bytes | None) -> Credential | None:
        """Return whose `Authorization` header that is: `Bearer <key or token>`, or Basic with it as user name.

        None for one that is unknown, revoked or expired, for another scheme, for no header, and for a token that has
        not been verified yet.
        """
        if authorization is None:
            return None
        found = self._by_header.get(authorization)
        if found is None:
            found = self._look_up(authorization)
        return found if found is not None and found.expires_at > time() else None

    def in_force(self, credential: Credential) -> bool:
        """Whether somebody who was found may still send."""
        return credential.id in self._ids and credential.expires_at > time()

    def fleet_key(self, kid: str) -> FleetKey | None:
        """Return the public key of that name, if it is in force."""
        found = self._fleet_keys.get(kid)
        return found if found is not None and found.expires_at > time() else None

    def remember(self, token: str, credential: Credential, fleet_key: FleetKey) -> None:
        """Know a verified token again, for as long as it and the key that signed it are in force."""
        if len(self._tokens) >= self._tokens_max:
            self._tokens.popitem(last=False)
        self._tokens[_digest(token)] = credential, fleet_key

    def was_known(self, name: str) -> bool:
        """Whether a key, or the `kid` of a fleet's key, is in the snapshot or was in one before it."""
        if name in self._fleet_keys or name in self._gone:
            return True
        hash_ = key_hash(name) if name.isascii() else b""
        return hash_ in self._by_hash or hash_ in self._gone

    def _look_up(self, authorization: bytes) -> Credential | None:
        secret = secret_in(authorization)
        if secret and len(authorization) > _KEY_HEADER_BYTES_MAX:
            digest = _digest(secret)
            remembered = self._tokens.get(digest)
            if remembered is not None:
                credential, fleet_key = remembered
                if self._fleet_keys.get(fleet_key.kid) is fleet_key and fleet_key.expires_at > time():
                    self._tokens.move_to_end(digest)
                    if len(authorization) == len(_BEARER) + len(secret) and len(secret) <= _TOKEN_HEADER_BYTES_MAX:
                        self._remember_header(authorization, credential)
                    return credential
                del self._tokens[digest]
                return None
        found = self._by_hash.get(key_hash(secret)) if secret and secret.isascii() else None
        if found is not None and len(authorization) <= _KEY_HEADER_BYTES_MAX:
            self._remember_header(authorization, found)
        return found

    def _remember_header(self, authorization: bytes, credential: Credential) -> None:
        """Know a header again as it came, until the next snapshot."""
        if len(self._by_header) >= _HEADERS_MAX:
            self._by_header.clear()
        self._by_header[authorization] = credential

    async def _refresh_for_ever(self) -> None:
        reachable = True
        while True:
            started_at = monotonic()
            try:
                snapshot = await self._stored.read()
                if snapshot is not None:
                    await self._take(snapshot)
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
            now = monotonic()
            pause_s = max(_PAUSE_MIN_S, _PAUSE_OF_READING * (now - started_at) if reachable else 0.0)
            await asyncio.sleep(min(pause_s, self._refresh_s))
            await self._stored.wait_for_change(max(0.0, started_at + self._refresh_s - monotonic()))

    async def _take(self, snapshot: Snapshot) -> None:
        by_hash: dict[bytes, Credential] = {}
        for number, row in enumerate(snapshot.keys, 1):
            scope = Scope.of(row["devices"], row["types"], parties=row["parties"], identities=row["identities"])
            by_hash[row["hash"]] = Credential(
                str(row["id"]), row["sender"], row["role"], row["device"], scope, str(row["sender_id"]),
                _seconds(row["expires_at"]), _quota(row),
            )  # fmt: skip
            if not number % _ROWS_AT_ONCE:
                await asyncio.sleep(0)
        fleet_keys = await self._fleets(snapshot.fleet_keys)
        gone: set[bytes | str] = {*(self._by_hash.keys() - by_hash), *(self._fleet_keys.keys() - fleet_keys)}
        for name in gone:
            self._gone[name] = None
            if len(self._gone) > _GONE_MAX:
                self._gone.popitem(last=False)
        self._by_hash, self._by_header, self._fleet_keys = by_hash, {}, fleet_keys
        self._ids = frozenset([each.id for each in by_hash.values()] + [str(each.id) for each in fleet_keys.values()])

    async def _fleets(self, rows: Sequence[asyncpg.Record]) -> dict[str, FleetKey]:
        """Return the keys by `kid`; one that did not change is the same object, and its tokens stay remembered."""
        found: dict[str, FleetKey] = {}
        for number, row in enumerate(rows, 1):
            kid = row["kid"]
            if self._fleet_rows.get(kid) == row and kid in self._fleet_keys:
                found[kid] = self._fleet_keys[kid]
            else:
                scope = Scope.of(row["devices"], row["types"], parties=True, identities=row["identities"])
                try:
                    key = load(row["public_key"])
                except (ValueError, TypeError):
                    log.exception("a fleet's key cannot be read; the others can", kid=kid)
                    continue
                found[kid] = FleetKey(
                    row["id"], kid, row["algorithm"], key, row["sender"], str(row["sender_id"]), row["role"], scope,
                    _seconds(row["expires_at"]), _quota(row),
                )  # fmt: skip
            if not number % (_ROWS_AT_ONCE // 10):
                await asyncio.sleep(0)
        self._fleet_rows = {row["kid"]: row for row in rows}
        return found


def _quota(row: asyncpg.Record) -> Quota | None:
    """Return the quotas of a key's sender."""
    all_ = Rates(row["events_per_s"], row["bytes_per_s"])
    device = Rates(row["device_events_per_s"], row["device_bytes_per_s"])
    return Quota(row["sender_id"].bytes, all_, device, row["burst_s"]) if all_.limited or device.limited else None


def _digest(token: str) -> bytes:
    """Return what a token is remembered by: itself and not its header, which one sender could write in endless ways."""
    return hashlib.sha256(token.encode("latin-1")).digest()


def secret_in(authorization: bytes) -> str | None:
    """Return the key or token in a header's value, if it looks like one."""
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


def key_prefix(authorization: bytes) -> str | None:
    """Return what the registry shows of the key in a header, if it looks like one of ours."""
    key = secret_in(authorization)
    ours = key is not None and key.isascii() and key.startswith(KEY_PREFIX) and len(key) > 3 * PREFIX_CHARACTERS
    return key[:PREFIX_CHARACTERS] if key is not None and ours else None


def _seconds(time: datetime | None) -> float:
    return inf if time is None else time.timestamp()
