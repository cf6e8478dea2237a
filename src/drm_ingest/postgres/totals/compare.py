"""What a large party holds on some subjects now, against what its totals have counted; the difference is counted too.

NOW      per subject the union of the ranges in which the group holds any role: as record/about.py has it
COUNTED  the same as it was when it was counted
MOVED    what is in one and not in the other: whole days from subject_day, the rest from events, but none of either
that was recorded after the horizon: those are added when they are fresh
"""

from collections.abc import Collection
from datetime import datetime

import asyncpg

from drm_ingest.postgres.record.known import KNOWN
from drm_ingest.postgres.record.tally import cut
from drm_ingest.postgres.totals.fresh import ADD

Pair = tuple[int, str]
"""A large party by the id of its totals, and a subject."""

EACH = """
each as materialized (
    select id as large, members, kind, subjects
    from (
        select large, array_agg(distinct subject collate "C") as subjects
        from unnest($1::bigint[], $2::text[]) as pair (large, subject) group by large
    ) as pairs join large_party on id = large
)"""
"""Of the pairs $1 and $2: each large party once. What follows is asked of each in turn, in one statement of all."""

_COMPARE = f"""
with {EACH},
compared as materialized (
    select each.large, held.* from each cross join lateral (
with recursive wanted (name) as (select unnest(each.subjects)),
{KNOWN},
relation_of (name, party, valid, mine) as (
    select wanted.name, relation.party, relation.valid, true
    from wanted cross join lateral (
        select party, valid from relationship where subject = wanted.name and upper_inf(recorded) offset 0
    ) as relation
    where not starts_with(wanted.name, 'party:')
    union all
    select known.name, relation.party, relation.valid, relation.subject_party <> all (each.members)
    from known join kin using (party) cross join lateral (
        select party, subject_party, valid from relationship
        where subject = 'party:' || kin.same and upper_inf(recorded) offset 0
    ) as relation
    union all
    select name, party, '(,)', true from known where party = any (each.members)
),
now_held as (
    select name, range_agg(valid) filter (where mine and party = any (each.members)) as valid,
           least(min(lower(valid)) filter (where lower(valid) > now()),
                 min(upper(valid)) filter (where upper(valid) > now())) as due_at
    from relation_of group by name
)
select name as subject, coalesce(now_held.valid, '{{}}') as now, coalesce(counted.valid, '{{}}') as before,
       now_held.due_at, counted.due_at as due_before
from wanted left join now_held using (name)
left join large_party_span as counted on counted.subject = name and counted.large = each.large
    ) as held
),
gone as (
    delete from large_party_span using compared
    where large_party_span.large = compared.large and large_party_span.subject = compared.subject and now = '{{}}'
),
kept as (
    insert into large_party_span (large, subject, valid, due_at)
    select large, subject, now, due_at from compared
    where now <> '{{}}' and (now <> before or due_at is distinct from due_before)
    on conflict (subject, large) do update set valid = excluded.valid, due_at = excluded.due_at
)
select gained, large, subject, lower(during) as starts, upper(during) as ends
from (
    select true as gained, large, subject, unnest(now - before) as during from compared
    union all
    select false, large, subject, unnest(before - now) from compared
) as moved
where not isempty(during)"""

# Of day counts the first event is not known, and what is not fresh yet may be the last: then it will be.
_COUNTED = f"""
young as materialized (
    select subject, (occurred_at at time zone 'UTC')::date as day, type, occurred_at from event
    where recorded_at >= $5::timestamptz and subject = any ($2::text[])
),
each as materialized (
    select large, array_agg(subject) as subjects, array_agg(starts) as begin, array_agg(ends) as until
    from unnest($1::bigint[], $2::text[], $3::timestamptz[], $4::timestamptz[]) as moved (large, subject, starts, ends)
    group by large
),
difference as (
    select each.large, changed.* from each cross join lateral (
with span (subject, starts, ends) as (select * from unnest(each.subjects, each.begin, each.until)),
{cut("span")},
counted (day, type, events, first_at, known, last_at, last_subject) as (
    select days.day, days.type, days.events, null::timestamptz, false, days.last_at, whole.subject
    from whole cross join lateral (
        select day, type, events, last_at from subject_day
        where subject = whole.subject and day >= whole.first_day and day < whole.end_day
    ) as days
    union all
    select young.day, young.type, -1, null, true, null, null
    from whole join young using (subject) where young.day >= whole.first_day and young.day < whole.end_day
    union all
    select (part.starts at time zone 'UTC')::date, type, events, first_at, true, last_at, part.subject
    from part cross join lateral (
        select type, count(*) as events, min(occurred_at) as first_at, max(occurred_at) as last_at from event
        where subject = part.subject and occurred_at >= part.starts and occurred_at < part.ends and recorded_at < $5
        group by type
    ) as events
)
select day, type, sum(events)::bigint as events, case when bool_and(known) then min(first_at) end as first_at,
       max(last_at) as last_at,
       (array_agg(last_subject order by last_at desc nulls last, last_subject))[1] as last_subject
from counted group by day, type
having sum(events) <> 0
    ) as changed
)"""

_GAIN = f"""
with {_COUNTED}, added as (select large, day, type, events, first_at, last_at, last_subject from difference)
{ADD}"""

_LOSE = f"""
with {_COUNTED}
update large_party_day as old
set events = greatest(0, old.events - difference.events),
    first_at = case when old.first_at < difference.first_at then old.first_at end,
    last_at = case when old.last_at > difference.last_at then old.last_at end,
    last_subject = case when old.last_at > difference.last_at then old.last_subject end
from difference
where old.large = difference.large and old.day = difference.day and old.type = difference.type"""

_EMPTY = "delete from large_party_day where large = any ($1::bigint[]) and events = 0"


def columns(pairs: Collection[Pair]) -> tuple[list[int], list[str]]:
    """Return pairs as two columns, in order."""
    in_order = sorted(pairs)
    return [large for large, _ in in_order], [subject for _, subject in in_order]


async def compare(db: asyncpg.Connection, pairs: Collection[Pair], horizon: datetime) -> None:
    """Make the totals of large parties have in them what holds now on these subjects."""
    moved = await db.fetch(_COMPARE, *columns(pairs)) if pairs else []
    for gained, statement in ((True, _GAIN), (False, _LOSE)):
        rows = [row for row in moved if row["gained"] is gained]
        if rows:
            spans = ([row[name] for row in rows] for name in ("large", "subject", "starts", "ends"))
            await db.execute(statement, *spans, horizon)
    lost = {row["large"] for row in moved if not row["gained"]}
    if lost:
        await db.execute(_EMPTY, list(lost))
