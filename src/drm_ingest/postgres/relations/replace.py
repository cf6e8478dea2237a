"""Replacing a device by another, which continues its history and its relations; and undoing that, exactly.

InLine    one of the two has a place in a line of replacements that contradicts this one
OneDevice they are the same, or it would come round in a circle, or the line would be too long
JustBegun a relation begins at that very time, and would have held for none
Changed   a relation was changed since; undoing would change it again
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Literal
from uuid import UUID

import asyncpg

from drm_ingest.postgres.relations import relate, revise
from drm_ingest.postgres.relations.changes import Claim, Locked, Say, lock
from drm_ingest.postgres.relations.predecessors import PREDECESSORS_MAX, REPLACEMENT, predecessors, replaced_by
from drm_ingest.postgres.relations.relationships import ROW, relationship

REPLACEMENTS = 0x64726D_7265706C  # "drm" "repl": the advisory lock of whoever changes one; two could make a circle


class InLine(Exception):
    """One of them is in a replacement already that contradicts this one; `row` is that."""

    def __init__(self, row: asyncpg.Record) -> None:
        super().__init__(f"{row['device']} was replaced by {row['by']}")
        self.row = row


class OneDevice(Exception):
    """It cannot stand in its own line, nor at the end of one that is too long."""

    def __init__(self, why: Literal["same", "circle", "long"]) -> None:
        super().__init__(why)
        self.why = why


class JustBegun(Exception):
    """A relation begins at that very time; `row` is that."""

    def __init__(self, row: asyncpg.Record) -> None:
        super().__init__(f"{row['id']} begins at {row['valid_from']}")
        self.row = row


class Changed(Exception):
    """A relation was changed after the replacement; `row` is its last version."""

    def __init__(self, row: asyncpg.Record) -> None:
        super().__init__(f"{row['id']} is at version {row['version']}")
        self.row = row


@dataclass(frozen=True, slots=True)
class Order:
    """A device, which exists, is replaced by another."""

    device: str
    by: str
    at: datetime | None
    """None: now."""
    asserted_by: str
    reason: str | None


@dataclass(frozen=True, slots=True)
class Replacement:
    """A replacement, and what it did to relations: ended and begun (None: held there already)."""

    row: asyncpg.Record
    relations: Sequence[asyncpg.Record]


async def replace(db: asyncpg.Connection, order: Order) -> tuple[Replacement, bool]:
    """Let another device go on where one ends; return the replacement, and whether it is new.

    Relations that hold then, of roles that go on, end on the one and begin on the other, which is registered if it is
    new. The same order again changes nothing.

    Raises:
        InLine, OneDevice, JustBegun, HeldAlready: and nothing was changed.
    """
    if order.by == order.device:
        raise OneDevice("same")
    async with db.transaction():
        locked = await _lock(db, order.device, order.by)
        at = order.at or locked[0]
        known = await replaced_by(db, order.device)
        if known is not None:
            if known["by"] == order.by and order.at in (None, known["at"]):
                return await _with_relations(db, known), False
            raise InLine(known)
        before = await predecessors(db, order.device)
        if any(row["device"] == order.by for row in before):
            raise OneDevice("circle")
        if len(before) >= PREDECESSORS_MAX:
            raise OneDevice("long")
        taken = await replaced_by(db, order.by) or next(iter(await predecessors(db, order.by)), None)
        if taken is not None:
            raise InLine(taken)
        await db.execute(
            "insert into device (subject, registered_by) values ($1, 'registry') on conflict do nothing", order.by
        )
        row = await db.fetchrow(
            "insert into device_replacement (device, by, at, asserted_by, reason, recorded) "
            "values ($1, $2, $3, $4, $5, tstzrange(greatest($6, (select max(upper(recorded)) from device_replacement "
            f"where device = $1 or by = $2)), null)) returning {REPLACEMENT}",
            order.device, order.by, at, order.asserted_by, order.reason, locked[1],
        )  # fmt: skip
        for relation in await _going_on(db, order.device, at):
            await _move(db, row, relation, Say(order.asserted_by, order.reason), locked)
        return await _with_relations(db, row), True


async def undo(db: asyncpg.Connection, device: str, say: Say) -> Replacement | None:
    """Let a device go on as if it had never been replaced; None: it is not.

    What came since on either of them stays on it; relations hold when they held before.

    Raises:
        Changed, HeldAlready: and nothing was changed.
    """
    async with db.transaction():
        await db.execute("select pg_advisory_xact_lock($1)", REPLACEMENTS)
        row = await replaced_by(db, device)
        if row is None:
            return None
        locked = await _lock(db, device, row["by"])
        done = await _with_relations(db, row)
        for each in done.relations:
            # As the replacement left them: when they hold counts, so that what came since may have been undone.
            left = (each["ended"], each["held_from"], row["at"]), (each["begun"], row["at"], each["held_until"])
            for id_, starts, ends in left:
                there = id_ and await relationship(db, id_)
                if there and (there["superseded_at"] or (there["valid_from"], there["valid_to"]) != (starts, ends)):
                    raise Changed(there)
        for each in done.relations:
            if each["begun"] is not None:
                await revise.withdraw(db, each["begun"], say, locked)
        for each in done.relations:
            await revise.correct(db, each["ended"], revise.UNCHANGED, each["held_until"], say, locked)
        undone = await db.fetchrow(
            "update device_replacement set recorded = tstzrange(lower(recorded), "
            "greatest($2, lower(recorded) + interval '1 microsecond')), undone_by = $3, undone_why = $4 "
            f"where id = $1 returning {REPLACEMENT}",
            row["id"], locked[1], say.asserted_by, say.reason,
        )  # fmt: skip
        return Replacement(undone, done.relations)


async def _lock(db: asyncpg.Connection, *devices: str) -> Locked:
    """Lock the line of replacements and both devices, in order; return one time for all that is done."""
    await db.execute("select pg_advisory_xact_lock($1)", REPLACEMENTS)
    times = [await lock(db, device) for device in sorted(devices)]
    return max(now for now, _ in times), max(recorded_at for _, recorded_at in times)


async def _going_on(db: asyncpg.Connection, device: str, at: datetime) -> list[asyncpg.Record]:
    """Return what goes on on the new device; raises JustBegun.

    Who signed in on the old one does so on the new one, or does not: attach ends what it derived of it (identities.py).
    """
    rows: list[asyncpg.Record] = await db.fetch(
        f"{ROW} where subject = $1 and upper_inf(recorded) and valid @> $2::timestamptz "
        "and role in (select name from role where goes_on) and not (derived and role = 'user') order by id",
        device, at,
    )  # fmt: skip
    for row in rows:
        if row["valid_from"] == at:
            raise JustBegun(row)
    return rows


async def _move(
    db: asyncpg.Connection, replacement: asyncpg.Record, relation: asyncpg.Record, say: Say, locked: Locked
) -> None:
    at, by = replacement["at"], replacement["by"]
    ended = await revise.end(db, relation["id"], at, say, locked)
    held = await db.fetchval(
        "select exists (select from relationship where subject = $1 and role = $2 and party = $3 "
        "and batch is not distinct from $4 and upper_inf(recorded) and valid @> tstzrange($5, $6))",
        by, relation["role"], relation["party"], relation["batch"], at, relation["valid_to"],
    )  # fmt: skip
    begun: UUID | None = None
    if not held:
        claim = Claim(
            by, relation["role"], relation["party"], at, relation["valid_to"], say.asserted_by, say.reason,
            batch=relation["batch"],
        )  # fmt: skip
        row, _ = await relate.begin(db, claim, locked)
        begun = row["id"]
    await db.execute(
        "insert into device_replacement_relation (replacement, ended, version, begun) values ($1, $2, $3, $4)",
        replacement["id"], relation["id"], ended and ended["version"], begun,
    )  # fmt: skip


async def _with_relations(db: asyncpg.Connection, row: asyncpg.Record) -> Replacement:
    relations = await db.fetch(
        "select role, party, ended, moved.version, begun, lower(before.valid) as held_from, "
        "upper(before.valid) as held_until "
        "from device_replacement_relation moved "
        "join relationship before on before.id = moved.ended and before.version = moved.version - 1 "
        "where replacement = $1 order by ended",
        row["id"],
    )
    return Replacement(row, relations)
