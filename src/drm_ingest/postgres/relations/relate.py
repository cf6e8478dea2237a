"""Beginning a relation.

UnknownRole   there is no such role, or it does not join such a subject with such a party
NoBatch       only what a supplier delivers comes in batches
"""

from collections.abc import Collection
from dataclasses import replace
from datetime import datetime
from uuid import UUID

import asyncpg

from drm_ingest.event import PARTY_PREFIX
from drm_ingest.postgres.relations import moves
from drm_ingest.postgres.relations.changes import Claim, EmptyRange, Locked, empty, excluded, lock, note
from drm_ingest.postgres.relations.relationships import ROW


class UnknownRole(Exception):
    """There is no such role on a subject of that kind, or no such party holds it.

    `roles` are those there are on such a subject; `kinds`, if any, those of parties that hold the role on it.
    """

    def __init__(self, subject_kind: str, party_kind: str, roles: Collection[str], kinds: Collection[str]) -> None:
        super().__init__(f"on a {subject_kind}: {', '.join(roles)}; held by {', '.join(kinds) or 'none'}")
        self.subject_kind, self.party_kind, self.roles, self.kinds = subject_kind, party_kind, roles, kinds


class NoBatch(Exception):
    """Only what a supplier delivers comes in batches."""


async def begin(db: asyncpg.Connection, claim: Claim, locked: Locked | None = None) -> tuple[asyncpg.Record, bool]:
    """Record that a relation holds, register its device if it is new; return the row, and whether it is new.

    A relation that says exactly the same is returned as it is; from now on, one that holds by now. `claim.subject` is
    canonical, and `claim.party` exists.
    Whoever has locked the subject already says what `lock` answered: so several changes are recorded at one time.

    Raises:
        UnknownRole, NoBatch, HeldAlready, EmptyRange: and nothing was changed.
    """
    async with db.transaction():
        return await _begin(db, claim, locked or await lock(db, claim.subject))


async def _begin(db: asyncpg.Connection, claim: Claim, locked: Locked) -> tuple[asyncpg.Record, bool]:
    now, recorded_at = locked
    if claim.from_now:
        # Asked again after an answer that was lost, `now` is later, and it is the same relation all the same.
        if (same := await _holding(db, claim, recorded_at)) is not None:
            return same, False
        claim = replace(claim, valid_from=now, from_now=False)
    if empty(claim.valid_from, claim.valid_to):
        raise EmptyRange
    same = await db.fetchrow(
        f"{ROW} where subject = $1 and role = $2 and party = $3 and upper_inf(recorded) "
        "and batch is not distinct from $4 and valid = tstzrange($5, $6)",
        claim.subject, claim.role, claim.party, claim.batch, claim.valid_from, claim.valid_to,
    )  # fmt: skip
    if same is not None:
        return same, False
    subject_kind, party_kind, exclusive = await _joined(db, claim)
    if subject_kind == "device":
        await db.execute(
            "insert into device (subject, registered_by) values ($1, 'relationship') on conflict do nothing",
            claim.subject,
        )
    before = await moves.held(db, claim.subject, claim.party)
    try:
        async with excluded(db, claim):
            id_ = await db.fetchval(
                "insert into relationship (subject, role, party, exclusive, subject_kind, party_kind, batch, valid, "
                "recorded, asserted_by, reason) "
                "values ($1, $2, $3, $4, $5, $6, $7, tstzrange($8, $9), tstzrange($10, null), $11, $12) returning id",
                claim.subject, claim.role, claim.party, exclusive, subject_kind, party_kind, claim.batch,
                claim.valid_from, claim.valid_to, recorded_at, claim.asserted_by, claim.reason,
            )  # fmt: skip
    except asyncpg.CheckViolationError as violation:
        if violation.constraint_name != "relationship_batch_of_a_supplier":
            raise
        raise NoBatch from None
    row = await db.fetchrow(f"{ROW} where id = $1", id_)
    await note(db, "begun", row, recorded_at, before, claim.asserted_by, claim.reason)
    return row, True


async def _holding(db: asyncpg.Connection, claim: Claim, at: datetime) -> asyncpg.Record | None:
    """Return the relation of a claim that holds by then, up to where the claim ends."""
    row: asyncpg.Record | None = await db.fetchrow(
        f"{ROW} where subject = $1 and role = $2 and party = $3 and upper_inf(recorded) "
        "and batch is not distinct from $4 and valid @> $5::timestamptz and upper(valid) is not distinct from $6 "
        "and not derived",  # what events said ends with what they say
        claim.subject, claim.role, claim.party, claim.batch, at, claim.valid_to,
    )  # fmt: skip
    return row


async def _joined(db: asyncpg.Connection, claim: Claim) -> tuple[str, str, bool]:
    """Return the kinds of subject and party, and whether the role excludes others; raises UnknownRole."""
    about = UUID(claim.subject.removeprefix(PARTY_PREFIX)) if claim.subject.startswith(PARTY_PREFIX) else None
    subject_kind, party_kind = await db.fetchrow(
        "select case when $1::uuid is null then 'device' else (select kind from party where id = $1) end, kind "
        "from party where id = $2",
        about, claim.party,
    )  # fmt: skip
    joined = await db.fetch(
        "select role, party_kind, exclusive from role_kind where subject_kind = $1 order by role, party_kind",
        subject_kind,
    )
    kinds = {row["party_kind"]: row["exclusive"] for row in joined if row["role"] == claim.role}
    if party_kind not in kinds:
        raise UnknownRole(subject_kind, party_kind, list(dict.fromkeys(row["role"] for row in joined)), list(kinds))
    return subject_kind, party_kind, kinds[party_kind]
