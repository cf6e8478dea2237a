"""The record of an employee: who is cared for, and how they are.

CARED     the parties cared for, and when; those that are linked are one, by the id of the first
HELD      the devices that these owned or used in that time
LENS      what was said by them and on these devices, while they were cared for
"""

from drm_ingest.postgres.record.known import AT, CALLED, RELATION, STARTED, UNTIL, kin
from drm_ingest.postgres.record.rare import OPEN_FAULTS, RATINGS, lens

CARED = f"""
cared (party, valid) as materialized (
    select subject_party, valid * {UNTIL} from {RELATION} as relation
    where party = any ($1::uuid[]) and role = 'cared_for_by' and {STARTED}
),
{kin("cared")},
person as (select party, (array_agg(same order by same))[1] as id from kin group by party)"""

# In order of their ids, at most $4.
CUSTOMERS = f"""
with recursive {CARED}
select id, kind, name, min(since) as since, count(*) over () as cared_for
from (
    select person.id, lower(unnest(range_agg(valid))) as since, unnest(range_agg(valid)) @> {AT} as current
    from cared join person using (party) group by person.id
) as ranges join party using (id)
where current
group by id, kind, name order by id limit $4"""

# Of those listed.
_LISTED = f"""{CARED},
listed as (
    select person.id, cared.party, valid from cared join person using (party)
    where person.id = any (array(
        select distinct person.id from cared join person using (party) where valid @> {AT} order by 1 limit $4
    ))
),
device_of (id, subject, valid) as (
    select listed.id, held.subject, held.valid * listed.valid
    from (select distinct listed.id, kin.same, listed.valid from listed join kin using (party)) as listed
    cross join lateral (
        select subject, valid from {RELATION} as relation
        where party = listed.same and subject_party is null and role in ('owner', 'user')
        offset 0  -- one by one, by index
    ) as held
    where held.valid && listed.valid
)"""

SATISFACTION = f"""
with recursive {_LISTED}, {CALLED},
said_or_done (id, subject, valid) as (
    select id, subject, valid from device_of
    union all
    select listed.id, called.subject, listed.valid from listed join called using (party)
), {lens("id::text", "said_or_done", AT)}, {RATINGS}"""

FAULTS = f"""
with recursive {_LISTED}, {lens("id::text", "device_of", AT)}, {OPEN_FAULTS}
select of, count(*) as open from open_fault group by of"""
