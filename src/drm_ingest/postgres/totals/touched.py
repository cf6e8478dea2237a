"""Which subjects of which large parties are to be compared and put together anew: after changes, and as time passes."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from uuid import UUID

import asyncpg

from drm_ingest.postgres.record.known import KNOWN
from drm_ingest.postgres.totals.compare import EACH, Pair, columns

LINK_CHANGES = ("linked", "unlinked")


@dataclass(frozen=True, slots=True)
class Changes:
    """What changed after a number."""

    number: int
    """Of the last of them."""
    names: frozenset[str]
    """Devices, and parties by their ids."""
    parties: frozenset[UUID]
    """Who gained or lost something."""
    employers: frozenset[UUID]
    """Who they say somebody works for: whose agents are others now."""
    linked: frozenset[UUID]
    """Who was linked or taken apart."""
    all: bool
    """There are no more."""


_CHANGES = """
select number, subject, party, role, change from relationship_change where number > $1 order by number limit $2"""


async def last_number(db: asyncpg.Connection) -> int:
    """Return the number of the last change there is."""
    number: int = await db.fetchval("select coalesce(max(number), 0) from relationship_change")
    return number


async def changes(db: asyncpg.Connection, after: int, limit: int) -> Changes:
    """Return what changed after a number, at most so many."""
    rows = await db.fetch(_CHANGES, after, limit)
    names = {row["subject"] for row in rows}
    names |= {f"party:{row['party']}" for row in rows if row["change"] in LINK_CHANGES}
    return Changes(
        rows[-1]["number"] if rows else after,
        frozenset(names),
        frozenset(row["party"] for row in rows),
        frozenset(row["party"] for row in rows if row["role"] == "works_for"),
        frozenset(row["party"] for row in rows if row["change"] in LINK_CHANGES),
        len(rows) < limit,
    )


# What else the parties among $1 are called, they and those linked to them now.
_NAMES = f"""
with recursive wanted (name) as (select distinct subject collate "C" from unnest($1::text[]) as subject),
{KNOWN}
select 'party:' || same as name from kin
union
select 'party:' || namespace || ':' || ref from kin cross join lateral (
    select namespace, ref from party_ref where party_ref.party = kin.same offset 0  -- one by one, by index
) as called"""
# The same for each of large vendors.
_NAMES_OF = f"""
with {EACH}
select large, name from each cross join lateral ({_NAMES.replace("$1::text[]", "each.subjects")}) as called
where kind = 'vendor'"""

_CONCERNED = f"""
with recursive wanted (name) as (select distinct subject collate "C" from unnest($1::text[]) as subject),
{KNOWN},
related (name, party) as (
    select wanted.name, relation.party
    from wanted cross join lateral (
        select distinct party from relationship where subject = wanted.name and upper_inf(recorded)
    ) as relation
    where not starts_with(wanted.name, 'party:')
    union
    select known.name, relation.party
    from known join kin using (party) cross join lateral (
        select distinct party from relationship where subject = 'party:' || kin.same and upper_inf(recorded)
    ) as relation
    union
    select name, party from known
)
select large.id as large, related.name as subject
from related join large_party as large on large.members @> array[related.party]
union
select span.large, span.subject from wanted join large_party_span as span on span.subject = wanted.name"""


async def all_names(db: asyncpg.Connection, subjects: Collection[str]) -> set[str]:
    """Return these subjects, with all that the parties among them, and those linked to these, are called."""
    parties = [subject for subject in subjects if subject.startswith("party:")]
    if not parties:
        return set(subjects)
    return {*subjects, *(row["name"] for row in await db.fetch(_NAMES, parties))}


async def customers_names(db: asyncpg.Connection, pairs: Collection[Pair]) -> set[Pair]:
    """Return the parties among these, with all that those of a vendor, and whoever is linked to them, are called."""
    parties = [(large, subject) for large, subject in pairs if subject.startswith("party:")]
    if not parties:
        return set()
    return {*parties, *((row["large"], row["name"]) for row in await db.fetch(_NAMES_OF, *columns(parties)))}


async def concerned(db: asyncpg.Connection, names: Collection[str]) -> list[Pair]:
    """Return which large parties hold these subjects, or have counted them."""
    rows: Sequence[asyncpg.Record] = await db.fetch(_CONCERNED, list(names)) if names else []
    return [(row["large"], row["subject"]) for row in rows]


_DUE = "select large, subject from large_party_span where due_at <= now() order by due_at limit $1"


async def due(db: asyncpg.Connection, limit: int) -> list[Pair]:
    """Return where a relation has begun or ended by now, as was known beforehand."""
    return [(row["large"], row["subject"]) for row in await db.fetch(_DUE, limit)]


_SOLD_TO = f"""
with recursive wanted (name) as (select distinct subject collate "C" from unnest($1::text[]) as subject),
{KNOWN}
select distinct large, subject from kin join large_party_reached as reached on reached.party = kin.same"""


async def sold_to(db: asyncpg.Connection, names: Collection[str]) -> list[Pair]:
    """Return what the customers among these names, and those linked to them, had of a large vendor."""
    rows = await db.fetch(_SOLD_TO, list(names)) if names else []
    return [(row["large"], row["subject"]) for row in rows]


_SAID_TO = f"""
with recursive wanted (name) as (select distinct subject collate "C" from unnest($1::text[]) as subject),
{KNOWN}
select distinct large, name as subject
from known join kin using (party) cross join lateral (
    select large from large_party_reached where large_party_reached.party = kin.same offset 0
) as reached
union
select large, subject from large_party_part where part = 'sold_answer' and subject = any ($1::text[])"""


async def said_to(db: asyncpg.Connection, names: Collection[str]) -> list[Pair]:
    """Return to which large vendors it counts what is said under these names of parties, or has counted."""
    names = [name for name in names if name.startswith("party:")]
    rows = await db.fetch(_SAID_TO, names) if names else []
    return [(row["large"], row["subject"]) for row in rows]


_HELD_BY = f"""
with recursive wanted (name) as (select distinct subject collate "C" from unnest($1::text[]) as subject),
{KNOWN}
select distinct subject
from kin cross join lateral (
    select subject from relationship
    where party = kin.same and subject_party is null and upper_inf(recorded) and role || '' in ('owner', 'user')
    offset 0
) as held"""


async def held_by(db: asyncpg.Connection, names: Collection[str]) -> list[str]:
    """Return the devices that the parties among these names, and those linked to them, own or use, or did."""
    return [row["subject"] for row in await db.fetch(_HELD_BY, list(names))] if names else []


_RENAMED = """
delete from large_party_renamed where ctid = any (array(select ctid from large_party_renamed limit $1))
returning subject, party"""
_CONTRIBUTE = "select distinct large, subject from large_party_part where subject = any ($1::text[])"
# Who visits for them is known by it: a party for itself, and for whom it works.
_AGENTS_OF = """
select unnest($1::uuid[]) as party
union
select party from relationship
where subject = any (array(select 'party:' || id from unnest($1::uuid[]) as agent (id)))
  and upper_inf(recorded) and role || '' = 'works_for'"""


@dataclass(frozen=True, slots=True)
class Renamed:
    """Names that mean another party by now, or none."""

    names: Sequence[str]
    parties: Sequence[str]
    """Whose they are or were, by their ids: a name that is gone does not tell."""
    agents_of: Collection[UUID]
    """Who they visit for."""
    all: bool
    """There are no more."""


async def renamed(db: asyncpg.Connection, limit: int) -> Renamed:
    """Return names that have come and gone; looked at with this."""
    rows = await db.fetch(_RENAMED, limit)
    whose = {row["party"] for row in rows}
    return Renamed(
        sorted({row["subject"] for row in rows}),
        [f"party:{party}" for party in whose],
        {row["party"] for row in await db.fetch(_AGENTS_OF, list(whose))} if whose else (),
        len(rows) < limit,
    )


async def contributing(db: asyncpg.Connection, names: Collection[str]) -> list[Pair]:
    """Return to what these subjects contribute."""
    rows = await db.fetch(_CONTRIBUTE, list(names)) if names else []
    return [(row["large"], row["subject"]) for row in rows]
