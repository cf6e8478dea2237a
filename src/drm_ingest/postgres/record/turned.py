"""When the relations of a party began and ended, for its timeline: the step `change`.

Ends that are known beforehand have not happened yet.
"""

from drm_ingest.postgres.record.known import AT, OF_GROUP, STARTED
from drm_ingest.postgres.record.page import BEGUN, ENDED, IN_ORDER, Wanted

_BOTH = f"""cross join lateral (values
        (lower(valid), 1, '{BEGUN}'), (upper(valid), 0, '{ENDED}')
    ) as change (at, rank, type)"""

# As we knew it at a time: all relations there were.
_KNOWN = f"""
change as (
    select change.at as occurred_at, change.rank, change.type, relation.*
    from ({OF_GROUP}
    ) as relation
    {_BOTH}
    where {STARTED} and change.at <= {AT}
)"""


def _own(bound: str, rank: int, type_: str) -> str:
    return f"""
    select {bound} as at, {rank} as rank, '{type_}' as type, relation.*
    from unnest($1::uuid[]) as own (id) cross join lateral (
        select * from relationship
        where party = own.id and upper_inf(recorded) and {bound} >= coalesce($4::timestamptz, '-infinity')
          and {bound} < least($5::timestamptz, 'infinity') and {bound} <= {AT}
          and (subject_party is null or subject_party <> all ($1::uuid[]))
    ) as relation"""


# As we know it now: of the party's own those in the time that is looked at, by an index of each bound.
_NOW = f"""
turned as ({_own("lower(valid)", 1, BEGUN)}
    union all {_own("upper(valid)", 0, ENDED)}
    union all
    select change.at, change.rank, change.type, relation.*
    from (
        select * from relationship
        where subject = any (array(select 'party:' || id from unnest($1::uuid[]) as own (id)))
          and upper_inf(recorded) and party <> all ($1::uuid[])
    ) as relation
    {_BOTH}
),
change as (
    select at as occurred_at, turned.* from turned
    where {STARTED} and at <= {AT}
)"""


def change(wanted: Wanted) -> str:
    """Return the step `change`."""
    return _NOW if wanted.view.known_at is None else _KNOWN


def changes(types: str | None, before: str) -> str:
    """Find what began or ended; see `page.Find`."""
    return f"""(
        select * from (
            select subject, '' as source, id::text as id, type, occurred_at, null as occurred_at_raw,
                   null as time_quality, null as sequence, null::timestamptz as received_at,
                   null::timestamptz as recorded_at, null::uuid as content_hash, null as sender, null as dataschema,
                   null::jsonb as data, rank, null::text[] as relation_subjects, jsonb_build_object(
                       'id', id, 'version', version, 'subject', subject, 'role', role, 'party', party, 'batch', batch,
                       'valid_from', lower(valid), 'valid_to', upper(valid), 'recorded_at', lower(recorded),
                       'withdrawn_at', null, 'asserted_by', asserted_by, 'reason', reason) as relation
            from change
        ) as changes
        where coalesce(occurred_at >= $4::timestamptz, true) and coalesce(occurred_at < $5::timestamptz, true)
          {f"and type = any ({types}::text[])" if types else ""} {before}
        {IN_ORDER} limit $6
    )"""
