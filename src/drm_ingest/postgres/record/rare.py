"""Faults, ratings and contacts in spans, one by one: day counts tell on which days there were any.

Each of them is looked for through a lens, which other steps make: `lens (of, subject, starts, ends, current)`: what it
is counted for, the subject and the range to look in, and whether that range holds now (or at `as_of`). A subject has
disjoint ranges in what it is counted for.
"""

FAULT, RATING, CONTACT = "device.fault", "feedback.rating", "support.contact"
RARE = frozenset({FAULT, RATING, CONTACT})

NEWEST_FIRST = "occurred_at desc, length(coalesce(sequence, '')) desc, coalesce(sequence, '') desc, content_hash desc"
"""As days.py has it."""


def lens(of: str, spans: str, at: str) -> str:
    """Return the step `lens` over `spans`, whose rows are (`of`, subject, valid)."""
    return f"""
lens (of, subject, starts, ends, current) as (
    select of, subject, lower(during), upper(during), during @> {at}
    from (select {of} as of, subject, unnest(range_agg(valid)) as during from {spans} group by 1, 2) as united
)"""


def happened(name: str, type_: str, seen_through: str = "lens") -> str:
    """Return the step `name`: what of a type happened in the lens, with all that retention has left of it.

    Of a day whose events were dropped the latest is left, as subject_day has it; `id` is null then.
    """
    return f"""
{name} as (
    select lens.of, lens.subject, lens.current, found.id, found.source,
           coalesce(found.occurred_at, days.last_at) as occurred_at,
           case when found.id is null then days.last_sequence else found.sequence end as sequence,
           coalesce(found.content_hash, days.last_hash) as content_hash,
           case when found.id is null then days.last_data else found.data end as data
    from {seen_through} as lens
    cross join lateral (
        select day::timestamp at time zone 'UTC' as day_at, last_at, last_sequence, last_hash, last_data
        from subject_day
        where subject = lens.subject and type = '{type_}'
          and day >= coalesce((lens.starts at time zone 'UTC')::date, '-infinity')
          and day <= coalesce((lens.ends at time zone 'UTC')::date, 'infinity')
        offset 0  -- one by one, by index
    ) as days
    left join lateral (
        select id, source, occurred_at, sequence, content_hash, data from rare_event
        where type = '{type_}' and subject = lens.subject
          and occurred_at >= greatest(days.day_at, lens.starts)
          and occurred_at < least(days.day_at + interval '24 hours', lens.ends)
        offset 0
    ) as found on true
    where found.id is not null
       or coalesce(days.last_at >= lens.starts, true) and coalesce(days.last_at < lens.ends, true)
)"""


FAULTS = happened("fault", FAULT)

OPEN_FAULTS = f"""{FAULTS},
episode as (
    select *, count(*) filter (where data ->> 'state' = 'cleared') over (
        partition by of, subject, data ->> 'code' order by {NEWEST_FIRST}
    ) as cleared_since
    from fault where current
),
open_fault as materialized (
    select of, subject, data ->> 'code' as code, min(occurred_at) as since, max(occurred_at) as last_at,
           count(*) as raised, (array_agg(data order by {NEWEST_FIRST}))[1] as data
    from episode where cleared_since = 0 and data ->> 'code' is not null
    group by of, subject, data ->> 'code'
)"""
"""A fault is open from when it is raised until the same code is cleared on the same subject; current lenses only."""

RATINGS = f"""{happened("rating", RATING)},
answer as (
    select of, data ->> 'scale' as scale, occurred_at,
           case jsonb_typeof(data -> 'score') when 'number' then trim_scale((data ->> 'score')::numeric) end as score
    from rating
)
select of, scale, score, count(*) as answers, min(occurred_at) as first_at, max(occurred_at) as last_at
from answer where scale is not null and score is not null
group by of, scale, score order by of, scale, score"""
"""Answers to each scale by score; scales never meet."""

FAULTS_BY_CODE = """
select code, count(*) as devices, (sum(count(*)) over ())::bigint as open,
       (select count(distinct subject) from open_fault) as devices_in_all
from open_fault group by code order by devices desc, code limit $4"""
