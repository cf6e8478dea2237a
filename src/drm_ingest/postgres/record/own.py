"""What a record of any kind shows beside its counts: relations, devices, open faults, ratings."""

from drm_ingest.postgres.record.about import ABOUT, SPAN
from drm_ingest.postgres.record.known import AT, OF_GROUP, RELATION, STARTED, UNTIL, holds, only
from drm_ingest.postgres.record.rare import OPEN_FAULTS, RATINGS, lens

# Those of the group on others, and those of others on the group; what holds first, then what is planned, then the past.
# One at least: it tells how many there are.
RELATIONS = f"""
select id, version, subject, role, party, batch, lower(valid) as valid_from, upper(valid) as valid_to,
       lower(recorded) as recorded_at, null as superseded_at, asserted_by, reason, holds,
       count(*) filter (where holds = 'now') over () as holding,
       count(*) filter (where holds = 'later') over () as planned,
       count(*) filter (where holds = 'before') over () as past
from (
    select *, case when valid @> {AT} then 'now' when lower(valid) > {AT} then 'later' else 'before' end as holds
    from ({OF_GROUP}
    ) as all_of_them
    where {STARTED}
) as told
order by array_position(array['now', 'later', 'before'], holds), lower(valid) desc nulls last, id
limit greatest($4, 1)"""

_HELD_NOW = f"""
from {RELATION} as relation where party = any ($1::uuid[]) and subject_party is null and {holds(AT)}"""
# One at least: it tells how many there are.
DEVICES = f"""
with mine as materialized (select subject, role, party, id, version, valid {_HELD_NOW}),
listed as (
    select subject, count(*) over () as devices_now from mine group by subject order by subject limit greatest($4, 1)
)
select subject, model, firmware, devices_now,
       jsonb_agg(jsonb_build_object('role', role, 'party', party, 'relationship', mine.id,
                                    'version', mine.version, 'valid_from', lower(valid))
                 order by role, lower(valid), mine.id) as roles
from listed join device using (subject) join mine using (subject)
group by subject, model, firmware, devices_now order by subject"""
DEVICES_NOW = f"select count(distinct subject) {_HELD_NOW}"

RELATIONS_COUNT = f"select count(*) from {RELATION} as relation where party = any ($1::uuid[]) and {STARTED}"


def open_faults(subjects: str = "") -> str:
    """Return the steps up to `open_fault`: on the devices held now, since they are held."""
    return f"""
mine as (
    select subject, valid * {UNTIL} as valid from {RELATION} as relation
    where party = any ($1::uuid[]) and subject_party is null and {STARTED} {only(subjects)}
), {lens("''", "mine", AT)}, {OPEN_FAULTS}"""


TOLD_FAULTS = """
select subject, code, since, last_at, raised, data, count(*) over () as open
from open_fault order by last_at desc, subject, code limit $4"""
FAULTS = f"with {open_faults()} {TOLD_FAULTS}"

# Of everything that is on the record.
SATISFACTION = f"""
with recursive {ABOUT}, {SPAN},
lens (of, subject, starts, ends, current) as (select '', subject, starts, ends, true from span), {RATINGS}"""
