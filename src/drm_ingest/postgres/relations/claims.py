"""Codes that prove that somebody has a device at hand, and who became its owner by one.

WrongCode  it is not the code of the device
DeadCode   no code of the device is in force
"""

import hashlib
import hmac
import secrets
from dataclasses import dataclass
from datetime import datetime
from typing import Literal
from uuid import UUID

import asyncpg

from drm_ingest.postgres.relations import relate
from drm_ingest.postgres.relations.changes import Claim, lock
from drm_ingest.postgres.relations.relationships import relationship

CHARACTERS = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"
"""Crockford's base 32: what people take for one another is one."""
_LOOKALIKES = str.maketrans("OIL", "011", "- ")
_CODE_CHARACTERS = 16

Why = Literal["none", "used", "guessed", "expired"]


class WrongCode(Exception):
    """It is not the code of the device; `guesses_left` more are looked at."""

    def __init__(self, guesses_left: int) -> None:
        super().__init__(f"{guesses_left} guesses left")
        self.guesses_left = guesses_left


class DeadCode(Exception):
    """No code of the device is in force: none was made, it was used, guessed at too often, or has expired."""

    def __init__(self, why: Why) -> None:
        super().__init__(why)
        self.why: Why = why


def _hash(device: str, code: str) -> bytes:
    """Return what is kept of a code, however it was typed: no stretching is needed over 80 random bits."""
    return hashlib.sha256(f"{device}\0{code.upper().translate(_LOOKALIKES)}".encode()).digest()


async def make(
    db: asyncpg.Connection, device: str, hours: int, expires_at: datetime | None, made_by: str
) -> tuple[str, asyncpg.Record]:
    """Make a code for a device, which exists, in place of the one it had; return it, and its row (without it)."""
    code = "".join(secrets.choice(CHARACTERS) for _ in range(_CODE_CHARACTERS))
    async with db.transaction():
        now, _ = await lock(db, device)
        row = await db.fetchrow(
            "insert into claim_code (device, hash, made_by, made_at, expires_at) "
            "values ($1, $2, $3, $4, coalesce($5, $4::timestamptz + make_interval(hours => $6))) "
            "on conflict (device) do update set hash = excluded.hash, guesses = 0, relationship = null, "
            "made_by = excluded.made_by, made_at = excluded.made_at, expires_at = excluded.expires_at "
            "returning made_by, made_at, expires_at",
            device, _hash(device, code), made_by, now, expires_at, hours,
        )  # fmt: skip
    return "-".join(code[at : at + 4] for at in range(0, _CODE_CHARACTERS, 4)), row


async def revoke(db: asyncpg.Connection, device: str, now: datetime) -> None:
    """Let the code of a device, which is locked, be in force no more: whoever has it may not be who should."""
    await db.execute(
        "update claim_code set expires_at = $2 where device = $1 and relationship is null and expires_at > $2",
        device, now,
    )  # fmt: skip


@dataclass(frozen=True, slots=True)
class Proof:
    """Whoever would own the device knows its code."""

    device: str
    code: str
    party: UUID
    asserted_by: str
    reason: str | None


async def claim(db: asyncpg.Connection, proof: Proof, guesses_max: int) -> tuple[asyncpg.Record, bool]:
    """Let a party, which exists, own a device from now on; return its relation, and whether it is new.

    The same claim again is answered with the relation that it began, as long as that holds.

    Raises:
        WrongCode, DeadCode, HeldAlready: and nothing was changed, but that a guess was counted.
    """
    async with db.transaction():
        # One after the other, so that no guess is missed.
        locked = now, _ = await lock(db, proof.device)
        row = await db.fetchrow(
            "select hash, guesses, relationship, expires_at from claim_code where device = $1", proof.device
        )
        # Compared in the same time whatever is wrong with it, and whether or not there is any.
        right = hmac.compare_digest(row["hash"] if row else bytes(32), _hash(proof.device, proof.code))
        refused: WrongCode | DeadCode
        if row is None:
            refused = DeadCode("none")
        elif row["guesses"] >= guesses_max:
            refused = DeadCode("guessed")
        elif not right:
            await db.execute("update claim_code set guesses = guesses + 1 where device = $1", proof.device)
            refused = WrongCode(guesses_max - row["guesses"] - 1)
        elif row["relationship"] is not None:
            begun = await relationship(db, row["relationship"])
            if begun is not None and begun["party"] == proof.party and _holds(begun, now):
                return begun, False
            refused = DeadCode("used")
        elif row["expires_at"] <= now:
            refused = DeadCode("expired")
        else:
            owner = Claim(proof.device, "owner", proof.party, now, None, proof.asserted_by, proof.reason)
            begun, _ = await relate.begin(db, owner, locked)
            await db.execute("update claim_code set relationship = $2 where device = $1", proof.device, begun["id"])
            return begun, True
    raise refused  # not before the guess is counted for good


def _holds(begun: asyncpg.Record, now: datetime) -> bool:
    return begun["superseded_at"] is None and (begun["valid_to"] is None or now < begun["valid_to"])
