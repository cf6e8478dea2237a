"""Timelines: events, and the relation changes that brought them, newest first and a page at a time.

What is on one is looked for on each of its subjects (by_subject.py), or among everybody's newest events (by_time.py),
and when its relations began and ended (turned.py); page.py makes a page of it.
"""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from uuid import UUID

import asyncpg

from drm_ingest.postgres.record import by_subject, by_time, page, turned
from drm_ingest.postgres.record.about import ABOUT, SPAN
from drm_ingest.postgres.record.page import ROLES, Wanted
from drm_ingest.postgres.record.rare import RARE
from drm_ingest.postgres.record.tally import WHOLE_SUBJECT
from drm_ingest.postgres.relations import links

_FEW = 10
"""Of so few relations a page is read at once, without looking how far back it reaches."""

# How many relations the group $1 has: as its totals say (null: it has none), and counted to $2.
_RELATIONS = """
select large.id as large, large.relations as in_totals, (
    select count(*) from (
        select from relationship where party = any ($1::uuid[]) and upper_inf(recorded) limit $2
    ) as held
) as at_least
from (select) as one left join (
    select id, (shown #>> '{relations,0,holding}')::bigint + (shown #>> '{relations,0,past}')::bigint as relations
    from large_party where party = ($1::uuid[])[1] and built_at is not null
) as large on true"""

_DAYS_MAX = 8
# Of the large party $1 the last days up to $2, and how many events of the types $3 (null: all) they had.
_DAYS = f"""
select day, sum(events)::bigint as events from large_party_day
where large = $1 and day <= $2::date and ($3::text[] is null or type = any ($3))
group by day order by day desc limit {_DAYS_MAX}"""

_WINDOW, _WINDOW_MIN, _WINDOW_MAX = timedelta(hours=1), timedelta(minutes=1), timedelta(days=512)
"""How far back to look for a page at first, and at most before all is asked for: a party with many devices has a page
full of events in an hour, and reading a page's worth from each of its devices is saved."""

_DAY = timedelta(days=1)

_SCANNED = (2_000, 20_000)
"""How many events of everybody to look through for a page, in turn: most are on its record, or a good share."""

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)  # what a clock that was never set tells; older than that is one page's work


async def of_party(db: asyncpg.Connection, party: UUID, wanted: Wanted, relations_max: int) -> list[asyncpg.Record]:
    """Return what a party's relations brought it, and those linked to it, and when these began and ended.

    Rows are as `page.sql` has them. That of a party with totals and more than `relations_max` relations is looked for
    by time, as long as enough of what there is then is its own.
    """
    group = await links.group(db, party, wanted.view.known_at)
    relations = await db.fetchrow(_RELATIONS, group, _FEW + 1)
    # As we know it now; what we knew is not found by when it held.
    if (relations["in_totals"] or 0) > relations_max and wanted.events and wanted.view.known_at is None:
        rows = await _by_time(db, group, wanted)
        if rows is not None:
            return rows
    # Day counts tell where there is anything rare.
    at_once = relations["at_least"] <= _FEW or (bool(wanted.types) and set(wanted.types) <= RARE)
    large = relations["large"]
    window = None if at_once else _WINDOW if large is None else await _window(db, large, wanted)
    return await _by_subject(db, group, wanted, window)


async def _window(db: asyncpg.Connection, large: int, wanted: Wanted) -> timedelta | None:
    """Return how far back two pages are to be expected, by what totals counted; None: they have not counted so much."""
    newest, pages, found = wanted.newest.astimezone(UTC), 2 * wanted.limit, 0.0
    days = await db.fetch(_DAYS, large, newest.date(), wanted.types or None)
    for day, events in days:
        starts = datetime(day.year, day.month, day.day, tzinfo=UTC)
        ends, seconds = min(newest, starts + _DAY), min(_DAY, datetime.now(UTC) - starts).total_seconds()
        rate = events / max(seconds, 1.0)
        if found + rate * (ends - starts).total_seconds() >= pages:
            return max(_WINDOW_MIN, newest - ends + timedelta(seconds=(pages - found) / rate))
        found += rate * (ends - starts).total_seconds()
    return newest - starts if len(days) == _DAYS_MAX else None


async def of_subject(db: asyncpg.Connection, subject: str, wanted: Wanted) -> list[asyncpg.Record]:
    """Return the events of one subject, whoever held it."""
    statement, values = subject_sql(wanted)
    view = (wanted.view.as_of, wanted.view.known_at)
    rows: list[asyncpg.Record] = await db.fetch(statement, subject, *view, wanted.since, *values)
    return rows


def party_sql(wanted: Wanted) -> tuple[str, list[object]]:
    """Return the statement of a timeline by subject, and its parameters from $5 on; $4 is how far back it reaches."""
    return page.sql(
        wanted,
        f"recursive {ABOUT}, {SPAN}, {turned.change(wanted)}",
        ROLES,
        by_subject.events if wanted.events else None,
        turned.changes if wanted.changes else None,
    )


def by_time_sql(wanted: Wanted) -> tuple[str, list[object]]:
    """Return the same by time."""
    return page.sql(
        wanted,
        f"recursive {by_time.about_recent(wanted.types)}, {SPAN}, {turned.change(wanted)}",
        ROLES,
        by_time.events_of(wanted.types),
        turned.changes if wanted.changes else None,
    )


def subject_sql(wanted: Wanted) -> tuple[str, list[object]]:
    """Return the same for the events of one subject, which is $1."""
    return page.sql(wanted, WHOLE_SUBJECT, "'{}'::text[]", by_subject.events, None)


async def _by_time(db: asyncpg.Connection, group: Sequence[UUID], wanted: Wanted) -> list[asyncpg.Record] | None:
    """Look through the newest events of everybody for a page; None: it holds too few of this group's."""
    statement, values = by_time_sql(wanted)
    for events in _SCANNED:
        since = await db.fetchval(by_time.scanned(wanted.types), wanted.before, events)
        if since is None or (wanted.since is not None and since < wanted.since):
            since = wanted.since
        rows: list[asyncpg.Record] = await db.fetch(statement, *wanted.view.of(group), since, *values)
        found = rows[0]["found"] if rows else 0
        if since == wanted.since or found >= wanted.limit:
            return rows
        if found * _SCANNED[-1] / events < wanted.limit / 2:  # nor will more of them do
            break
    return None


async def _by_subject(
    db: asyncpg.Connection, group: Sequence[UUID], wanted: Wanted, window: timedelta | None
) -> list[asyncpg.Record]:
    """Look on each of its subjects, so far back and then further; None: at once for all there is."""
    rows: list[asyncpg.Record]
    statement, values = party_sql(wanted)
    view, newest = wanted.view.of(group), wanted.newest
    while window is not None and window <= min(_WINDOW_MAX, newest - _EPOCH):
        since = newest - window
        if wanted.since is not None and since <= wanted.since:
            break
        rows = await db.fetch(statement, *view, since, *values)
        found = rows[0]["found"] if rows else 0
        if found >= wanted.limit:
            return rows
        # Twice of what a page takes at this rate; after an hour without anything, a day: it may have been an outage.
        window *= min(24.0, max(4.0, 2 * wanted.limit / max(1, found)))
    rows = await db.fetch(statement, *view, wanted.since, *values)
    return rows
