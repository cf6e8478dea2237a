"""The events of a timeline, looked for among the newest of everybody: for a party with very many devices.

What is asked of each of these otherwise takes long, however little there is to find. Relations and links are taken as
we know them now.
"""

from collections.abc import Sequence

from drm_ingest.postgres.record.known import RELATION, STARTED, UNTIL, holds, kin, party_called
from drm_ingest.postgres.record.page import BEGUN, ENDED, EVENT, EVENT_RANK, EVENTS_IN_ORDER, Find
from drm_ingest.postgres.record.rare import CONTACT, FAULT, RARE, RATING

BY_TIME = "recorded_at > '-infinity'"
"""Always so; whoever says it may use the indexes by time (migrations/0010_large_parties.sql)."""


def _among(types: Sequence[str]) -> str:
    """Return what holds of all events of these types, as an index has it that holds only rare ones."""
    listed = f"'{FAULT}', '{RATING}', '{CONTACT}'"
    return f"and type in ({listed})" if types and set(types) - {BEGUN, ENDED} <= RARE else ""


def scanned(types: Sequence[str]) -> str:
    """Return the statement that tells how far back before $1 the next $2 events of everybody reach; null: to the first.

    Without $1 they are the last of all, those of clocks that are ahead too, each of which is looked at for the page.
    Only those are counted among which events of these types are looked for.
    """
    return (
        f"select occurred_at from event where {BY_TIME} {_among(types)} "
        "and occurred_at < coalesce($1, 'infinity'::timestamptz) order by occurred_at desc offset $2 limit 1"
    )


# Of recent events only: what is said of parties (few), and whose record that is on; about.py the other way round. What
# devices tell is looked at one by one, newest first, until there is a page of it.
def about_recent(types: Sequence[str]) -> str:
    """Return the steps up to `about`."""
    return f"""
recent as materialized (
    select {EVENT} from event
    where {BY_TIME} and occurred_at >= coalesce($4::timestamptz, '-infinity')
      and occurred_at < least($5::timestamptz, upper({UNTIL}), 'infinity') and starts_with(subject, 'party:')
      {_among(types)}
),
named (subject, party) as materialized (
    select subject, {party_called("subject")}
    from (select distinct subject from recent) as told
),
known_party as (select distinct party from named where party is not null),
{kin("known_party")},
about (subject, relation_subject, valid) as (
    select named.subject, relation.subject, relation.valid * {UNTIL}
    from named join kin using (party) cross join lateral (
        select subject, valid from {RELATION} as relation
        where subject = 'party:' || kin.same and party = any ($1::uuid[]) and subject_party <> all ($1::uuid[])
          and {STARTED} offset 0
    ) as relation
    union all
    select subject, null, {UNTIL} from named where party = any ($1::uuid[])
)"""


def events_of(types: Sequence[str]) -> Find:
    """Return what finds them; see `page.Find`."""

    def events(parameter: str | None, before: str) -> str:
        wanted = f"""{f"and type = any ({parameter}::text[])" if parameter else ""} {_among(types)} {before}
                     {EVENTS_IN_ORDER} limit $6"""
        return f"""(
        select {EVENT}, {EVENT_RANK} as rank, array[subject] as relation_subjects, null::jsonb as relation
        from event cross join lateral (
            select from unnest($1::uuid[]) as own (id) cross join lateral (
                select valid from relationship
                where party = own.id and subject = event.subject and upper_inf(recorded) offset 0
            ) as relation
            where {STARTED} and {holds("event.occurred_at")}
            limit 1
        ) as held
        where {BY_TIME} and occurred_at >= coalesce($4::timestamptz, '-infinity')
          and occurred_at < least($5::timestamptz, upper({UNTIL}), 'infinity') and not starts_with(subject, 'party:')
          {wanted}
    ) union all (
        select recent.*, {EVENT_RANK}, span.relation_subjects, null::jsonb
        from recent join span using (subject)
        where coalesce(occurred_at >= span.starts, true) and coalesce(occurred_at < span.ends, true) {wanted}
    )"""

    return events
