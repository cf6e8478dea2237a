"""Who held which role on which device or party, and when: as we know it now, and as we knew it at any time.

Each relation has versions. One of them is open (`upper_inf(recorded)`), unless the relation was withdrawn; the others
are closed, and each is what we knew in its `recorded`. Changes are made by relate.py and revise.py.
"""

from collections.abc import Sequence
from datetime import datetime
from uuid import UUID

import asyncpg

from drm_ingest.event import PARTY_PREFIX
from drm_ingest.postgres.record.known import AT, RELATION, STARTED, View
from drm_ingest.postgres.registry.parties import find_party

ROW = """
select id, version, subject, role, party, batch, lower(valid) as valid_from, upper(valid) as valid_to,
       lower(recorded) as recorded_at, upper(recorded) as superseded_at, asserted_by, reason
from relationship"""
LATEST = f"""
select latest.*, detail ->> 'asserted_by' as withdrawn_by, detail ->> 'reason' as withdrawn_reason
from ({ROW} where id = $1 order by version desc limit 1) as latest
left join relationship_change as withdrawal on superseded_at is not null
    and withdrawal.relationship = latest.id and withdrawal.version = latest.version and change = 'withdrawn'"""


async def canonical_subject(db: asyncpg.Connection, subject: str) -> str | None:
    """Return the one name under which a subject stands in relations: `party:<id>` for whatever a party is called by.

    None where it is called by a name that no party has.
    """
    if not subject.startswith(PARTY_PREFIX):
        return subject
    party = await find_party(db, subject.removeprefix(PARTY_PREFIX))
    return None if party is None else f"{PARTY_PREFIX}{party}"


async def relationship(db: asyncpg.Connection, id_: UUID, known_at: datetime | None = None) -> asyncpg.Record | None:
    """Return the latest version of a relation, which is closed (`superseded_at`) where it was withdrawn, and by whom.

    With `known_at` the one that was known then, if any was.
    """
    if known_at is None:
        return await db.fetchrow(LATEST, id_)
    return await db.fetchrow(f"{ROW} where id = $1 and recorded @> $2::timestamptz", id_, known_at)


async def roles(db: asyncpg.Connection) -> list[str]:
    """Return which roles there are."""
    return [row["name"] for row in await db.fetch("select name from role order by name")]


async def versions(
    db: asyncpg.Connection, id_: UUID, *, after: tuple[int, bool] | None, limit: int
) -> list[asyncpg.Record]:
    """Return the history of a relation, oldest first: its versions, and its withdrawal, each with its change and moves.

    In each row `moves` is JSON text, and `withdrawn` tells a withdrawal, which stands after the version it closed.
    """
    rows: list[asyncpg.Record] = await db.fetch(
        """
        select entry.*, coalesce((
            select jsonb_agg(jsonb_build_object(
                'party', party, 'direction', direction, 'starts', starts, 'ends', ends,
                'events', events, 'events_by_type', types) order by starts nulls first)
            from relationship_move where number = entry.number
        ), '[]') as moves
        from (
            select relationship.version, false as withdrawn, number, lower(valid) as valid_from,
                   upper(valid) as valid_to, lower(recorded) as recorded_at, asserted_by, reason,
                   coalesce(change, case relationship.version when 1 then 'begun' else 'corrected' end) as change
            from relationship left join relationship_change on relationship_change.relationship = id
                and relationship_change.version = relationship.version and change <> 'withdrawn'
            where id = $1
            union all
            select version, true, number, (detail ->> 'valid_from')::timestamptz, (detail ->> 'valid_to')::timestamptz,
                   recorded_at, detail ->> 'asserted_by', detail ->> 'reason', change
            from relationship_change
            where relationship = $1 and change = 'withdrawn'
        ) as entry
        where (version, withdrawn) > ($2, $3)
        order by version, withdrawn limit $4
        """,
        id_, *(after or (0, False)), limit,
    )  # fmt: skip
    return rows


async def relationships(
    db: asyncpg.Connection,
    *,
    subject: str | None,
    party: UUID | None,
    role: str | None,
    as_of: datetime | None,
    known_at: datetime | None,
    after: UUID | None,
    limit: int,
) -> list[asyncpg.Record]:
    """Return relations by age, past ones too, those after `after`: of each the version known now, or at `known_at`.

    With `as_of`, those that held then.
    """
    values: list[object] = [after or UUID(int=0), limit]
    where = "id > $1"
    # Only the conditions that are asked for: `$3 is null or subject = $3` would keep a generic plan from its index.
    wanted = {"subject = {}": subject, "party = {}": party, "role = {}": role, "valid @> {}::timestamptz": as_of}
    for condition, value in wanted.items():
        if value is not None:
            values.append(value)
            where += " and " + condition.format(f"${len(values)}")
    page = "order by id limit $2"
    if known_at is None:
        statement = f"{ROW} where {where} and upper_inf(recorded) {page}"
    else:
        # What is open and what is closed, each by its own index.
        values.append(known_at)
        then = f"${len(values)}::timestamptz"
        statement = (
            f"({ROW} where {where} and upper_inf(recorded) and lower(recorded) <= {then} {page}) union all "
            f"({ROW} where {where} and not upper_inf(recorded) and recorded @> {then} {page}) {page}"
        )
    rows: list[asyncpg.Record] = await db.fetch(statement, *values)
    return rows


RELATED = f"""
select party, kind, name, role, batch, id as relationship, version, valid_from, valid_to, holds,
       count(*) filter (where holds = 'before') over () as past
from (
    select relation.party, kind, name, role, batch, relation.id, version,
           lower(valid) as valid_from, upper(valid) as valid_to,
           case when valid @> {AT} then 'now' when lower(valid) > {AT} then 'later' else 'before' end as holds
    from {RELATION} as relation join party on party.id = relation.party
    where subject = $1 and {STARTED}
) as told
order by array_position(array['now', 'later', 'before'], holds),
         case when holds = 'before' then valid_to end desc, role, id
limit $4"""


async def related(db: asyncpg.Connection, subject: str, view: View, limit: int) -> list[asyncpg.Record]:
    """Return who holds a role on a subject, will hold and has held one, the last to end first.

    Rows are party, kind, name, role, batch, relationship, version, valid_from, valid_to, holds (now, later or before),
    and in all of them past: how many are before.
    """
    rows: list[asyncpg.Record] = await db.fetch(RELATED, subject, view.as_of, view.known_at, limit)
    return rows


async def held_at(db: asyncpg.Connection, subjects: Sequence[str], at: datetime) -> list[asyncpg.Record]:
    """Return who held a role on any of these then, as we know it now: party, kind, roles, relations (JSON text)."""
    rows: list[asyncpg.Record] = await db.fetch(
        "select party, kind, array_agg(distinct role order by role) as roles, jsonb_agg(jsonb_build_object("
        "'relationship', relationship.id, 'version', version, 'subject', subject, 'role', role, "
        "'valid_from', lower(valid), 'valid_to', upper(valid)) order by role, relationship.id) as relations "
        "from relationship join party on party.id = relationship.party "
        "where subject = any ($1::text[]) and upper_inf(recorded) and valid @> $2::timestamptz "
        "group by party, kind order by party",
        subjects, at,
    )  # fmt: skip
    return rows
