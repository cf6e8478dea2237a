"""What subjects contribute to the rare parts of a large party's record, put together anew as a whole where touched.

They are the very statements of record/, held to some subjects ($4), and asked of each large party in turn by one
statement of all: what they have as parameters is of `each` then.

    fault        everybody: open on the device
    had_fault    everybody: that the device ever had one
    answer       everybody: to each scale and score
    sold_fault, sold_answer; large_party_reached    a vendor's customers
    supplied     a supplier: faults by role and batch
    visit        a partner
"""

from collections.abc import Collection, Mapping, Sequence

import asyncpg

from drm_ingest.postgres.record import own, serviced, sold, supplied
from drm_ingest.postgres.record.known import AT, KIN, KNOWN
from drm_ingest.postgres.record.rare import CONTACT, FAULT, RATING, RATINGS, lens
from drm_ingest.postgres.totals.compare import EACH, Pair, columns

_OF_EACH = {
    "$1": "each.members", "$2": "null", "$3": "null", "$4": "each.subjects", "$5": "each.large",
}  # fmt: skip


def _of_each(statement: str) -> str:
    for parameter, column in _OF_EACH.items():
        statement = statement.replace(parameter, column)
    return statement


def _add(part: str, kind: str, steps: str, rows: str) -> str:
    return f"""
with {EACH},
gone as (
    delete from large_party_part using (select large, unnest(subjects) as subject from each) as pair
    where large_party_part.large = pair.large and large_party_part.subject = pair.subject and part = '{part}'
)
insert into large_party_part (large, part, subject, row)
select each.large, '{part}', contribution.subject, to_jsonb(contribution) - 'subject'
from each cross join lateral ({_of_each(f"with recursive {steps} {rows}" if steps else rows)}) as contribution
where kind = '{kind}' or '{kind}' = ''"""


_FAULT = """
select subject, code, since, last_at, raised, jsonb_strip_nulls(jsonb_build_object(
           'severity', data -> 'severity', 'message', data -> 'message', 'component', data -> 'component')) as data
from open_fault"""
_HAD_FAULT = f"""
select subject from large_party_span
where large = $5 and subject = any ($4::text[]) and not starts_with(subject, 'party:') and exists (
    select from subject_day where subject_day.subject = large_party_span.subject and type = '{FAULT}'
)"""
_ANSWER = "select of as subject, scale, score, answers, first_at, last_at from answers"


def _ratings(steps: str) -> str:
    head, tail = RATINGS.split("\nselect of, scale, score", 1)
    return f"{steps}, {head}, answers as (select of, scale, score{tail})"


_SPANS = f"""
spanned as (
    select subject, unnest(valid) as valid from large_party_span
    where large = $5 and subject = any ($4::text[])
), {lens("subject", "spanned", AT)}"""
_SOLD_DEVICES = f"""{sold.reached("$4")},
owned as (select subject, valid from reached where subject is not null), {lens("subject", "owned", AT)}"""
# What customers say counts while they have any of the devices that it sold, or buy from it.
_SOLD_CUSTOMERS = f"""
wanted (name) as (select distinct subject collate "C" from unnest($4::text[]) as subject),
{KNOWN}, {sold.bought("$5")}, {lens("subject", "bought", AT)}"""
_SUPPLIED = """
select faulty.subject, faulty.of ->> 0 as role, faulty.of ->> 1 as batch, faulty.raised, coalesce(codes, '{}') as codes
from (
    select of, subject, count(*) filter (where data ->> 'state' is distinct from 'cleared') as raised
    from fault group by of, subject
) as faulty
left join (select of, subject, array_agg(code) as codes from open_fault group by of, subject) as standing
    using (of, subject)"""

_PARTS = {
    "fault": _add("fault", "", own.open_faults("$4"), _FAULT),
    "had_fault": _add("had_fault", "", "", _HAD_FAULT),
    "answer": _add("answer", "", _ratings(_SPANS), _ANSWER),
    "sold_fault": _add(
        "sold_fault", "vendor", f"{sold.reached('$4')}, {sold.OPEN}", "select subject, code from open_fault"
    ),
    "sold_answer": _add("sold_answer", "vendor", _ratings(_SOLD_DEVICES), _ANSWER),
    "supplied": _add("supplied", "supplier", supplied.open_faults("$4"), _SUPPLIED),
    "visit": _add(
        "visit", "partner", serviced.visits("$4"),
        "select device as subject, subject as about, source, id, occurred_at from visit",
    ),
}  # fmt: skip
_CUSTOMERS_ANSWERS = _add("sold_answer", "vendor", _ratings(_SOLD_CUSTOMERS), _ANSWER)

_OF_TYPES = {
    FAULT: ("fault", "had_fault", "sold_fault", "supplied"),
    RATING: ("answer", "sold_answer"),
    CONTACT: ("visit",),
}
ALL = tuple(_PARTS)

_REACHED_GONE = f"""
with {EACH}, pair as (select large, unnest(subjects) as subject from each where kind = 'vendor')
delete from large_party_reached as reached using pair
where reached.large = pair.large and reached.subject = pair.subject
returning reached.large, 'party:' || reached.party as name"""
_REACHED_STEPS = f"""
{sold.reached("$4")},
known as (select party from reached),
{KIN},
person as (select party, (array_agg(same order by same))[1] as id from kin group by party)"""
_REACHED = f"""
with {EACH}
insert into large_party_reached (large, subject, party, person, valid)
select each.large, bought.* from each cross join lateral (
    with recursive {_of_each(_REACHED_STEPS)}
    select coalesce(subject, 'party:' || party), party, person.id, valid from reached join person using (party)
) as bought
where kind = 'vendor'
returning large, 'party:' || party as name"""


def of_event(type_: str, subject: str) -> Sequence[str]:
    """Return the parts that an event may change; what is said of a party, by itself, does not count as of a device."""
    return ("answer",) if type_ == RATING and subject.startswith("party:") else _OF_TYPES[type_]


async def put_together(db: asyncpg.Connection, parts: Mapping[str, Collection[Pair]]) -> None:
    """Replace what subjects contribute to the parts of these names."""
    for part, pairs in parts.items():
        if pairs:
            await db.execute(_PARTS[part], *columns(pairs))


async def reach(db: asyncpg.Connection, pairs: Collection[Pair]) -> set[Pair]:
    """Find anew who had these subjects of a vendor; return who had or has: their answers count otherwise."""
    of = columns(pairs)
    rows = [*await db.fetch(_REACHED_GONE, *of), *await db.fetch(_REACHED, *of)]
    return {(row["large"], row["name"]) for row in rows}


async def put_together_customers(db: asyncpg.Connection, pairs: Collection[Pair]) -> None:
    """Replace what vendors' customers of these names contribute."""
    await db.execute(_CUSTOMERS_ANSWERS, *columns(pairs))
