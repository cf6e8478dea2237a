"""What a record is about: subjects, and when.

HELD    the devices and parties on which the group held a role, with the ranges in which it did
ABOUT   the subjects of events that this stands for, a party by all of its names; and the group itself, always
SPAN    per subject the union of those ranges: disjoint, so an event counts once however many roles were held
"""

from drm_ingest.postgres.record.known import CALLED, RELATION, STARTED, UNTIL, kin

HELD = f"""
held as materialized (
    select subject, subject_party as party, valid * {UNTIL} as valid from {RELATION} as relation
    where party = any ($1::uuid[]) and {STARTED}
      and (subject_party is null or subject_party <> all ($1::uuid[]))  -- none to oneself, now that they are linked
)"""

ABOUT = f"""{HELD},
known_party as (select party from held where party is not null),
{kin("known_party")},
{CALLED},
about (subject, relation_subject, valid) as (
    select subject, subject, valid from held where party is null
    union all
    select called.subject, held.subject, held.valid from held join called using (party)
    union all
    select 'party:' || id, null, {UNTIL} from unnest($1::uuid[]) as own (id)
    union all
    select 'party:' || namespace || ':' || ref, null, {UNTIL} from party_ref where party = any ($1::uuid[])
)"""

SPAN = """
span (subject, relation_subjects, starts, ends) as (
    select subject, relation_subjects, lower(during), upper(during)
    from (
        select subject, array_agg(distinct relation_subject) as relation_subjects, unnest(range_agg(valid)) as during
        from about group by subject
    ) as united
)"""
