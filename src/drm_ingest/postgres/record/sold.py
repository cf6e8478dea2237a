"""The record of a vendor: the devices it sold, the customers it reached, and how these are.

SOLD     the devices, and since when (and until when they were taken back)
REACHED  the customers who owned one of them in that time, and those who bought from it without a device
LENS     what was said by these customers and of these devices, while that was so
"""

from drm_ingest.postgres.record.known import AT, CALLED, RELATION, STARTED, UNTIL, kin, only
from drm_ingest.postgres.record.rare import FAULTS_BY_CODE, OPEN_FAULTS, RATINGS, lens


def _sold(subjects: str = "") -> str:
    return f"""
sold as materialized (
    select subject, valid * {UNTIL} as valid from {RELATION} as relation
    where party = any ($1::uuid[]) and role = 'sold_by' and {STARTED} {only(subjects)}
)"""


def reached(subjects: str = "") -> str:
    """Return the steps `sold` and `reached`; a customer who bought without a device is a subject by its id."""
    return f"""{_sold(subjects)},
reached (party, subject, valid) as materialized (
    select owner.party, sold.subject, owner.valid * sold.valid
    from sold cross join lateral (
        select party, valid from {RELATION} as relation
        where subject = sold.subject and role = 'owner' and party_kind = 'customer' offset 0  -- one by one, by index
    ) as owner
    where owner.valid && sold.valid
    union all
    select subject_party, null, valid * {UNTIL} from {RELATION} as relation
    where party = any ($1::uuid[]) and role = 'buys_from' and subject_kind = 'customer' and {STARTED} {only(subjects)}
)"""


def bought(large: str) -> str:
    """Return the step `bought`, of names in `known`: when these had a device of a large party's, or bought from it."""
    return f"""
bought as (
    select known.name as subject, reached.valid
    from known join kin using (party) cross join lateral (
        select valid from large_party_reached
        where party = kin.same and large = {large} offset 0  -- one by one, by index
    ) as reached
)"""


SALES = f"""
with recursive {reached()},
{kin("reached")},
person as (select party, (array_agg(same order by same))[1] as id from kin group by party)
select (select count(distinct subject) from sold) as devices_sold,
       (select count(distinct subject) from sold where valid @> {AT}) as devices_now,
       count(distinct person.id) as customers_reached,
       count(distinct person.id) filter (where valid @> {AT}) as customers_now
from reached join person using (party)"""

SATISFACTION = f"""
with recursive {reached()},
{kin("reached")}, {CALLED},
said_or_done (subject, valid) as (
    select subject, valid from reached where subject is not null
    union all
    select called.subject, reached.valid from reached join called using (party)
), {lens("''", "said_or_done", AT)}, {RATINGS}"""

OPEN = f"""
owned as (select subject, valid from reached where subject is not null),
{lens("''", "owned", AT)}, {OPEN_FAULTS}"""

# Open on these devices, by code; at most $4.
FAULTS = f"""
with {reached()}, {OPEN}
{FAULTS_BY_CODE}"""
