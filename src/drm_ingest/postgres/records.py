"""What a party's relations brought it, put together when it is read: relations times day counts and events.

A record is made of four steps, each a piece of SQL below:

    ABOUT   which subjects the party stands for, and when: the valid ranges of every role it held on a device or on
            another party (which may be called by its id or any of its references), and itself, always
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

_ABOUT = """
held as materialized (
    select subject, subject_kind, valid from relationship where party = $1 and upper_inf(recorded)
),
about (subject, relation_subject, valid) as (
    select subject, subject, valid from held
    union all
    select 'party:' || ref.namespace || ':' || ref.ref, held.subject, held.valid
    from held join party_ref ref on ref.party = substr(held.subject, length('party:') + 1)::uuid
    where held.subject_kind = 'party'
    union all
    select 'party:' || $1::uuid, null, tstzrange(null, null)
    union all
    select 'party:' || namespace || ':' || ref, null, tstzrange(null, null) from party_ref where party = $1
)"""

_SPAN = """
span (subject, relation_subject, starts, ends) as (
    select subject, relation_subject, lower(during), upper(during)
    from (
        select subject, max(relation_subject) as relation_subject, unnest(range_agg(valid)) as during
        from about group by subject
    ) as united
)"""

_TALLY = """
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

RECORD = f"with {_ABOUT}, {_SPAN}, {_TALLY}, {_RESULT}"
_WHOLE_SUBJECT = """
span (subject, relation_subject, starts, ends) as (
    select $1::text collate "C", null::text, null::timestamptz, null::timestamptz
)"""
SUBJECT_RECORD = f"with {_WHOLE_SUBJECT}, {_TALLY}, {_RESULT}"

DEVICES = """
select subject, model, firmware,
       jsonb_agg(jsonb_build_object('role', role, 'relationship', relationship.id, 'valid_from', lower(valid))
                 order by role, lower(valid)) as roles,
       count(*) over () as devices
from relationship join device using (subject)
where party = $1 and subject_kind = 'device' and upper_inf(recorded) and valid @> now()
group by subject, model, firmware order by subject limit $2"""


async def of_party(
    db: asyncpg.Connection, party: UUID, devices_limit: int
) -> tuple[list[asyncpg.Record], list[asyncpg.Record]]:
    """Return the devices on which a party holds a role now, at most `devices_limit` by name, and its record.

    Devices: subject, model, firmware, roles (JSON text), devices (how many there are).
    Record: for each type, over all devices (device is None) and for each device returned: device, type, subject,
    occurred_at, source, id and data of the latest, and, the same in all rows of a type, events, first_seen.
    """
    async with db.transaction(isolation="repeatable_read", readonly=True):
        devices = await db.fetch(DEVICES, party, devices_limit)
        record = await db.fetch(RECORD, party, [row["subject"] for row in devices])
    return devices, record


async def of_subject(db: asyncpg.Connection, subject: str) -> list[asyncpg.Record]:
    """Return the record of one subject, whoever held it; rows as of `of_party`."""
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

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)  # what a clock that was never set tells; older than that is one page's work


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


async def timeline(db: asyncpg.Connection, party: UUID, wanted: Wanted) -> list[asyncpg.Record]:
    """Return the events that a party's relations brought it: those of `_EVENT` and roles, empty where it is its own."""
    return await _page(db, party, f"{_ABOUT}, {_SPAN}", _ROLES, wanted)


async def events_of_subject(db: asyncpg.Connection, subject: str, wanted: Wanted) -> list[asyncpg.Record]:
    """Return the events of one subject, whoever held it."""
    return await _page(db, subject, _WHOLE_SUBJECT, "'{}'::text[]", wanted)


_ROLES = """array(
    select distinct role from relationship
    where subject = page.relation_subject and party = $1 and upper_inf(recorded) and valid @> page.occurred_at
    order by role
)"""


async def _page(db: asyncpg.Connection, of: UUID | str, span: str, roles: str, wanted: Wanted) -> list[asyncpg.Record]:
    statement, values = _page_sql(span, roles, wanted)
    rows: list[asyncpg.Record]
    newest = min(time for time in (datetime.now(UTC), wanted.until, wanted.after and wanted.after.occurred_at) if time)
    for days in _WINDOWS_DAYS:
        if newest - _EPOCH < timedelta(days=days):
            break
        since = newest - timedelta(days=days)
        if wanted.since is not None and since <= wanted.since:
            break
        rows = await db.fetch(statement, of, since, *values)
        if len(rows) >= wanted.limit:
            return rows
    rows = await db.fetch(statement, of, wanted.since, *values)
    return rows


def _page_sql(span: str, roles: str, wanted: Wanted) -> tuple[str, list[object]]:
    """Return the statement of a page, and its parameters from $3 on; $1 is whose, $2 the time it reaches back to."""
    values: list[object] = [wanted.until, wanted.limit]
    source, condition = "event", ""
    starts, ends = "greatest($2::timestamptz, span.starts)", "least($3::timestamptz, span.ends)"
    if wanted.types:
        # A device may send a million measurements and two purchases: its day counts know on which days. On the two
        # days at the ends of the range those events may lie outside of it.
        values.append(list(wanted.types))
        source = f"""(
            select distinct day::timestamp at time zone 'UTC' as day_at from subject_day
            where subject = span.subject and type = any ($5::text[])
              and day >= coalesce(({starts} at time zone 'UTC')::date, '-infinity')
              and day <= coalesce(({ends} at time zone 'UTC')::date, 'infinity')
            order by day_at desc limit $4::bigint + 2
        ) as days cross join event"""
        condition = "and type = any ($5::text[]) and occurred_at >= day_at and occurred_at < day_at + interval '1 day'"
    if wanted.after:
        at = len(values) + 3
        values += [wanted.after.occurred_at, wanted.after.subject, wanted.after.source, wanted.after.id]
        condition += (
            f" and occurred_at <= ${at}"  # for the index; the rest of the order decides within that microsecond
            f" and (occurred_at, subject, source, id) < (${at}, ${at + 1}, ${at + 2}, ${at + 3})"
        )
    return (
        f"""with {span}
        select page.*, {roles} as roles
        from (
            select span.relation_subject, found.*
            from span cross join lateral (
                select {_EVENT} from {source}
                where subject = span.subject
                  and occurred_at >= coalesce({starts}, '-infinity') and occurred_at < coalesce({ends}, 'infinity')
                  {condition}
                order by occurred_at desc, source desc, id desc limit $4
            ) as found
            order by occurred_at desc, subject desc, source desc, id desc limit $4
        ) as page
        order by occurred_at desc, subject desc, source desc, id desc""",
        values,
    )
