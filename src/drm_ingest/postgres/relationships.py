"""Who held which role on which device or party, and when.

    UnknownRole   there is no such role, or it joins something else
    HeldAlready   the role is held at that time; the row that says so

The rules are constraints of the table; here is only the order of a change: lock its subject, then take one time, then
write the row and what it changed, in one transaction.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

import asyncpg
import orjson

from drm_ingest.event import PARTY_PREFIX
from drm_ingest.postgres.registry import find_party

_ROW = """
select id, subject, role, party, lower(valid) as valid_from, upper(valid) as valid_to,
       lower(recorded) as recorded_at, asserted_by, reason
from relationship"""


class UnknownRole(Exception):
    """There is no such role for such a subject; `roles` are those there are."""

    def __init__(self, roles: Sequence[str]) -> None:
        super().__init__(f"roles: {', '.join(roles)}")
        self.roles = roles


class HeldAlready(Exception):
    """The role is held at that time; `row` says by whom, from when and until when."""

    def __init__(self, row: asyncpg.Record | None) -> None:
        super().__init__(f"held by {dict(row) if row else 'another'}")
        self.row = row


class EmptyRange(Exception):
    """It would end before it begins."""


@dataclass(frozen=True, slots=True)
class Claim:
    """That `party` holds `role` on `subject` from `valid_from` (None: ever) to `valid_to` (None: no end known)."""

    subject: str
    role: str
    party: UUID
    valid_from: datetime | None
    valid_to: datetime | None
    asserted_by: str
    reason: str | None
    from_now: bool = False
    """It begins with this change, at the time it is recorded, and `valid_from` says nothing."""


async def canonical_subject(db: asyncpg.Connection, subject: str) -> str | None:
    """Return the one name under which a subject stands in relations: `party:<id>` for whatever a party is called by.

    None where it is called by a name that no party has.
    """
    if not subject.startswith(PARTY_PREFIX):
        return subject
    party = await find_party(db, subject.removeprefix(PARTY_PREFIX))
    return None if party is None else f"{PARTY_PREFIX}{party}"


async def begin(db: asyncpg.Connection, claim: Claim) -> asyncpg.Record:
    """Record that a relation holds, register its device if it is new, and return the row.

    `claim.subject` is canonical, and `claim.party` exists.

    Raises:
        UnknownRole, HeldAlready, EmptyRange: and nothing was changed.
    """
    try:
        async with db.transaction():
            return await _begin(db, claim)
    except asyncpg.ExclusionViolationError:
        pass
    raise HeldAlready(await _in_the_way(db, claim))


async def _begin(db: asyncpg.Connection, claim: Claim) -> asyncpg.Record:
    await db.execute("select pg_advisory_xact_lock(hashtextextended($1, 0))", claim.subject)
    # Taken after the lock: now() is older than the wait, and two changes must not be recorded in the wrong order.
    recorded_at: datetime = await db.fetchval("select clock_timestamp()")
    valid_from = recorded_at if claim.from_now else claim.valid_from
    if valid_from is not None and claim.valid_to is not None and valid_from >= claim.valid_to:
        raise EmptyRange
    kind = "party" if claim.subject.startswith(PARTY_PREFIX) else "device"
    exclusive = await db.fetchval("select exclusive from role where name = $1 and subject_kind = $2", claim.role, kind)
    if exclusive is None:
        names = await db.fetch("select name from role where subject_kind = $1 order by name", kind)
        raise UnknownRole([row["name"] for row in names])
    if kind == "device":
        await db.execute(
            "insert into device (subject, registered_by) values ($1, 'relationship') on conflict do nothing",
            claim.subject,
        )
    id_ = await db.fetchval(
        "insert into relationship (subject, role, party, exclusive, valid, recorded, asserted_by, reason) "
        "values ($1, $2, $3, $4, tstzrange($5, $6), tstzrange($7, null), $8, $9) returning id",
        claim.subject, claim.role, claim.party, exclusive, valid_from, claim.valid_to, recorded_at,
        claim.asserted_by, claim.reason,
    )  # fmt: skip
    detail = {
        "valid_from": valid_from,
        "valid_to": claim.valid_to,
        "asserted_by": claim.asserted_by,
        "reason": claim.reason,
    }
    await db.execute(
        "insert into relationship_change (relationship, subject, party, role, change, detail, recorded_at) "
        "values ($1, $2, $3, $4, 'begun', $5, $6)",
        id_, claim.subject, claim.party, claim.role,
        orjson.dumps(detail, option=orjson.OPT_UTC_Z).decode(), recorded_at,
    )  # fmt: skip
    return await db.fetchrow(f"{_ROW} where id = $1", id_)


async def _in_the_way(db: asyncpg.Connection, claim: Claim) -> asyncpg.Record | None:
    """Return the first row that excludes the claim; None where it has gone since."""
    return await db.fetchrow(
        f"{_ROW} where subject = $1 and role = $2 and (exclusive or party = $3) and upper_inf(recorded) "
        "and valid && tstzrange(case when $4 then clock_timestamp() else $5 end, $6) "
        "order by lower(valid) nulls first limit 1",
        claim.subject, claim.role, claim.party, claim.from_now, claim.valid_from, claim.valid_to,
    )  # fmt: skip


async def relationship(db: asyncpg.Connection, id_: UUID) -> asyncpg.Record | None:
    return await db.fetchrow(f"{_ROW} where id = $1 and upper_inf(recorded)", id_)


async def relationships(
    db: asyncpg.Connection,
    *,
    subject: str | None,
    party: UUID | None,
    role: str | None,
    after: UUID | None,
    limit: int,
) -> list[asyncpg.Record]:
    """Return relations as they are known now, past ones too, by age, those after `after`."""
    wanted = {"subject": subject, "party": party, "role": role}
    values: list[object] = [after or UUID(int=0), limit]
    where = "id > $1 and upper_inf(recorded)"
    # Only the conditions that are asked for: `$3 is null or subject = $3` would keep a generic plan from its index.
    for column, value in wanted.items():
        if value is not None:
            values.append(value)
            where += f" and {column} = ${len(values)}"
    rows: list[asyncpg.Record] = await db.fetch(f"{_ROW} where {where} order by id limit $2", *values)
    return rows


async def held_now(db: asyncpg.Connection, subject: str, limit: int) -> list[asyncpg.Record]:
    """Return who holds a role on a subject now: party, kind, name, role, relationship, valid_from, valid_to."""
    rows: list[asyncpg.Record] = await db.fetch(
        "select party, kind, name, role, relationship.id as relationship, lower(valid) as valid_from, "
        "upper(valid) as valid_to "
        "from relationship join party on party.id = relationship.party "
        "where subject = $1 and upper_inf(recorded) and valid @> clock_timestamp() "
        "order by role, relationship.id limit $2",
        subject, limit,
    )  # fmt: skip
    return rows


async def held_at(db: asyncpg.Connection, subject: str, at: datetime) -> list[asyncpg.Record]:
    """Return who held a role on a subject at a time: party, kind, roles; as we know it now."""
    rows: list[asyncpg.Record] = await db.fetch(
        "select party, kind, array_agg(distinct role order by role) as roles "
        "from relationship join party on party.id = relationship.party "
        "where subject = $1 and upper_inf(recorded) and valid @> $2::timestamptz "
        "group by party, kind order by party",
        subject, at,
    )  # fmt: skip
    return rows
