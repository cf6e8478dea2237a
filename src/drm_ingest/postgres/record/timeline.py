"""Timelines: events, and the relation changes that brought them, newest first and a page at a time.

What is on one is looked for on each of its subjects (by_subject.py), or among everybody's newest events (by_time.py),
and when its relations began and ended (turned.py); page.py makes a page of it.
"""

from collections.abc import Sequence
from datetime import UTC, date, datetime, timedelta
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

_DAYS_MAX = 8
# The group, and how many relations it has, counted to $3; of its totals (null: it has none) how many they know of, and
# the last days up to $4 with how many events of the types $5 (null: all) these had.
_GROUP = f"""
, own as materialized (select array_agg(party order by party) as ids from grown)
select own.ids, totals.*, $2::timestamptz as known_at, (
    select count(*) from (
        select from relationship where party = any (own.ids) and upper_inf(recorded) limit $3
    ) as held
) as at_least
from own left join lateral (
    select id as large, counted.*,
           (shown #>> '{{relations,0,holding}}')::bigint + (shown #>> '{{relations,0,past}}')::bigint as relations
    from large_party left join lateral (
        select array_agg(day order by day desc) as days, array_agg(events order by day desc) as events
        from (
            select day, sum(events)::bigint as events from large_party_day
            where large = large_party.id and day <= $4::date and ($5::text[] is null or type = any ($5))
            group by day order by day desc limit {_DAYS_MAX}
        ) as newest
    ) as counted on true
    where party = own.ids[1] and built_at is not null offset 0  -- by index
) as totals on true"""
_GROUP_NOW, _GROUP_KNOWN = links.GROWN + _GROUP, links.GROWN_KNOWN + _GROUP

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
    known_at, newest = wanted.view.known_at, wanted.newest.astimezone(UTC)
    of = await db.fetchrow(
        _GROUP_NOW if known_at is None else _GROUP_KNOWN, party, known_at, _FEW + 1, newest.date(), wanted.types or None
    )
    # As we know it now; what we knew is not found by when it held.
    if (of["relations"] or 0) > relations_max and wanted.events and known_at is None:
        rows = await _by_time(db, of["ids"], wanted)
        if rows is not None:
            return rows
    # Day counts tell where there is anything rare.
    at_once = of["at_least"] <= _FEW or (bool(wanted.types) and set(wanted.types) <= RARE)
    days = list(zip(of["days"] or (), of["events"] or (), strict=True))
    window = None if at_once else _WINDOW if of["large"] is None else _window(newest, days, 2 * wanted.limit)
    return await _by_subject(db, of["ids"], wanted, window)


def _window(newest: datetime, days: Sequence[tuple[date, int]], events: int) -> timedelta | None:
    """Return how far back so many are to be expected, by what totals counted; None: they have not counted so many."""
    found = 0.0
    for day, counted in days:
        starts = datetime(day.year, day.month, day.day, tzinfo=UTC)
        ends, seconds = min(newest, starts + _DAY), min(_DAY, datetime.now(UTC) - starts).total_seconds()
        rate = counted / max(seconds, 1.0)
        if found + rate * (ends - starts).total_seconds() >= events:
            return max(_WINDOW_MIN, newest - ends + timedelta(seconds=(events - found) / rate))
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
