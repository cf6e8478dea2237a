"""What a party's relations brought it, put together when it is read: relations times day counts and events.

A record is that of a group: a party and those linked to it (links.py), whose ids are $1. It is made of four steps,
each a piece of SQL below:

    ABOUT   which subjects the group stands for, and when: the valid ranges of every role one of them held on a device
            or on another party (which may be called by its id or any of its references, or those of parties linked to
            it), and themselves, always
    SPAN    per subject the union of those ranges: disjoint, so an event counts once however many roles were held
    WHOLE   the UTC days that lie whole in a span: counted from subject_day
    PART    what is left at its two ends, less than a day each: counted from event

One statement sees one snapshot, so both sources agree. All of it is driven by indexes, and a test holds the plans to
that: per span one range of subject_day and at most two of event.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Annotated
from uuid import UUID

import asyncpg
from msgspec import Meta

from drm_ingest.postgres import attributes, links, parties

_ABOUT = """
held as materialized (
    select subject, subject_party, valid from relationship
    where party = any ($1::uuid[]) and upper_inf(recorded)
      and (subject_party is null or subject_party <> all ($1::uuid[]))  -- none to oneself, now that they are linked
),
kin (party, same) as (
    select distinct subject_party, subject_party from held where subject_party is not null
    union
    select kin.party, linked.same
    from kin cross join lateral (
        select other as same from party_link where party_link.party = kin.same and upper_inf(recorded)
        union all
        select party_link.party from party_link where party_link.other = kin.same and upper_inf(recorded)
    ) as linked
),
called (party, subject) as (
    select party, 'party:' || same from kin
    union all
    select kin.party, 'party:' || namespace || ':' || ref from kin join party_ref on party_ref.party = kin.same
),
about (subject, relation_subject, valid) as (
    select subject, subject, valid from held where subject_party is null
    union all
    select called.subject, held.subject, held.valid from held join called on called.party = held.subject_party
    union all
    select 'party:' || id, null, tstzrange(null, null) from unnest($1::uuid[]) as own (id)
    union all
    select 'party:' || namespace || ':' || ref, null, tstzrange(null, null)
    from party_ref where party = any ($1::uuid[])
)"""

_SPAN = """
span (subject, relation_subjects, starts, ends) as (
    select subject, relation_subjects, lower(during), upper(during)
    from (
        select subject, array_agg(distinct relation_subject) as relation_subjects, unnest(range_agg(valid)) as during
        from about group by subject
    ) as united
)"""

TALLY = """
whole as (
    select subject, starts, ends,
           coalesce((starts at time zone 'UTC' + interval '1 day - 1 microsecond')::date, '-infinity') as first_day,
           coalesce((ends at time zone 'UTC')::date, 'infinity') as end_day
    from span
),
part (subject, starts, ends) as (
    select subject, starts, least(ends, first_day::timestamp at time zone 'UTC')
    from whole where starts < first_day::timestamp at time zone 'UTC'
    union all
    select subject, end_day::timestamp at time zone 'UTC', ends
    from whole where first_day <= end_day and end_day::timestamp at time zone 'UTC' < ends
),
tally (subject, type, events, last_at, first_day, first_at) as materialized (
    select whole.subject, days.*, null::timestamptz
    from whole cross join lateral (
        select type, sum(events)::bigint, max(last_at), min(day)
        from subject_day
        where subject = whole.subject and day >= whole.first_day and day < whole.end_day
        group by type
    ) as days
    union all
    select part.subject, moments.*
    from part cross join lateral (
        select type, count(*), max(occurred_at), null::date, min(occurred_at)
        from event
        where subject = part.subject and occurred_at >= part.starts and occurred_at < part.ends
        group by type
    ) as moments
)"""

# Of each type the latest: of everything (device is null), and of each device of $2; of several at one time the one that
# days.py takes. The copy in subject_day serves once retention has dropped the event itself. Day counts know the first
# day; its first event tells the time.
_RESULT = """
newest (device, type, subject, last_at) as (
    (select distinct on (type) null, type, subject, last_at from tally order by type, last_at desc, subject)
    union all
    (select distinct on (subject, type) subject, type, subject, last_at
     from tally where subject = any ($2::text[]) order by subject, type, last_at desc)
),
total as (select type, sum(events)::bigint as events from tally group by type),
opening as (
    select min(first_day) as day, min(first_day)::timestamp at time zone 'UTC' as day_at, min(first_at) as part_at
    from tally
),
opened as (
    select least(opening.part_at, coalesce(min(first.occurred_at), opening.day_at)) as first_seen
    from opening
    left join lateral (
        select distinct subject from tally
        where first_day = opening.day and (opening.part_at is null or opening.part_at > opening.day_at)
    ) as device on true
    left join lateral (
        select min(occurred_at) as occurred_at from event
        where subject = device.subject
          and occurred_at >= opening.day_at and occurred_at < opening.day_at + interval '1 day'
    ) as first on true
    group by opening.part_at, opening.day_at
)
select newest.device, newest.type, newest.subject, newest.last_at as occurred_at, total.events, opened.first_seen,
       latest.source, latest.id, coalesce(latest.data, kept.last_data) as data
from newest join total using (type) cross join opened
left join lateral (
    select source, id, data from event
    where subject = newest.subject and occurred_at = newest.last_at and type = newest.type
    order by length(coalesce(sequence, '')) desc, coalesce(sequence, '') desc, content_hash desc limit 1
) as latest on true
left join lateral (
    select last_data from subject_day
    where latest.id is null and subject = newest.subject and type = newest.type
      and day = (newest.last_at at time zone 'UTC')::date
) as kept on true"""

RECORD = f"with recursive {_ABOUT}, {_SPAN}, {TALLY}, {_RESULT}"
COUNTS = f"""
with recursive {_ABOUT}, {_SPAN}, {TALLY}
select type, sum(events)::bigint as events from tally group by type order by type"""
RELATIONS = "select count(*) from relationship where party = any ($1::uuid[]) and upper_inf(recorded)"
_WHOLE_SUBJECT = """
span (subject, relation_subjects, starts, ends) as (
    select $1::text collate "C", null::text[], null::timestamptz, null::timestamptz
)"""
SUBJECT_RECORD = f"with {_WHOLE_SUBJECT}, {TALLY}, {_RESULT}"

_HELD_NOW = """
from relationship join device using (subject)
where party = any ($1::uuid[]) and subject_kind = 'device' and upper_inf(recorded) and valid @> now()"""
DEVICES = f"""
select subject, model, firmware,
       jsonb_agg(jsonb_build_object('role', role, 'party', party, 'relationship', relationship.id,
                                    'valid_from', lower(valid))
                 order by role, lower(valid), relationship.id) as roles
{_HELD_NOW} group by subject, model, firmware order by subject limit $2"""
DEVICES_NOW = f"select count(distinct subject) {_HELD_NOW}"


@dataclass(frozen=True, slots=True)
class PartyRecord:
    """What a party's relations brought it, and those linked to it, in rows."""

    parties: list[asyncpg.Record]
    """Whose record it is, by age: id, kind, name, created_at, refs (JSON text)."""
    links: list[asyncpg.Record]
    """What makes them one: id, party, other, reason, asserted_by, linked_at."""
    attributes: list[asyncpg.Record]
    """Every origin's word, the one agreed on first of its name; as `attributes.of_parties` returns them."""
    devices: list[asyncpg.Record]
    """On which it holds a role now, by subject: subject, model, firmware, roles (JSON text)."""
    devices_now: int
    """How many there are, if not all of them were asked for."""
    latest: list[asyncpg.Record]
    """For each type, over all devices (device is None) and for each of `devices`: device, type, subject, occurred_at,
    source, id and data of the latest, and, the same in all rows of a type, events; in all rows, first_seen."""


async def of_party(db: asyncpg.Connection, party: UUID, devices_limit: int) -> PartyRecord:
    """Put together the record of a party, which exists, and those linked to it."""
    async with db.transaction(isolation="repeatable_read", readonly=True):
        group = await links.group(db, party)
        members = await parties.parties_of(db, group)
        held_together_by = await links.links(db, group) if len(group) > 1 else []
        said = await attributes.of_parties(db, group)
        devices = await db.fetch(DEVICES, group, devices_limit)
        devices_now = await db.fetchval(DEVICES_NOW, group)
        latest = await db.fetch(RECORD, group, [row["subject"] for row in devices])
    return PartyRecord(members, held_together_by, said, devices, devices_now, latest)


@dataclass(frozen=True, slots=True)
class Counts:
    """How much is on a record."""

    relations: int
    """Past ones too."""
    devices_now: int
    events_by_type: dict[str, int]


async def counts(db: asyncpg.Connection, group: Sequence[UUID]) -> Counts:
    """Count what is on the record that these parties share, or would share."""
    relations = await db.fetchval(RELATIONS, group)
    devices_now = await db.fetchval(DEVICES_NOW, group)
    return Counts(relations, devices_now, dict(await db.fetch(COUNTS, group)))


async def of_subject(db: asyncpg.Connection, subject: str) -> list[asyncpg.Record]:
    """Return the record of one subject, whoever held it; rows as in `PartyRecord.latest`."""
    rows: list[asyncpg.Record] = await db.fetch(SUBJECT_RECORD, subject, [])
    return rows


# -- events, newest first ---------------------------------------------------------------------------------------------

_EVENT = (
    "subject, source, id, type, occurred_at, occurred_at_raw, time_quality, sequence, received_at, recorded_at, "
    "content_hash, sender, dataschema, data"
)
_WINDOWS_DAYS = (1, 8, 64, 512)
"""How far back to look for a page, in turn: a party with many devices has a page full of events in one day, and
reading a page's worth from each of its devices is saved."""
_WINDOWS_OF_TYPES_DAYS = (1, 8)
"""The same where types are asked for: then day counts lead to the events, and looking back far costs little."""

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)  # what a clock that was never set tells; older than that is one page's work

_INSTANT = timedelta(microseconds=1)


@dataclass(frozen=True, slots=True)
class Position:
    """Where a page ended: the last event on it."""

    occurred_at: Annotated[datetime, Meta(tz=True)]
    subject: str
    source: str
    id: str


@dataclass(frozen=True, slots=True)
class Wanted:
    """Which events: of these types (none: all), in [since, until), before `after` in the order of the page."""

    types: Sequence[str]
    since: datetime | None
    until: datetime | None
    after: Position | None
    limit: int
    bytes_max: int
    """Of data, as stored (compressed where large); the event that goes beyond is the last."""


async def timeline(db: asyncpg.Connection, party: UUID, wanted: Wanted) -> list[asyncpg.Record]:
    """Return what a party's relations brought it, and those linked to it: `_EVENT`, and the roles; none for their own.

    `found` in each is how many there were before `bytes_max` cut them.
    """
    return await _page(db, await links.group(db, party), *timeline_sql(wanted), wanted)


async def events_of_subject(db: asyncpg.Connection, subject: str, wanted: Wanted) -> list[asyncpg.Record]:
    """Return the events of one subject, whoever held it."""
    return await _page(db, subject, *subject_sql(wanted), wanted)


def timeline_sql(wanted: Wanted) -> tuple[str, list[object]]:
    """Return the statement of a timeline and its parameters from $3 on; $1 is the group, $2 how far back it reaches."""
    return _page_sql(f"recursive {_ABOUT}, {_SPAN}", _ROLES, wanted)


def subject_sql(wanted: Wanted) -> tuple[str, list[object]]:
    """Return the same for the events of one subject, which is $1."""
    return _page_sql(_WHOLE_SUBJECT, "'{}'::text[]", wanted)


_ROLES = """array(
    select distinct role from relationship
    where subject = any (page.relation_subjects) and party = any ($1::uuid[]) and upper_inf(recorded)
      and valid @> page.occurred_at
    order by role
)"""


async def _page(
    db: asyncpg.Connection, of: Sequence[UUID] | str, statement: str, values: list[object], wanted: Wanted
) -> list[asyncpg.Record]:
    rows: list[asyncpg.Record]
    newest = min(time for time in (datetime.now(UTC), wanted.until, wanted.after and wanted.after.occurred_at) if time)
    for days in _WINDOWS_OF_TYPES_DAYS if wanted.types else _WINDOWS_DAYS:
        if newest - _EPOCH < timedelta(days=days):
            break
        since = newest - timedelta(days=days)
        if wanted.since is not None and since <= wanted.since:
            break
        rows = await db.fetch(statement, of, since, *values)
        if rows and rows[0]["found"] >= wanted.limit:
            return rows
    rows = await db.fetch(statement, of, wanted.since, *values)
    return rows


def _page_sql(span: str, roles: str, wanted: Wanted) -> tuple[str, list[object]]:
    until, after = wanted.until, wanted.after
    if after is not None:
        until = min(time for time in (until, after.occurred_at + _INSTANT) if time)
    values: list[object] = [until, wanted.limit, wanted.bytes_max]
    starts, ends, condition = "greatest($2::timestamptz, span.starts)", "least($3::timestamptz, span.ends)", ""
    days = ""
    if wanted.types:
        # A device may send a million measurements and two purchases: its day counts know on which days. On the two
        # days at the ends of the range those events may lie outside of it.
        values.append(list(wanted.types))
        days = f"""(
            select distinct day::timestamp at time zone 'UTC' as day_at from subject_day
            where subject = span.subject and type = any ($6::text[])
              and day >= coalesce(({starts} at time zone 'UTC')::date, '-infinity')
              and day <= coalesce(({ends} at time zone 'UTC')::date, 'infinity')
            order by day_at desc limit $4::bigint + 2
        ) as days cross join lateral"""
        starts, ends = f"greatest(day_at, {starts})", f"least(day_at + interval '1 day', {ends})"
        condition = "and type = any ($6::text[])"
    if after is not None:
        at = len(values) + 3
        values += [after.occurred_at, after.subject, after.source, after.id]
        condition += f" and (occurred_at, subject, source, id) < (${at}, ${at + 1}, ${at + 2}, ${at + 3})"
    in_order = "order by occurred_at desc, subject desc, source desc, id desc limit $4"
    statement = f"""with {span}
        select page.*, {roles} as roles
        from (
            select merged.*, count(*) over () as found, sum(pg_column_size(data)) over (
                order by occurred_at desc, subject desc, source desc, id desc
                rows between unbounded preceding and 1 preceding
            ) as bytes_before
            from (
                select span.relation_subjects, found.*
                from span cross join lateral (
                    select happened.* from {days} (
                        select {_EVENT} from event
                        where subject = span.subject {condition}
                          and occurred_at >= coalesce({starts}, '-infinity')
                          and occurred_at < coalesce({ends}, 'infinity')
                        {in_order}
                    ) as happened
                    {in_order}
                ) as found
                {in_order}
            ) as merged
        ) as page
        where coalesce(bytes_before, 0) < $5::bigint
        {in_order}"""
    return statement, values
