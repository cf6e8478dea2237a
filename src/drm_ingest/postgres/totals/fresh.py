"""Events recorded since the last step, added to the days of those large parties that have them in their spans."""

from datetime import datetime

import asyncpg

from drm_ingest.postgres.record.rare import CONTACT, FAULT, RATING

# Several workers may fill a day; the one with the greatest time is its last, of several at one time the least subject.
# Where the last is not known, it stays so until it is looked for.
ADD = """
insert into large_party_day as old (large, day, type, events, first_at, last_at, last_subject)
select * from added
on conflict (large, day, type) do update set
    events = old.events + excluded.events,
    first_at = case when old.first_at is not null and excluded.first_at is not null
                    then least(old.first_at, excluded.first_at) end,
    last_at = case when old.last_at is not null then greatest(old.last_at, excluded.last_at) end,
    last_subject = case when old.last_at is null then null
        when (excluded.last_at, old.last_subject) > (old.last_at, excluded.last_subject) then excluded.last_subject
        else old.last_subject end"""
"""Of `added`: large, day, type, events, first_at (null: not known), last_at, last_subject."""

_FRESH = f"""
with added as (
    select span.large, (occurred_at at time zone 'UTC')::date, type, count(*),
           min(occurred_at), max(occurred_at), (array_agg(event.subject order by occurred_at desc, event.subject))[1]
    from event join large_party_span as span on span.subject = event.subject
    where recorded_at >= $1::timestamptz and recorded_at < $2::timestamptz and span.valid @> occurred_at
    group by 1, 2, 3
)
{ADD}"""

# By when they were recorded, and then by type: the index of what is rare has all of it, of all time.
_RARE_ONES = f"""
with fresh as materialized (
    select subject, type from event where recorded_at >= $1::timestamptz and recorded_at < $2::timestamptz
),
rare as (
    select distinct subject, type from fresh where type in ('{FAULT}', '{RATING}', '{CONTACT}')
)"""

_RARE = f"""{_RARE_ONES}
select span.large, span.subject, type from rare join large_party_span as span using (subject)"""

_RARE_OF_PARTIES = f"""{_RARE_ONES}
select subject, type from rare where starts_with(subject, 'party:')"""

_CROWDED = f"""
select greatest(recorded_at, $1::timestamptz + interval '1 microsecond') from (
    select recorded_at from event
    where recorded_at >= $1::timestamptz and recorded_at < $2::timestamptz
      and type || '' in ('{FAULT}', '{RATING}', '{CONTACT}')
    order by recorded_at offset $3 limit 1
) as beyond"""

_RECORDED = """
select exists (select from event where recorded_at >= $1::timestamptz and recorded_at < $2::timestamptz)"""


async def recorded(db: asyncpg.Connection, since: datetime, until: datetime) -> bool:
    """Return whether any event was recorded in [since, until)."""
    return bool(await db.fetchval(_RECORDED, since, until))


async def add(db: asyncpg.Connection, since: datetime, until: datetime) -> None:
    """Add what was recorded in [since, until)."""
    await db.execute(_FRESH, since, until)


async def crowded(db: asyncpg.Connection, since: datetime, until: datetime, rare_max: int) -> datetime:
    """Return until when, at most until `until`, so many rare events were recorded since a time, or some more."""
    found: datetime | None = await db.fetchval(_CROWDED, since, until, rare_max)
    return found or until


async def rare(
    db: asyncpg.Connection, since: datetime, until: datetime
) -> tuple[list[tuple[int, str, str]], list[tuple[str, str]]]:
    """Return which subjects had a rare event in that time: those counted by large party, subject and type; and all
    names of parties, and the type.
    """
    counted = [(row["large"], row["subject"], row["type"]) for row in await db.fetch(_RARE, since, until)]
    return counted, [(row["subject"], row["type"]) for row in await db.fetch(_RARE_OF_PARTIES, since, until)]
