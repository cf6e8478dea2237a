"""The figures of a large party that are few and take long to add up: added up when something they are made of changed.

They are kept as rows in JSON, by name, as record/figures.py reads them.
"""

from collections.abc import Collection
from datetime import datetime

import asyncpg

from drm_ingest.postgres.record.kinds import PARTS_MAX
from drm_ingest.postgres.record.tally import cut

_OPEN = "from relationship where party = any ($2::uuid[]) and upper_inf(recorded)"

_RELATIONS = f"""
select count(*) filter (where valid @> now()) as holding,
       count(*) filter (where not valid @> now() and lower(valid) > now()) as planned,
       count(*) filter (where not valid @> now() and coalesce(lower(valid) <= now(), true)) as past
from (
    select valid {_OPEN} and (subject_party is null or subject_party <> all ($2::uuid[]))
    union all
    select valid from relationship
    where subject = any (array(select 'party:' || id from unnest($2::uuid[]) as own (id))) and upper_inf(recorded)
      and party <> all ($2::uuid[])
) as relations"""
_DEVICES_NOW = f"""
select count(distinct subject) as devices_now {_OPEN} and subject_party is null and valid @> now()"""
_FAULTS = f"""
select subject, row ->> 'code' as code, (row ->> 'since')::timestamptz as since,
       (row ->> 'last_at')::timestamptz as last_at, (row ->> 'raised')::bigint as raised, row -> 'data' as data,
       count(*) over () as open
from large_party_part where large = $1 and part = 'fault'
order by 4 desc, subject, code limit {PARTS_MAX}"""


def _answers(part: str) -> str:
    return f"""
select row ->> 'scale' as scale, (row ->> 'score')::numeric as score, sum((row ->> 'answers')::bigint) as answers,
       min((row ->> 'first_at')::timestamptz) as first_at, max((row ->> 'last_at')::timestamptz) as last_at
from large_party_part where large = $1 and part = '{part}' group by 1, 2 order by 1, 2"""


_SALES = f"""
select *, (select count(distinct person) from large_party_reached where large = $1) as customers_reached,
       (select count(distinct person) from large_party_reached where large = $1 and valid @> now()) as customers_now
from (
    select count(distinct subject) as devices_sold, count(distinct subject) filter (where valid @> now()) as devices_now
    {_OPEN} and role = 'sold_by'
) as sold"""
_SOLD_FAULTS = f"""
select row ->> 'code' as code, count(*) as devices, (sum(count(*)) over ())::bigint as open,
       (select count(distinct subject) from large_party_part where large = $1 and part = 'sold_fault') as devices_in_all
from large_party_part where large = $1 and part = 'sold_fault'
group by 1 order by devices desc, code limit {PARTS_MAX}"""


def _devices(roles: str) -> str:
    return f"""
select count(distinct subject) as devices, count(distinct subject) filter (where valid @> now()) as devices_now
{_OPEN} and role in ({roles})"""


_BATCHES = f"""
select batch.*, coalesce(faults_raised, 0) as faults_raised, coalesce(devices_with_faults, 0) as devices_with_faults,
       coalesce(faults_open, 0) as faults_open, count(*) over () as batches
from (
    select role, batch, count(distinct subject) as devices,
           count(distinct subject) filter (where valid @> now()) as devices_now
    {_OPEN} and role in ('made_by', 'parts_by') group by role, batch
) as batch
left join (
    select row ->> 'role' as role, row ->> 'batch' as batch, sum((row ->> 'raised')::bigint)::bigint as faults_raised,
           count(*) filter (where (row ->> 'raised')::bigint > 0) as devices_with_faults,
           sum(jsonb_array_length(row -> 'codes'))::bigint as faults_open
    from large_party_part where large = $1 and part = 'supplied' group by 1, 2
) as faulty on faulty.role = batch.role and faulty.batch is not distinct from batch.batch
order by faults_raised desc, role, batch nulls first limit {PARTS_MAX}"""
_SUPPLIED_FAULTS = f"""
select row ->> 'role' as role, row ->> 'batch' as batch, code, count(*) as open
from large_party_part cross join lateral jsonb_array_elements_text(row -> 'codes') as code
where large = $1 and part = 'supplied' group by 1, 2, 3
order by open desc, role, batch nulls first, code limit {PARTS_MAX}"""
_VISITED = "select count(*) as visits from large_party_part where large = $1 and part = 'visit'"

_EVERYBODYS = {
    "relations": _RELATIONS, "devices_now": _DEVICES_NOW, "faults": _FAULTS, "satisfaction": _answers("answer"),
}  # fmt: skip
_KINDS = {
    "vendor": {"sales": _SALES, "sold_satisfaction": _answers("sold_answer"), "sold_faults": _SOLD_FAULTS},
    "supplier": {
        "supplied": _devices("'made_by', 'parts_by'"),
        "batches": _BATCHES,
        "supplied_faults": _SUPPLIED_FAULTS,
    },
    "partner": {"serviced": _devices("'serviced_by', 'installed_by'"), "visits": _VISITED},
}


def _statement(kind: str) -> str:
    figures = ", ".join(
        f"'{name}', (select coalesce(jsonb_agg(to_jsonb(figure)), '[]') from ({rows}) as figure)"
        for name, rows in (_EVERYBODYS | _KINDS.get(kind, {})).items()
    )
    return f"""
update large_party as one set stale = false, shown_at = (select through from totals_position),
       shown = jsonb_build_object({figures.replace("$1", "one.id").replace("$2", "one.members")})
where id = any ($1::bigint[])"""


_STATEMENTS = {kind: _statement(kind) for kind in ("", *_KINDS)}

# Those without figures first, so that they are read from totals at all; then those that a change concerns, and beside
# them, however many these are, those whose figures are the oldest.
_NEXT = """
select id, kind from large_party where id in (
    (select id from large_party where built_at is not null and stale and (shown is null or id = any ($1::bigint[]))
     order by shown is null desc, shown_at limit $3)
    union
    (select id from large_party
     where built_at is not null and stale and shown_at < clock_timestamp() - make_interval(secs => $2)
     order by shown_at limit $3)
)"""

_STALE = """
update large_party set stale = true, shown_at = greatest(shown_at, $2) where id = any ($1::bigint[]) and not stale"""

_UNKNOWN = """
select id as large, day from large_party cross join lateral (
    select day from (
        select distinct on (type) day, last_at is null as unknown
        from large_party_day where large = id order by type, day desc
    ) as newest where unknown
    union
    select day from large_party_day
    where large = id and first_at is null and day = (select min(day) from large_party_day where large = id)
) as days
where id = any ($1::bigint[]) and built_at is not null"""

# $1 the large parties, $2 their days.
_FIRST_AND_LAST = f"""
with one as materialized (
    select large, day, day::timestamp at time zone 'UTC' as day_at,
           (day + 1)::timestamp at time zone 'UTC' as next_at
    from unnest($1::bigint[], $2::date[]) as unknown (large, day)
)
update large_party_day as old
set first_at = extreme.first_at, last_at = extreme.last_at, last_subject = extreme.last_subject
from one cross join lateral (
    with span as (
        select subject, lower(during) as starts, upper(during) as ends
        from large_party_span cross join lateral unnest(
            valid * tstzmultirange(tstzrange(one.day_at, one.next_at))
        ) as during
        where large = one.large
    ), {cut("span")},
    found as (
        select type, subject, first_at, last_at
        from span cross join lateral (
            select type, min(occurred_at) as first_at, max(occurred_at) as last_at from event
            where subject = span.subject and occurred_at >= span.starts and occurred_at < span.ends
            group by type
        ) as moments
        union all
        select type, subject, null, last_at
        from whole cross join lateral (
            select type, last_at from subject_day
            where subject = whole.subject and day = one.day and whole.first_day < end_day
        ) as days
    )
    select type, coalesce(min(first_at), one.day_at) as first_at, max(last_at) as last_at,
           (array_agg(subject order by last_at desc, subject))[1] as last_subject
    from found group by type
) as extreme
where old.large = one.large and old.day = one.day and old.type = extreme.type"""


async def stale(db: asyncpg.Connection, large: Collection[int], since: datetime) -> None:
    """Note that the figures of these are older than all else from now on: as they were at `since`."""
    if large:
        await db.execute(_STALE, list(large), since)


async def add_up(db: asyncpg.Connection, changed: Collection[int], older_s: float, at_most: int) -> None:
    """Add up anew of the figures that are stale those of `changed`, and those that are so old; of each at most so many.

    Of these the oldest first: nobody waits for ever, whatever changes.
    """
    rows = await db.fetch(_NEXT, list(changed), older_s, at_most)
    kinds: dict[str, list[int]] = {}
    for row in rows:
        kinds.setdefault(row["kind"] if row["kind"] in _KINDS else "", []).append(row["id"])
    for kind, ids in kinds.items():
        await db.execute(_STATEMENTS[kind], ids)


async def settle(db: asyncpg.Connection, large: Collection[int]) -> None:
    """Find the first event of all and the last of each type where these are not known, of those that are read."""
    rows = await db.fetch(_UNKNOWN, list(large)) if large else []
    if rows:
        await db.execute(_FIRST_AND_LAST, [row["large"] for row in rows], [row["day"] for row in rows])
