"""What subjects contribute to the rare parts of a large party's record, put together anew as a whole where touched.

They are the very statements of record/, held to some subjects ($4).

    fault        everybody: open on the device
    answer       everybody: to each scale and score
    sold_fault, sold_answer; large_party_reached    a vendor's customers
    supplied     a supplier: faults by role and batch
    visit        a partner
"""

from collections.abc import Collection, Sequence
from uuid import UUID

import asyncpg

from drm_ingest.postgres.record import own, serviced, sold, supplied
from drm_ingest.postgres.record.known import AT, NOW
from drm_ingest.postgres.record.rare import RATINGS, lens
from drm_ingest.postgres.totals.compare import KIN, NAMED


def _add(part: str, steps: str, rows: str) -> str:
    return f"""
with recursive {steps},
contribution as ({rows})
insert into large_party_part (large, part, subject, row)
select $5::bigint, '{part}', contribution.subject, to_jsonb(contribution) - 'subject' from contribution"""


_FAULT = """
select subject, code, since, last_at, raised, jsonb_strip_nulls(jsonb_build_object(
           'severity', data -> 'severity', 'message', data -> 'message', 'component', data -> 'component')) as data
from open_fault"""
# Where the group is asked for, though it has no say in it, so that all of these have the same parameters.
_GROUP = "cardinality($1::uuid[]) > 0 and coalesce($2::timestamptz, $3::timestamptz) is null"
_ANSWER = "select of as subject, scale, score, answers, first_at, last_at from answers"


def _ratings(steps: str) -> str:
    head, tail = RATINGS.split("\nselect of, scale, score", 1)
    return f"{steps}, {head}, answers as (select of, scale, score{tail})"


_SPANS = f"""
spanned as (
    select subject, unnest(valid) as valid from large_party_span
    where large = $5 and subject = any ($4::text[]) and {_GROUP}
), {lens("subject", "spanned", AT)}"""
_SOLD_DEVICES = f"""{sold.reached("$4")},
owned as (select subject, valid from reached where subject is not null), {lens("subject", "owned", AT)}"""
# What customers say counts while they have any of the devices that it sold, or buy from it.
_SOLD_CUSTOMERS = f"""
wanted (name) as (select distinct subject collate "C" from unnest($4::text[]) as subject),
{NAMED},
known as (select name, party from named where party is not null),
{KIN},
bought as (
    select known.name as subject, reached.valid
    from known join kin using (party) cross join lateral (
        select valid from large_party_reached where party = kin.same and large = $5 offset 0  -- one by one, by index
    ) as reached
    where {_GROUP}
), {lens("subject", "bought", AT)}"""
_SUPPLIED = """
select faulty.subject, faulty.of ->> 0 as role, faulty.of ->> 1 as batch, faulty.raised, coalesce(codes, '{}') as codes
from (
    select of, subject, count(*) filter (where data ->> 'state' is distinct from 'cleared') as raised
    from fault group by of, subject
) as faulty
left join (select of, subject, array_agg(code) as codes from open_fault group by of, subject) as standing
    using (of, subject)"""

_EVERYBODYS = {
    "fault": _add("fault", own.open_faults("$4"), _FAULT),
    "answer": _add("answer", _ratings(_SPANS), _ANSWER),
}
_KINDS = {
    "vendor": {
        "sold_fault": _add("sold_fault", f"{sold.reached('$4')}, {sold.OPEN}", "select subject, code from open_fault"),
        "sold_answer": _add("sold_answer", _ratings(_SOLD_DEVICES), _ANSWER),
    },
    "supplier": {"supplied": _add("supplied", supplied.open_faults("$4"), _SUPPLIED)},
    "partner": {
        "visit": _add(
            "visit",
            serviced.visits("$4"),
            "select device as subject, subject as about, source, id, occurred_at from visit",
        )
    },
}
_CUSTOMERS_ANSWERS = _add("sold_answer", _ratings(_SOLD_CUSTOMERS), _ANSWER)

_GONE = "delete from large_party_part where large = $1 and subject = any ($2::text[]) and part = any ($3::text[])"
_REACHED_GONE = """
delete from large_party_reached where large = $1 and subject = any ($2::text[]) returning 'party:' || party as name"""
_REACHED = f"""
with recursive {sold.reached("$4")},
known as (select party from reached),
{KIN},
person as (select party, (array_agg(same order by same))[1] as id from kin group by party)
insert into large_party_reached (large, subject, party, person, valid)
select $5, coalesce(subject, 'party:' || party), party, person.id, valid from reached join person using (party)
returning 'party:' || party as name"""


async def put_together(
    db: asyncpg.Connection, large: int, kind: str, members: Sequence[UUID], subjects: Collection[str]
) -> set[str]:
    """Replace what these subjects contribute; return the customers, by their ids, whose answers count otherwise now."""
    of = (*NOW.of(members), list(subjects), large)
    parts = _EVERYBODYS | _KINDS.get(kind, {})
    await db.execute(_GONE, large, list(subjects), list(parts))
    customers: set[str] = set()
    if kind == "vendor":
        customers = {row["name"] for row in await db.fetch(_REACHED_GONE, large, list(subjects))}
        customers |= {row["name"] for row in await db.fetch(_REACHED, *of)}
    for statement in parts.values():
        await db.execute(statement, *of)
    return customers


async def put_together_customers(
    db: asyncpg.Connection, large: int, members: Sequence[UUID], names: Collection[str]
) -> None:
    """Replace what a vendor's customers of these names contribute."""
    await db.execute(_GONE, large, list(names), ["sold_answer"])
    await db.execute(_CUSTOMERS_ANSWERS, *NOW.of(members), list(names), large)
