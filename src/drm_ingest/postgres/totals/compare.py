"""What a large party holds on some subjects now, against what its totals have counted; the difference is counted too.

NOW      per subject the union of the ranges in which the group holds any role: as record/about.py has it
COUNTED  the same as it was when it was counted
MOVED    what is in one and not in the other: whole days from subject_day, the rest from events, but none of either
that was recorded after the horizon: those are added when they are fresh
"""

from collections.abc import Sequence
from datetime import datetime
from uuid import UUID

import asyncpg

from drm_ingest.postgres.record.known import kin, party_called
from drm_ingest.postgres.record.tally import cut
from drm_ingest.postgres.totals.fresh import ADD

NAMED = f"""
named (name, party) as materialized (
    select name, {party_called("name")}
    from wanted where starts_with(name, 'party:')
)"""

KIN = kin("known", "(select party, other from party_link where upper_inf(recorded))")
"""Each `party` of `known`, and all that are linked to it now."""

# $1 the members of the group, $2 subjects, $3 the large party.
_COMPARE = f"""
with recursive wanted (name) as (select distinct subject collate "C" from unnest($2::text[]) as subject),
{NAMED},
known as (select name, party from named where party is not null),
{KIN},
relation_of (name, party, valid, mine) as (
    select wanted.name, relation.party, relation.valid, true
    from wanted cross join lateral (
        select party, valid from relationship where subject = wanted.name and upper_inf(recorded) offset 0
    ) as relation
    where not starts_with(wanted.name, 'party:')
    union all
    select known.name, relation.party, relation.valid, relation.subject_party <> all ($1::uuid[])
    from known join kin using (party) cross join lateral (
        select party, subject_party, valid from relationship
        where subject = 'party:' || kin.same and upper_inf(recorded) offset 0
    ) as relation
    union all
    select name, party, '(,)', true from known where party = any ($1::uuid[])
),
now_held as (
    select name, range_agg(valid) filter (where mine and party = any ($1::uuid[])) as valid,
           least(min(lower(valid)) filter (where lower(valid) > now()),
                 min(upper(valid)) filter (where upper(valid) > now())) as due_at
    from relation_of group by name
),
compared as materialized (
    select name as subject, coalesce(now_held.valid, '{{}}') as now, coalesce(counted.valid, '{{}}') as before,
           now_held.due_at, counted.due_at as due_before
    from wanted left join now_held using (name)
    left join large_party_span as counted on counted.subject = name and counted.large = $3
),
gone as (
    delete from large_party_span using compared
    where large = $3 and large_party_span.subject = compared.subject and now = '{{}}'
),
kept as (
    insert into large_party_span (large, subject, valid, due_at)
    select $3, subject, now, due_at from compared
    where now <> '{{}}' and (now <> before or due_at is distinct from due_before)
    on conflict (subject, large) do update set valid = excluded.valid, due_at = excluded.due_at
)
select gained, subject, lower(during) as starts, upper(during) as ends
from (
    select true as gained, subject, unnest(now - before) as during from compared
    union all
    select false, subject, unnest(before - now) from compared
) as moved
where not isempty(during)"""

# Of day counts the first event is not known, and what is not fresh yet may be the last: then it will be.
_COUNTED = f"""
span (subject, starts, ends) as (select * from unnest($2::text[], $3::timestamptz[], $4::timestamptz[])),
{cut("span")},
young as materialized (
    select subject, (occurred_at at time zone 'UTC')::date as day, type, occurred_at from event
    where recorded_at >= $5::timestamptz and subject = any ($2::text[])
),
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
),
difference as (
    select day, type, sum(events)::bigint as events, case when bool_and(known) then min(first_at) end as first_at,
           max(last_at) as last_at,
           (array_agg(last_subject order by last_at desc nulls last, last_subject))[1] as last_subject
    from counted group by day, type
    having sum(events) <> 0
)"""

_GAIN = f"""
with {_COUNTED}, added as (
    select $1::bigint, day, type, events, first_at, last_at, last_subject from difference
)
{ADD}"""

_LOSE = f"""
with {_COUNTED}
update large_party_day as old
set events = greatest(0, old.events - difference.events),
    first_at = case when old.first_at < difference.first_at then old.first_at end,
    last_at = case when old.last_at > difference.last_at then old.last_at end,
    last_subject = case when old.last_at > difference.last_at then old.last_subject end
from difference
where old.large = $1 and old.day = difference.day and old.type = difference.type"""

_EMPTY = "delete from large_party_day where large = $1 and events = 0"


async def compare(
    db: asyncpg.Connection, large: int, members: Sequence[UUID], subjects: Sequence[str], horizon: datetime
) -> bool:
    """Make the totals of a large party have in them what holds now on these subjects; return whether they changed."""
    moved = await db.fetch(_COMPARE, members, subjects, large)
    for gained, statement in ((True, _GAIN), (False, _LOSE)):
        rows = [row for row in moved if row["gained"] is gained]
        if rows:
            columns = ([row[name] for row in rows] for name in ("subject", "starts", "ends"))
            await db.execute(statement, large, *columns, horizon)
    if any(not row["gained"] for row in moved):
        await db.execute(_EMPTY, large)
    return bool(moved)
