"""The record of a large party from its totals (totals/): the same rows as the steps beside this file make.

Pages of devices and relations are read live, along indexes in their orders. Everything else was counted.
"""

from drm_ingest.postgres.record import serviced
from drm_ingest.postgres.record.known import RELATION, STARTED, UNTIL, holds
from drm_ingest.postgres.record.tally import TALLY, TOLD

# $1 the first of the group; null: nobody's totals are asked for. $2 whether the figures are.
READ = """
select now() as read_at, (select max(moved_at) from consumer_position) as attached_at, totals.*
from (select) as one left join (
    select id as large, members, case when stale and $2::boolean then shown_at else through end as through,
           case when $2 then shown end as shown
    from large_party cross join totals_position
    where party = $1 and built_at is not null and shown is not null
) as totals on true"""

# -- of the group $1, at most $4 ---------------------------------------------------------------------------------------

_NOW = holds("now()")
DEVICES = f"""
with listed as (
    select distinct subject
    from unnest($1::uuid[]) as own (id) cross join lateral (
        select subject from relationship
        where party = own.id and upper_inf(recorded) and subject_party is null and {_NOW}
        group by subject order by subject limit $4
    ) as first
    order by subject limit $4
)
select subject, model, firmware,
       jsonb_agg(jsonb_build_object('role', role, 'party', party, 'relationship', relation.id,
                                    'version', version, 'valid_from', lower(valid))
                 order by role, lower(valid), relation.id) as roles
from listed join device using (subject) cross join lateral (
    select id, role, party, version, valid from relationship
    where subject = listed.subject and party = any ($1::uuid[]) and upper_inf(recorded) and {_NOW} offset 0
) as relation
group by subject, model, firmware order by subject"""

# $2 as_of, $3 known_at, $4 the devices.
LATEST_OF_DEVICES = f"""
with span (subject, starts, ends) as (
    select subject, lower(during), upper(during)
    from (
        select subject, unnest(range_agg(valid * {UNTIL})) as during from {RELATION} as relation
        where subject = any ($4::text[]) and party = any ($1::uuid[]) and {STARTED} group by subject
    ) as united
), {TALLY},
newest (device, type, subject, last_at) as (
    select distinct on (subject, type) subject, type, subject, last_at from tally order by subject, type, last_at desc
),
total as (select distinct type, 0::bigint as events from tally),
opened as (select null::timestamptz as first_seen)
{TOLD}"""

_HOLDS = {
    "now": _NOW,
    "later": f"lower(valid) > now() and not {_NOW}",
    "before": f"coalesce(lower(valid) <= now(), true) and not {_NOW}",
}
_ROW = (
    "id, version, subject, role, party, batch, lower(valid) as valid_from, upper(valid) as valid_to, "
    "lower(recorded) as recorded_at, null as superseded_at, asserted_by, reason"
)
_SINCE = "lower(valid) desc nulls last, id"


def _holding(name: str, at_most: str) -> str:
    return f"""
select relation.*, '{name}' as holds
from (
    select mine.*
    from unnest($1::uuid[]) as own (id) cross join lateral (
        select {_ROW} from relationship
        where party = own.id and upper_inf(recorded) and (subject_party is null or subject_party <> all ($1::uuid[]))
          and {_HOLDS[name]}
        order by {_SINCE} limit {at_most}
    ) as mine
    union all
    select {_ROW} from relationship
    where subject = any (array(select 'party:' || id from unnest($1::uuid[]) as own (id))) and upper_inf(recorded)
      and party <> all ($1::uuid[]) and {_HOLDS[name]}
) as relation
order by valid_from desc nulls last, id limit {at_most}"""


# What holds now fills a page, and of what has ended there may be little: nobody looks for it without need.
RELATIONS = f"""
with now as materialized ({_holding("now", "$4")}),
later as materialized ({_holding("later", "$4::int - (select count(*) from now)")})
select * from now
union all
select * from later
union all
({_holding("before", "$4::int - (select count(*) from now) - (select count(*) from later)")})"""

# -- of a large party --------------------------------------------------------------------------------------------------

# Of the large party $4: as its days were counted, before the one that $2 is in, and what had happened of that one then.
# `latest`, and the last $5 days up to that of the last event.
HAPPENED = f"""
with span as (
    select subject, lower(during) as starts, upper(during) as ends
    from large_party_span cross join lateral unnest(valid * tstzmultirange(
        tstzrange(date_trunc('day', $2::timestamptz, 'UTC'), $2 + interval '1 microsecond')
    )) as during
    where large = $4 and $2 is not null
),
found as (
    select type, subject, events, first_at, last_at
    from span cross join lateral (
        select type, count(*) as events, min(occurred_at) as first_at, max(occurred_at) as last_at from event
        where subject = span.subject and occurred_at >= span.starts and occurred_at < span.ends
        group by type
    ) as moments
),
counted as materialized (
    select day, type, events, first_at, last_at, last_subject from large_party_day
    where large = $4 and day < coalesce(($2 at time zone 'UTC')::date, 'infinity')
    union all
    select ($2 at time zone 'UTC')::date, type, sum(events)::bigint, min(first_at), max(last_at),
           (array_agg(subject order by last_at desc, subject))[1]
    from found group by type
),
newest (device, type, subject, last_at) as (
    select distinct on (type) null, type, last_subject, last_at from counted order by type, day desc
),
total as (select type, sum(events)::bigint as events from counted group by type),
opened as (select min(first_at) as first_seen from counted where day = (select min(day) from counted)),
told as ({TOLD}),
ending as (select (max(last_at) at time zone 'UTC')::date + 1 as day from newest),
by_day as (
    select counted.day, type, events from counted cross join ending
    where counted.day >= ending.day - $5::int and counted.day < ending.day
    order by day desc, type
)
select coalesce((select json_agg(told) from told), '[]') as latest,
       coalesce((select json_agg(by_day) from by_day), '[]') as days"""

# The newest $4 visits are all on these devices of the large party $6; what was around them is read live.
_VISITED = """array(
    select distinct subject from (
        select subject from large_party_part where large = $6 and part = 'visit'
        order by row ->> 'occurred_at' desc, row ->> 'about', row ->> 'source', row ->> 'id', subject limit $4
    ) as newest
)"""
VISITS, VISIT_ANSWERS = serviced.newest(_VISITED), serviced.satisfaction(_VISITED)
