"""Which parties are large, and what of one is counted next while its totals are built.

A group is large by all subjects on which its members ever held a role; it stays so until they are half as many.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from uuid import UUID

import asyncpg

from drm_ingest.postgres.relations.links import GROUP, group

_LINKED = """exists (select from party_link where party_link.party = {0} and upper_inf(recorded))
    or exists (select from party_link where other = {0} and upper_inf(recorded))"""


def _held(parties: str, limit: str) -> str:
    """Return how many subjects some parties hold or held, counted up to a limit for each of them."""
    return f"""(
    select count(distinct subject) from unnest({parties}) as own (id) cross join lateral (
        select distinct subject from relationship
        where party = own.id and upper_inf(recorded) order by subject limit {limit}
    ) as held
)"""


# Of the parties after $1 in order, at most $2: who may be large, by itself ($4 at least) or with others linked ($3).
_SWEPT = f"""
with next as materialized (
    select party, count(distinct subject) as subjects
    from (
        select party, subject from relationship
        where upper_inf(recorded) and party > $1
          and party <= coalesce((select id from party where id > $1 order by id offset $2 - 1 limit 1),
                                'ffffffff-ffff-ffff-ffff-ffffffffffff')
    ) as held group by party
)
select (select id from party where id > $1 order by id offset $2 - 1 limit 1) as swept_to,
       coalesce(array_agg(party) filter (
           where subjects >= $4 or (subjects >= $3 and ({_LINKED.format("next.party")}))
       ), '{{}}') as candidates from next"""

# Of the parties $1, as _SWEPT has it, those who are linked; and of all others, who have no totals yet, those are begun.
_MAY_BE = f"""
with candidate as materialized (
    select id, ({_LINKED.format("candidate.id")}) as linked from unnest($1::uuid[]) as candidate (id)
),
alone as (
    insert into large_party (party, members, kind)
    select party.id, array[party.id], kind from candidate join party using (id)
    where not linked and {_held("array[party.id]", "$3")} >= $3
      and not exists (select from large_party where members = array[party.id])
    returning party
)
select coalesce(array_agg(id order by id), '{{}}')
from candidate where linked and {_held("array[id]", "$2")} >= $2"""

_SUBJECTS = f"select {_held('$1::uuid[]', '$2')}"

FIRST = UUID(int=0)


@dataclass(frozen=True, slots=True)
class Sizes:
    """More subjects than `large` make a group large; `linked_max` parties are linked at most."""

    large: int
    linked_max: int

    @property
    def least(self) -> int:
        """How many subjects one of a large group has at least."""
        return max(1, (self.large + 1) // self.linked_max)


async def sweep(db: asyncpg.Connection, after: UUID, parties: int, sizes: Sizes) -> tuple[UUID | None, Sequence[UUID]]:
    """Look at the next parties; return up to whom (None: to the last) and who of them may be large."""
    row = await db.fetchrow(_SWEPT, after, parties, sizes.least, sizes.large + 1)
    return row["swept_to"], row["candidates"]


async def enlist(db: asyncpg.Connection, parties: Collection[UUID], sizes: Sizes) -> None:
    """Begin the totals of whoever of these is large and has none, of the group as it is now."""
    linked = await db.fetchval(_MAY_BE, list(set(parties)), sizes.least, sizes.large + 1)
    seen = set[UUID]()
    for party in linked:
        if party in seen:
            continue
        members = await group(db, party)
        seen.update(members)
        if await db.fetchval("select exists (select from large_party where members = $1)", members):
            continue
        if await db.fetchval(_SUBJECTS, members, sizes.large + 1) > sizes.large:
            await begin(db, members)


async def begin(db: asyncpg.Connection, members: Sequence[UUID]) -> None:
    """Begin to count for a group."""
    await db.execute(
        "insert into large_party (party, members, kind) select id, $1, kind from party where id = $2",
        members, members[0],
    )  # fmt: skip


# One after the other, and none while anything else is built: what is counted anew is there twice.
_RECOUNT = """
insert into large_party (party, members, kind)
select party, members, kind from large_party
where built_at < clock_timestamp() - make_interval(secs => $1)
  and not exists (select from large_party where built_at is null)
order by built_at limit 1"""

_AGAIN = """
update large_party set built_to = '' where built_at is null and kind = 'partner' and members && $1::uuid[]"""
_ANEW = """
insert into large_party (party, members, kind)
select party, members, kind from large_party as old
where built_at is not null and kind = 'partner' and members && $1::uuid[]
  and not exists (select from large_party where party = old.party and built_at is null)"""


async def recount(db: asyncpg.Connection, recount_s: float) -> None:
    """Begin to count anew what was counted so long ago, one party at a time."""
    await db.execute(_RECOUNT, recount_s)


async def agents(db: asyncpg.Connection, of: Collection[UUID]) -> None:
    """Count anew for these partners, from the first subject on: who visits for them is somebody else by now."""
    if of:
        await db.execute(_AGAIN, list(of))
        await db.execute(_ANEW, list(of))


# $1: half as many subjects as make it large; more keep it so.
def _retire(which: str) -> str:
    grown = GROUP.replace("$1::uuid", "large.party")
    return f"""
delete from large_party as large
where {which} and ({_held("members", "$1 + 1")} <= $1 or members <> ({grown}))"""


_RETIRE_OF = _retire("members && $2::uuid[]")
_RETIRE_BETWEEN = _retire("party > $2 and party <= coalesce($3, 'ffffffff-ffff-ffff-ffff-ffffffffffff'::uuid)")


async def retire_of(db: asyncpg.Connection, parties: Collection[UUID], sizes: Sizes) -> None:
    """Forget the totals of those groups of these parties that are not any more, or not large any more."""
    await db.execute(_RETIRE_OF, sizes.large // 2, list(parties))


async def retire_between(db: asyncpg.Connection, after: UUID, to: UUID | None, sizes: Sizes) -> None:
    """Do the same for the groups whose first party comes after one, up to another (None: to the last)."""
    await db.execute(_RETIRE_BETWEEN, sizes.large // 2, after, to)


# Those without any totals first, then those that are counted anew because something changed.
_BUILDING = """
select id, members, built_to, hurried
from (
    select next.id, next.members, next.built_to, built.built_at is not null as anew,
           coalesce(built.built_at >= clock_timestamp() - make_interval(secs => $1), true) as hurried
    from large_party as next left join lateral (
        select built_at from large_party where party = next.party and built_at is not null
    ) as built on true
    where next.built_at is null
) as building
order by anew, not hurried, id limit $2"""


@dataclass(frozen=True, slots=True)
class Building:
    """Totals that are being built."""

    id: int
    members: list[UUID]
    built_to: str
    hurried: bool
    """They are missing, or wrong; else it was only time."""


async def building(db: asyncpg.Connection, recount_s: float, limit: int) -> list[Building]:
    """Return what is being built, at most so many, that which is needed most first."""
    return [Building(**dict(row)) for row in await db.fetch(_BUILDING, recount_s, limit)]


_NEXT = """
select distinct subject from relationship
where party = any ($1::uuid[]) and subject > $2 and upper_inf(recorded) order by subject limit $3"""


async def next_slice(db: asyncpg.Connection, members: Sequence[UUID], after: str, subjects: int) -> list[str]:
    """Return the subjects of relations that are to be counted next, in order."""
    return [row["subject"] for row in await db.fetch(_NEXT, members, after, subjects)]


# All other totals of the group go; by how many events what they counted was wrong.
_BUILT = """
with other as (select id from large_party where party = $2 and id <> $1),
difference as (
    select abs(coalesce(mine.events, 0) - coalesce(others.events, 0)) as events
    from (select * from large_party_day where large = $1) as mine
    full join (
        select large_party_day.* from large_party_day
        join large_party on large = large_party.id and built_at is not null and members = $3
        where party = $2 and large <> $1
    ) as others using (day, type)
    where exists (select from large_party where party = $2 and id <> $1 and built_at is not null and members = $3)
),
gone as (delete from large_party where id in (select id from other))
select coalesce(sum(events), 0)::bigint from difference"""


async def built_to(db: asyncpg.Connection, large: int, subject: str) -> None:
    """Note up to which subject totals are built."""
    await db.execute("update large_party set built_to = $2 where id = $1", large, subject)


async def finish(db: asyncpg.Connection, large: int, members: Sequence[UUID]) -> int:
    """Let the totals be read, instead of those before them; return by how many events these were wrong."""
    healed: int = await db.fetchval(_BUILT, large, members[0], members)
    await db.execute("update large_party set built_at = now() where id = $1", large)
    return healed
