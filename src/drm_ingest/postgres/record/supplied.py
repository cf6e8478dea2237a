"""The record of a supplier: the devices with its parts, by role and batch, and which faults these have."""

from drm_ingest.postgres.record.known import AT, RELATION, STARTED, UNTIL, only
from drm_ingest.postgres.record.rare import OPEN_FAULTS, lens


def supplied(subjects: str = "") -> str:
    """Return the step `supplied`: the devices, by role and batch, and when they had these parts."""
    return f"""
supplied as materialized (
    select role, batch, subject, valid * {UNTIL} as valid from {RELATION} as relation
    where party = any ($1::uuid[]) and role in ('made_by', 'parts_by') and {STARTED} {only(subjects)}
)"""


def open_faults_on(spans: str) -> str:
    """Return the steps up to `open_fault`, of role and batch, over what is in `spans`."""
    return f"{lens('jsonb_build_array(role, batch)', spans, AT)}, {OPEN_FAULTS}"


def open_faults(subjects: str = "") -> str:
    """Return the same over everything supplied."""
    return f"{supplied(subjects)}, {open_faults_on('supplied')}"


DEVICES = f"""
with {supplied()}
select count(distinct subject) as devices, count(distinct subject) filter (where valid @> {AT}) as devices_now
from supplied"""

# After the steps up to `open_fault`: with most faults first, at most $4. A fault counts for every batch in the device.
TOLD_BATCHES = f""",
faulty as (
    select of, count(*) as faults, count(distinct subject) as devices_with_faults
    from fault where data ->> 'state' is distinct from 'cleared' group by of
),
standing as (select of, count(*) as open from open_fault group by of),
batch as (
    select role, batch, jsonb_build_array(role, batch) as of, count(distinct subject) as devices,
           count(distinct subject) filter (where valid @> {AT}) as devices_now
    from supplied group by role, batch
)
select role, batch, devices, devices_now, coalesce(faults, 0) as faults_raised,
       coalesce(devices_with_faults, 0) as devices_with_faults, coalesce(open, 0) as faults_open,
       count(*) over () as batches
from batch left join faulty using (of) left join standing using (of)
order by faults_raised desc, role, batch nulls first limit $4"""
TOLD_FAULTS = """
select of ->> 0 as role, of ->> 1 as batch, code, count(*) as open
from open_fault group by of, code order by open desc, role, batch nulls first, code limit $4"""

BATCHES, FAULTS = f"with {open_faults()} {TOLD_BATCHES}", f"with {open_faults()} {TOLD_FAULTS}"
