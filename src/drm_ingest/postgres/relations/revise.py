"""Changing a relation that is there: end it, correct when it held, withdraw it."""

from datetime import datetime
from typing import Literal
from uuid import UUID

import asyncpg

from drm_ingest.event import PARTY_PREFIX
from drm_ingest.postgres.relations import moves
from drm_ingest.postgres.relations.changes import (
    ChangedMeanwhile,
    Claim,
    EmptyRange,
    Locked,
    Say,
    Withdrawn,
    WithItself,
    empty,
    excluded,
    lock,
    note,
)
from drm_ingest.postgres.relations.relationships import LATEST


class Unchanged:
    """In place of a time: as it is."""


UNCHANGED = Unchanged()


async def end(
    db: asyncpg.Connection, id_: UUID, at: datetime | None, say: Say, locked: Locked | None = None
) -> asyncpg.Record | None:
    """End a relation at a time (None: now); return its row; None: no such relation.

    What has ended already does not end anew where it is to end now. Whoever has locked the subject already says what
    `lock` answered: so several changes are recorded at one time.

    Raises:
        HeldAlready, EmptyRange, Withdrawn, WithItself, ChangedMeanwhile: and nothing was changed.
    """
    return await _revise(db, id_, "ended", UNCHANGED, at, say, locked, ends_now=at is None)


async def correct(
    db: asyncpg.Connection,
    id_: UUID,
    valid_from: datetime | Unchanged | None,
    valid_to: datetime | Unchanged | None,
    say: Say,
    locked: Locked | None = None,
) -> asyncpg.Record | None:
    """Say anew when a relation held; return and raises as `end`."""
    return await _revise(db, id_, "corrected", valid_from, valid_to, say, locked)


async def withdraw(db: asyncpg.Connection, id_: UUID, say: Say, locked: Locked | None = None) -> asyncpg.Record | None:
    """Say that a relation never held; return its last row; None: no such relation.

    Raises:
        ChangedMeanwhile: and nothing was changed.
    """
    async with db.transaction():
        subject = await _subject(db, id_)
        if subject is None:
            return None
        _, recorded_at = locked or await lock(db, subject)
        row = await _latest(db, id_)
        if row["superseded_at"] is not None:
            return row
        _refuse_unseen(row, say)
        before = await moves.held(db, subject, row["party"])
        await _close(db, row, recorded_at)
        await note(db, "withdrawn", row, recorded_at, before, say.asserted_by, say.reason)
        return await _latest(db, id_)


async def _revise(
    db: asyncpg.Connection,
    id_: UUID,
    change: Literal["ended", "corrected"],
    valid_from: datetime | Unchanged | None,
    valid_to: datetime | Unchanged | None,
    say: Say,
    locked: Locked | None,
    *,
    ends_now: bool = False,
) -> asyncpg.Record | None:
    async with db.transaction():
        subject = await _subject(db, id_)
        if subject is None:
            return None
        now, recorded_at = locked or await lock(db, subject)
        row = await _latest(db, id_)
        if row["superseded_at"] is not None:
            raise Withdrawn(row)
        if subject == f"{PARTY_PREFIX}{row['party']}":
            raise WithItself(row)
        starts = row["valid_from"] if isinstance(valid_from, Unchanged) else valid_from
        ends = row["valid_to"] if isinstance(valid_to, Unchanged) else valid_to
        if ends_now:
            ends = now if row["valid_to"] is None else min(now, row["valid_to"])
        # What a person says is theirs, also where events have said the same: no event changes it then.
        if (starts, ends) == (row["valid_from"], row["valid_to"]) and not await _derived(db, row):
            return row
        _refuse_unseen(row, say)
        if empty(starts, ends):
            raise EmptyRange
        claim = Claim(subject, row["role"], row["party"], starts, ends, say.asserted_by, say.reason, batch=row["batch"])
        before = await moves.held(db, subject, row["party"])
        async with excluded(db, claim, but=id_):
            await _close(db, row, recorded_at)
            await db.execute(
                "insert into relationship (id, version, subject, role, party, exclusive, subject_kind, party_kind, "
                "batch, valid, recorded, asserted_by, reason) "
                "select id, version + 1, subject, role, party, exclusive, subject_kind, party_kind, batch, "
                "tstzrange($3, $4), tstzrange($5, null), $6, $7 from relationship where id = $1 and version = $2",
                id_, row["version"], starts, ends, recorded_at, say.asserted_by, say.reason,
            )  # fmt: skip
        revised = await _latest(db, id_)
        await note(db, change, revised, recorded_at, before, say.asserted_by, say.reason, instead_of=row)
        return revised


async def _subject(db: asyncpg.Connection, id_: UUID) -> str | None:
    subject: str | None = await db.fetchval("select subject from relationship where id = $1 limit 1", id_)
    return subject


async def _latest(db: asyncpg.Connection, id_: UUID) -> asyncpg.Record:
    return await db.fetchrow(LATEST, id_)


async def _derived(db: asyncpg.Connection, row: asyncpg.Record) -> bool:
    derived: bool = await db.fetchval(
        "select derived from relationship where id = $1 and version = $2", row["id"], row["version"]
    )
    return derived


async def _close(db: asyncpg.Connection, row: asyncpg.Record, recorded_at: datetime) -> None:
    await db.execute(
        "update relationship set recorded = tstzrange(lower(recorded), $3) where id = $1 and version = $2",
        row["id"], row["version"], recorded_at,
    )  # fmt: skip


def _refuse_unseen(row: asyncpg.Record, say: Say) -> None:
    if say.versions is not None and row["version"] not in say.versions:
        raise ChangedMeanwhile(row)
