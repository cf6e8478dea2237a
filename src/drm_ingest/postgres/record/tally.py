"""How much happened in the spans, and what last: spans times day counts and events.

    WHOLE   the UTC days that lie whole in a span: counted from subject_day
    PART    what is left at its two ends, less than a day each: counted from event
    TALLY   both of them by subject and type

One statement sees one snapshot, so both sources agree. All of it is driven by indexes, and a test holds the plans to
that: per span one range of subject_day and at most two of event.
"""

from drm_ingest.postgres.record.about import ABOUT, SPAN
from drm_ingest.postgres.record.known import UNTIL
from drm_ingest.postgres.relations.predecessors import LINE


def cut(spans: str) -> str:
    """Return the steps `whole` and `part` over what is in `spans`: subject, starts, ends."""
    return f"""
whole as (
    select subject, starts, ends,
           coalesce((starts at time zone 'UTC' + interval '1 day - 1 microsecond')::date, '-infinity') as first_day,
           coalesce((ends at time zone 'UTC')::date, 'infinity') as end_day
    from {spans}
),
part (subject, starts, ends) as (
    select subject, starts, least(ends, first_day::timestamp at time zone 'UTC')
    from whole where starts < first_day::timestamp at time zone 'UTC'
    union all
    select subject, end_day::timestamp at time zone 'UTC', ends
    from whole where first_day <= end_day and end_day::timestamp at time zone 'UTC' < ends
)"""


TALLY = f"""{cut("span")},
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

# Of each type the latest: of everything (device is null), and of each device of $4; of several at one time the one that
# days.py takes. The copy in subject_day serves once retention has dropped the event itself. Day counts know the first
# day; its first event tells the time.
_LATEST = """
newest (device, type, subject, last_at) as (
    (select distinct on (type) null, type, subject, last_at from tally order by type, last_at desc, subject)
    union all
    (select distinct on (subject, type) subject, type, subject, last_at
     from tally where subject = any ($4::text[]) order by subject, type, last_at desc)
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
          and occurred_at >= opening.day_at and occurred_at < opening.day_at + interval '24 hours'
    ) as first on true
    group by opening.part_at, opening.day_at
)"""

TOLD = """
select newest.device, newest.type, newest.subject, newest.last_at as occurred_at, total.events, opened.first_seen,
       latest.source, latest.id, coalesce(latest.data, kept.last_data)::text as data, latest.recorded_at
from newest join total using (type) cross join opened
left join lateral (
    select source, id, data, recorded_at from event
    where subject = newest.subject and occurred_at = newest.last_at and type = newest.type
    order by length(coalesce(sequence, '')) desc, coalesce(sequence, '') desc, content_hash desc limit 1
) as latest on true
left join lateral (
    select last_data from subject_day
    where latest.id is null and subject = newest.subject and type = newest.type
      and day = (newest.last_at at time zone 'UTC')::date
    offset 0  -- one by one, by index
) as kept on true"""
"""What is told of each `newest`, beside `total` of its type and `opened`."""

RECORD = f"with recursive {ABOUT}, {SPAN}, {TALLY}, {_LATEST} {TOLD}"
COUNTS = f"""
with recursive {ABOUT}, {SPAN}, {TALLY}
select type, sum(events)::bigint as events from tally group by type order by type"""

WHOLE_SUBJECT = f"""
recursive {LINE},
span (subject, relation_subjects, starts, ends) as (
    select subject, null::text[], null::timestamptz, least(ends, upper({UNTIL})) from line
)"""
"""All of the subject $1, and of those whose place it took, whoever held them."""

SUBJECT_RECORD = f"with {WHOLE_SUBJECT}, {TALLY}, {_LATEST} {TOLD}"

# Of the days from $4 on and before $5.
BY_DAY = f"""
with recursive {ABOUT}, {SPAN},
recent as (
    select subject, greatest(starts, $4::timestamptz) as starts, least(ends, $5::timestamptz) as ends
    from span where coalesce(starts < $5, true) and coalesce(ends > $4, true)
), {cut("recent")}
select day, type, sum(events)::bigint as events
from (
    select days.* from whole cross join lateral (
        select day, type, events from subject_day
        where subject = whole.subject and day >= whole.first_day and day < whole.end_day
        offset 0  -- one by one, by index
    ) as days
    union all
    select moments.* from part cross join lateral (
        select (part.starts at time zone 'UTC')::date, type, count(*) from event
        where subject = part.subject and occurred_at >= part.starts and occurred_at < part.ends
        group by type
    ) as moments
) as counted
group by day, type order by day desc, type"""
