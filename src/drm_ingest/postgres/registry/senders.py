"""Who may send: senders, their keys, and the keys of fleets.

NameTaken  a sender of that name is there already
KeyTaken   a fleet's key is registered already, or was
LastKey    without this key no administrator could get in
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

import asyncpg

from drm_ingest.postgres.credentials import key_hash, new_key
from drm_ingest.public_key import PublicKey

_ADMINISTRATORS = 0x64726D_61646D69  # "drm" "admi": the advisory lock of whoever revokes an administrator's key


class NameTaken(Exception):
    """A sender of that name is there already."""

    def __init__(self, sender: UUID) -> None:
        super().__init__(f"sender {sender} has that name")
        self.sender = sender


class KeyTaken(Exception):
    """A fleet's key, or its name, is registered already, or was."""

    def __init__(self, key: UUID, sender: UUID) -> None:
        super().__init__(f"fleet key {key} of sender {sender}")
        self.key, self.sender = key, sender


class LastKey(Exception):
    """Without this key no administrator could get in."""


# -- senders and their keys -------------------------------------------------------------------------------------------

_SENDER = (
    "id, name, role, device, created_at, events_per_s, bytes_per_s, device_events_per_s, device_bytes_per_s, burst_s"
)
_KEY = "id, prefix, created_at, expires_at, revoked_at, devices, types, parties, identities"
_FLEET_KEY = "id, kid, algorithm, public_key, created_at, expires_at, revoked_at, devices, types, identities"
_VALID = "revoked_at is null and (expires_at is null or expires_at > clock_timestamp())"


async def sender_of_key(db: asyncpg.Connection | asyncpg.Pool, key: str) -> asyncpg.Record | None:
    """Return the sender (id, name, role, device) whose key this is now, and the `devices` and `parties` of its scope.

    None for an unknown, revoked or expired key.
    """
    return await db.fetchrow(
        "select sender.id, name, role, device, devices, parties "
        f"from sender_key join sender on sender.id = sender_key.sender where hash = $1 and {_VALID}",
        key_hash(key),
    )


async def create_sender(db: asyncpg.Connection, name: str, role: str, device: str | None) -> asyncpg.Record:
    """Return the new sender; raises NameTaken."""
    row = await db.fetchrow(
        "insert into sender (name, role, device) values ($1, $2, $3) on conflict (name) do nothing "
        f"returning {_SENDER}",
        name, role, device,
    )  # fmt: skip
    if row is None:
        raise NameTaken(await db.fetchval("select id from sender where name = $1", name))
    return row


async def set_quota(db: asyncpg.Connection, id_: UUID, quota: Mapping[str, float | None]) -> asyncpg.Record | None:
    """Give a sender these quotas, by their columns, in place of those it has; None where there is no such sender."""
    return await db.fetchrow(
        "update sender set events_per_s = $2, bytes_per_s = $3, device_events_per_s = $4, device_bytes_per_s = $5, "
        f"burst_s = $6 where id = $1 returning {_SENDER}",
        id_, quota["events_per_s"], quota["bytes_per_s"], quota["device_events_per_s"], quota["device_bytes_per_s"],
        quota["burst_s"],
    )  # fmt: skip


async def sender(db: asyncpg.Connection, id_: UUID) -> asyncpg.Record | None:
    return await db.fetchrow(f"select {_SENDER} from sender where id = $1", id_)


async def senders(db: asyncpg.Connection, after: UUID | None, limit: int) -> list[asyncpg.Record]:
    """Return senders by age, those after `after`."""
    rows: list[asyncpg.Record] = await db.fetch(
        f"select {_SENDER} from sender where id > $1 order by id limit $2", after or UUID(int=0), limit
    )
    return rows


@dataclass(frozen=True, slots=True)
class Scope:
    """What a credential may send; `devices` and `types` are names or beginnings (`meter-*`), None: any."""

    devices: Sequence[str] | None = None
    types: Sequence[str] | None = None
    parties: bool = True
    identities: bool = True


async def create_key(
    db: asyncpg.Connection, sender: UUID, expires_at: datetime | None, scope: Scope
) -> tuple[asyncpg.Record, str] | None:
    """Return the new key's row and the key itself, which is kept nowhere; None where there is no such sender."""
    key, hash_, prefix = new_key()
    try:
        row = await db.fetchrow(
            "insert into sender_key (sender, hash, prefix, expires_at, devices, types, parties, identities) "
            f"values ($1, $2, $3, $4, $5, $6, $7, $8) returning {_KEY}",
            sender, hash_, prefix, expires_at, scope.devices, scope.types, scope.parties, scope.identities,
        )  # fmt: skip
    except asyncpg.ForeignKeyViolationError:
        return None
    return row, key


async def keys(db: asyncpg.Connection, sender: UUID, after: UUID | None, limit: int) -> list[asyncpg.Record]:
    """Return a sender's keys by age, the revoked and expired ones too."""
    rows: list[asyncpg.Record] = await db.fetch(
        f"select {_KEY} from sender_key where sender = $1 and id > $2 order by id limit $3",
        sender, after or UUID(int=0), limit,
    )  # fmt: skip
    return rows


async def keys_that_begin(db: asyncpg.Connection, prefix: str, after: UUID | None, limit: int) -> list[asyncpg.Record]:
    """Return the keys with this `prefix`, by age, with whose they are: `sender` and `sender_name`."""
    columns = ", ".join(f"sender_key.{column}" for column in _KEY.split(", "))
    rows: list[asyncpg.Record] = await db.fetch(
        f"select {columns}, sender, sender.name as sender_name "
        "from sender_key join sender on sender.id = sender_key.sender "
        "where prefix = $1 and sender_key.id > $2 order by sender_key.id limit $3",
        prefix, after or UUID(int=0), limit,
    )  # fmt: skip
    return rows


async def revoke_keys(db: asyncpg.Connection, sender: UUID, key: UUID | None) -> int | None:
    """Revoke one key of a sender, or all it has, those of its fleets too.

    Returns how many were in force until now; None: there is no such sender or key.

    Raises:
        LastKey: no administrator would be left with a key; nothing was revoked.
    """
    async with db.transaction():
        # Two administrators who revoke each other at the same moment would both find the other's key in force.
        await db.execute("select pg_advisory_xact_lock($1)", _ADMINISTRATORS)
        if key is None:
            known = await db.fetchval("select true from sender where id = $1", sender)
        else:
            known = await db.fetchval("select true from sender_key where sender = $1 and id = $2", sender, key)
        if not known:
            return None
        revoked = await db.fetch(
            "update sender_key set revoked_at = clock_timestamp() "
            f"where sender = $1 and ($2::uuid is null or id = $2) and {_VALID} returning id",
            sender, key,
        )  # fmt: skip
        if revoked and not await db.fetchval(
            "select exists (select from sender_key join sender on sender.id = sender_key.sender "
            f"where role = 'admin' and {_VALID})"
        ):
            raise LastKey
        if key is None:
            revoked += await db.fetch(
                f"update fleet_key set revoked_at = clock_timestamp() where sender = $1 and {_VALID} returning id",
                sender,
            )
        return len(revoked)


async def create_fleet_key(
    db: asyncpg.Connection, sender: UUID, kid: str | None, key: PublicKey, expires_at: datetime | None, scope: Scope
) -> asyncpg.Record:
    """Return the row of the new key, known as `kid`, or by its thumbprint.

    Raises:
        KeyTaken: the key, or one of that name, is registered or was.
    """
    row = await db.fetchrow(
        "insert into fleet_key (sender, kid, thumbprint, algorithm, public_key, expires_at, devices, types, identities)"
        f" values ($1, $2, $3, $4, $5, $6, $7, $8, $9) on conflict do nothing returning {_FLEET_KEY}",
        sender, kid or key.thumbprint, key.thumbprint, key.algorithm, key.pem, expires_at, scope.devices, scope.types,
        scope.identities,
    )  # fmt: skip
    if row is None:
        taken = await db.fetchrow(
            "select id, sender from fleet_key where kid = $1 or thumbprint = $2", kid or key.thumbprint, key.thumbprint
        )
        raise KeyTaken(taken["id"], taken["sender"])
    return row


async def fleet_keys(db: asyncpg.Connection, sender: UUID, after: UUID | None, limit: int) -> list[asyncpg.Record]:
    """Return a sender's fleet keys by age, the revoked and expired ones too."""
    rows: list[asyncpg.Record] = await db.fetch(
        f"select {_FLEET_KEY} from fleet_key where sender = $1 and id > $2 order by id limit $3",
        sender, after or UUID(int=0), limit,
    )  # fmt: skip
    return rows


async def revoke_fleet_key(db: asyncpg.Connection, sender: UUID, key: UUID) -> int | None:
    """Revoke a fleet's key; return how many were in force until now; None: no such key."""
    row = await db.fetchrow(
        "update fleet_key set revoked_at = coalesce(revoked_at, clock_timestamp()) where sender = $1 and id = $2 "
        "returning old.revoked_at is null and (expires_at is null or expires_at > clock_timestamp()) as was_valid",
        sender, key,
    )  # fmt: skip
    return None if row is None else int(row["was_valid"])
