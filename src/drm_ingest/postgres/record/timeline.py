"""Timelines: events, and the relation changes that brought them, newest first and a page at a time.

The order is that of occurred_at, then `rank`, then subject, source and id. At one instant a relation that ends stands
before one that begins, and both before the events, which belong to what has begun.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Annotated
from uuid import UUID

import asyncpg
from msgspec import Meta

from drm_ingest.postgres.record.about import ABOUT, SPAN
from drm_ingest.postgres.record.known import AT, NOW, RELATION, STARTED, UNTIL, View, holds, kin, party_called
from drm_ingest.postgres.record.rare import CONTACT, FAULT, RATING
from drm_ingest.postgres.record.tally import WHOLE_SUBJECT
from drm_ingest.postgres.relations import links

BEGUN, ENDED = "relationship.begun", "relationship.ended"
EVENT_RANK = 2  # an end is 0, a beginning 1

_EVENT = (
    "subject, source, id, type, occurred_at, occurred_at_raw, time_quality, sequence, received_at, recorded_at, "
    "content_hash, sender, dataschema, data"
)
_NO_EVENT = (
    "null as occurred_at_raw, null as time_quality, null as sequence, null::timestamptz as received_at, "
    "null::timestamptz as recorded_at, null::uuid as content_hash, null as sender, null as dataschema"
)
_EVENTS_IN_ORDER = "order by occurred_at desc, subject desc, source desc, id desc"
_IN_ORDER = "order by occurred_at desc, rank desc, subject desc, source desc, id desc"

_WINDOWS_DAYS = (1, 8, 64, 512)
"""How far back to look for a page, in turn: a party with many devices has a page full of events in one day, and
reading a page's worth from each of its devices is saved."""
_WINDOWS_OF_TYPES_DAYS = (1, 8)
"""The same where types are asked for: then day counts lead to the events, and looking back far costs little."""

_SCANNED = (2_000, 20_000)
"""How many events to look through for a page of a large party, in turn: most are on its record, or a good share."""

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)  # what a clock that was never set tells; older than that is one page's work

_INSTANT = timedelta(microseconds=1)


@dataclass(frozen=True, slots=True)
class Position:
    """Where a page ended: what stands last on it."""

    occurred_at: Annotated[datetime, Meta(tz=True)]
    subject: str
    source: str
    id: str
    rank: int = EVENT_RANK


@dataclass(frozen=True, slots=True)
class Wanted:
    """What of these types (none: all), in [since, until), before `after` in the order of the page."""

    types: Sequence[str]
    since: datetime | None
    until: datetime | None
    after: Position | None
    limit: int
    bytes_max: int
    """Of data, as stored (compressed where large); what goes beyond is the last."""
    view: View = NOW


async def of_party(db: asyncpg.Connection, party: UUID, wanted: Wanted) -> list[asyncpg.Record]:
    """Return what a party's relations brought it, and those linked to it, and when these began and ended.

    Rows are `_EVENT`, rank, roles (none for what is its own), and `relation`, JSON text, of a relation that began or
    ended. `found` in each is how many there were before `bytes_max` cut them.
    """
    group = await links.group(db, party, wanted.view.known_at)
    # As we know it now; what we knew is not found by when it held.
    if wanted.view.known_at is None and await db.fetchval(LARGE, group[0]):
        if wanted.types and set(wanted.types) <= {BEGUN, ENDED}:
            return await _page(db, group, *party_sql(wanted, large=True), wanted)
        rows = await _of_large(db, group, wanted, _newest(wanted))
        if rows is not None:
            return rows
    return await _page(db, group, *party_sql(wanted), wanted)


_BY_TIME = "recorded_at > '-infinity'"
"""Always so; whoever says it may use the indexes by time (migrations/0010_large_parties.sql)."""
LARGE = "select exists (select from large_party where party = $1 and built_at is not null)"


async def _of_large(
    db: asyncpg.Connection, group: Sequence[UUID], wanted: Wanted, newest: datetime
) -> list[asyncpg.Record] | None:
    """Look through the newest events of everybody for a page; None: it holds too few of this group's.

    What is asked of each of very many devices otherwise takes long, however little there is to find.
    """
    statement, values = party_sql(wanted, large=True)
    scanned_from = (
        f"select occurred_at from event where {_BY_TIME} and occurred_at < $1 {_among(wanted.types)} "
        "order by occurred_at desc offset $2 limit 1"
    )
    for events in _SCANNED:
        since = await db.fetchval(scanned_from, newest, events)
        if since is None or (wanted.since is not None and since < wanted.since):
            since = wanted.since
        rows: list[asyncpg.Record] = await db.fetch(statement, *wanted.view.of(group), since, *values)
        if since == wanted.since or (rows and rows[0]["found"] >= wanted.limit):
            return rows
    return None


def _among(types: Sequence[str]) -> str:
    """Return what holds of all events of these types, as an index has it that holds only rare ones."""
    rare = {FAULT, RATING, CONTACT}
    listed = f"'{FAULT}', '{RATING}', '{CONTACT}'"
    return f"and type in ({listed})" if types and set(types) - {BEGUN, ENDED} <= rare else ""


async def of_subject(db: asyncpg.Connection, subject: str, wanted: Wanted) -> list[asyncpg.Record]:
    """Return the events of one subject, whoever held it."""
    return await _page(db, subject, *subject_sql(wanted), wanted)


def _newest(wanted: Wanted) -> datetime:
    bounds = (datetime.now(UTC), wanted.until, wanted.view.as_of, wanted.after and wanted.after.occurred_at)
    return min(time for time in bounds if time) + _INSTANT


def party_sql(wanted: Wanted, *, large: bool = False) -> tuple[str, list[object]]:
    """Return the statement of a timeline and its parameters from $5 on; $4 is how far back it reaches."""
    with_events = not wanted.types or set(wanted.types) - {BEGUN, ENDED}
    with_changes = not wanted.types or set(wanted.types) & {BEGUN, ENDED}
    span = f"recursive {_about_recent(wanted.types)}, {SPAN}" if large else f"recursive {ABOUT}, {SPAN}"
    return _page_sql(span, _ROLES, wanted, bool(with_events), bool(with_changes), large=large)


def subject_sql(wanted: Wanted) -> tuple[str, list[object]]:
    """Return the same for the events of one subject, which is $1."""
    return _page_sql(WHOLE_SUBJECT, "'{}'::text[]", wanted, True, False)


_ROLES = f"""case when page.relation is not null then array[page.relation ->> 'role'] else array(
    select distinct role from {RELATION} as relation
    where subject = any (page.relation_subjects) and party = any ($1::uuid[]) and {holds("page.occurred_at")}
    order by role
) end"""


# Of recent events only: what is said of parties (few), and whose record that is on; record/about.py the other way
# round. What devices tell is looked at one by one, newest first, until there is a page of it.
def _about_recent(types: Sequence[str]) -> str:
    return f"""
recent as materialized (
    select {_EVENT} from event
    where {_BY_TIME} and occurred_at >= coalesce($4::timestamptz, '-infinity')
      and occurred_at < least($5::timestamptz, upper({UNTIL}), 'infinity') and starts_with(subject, 'party:')
      {_among(types)}
),
named (subject, party) as materialized (
    select subject, {party_called("subject")}
    from (select distinct subject from recent) as told
),
known_party as (select distinct party from named where party is not null),
{kin("known_party")},
about (subject, relation_subject, valid) as (
    select named.subject, relation.subject, relation.valid * {UNTIL}
    from named join kin using (party) cross join lateral (
        select subject, valid from {RELATION} as relation
        where subject = 'party:' || kin.same and party = any ($1::uuid[]) and subject_party <> all ($1::uuid[])
          and {STARTED} offset 0
    ) as relation
    union all
    select subject, null, {UNTIL} from named where party = any ($1::uuid[])
)"""


# Ends that are known beforehand have not happened yet.
_CHANGES = f"""
change as (
    select change.at as occurred_at, change.rank, change.type, relation.*
    from (
        select * from {RELATION} as own
        where party = any ($1::uuid[]) and (subject_party is null or subject_party <> all ($1::uuid[]))
        union all
        select * from {RELATION} as others
        where subject = any (array(select 'party:' || id from unnest($1::uuid[]) as own (id)))
          and party <> all ($1::uuid[])
    ) as relation
    cross join lateral (values
        (lower(valid), 1, '{BEGUN}'), (upper(valid), 0, '{ENDED}')
    ) as change (at, rank, type)
    where {STARTED} and change.at <= {AT}
)"""


def _turned(bound: str, rank: int, type_: str) -> str:
    """Return what begins or ends in time, by that bound of when it holds, along an index of it."""
    return f"""
    select {bound} as at, {rank} as rank, '{type_}' as type, relation.*
    from unnest($1::uuid[]) as own (id) cross join lateral (
        select * from relationship
        where party = own.id and upper_inf(recorded) and {bound} >= coalesce($4::timestamptz, '-infinity')
          and {bound} < least($5::timestamptz, 'infinity') and {bound} <= {AT}
          and (subject_party is null or subject_party <> all ($1::uuid[]))
    ) as relation"""


# The same where a party has very many relations: by when they began and ended, along an index each.
_CHANGES_OF_LARGE = f"""
changed as ({_turned("lower(valid)", 1, BEGUN)}
    union all {_turned("upper(valid)", 0, ENDED)}
    union all
    select change.at, change.rank, change.type, relation.*
    from (
        select * from relationship
        where subject = any (array(select 'party:' || id from unnest($1::uuid[]) as own (id)))
          and upper_inf(recorded) and party <> all ($1::uuid[])
    ) as relation
    cross join lateral (values
        (lower(valid), 1, '{BEGUN}'), (upper(valid), 0, '{ENDED}')
    ) as change (at, rank, type)
),
change as (
    select at as occurred_at, changed.* from changed
    where {STARTED} and at <= {AT}
)"""


async def _page(
    db: asyncpg.Connection, of: Sequence[UUID] | str, statement: str, values: list[object], wanted: Wanted
) -> list[asyncpg.Record]:
    rows: list[asyncpg.Record]
    view = (of, wanted.view.as_of, wanted.view.known_at)
    newest = _newest(wanted)
    for days in _WINDOWS_OF_TYPES_DAYS if wanted.types else _WINDOWS_DAYS:
        if newest - _EPOCH < timedelta(days=days):
            break
        since = newest - timedelta(days=days)
        if wanted.since is not None and since <= wanted.since:
            break
        rows = await db.fetch(statement, *view, since, *values)
        if rows and rows[0]["found"] >= wanted.limit:
            return rows
    rows = await db.fetch(statement, *view, wanted.since, *values)
    return rows


def _page_sql(
    span: str, roles: str, wanted: Wanted, with_events: bool, with_changes: bool, *, large: bool = False
) -> tuple[str, list[object]]:
    until, after = wanted.until, wanted.after
    if after is not None:
        until = min(time for time in (until, after.occurred_at + _INSTANT) if time)
    values: list[object] = [until, wanted.limit, wanted.bytes_max]

    def parameter(value: object) -> str:
        values.append(value)
        return f"${len(values) + 4}"

    types = parameter(list(wanted.types)) if wanted.types else None
    kinds = []
    if with_events:
        before = ""
        if after is not None:
            # Written so that the index of events answers it.
            last = (after.occurred_at, after.subject, after.source, after.id)
            before = (
                f"and (occurred_at, subject, source, id) < ({', '.join(map(parameter, last))})"
                if after.rank == EVENT_RANK else f"and occurred_at < {parameter(after.occurred_at)}"
            )  # fmt: skip
        kinds.append(_events_of_large(types, _among(wanted.types) + before) if large else _events(types, before))
    if with_changes:
        before = ""
        if after is not None:
            place = (after.occurred_at, after.rank, after.subject, after.source, after.id)
            before = f"and (occurred_at, rank, subject, source, id) < ({', '.join(map(parameter, place))})"
        kinds.append(_changes(types, before))
    changes = f", {_CHANGES_OF_LARGE if large else _CHANGES}" if with_changes else ""
    statement = f"""with {span} {changes}
        select page.*, {roles} as roles
        from (
            select merged.*, count(*) over () as found, sum(pg_column_size(data)) over (
                {_IN_ORDER} rows between unbounded preceding and 1 preceding
            ) as bytes_before
            from (select * from ({" union all ".join(kinds)}) as kinds {_IN_ORDER} limit $6) as merged
        ) as page
        where coalesce(bytes_before, 0) < $7::bigint
        {_IN_ORDER}"""
    return statement, values


def _events(types: str | None, before: str) -> str:
    starts, ends = "greatest($4::timestamptz, span.starts)", "least($5::timestamptz, span.ends)"
    condition, days = "", ""
    if types:
        # A device may send a million measurements and two purchases: its day counts know on which days. On the two
        # days at the ends of the range those events may lie outside of it.
        condition = f"and type = any ({types}::text[])"
        days = f"""(
            select distinct day::timestamp at time zone 'UTC' as day_at from subject_day
            where subject = span.subject {condition}
              and day >= coalesce(({starts} at time zone 'UTC')::date, '-infinity')
              and day <= coalesce(({ends} at time zone 'UTC')::date, 'infinity')
            order by day_at desc limit $6::bigint + 2
        ) as days cross join lateral"""
        starts, ends = f"greatest(day_at, {starts})", f"least(day_at + interval '24 hours', {ends})"
    return f"""(
        select found.*, {EVENT_RANK} as rank, span.relation_subjects, null::jsonb as relation
        from span cross join lateral (
            select happened.* from {days} (
                select {_EVENT} from event
                where subject = span.subject {condition} {before}
                  and occurred_at >= coalesce({starts}, '-infinity')
                  and occurred_at < coalesce({ends}, 'infinity')
                {_EVENTS_IN_ORDER} limit $6
            ) as happened
            {_EVENTS_IN_ORDER} limit $6
        ) as found
        {_EVENTS_IN_ORDER} limit $6
    )"""


def _events_of_large(types: str | None, before: str) -> str:
    wanted = f"""{f"and type = any ({types}::text[])" if types else ""} {before}
                 {_EVENTS_IN_ORDER} limit $6"""
    return f"""(
        select {_EVENT}, {EVENT_RANK} as rank, array[subject] as relation_subjects, null::jsonb as relation
        from event cross join lateral (
            select from unnest($1::uuid[]) as own (id) cross join lateral (
                select valid from relationship
                where party = own.id and subject = event.subject and upper_inf(recorded) offset 0
            ) as relation
            where {STARTED} and {holds("event.occurred_at")}
            limit 1
        ) as held
        where {_BY_TIME} and occurred_at >= coalesce($4::timestamptz, '-infinity')
          and occurred_at < least($5::timestamptz, upper({UNTIL}), 'infinity') and not starts_with(subject, 'party:')
          {wanted}
    ) union all (
        select recent.*, {EVENT_RANK}, span.relation_subjects, null::jsonb
        from recent join span using (subject)
        where coalesce(occurred_at >= span.starts, true) and coalesce(occurred_at < span.ends, true) {wanted}
    )"""


def _changes(types: str | None, before: str) -> str:
    return f"""(
        select * from (
            select subject, '' as source, id::text as id, type, occurred_at, {_NO_EVENT}, null::jsonb as data, rank,
                   null::text[] as relation_subjects, jsonb_build_object(
                       'id', id, 'version', version, 'subject', subject, 'role', role, 'party', party, 'batch', batch,
                       'valid_from', lower(valid), 'valid_to', upper(valid), 'recorded_at', lower(recorded),
                       'withdrawn_at', null, 'asserted_by', asserted_by, 'reason', reason) as relation
            from change
        ) as changes
        where coalesce(occurred_at >= $4::timestamptz, true) and coalesce(occurred_at < $5::timestamptz, true)
          {f"and type = any ({types}::text[])" if types else ""} {before}
        {_IN_ORDER} limit $6
    )"""
