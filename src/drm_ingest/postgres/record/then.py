"""The figures of a large party as of another time, of what was counted for how it is now.

None was added up for that time. But what had happened on a subject by then is on the record as it was then if, and only
if, it is on it now: so the ranges that were counted serve, and only those subjects need be looked at that contribute to
what is rare. Like the figures of now they know what was recorded until `totals_through`.

After $1 to $3 and the parameters of the same statement as it is read live comes the large party.
"""

from drm_ingest.postgres.record import own, sold, supplied
from drm_ingest.postgres.record.known import AT, KNOWN, RELATION, STARTED, UNTIL, only
from drm_ingest.postgres.record.rare import FAULTS_BY_CODE, OPEN_FAULTS, RATINGS, lens


def _contributing(part: str, large: str) -> str:
    """Return the subjects that contribute to a part of a large party (totals/parts.py)."""
    return f"array(select distinct subject from large_party_part where large = {large} and part = '{part}')"


_HAD_FAULT = _contributing("had_fault", "$5")

_SATISFACTION = f"""
with counted as (
    select subject, unnest(valid * tstzmultirange({UNTIL})) as valid from large_party_span
    where large = $4 {only(_contributing("answer", "$4"))}
),
lens (of, subject, starts, ends, current) as (select '', subject, lower(valid), upper(valid), true from counted),
{RATINGS}"""

_SALES = f"""
select sold.*, reached.*
from (
    select count(distinct subject) as devices_sold, count(distinct subject) filter (where valid @> {AT}) as devices_now
    from {RELATION} as relation where party = any ($1::uuid[]) and role = 'sold_by' and {STARTED}
) as sold, (
    select count(distinct person) as customers_reached,
           count(distinct person) filter (where valid @> {AT}) as customers_now
    from large_party_reached where large = $4 and {STARTED}
) as reached"""

_SOLD_SATISFACTION = f"""
with recursive wanted (name) as (select unnest({_contributing("sold_answer", "$4")})),
{KNOWN}, {sold.bought("$4")},
said_or_done (subject, valid) as (
    select wanted.name, reached.valid
    from wanted cross join lateral (
        select valid from large_party_reached where large = $4 and subject = wanted.name and {STARTED} offset 0
    ) as reached
    where not starts_with(wanted.name, 'party:')
    union all
    select subject, valid from bought where {STARTED}
),
by_then as (select subject, valid * {UNTIL} as valid from said_or_done),
{lens("''", "by_then", AT)}, {RATINGS}"""

_SOLD_FAULTS = f"""
with owned as (
    select subject, valid * {UNTIL} as valid from large_party_reached
    where large = $5 and {STARTED} {only(_HAD_FAULT)}
), {lens("''", "owned", AT)}, {OPEN_FAULTS}
{FAULTS_BY_CODE}"""


_SUPPLIED = f"""
with {supplied.supplied()},
had_fault as (select * from supplied where true {only(_HAD_FAULT)}), {supplied.open_faults_on("had_fault")}"""

FIGURES = {
    "faults": f"with {own.open_faults(_HAD_FAULT)} {own.TOLD_FAULTS}",
    "satisfaction": _SATISFACTION,
    "sales": _SALES,
    "sold_satisfaction": _SOLD_SATISFACTION,
    "sold_faults": _SOLD_FAULTS,
    "batches": f"{_SUPPLIED} {supplied.TOLD_BATCHES}",
    "supplied_faults": f"{_SUPPLIED} {supplied.TOLD_FAULTS}",
}
"""By the names of figures.py."""
