"""The record of a partner: the devices it services, and how they were before and after it came.

    SERVICED  the devices that it services or installed, and when
    HOLDER    who owned or used them in that time, by all of their names
    VISITS    contacts by visit with one of these devices, or with a holder where the partner is named as the agent
    AROUND    the $5 days before and after each of the newest $4 visits, within the service

What lies outside of the service is not on the partner's record, so the days before and after may be fewer: they are
counted.
"""

from drm_ingest.postgres.record.known import AT, CALLED, RELATION, STARTED, UNTIL, kin, only
from drm_ingest.postgres.record.rare import CONTACT, FAULTS, RATINGS, happened


def _serviced(subjects: str = "") -> str:
    return f"""
serviced as materialized (
    select subject, valid * {UNTIL} as valid from {RELATION} as relation
    where party = any ($1::uuid[]) and role in ('serviced_by', 'installed_by') and {STARTED} {only(subjects)}
)"""


DEVICES = f"""
with {_serviced()}
select count(distinct subject) as devices, count(distinct subject) filter (where valid @> {AT}) as devices_now
from serviced"""


def visits(subjects: str = "") -> str:
    """Return the steps up to `visit`, which says of all of them how many there are."""
    return f"""{_serviced(subjects)},
service (subject, valid) as materialized (select subject, unnest(range_agg(valid)) from serviced group by subject),
held_by (party, subject, valid) as materialized (
    select held.party, service.subject, held.valid * service.valid
    from service cross join lateral (
        select party, valid from {RELATION} as relation
        where subject = service.subject and role in ('owner', 'user') and party <> all ($1::uuid[])
        offset 0  -- one by one, by index
    ) as held
    where held.valid && service.valid
),
{kin("held_by")}, {CALLED},
holder (called, subject, valid) as materialized (
    select called.subject, held_by.subject, unnest(range_agg(held_by.valid))
    from held_by join called using (party) group by 1, 2
),
agent (name) as materialized (
    select id::text from unnest($1::uuid[]) as own (id)
    union all
    select namespace || ':' || ref from party_ref where party = any ($1::uuid[])
    union all
    select worker.name
    from (
        select distinct subject_party as id from {RELATION} as relation
        where party = any ($1::uuid[]) and role = 'works_for' and {STARTED}
    ) as employee cross join lateral (
        select employee.id::text as name
        union all
        select namespace || ':' || ref from party_ref where party = employee.id
    ) as worker
),
place (of, subject, starts, ends, current) as (
    select subject, subject, lower(valid), upper(valid), true from service
    union all
    select subject, called, lower(valid), upper(valid), true from holder
), {happened("contact", CONTACT, "place")},
visit as materialized (
    select of as device, subject, source, id, occurred_at,
           count(*) over () as visited
    from contact
    where data ->> 'channel' = 'visit'
      and (data ->> 'agent' in (select name from agent) or of = subject and data ->> 'agent' is null)
)"""


_NEWEST = """
newest as (
    select row_number() over (order by occurred_at desc, subject, source, id, device) as number, *
    from (select * from visit order by occurred_at desc, subject, source, id, device limit $4) as last
)"""

_AROUND = f"""{_NEWEST},
around (number, device, phase, during) as materialized (
    select newest.number, device, phase, valid * (case phase
        when 'before' then tstzrange(occurred_at - days, occurred_at)
        else tstzrange(occurred_at, greatest(occurred_at, least(occurred_at + days, {AT} + interval '1 microsecond')))
    end)
    from newest
    cross join (values ('before'), ('after')) as phases (phase)
    cross join (select make_interval(hours => 24 * $5::int) as days) as width
    join service on service.subject = device and valid @> occurred_at
)"""


def newest(subjects: str = "") -> str:
    """Return each of the newest visits, with the days of service before and after it and the faults raised in them."""
    return f"""
with recursive {visits(subjects)}, {_AROUND},
lens (of, subject, starts, ends, current) as (
    select number || phase, device, lower(during), upper(during), true from around where not isempty(during)
), {FAULTS},
raised as (
    select of, count(*) as faults from fault where data ->> 'state' is distinct from 'cleared' group by of
)
select number, device, subject, source, id, occurred_at, visited,
       coalesce(max(width_days) filter (where phase = 'before'), 0) as days_before,
       coalesce(max(width_days) filter (where phase = 'after'), 0) as days_after,
       coalesce(max(faults) filter (where phase = 'before'), 0) as faults_before,
       coalesce(max(faults) filter (where phase = 'after'), 0) as faults_after
from newest join around using (number, device)
cross join lateral (select extract(epoch from upper(during) - lower(during)) / 86400 as width_days) as width
left join raised on raised.of = number || phase
group by number, device, subject, source, id, occurred_at, visited order by number"""


def satisfaction(subjects: str = "") -> str:
    """Return answers of the same days: on the device, and of those who held it then; `of` is the visit and phase."""
    return f"""
with recursive {visits(subjects)}, {_AROUND},
lens (of, subject, starts, ends, current) as (
    select number || phase, device, lower(during), upper(during), true from around where not isempty(during)
    union all
    select number || phase, called, lower(during * valid), upper(during * valid), true
    from around join holder on holder.subject = device and during && valid
), {RATINGS}"""


VISITS = newest()
SATISFACTION = satisfaction()
