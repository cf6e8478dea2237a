"""Handing a device over from one owner to the next, all at one time.

NotTheOwner  whoever hands it over does not own it then
OneParty     both are the same party, or are linked
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

import asyncpg

from drm_ingest.postgres.relations import claims, relate, revise
from drm_ingest.postgres.relations.changes import Claim, Say, lock
from drm_ingest.postgres.relations.links import group
from drm_ingest.postgres.relations.relationships import ROW


class NotTheOwner(Exception):
    """Whoever hands it over does not own it then; `row` says who does, None: nobody."""

    def __init__(self, at: datetime, row: asyncpg.Record | None) -> None:
        super().__init__(f"at {at} {dict(row) if row else 'nobody'}")
        self.at, self.row = at, row


class OneParty(Exception):
    """Both are the same party, or are linked and share one record."""


@dataclass(frozen=True, slots=True)
class HandOver:
    """A device goes from one party to another, both of which exist."""

    device: str
    giver: UUID
    taker: UUID
    at: datetime | None
    """None: now."""
    everybody: bool
    """All who use it stop then, not only its owner."""
    asserted_by: str
    reason: str | None


@dataclass(frozen=True, slots=True)
class Done:
    """What a hand-over came to, in rows of relations."""

    ended: Sequence[asyncpg.Record]
    """Withdrawn, where it would have begun later."""
    begun: asyncpg.Record
    using: Sequence[asyncpg.Record]
    """Those of others, who go on using it."""
    new: bool
    """False: it was so already."""


async def hand_over(db: asyncpg.Connection, order: HandOver) -> Done:
    """End what the owner holds as owner and user at one time, and begin the next one's; return what there is now.

    Parties linked with the owner are the owner. What identity events say of their use until now ends then too, whenever
    they come. The code of the device is dead from then on: the old owner may have it.

    Raises:
        NotTheOwner, OneParty, HeldAlready, EmptyRange: and nothing was changed.
    """
    async with db.transaction():
        locked = now, _ = await lock(db, order.device)
        at = order.at or now
        givers, takers = await group(db, order.giver), await group(db, order.taker)
        if order.taker in givers:
            raise OneParty
        owner = await db.fetchrow(
            f"{ROW} where subject = $1 and role = 'owner' and upper_inf(recorded) and valid @> $2::timestamptz",
            order.device, at,
        )  # fmt: skip
        if owner is None or owner["party"] not in givers:
            if done := await _done(db, order, givers, takers, owner):
                return done
            raise NotTheOwner(at, owner)
        say = Say(order.asserted_by, order.reason)
        ended = [await revise.end(db, owner["id"], at, say, locked)]
        for row in await _users(db, order.device, at):
            if row["party"] in givers or (order.everybody and row["party"] not in takers):
                if row["valid_from"] is not None and row["valid_from"] >= at:
                    ended.append(await revise.withdraw(db, row["id"], say, locked))
                else:
                    ended.append(await revise.end(db, row["id"], at, say, locked))
        claim = Claim(order.device, "owner", order.taker, at, None, order.asserted_by, order.reason)
        begun, _ = await relate.begin(db, claim, locked)
        await claims.revoke(db, order.device, now)
        await db.execute(
            "insert into hand_over (device, at, givers, takers, everybody, begun, recorded_at) "
            "values ($1, $2, $3, $4, $5, $6, $7)",
            order.device, at, givers, takers, order.everybody, begun["id"], now,
        )  # fmt: skip
        return Done([row for row in ended if row], begun, await _using(db, order.device, at, takers), True)


async def _done(
    db: asyncpg.Connection,
    order: HandOver,
    givers: Sequence[UUID],
    takers: Sequence[UUID],
    owner: asyncpg.Record | None,
) -> Done | None:
    """Return what the same order came to before; None: it was not carried out."""
    if owner is None or owner["party"] != order.taker or order.at not in (None, owner["valid_from"]):
        return None
    ended = await db.fetch(
        f"{ROW} where subject = $1 and role in ('owner', 'user') and upper_inf(recorded) and upper(valid) = $2 "
        "and (party = any ($3::uuid[]) or $4 and party <> all ($5::uuid[])) order by role, id",
        order.device, owner["valid_from"], givers, order.everybody, takers,
    )  # fmt: skip
    if not any(row["role"] == "owner" and row["party"] in givers for row in ended):
        return None
    return Done(ended, owner, await _using(db, order.device, owner["valid_from"], takers), False)


async def _users(db: asyncpg.Connection, device: str, at: datetime) -> list[asyncpg.Record]:
    """Return who uses it then or later."""
    rows: list[asyncpg.Record] = await db.fetch(
        f"{ROW} where subject = $1 and role = 'user' and upper_inf(recorded) and valid && tstzrange($2, null) "
        "order by id",
        device, at,
    )  # fmt: skip
    return rows


async def _using(db: asyncpg.Connection, device: str, at: datetime, takers: Sequence[UUID]) -> list[asyncpg.Record]:
    return [row for row in await _users(db, device, at) if row["party"] not in takers]
