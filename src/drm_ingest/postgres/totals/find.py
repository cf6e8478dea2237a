"""Which parties are large, and what of one is counted next while its totals are built.

A group is large by all subjects on which its members ever held a role; it stays so until they are half as many.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from uuid import UUID

import asyncpg

from drm_ingest.postgres.relations.links import group

# Of the parties after $1 in order, at most $2: who may be large, by itself or with those linked to it ($3 at least).
_SWEPT = """
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
       coalesce(array_agg(party) filter (where subjects >= $3), '{}') as candidates from next"""

_SUBJECTS = """
select count(*) from (
    select distinct subject from relationship
    where party = any ($1::uuid[]) and upper_inf(recorded) limit $2
) as held"""

_MAY_BE = """
select coalesce(array_agg(party order by party), '{}') from unnest($1::uuid[]) as party
where (select count(*) from (
    select from relationship where relationship.party = party.party and upper_inf(recorded) limit $2
) as held) >= $2"""

FIRST = UUID(int=0)


@dataclass(frozen=True, slots=True)
class Sizes:
    """More subjects than `large` make a group large; `linked_max` parties are linked at most."""

    large: int
    linked_max: int


async def sweep(db: asyncpg.Connection, after: UUID, parties: int, sizes: Sizes) -> tuple[UUID | None, Sequence[UUID]]:
    """Look at the next parties; return up to whom (None: to the last) and who of them may be large."""
    row = await db.fetchrow(_SWEPT, after, parties, max(1, (sizes.large + 1) // sizes.linked_max))
    return row["swept_to"], row["candidates"]


async def enlist(db: asyncpg.Connection, parties: Collection[UUID], sizes: Sizes) -> bool:
    """Begin the totals of whoever of these is large and has none, of the group as it is now; return whether any is."""
    found = False
    least = max(1, (sizes.large + 1) // sizes.linked_max)
    for party in await db.fetchval(_MAY_BE, list(parties), least):
        members = await group(db, party)
        if await db.fetchval("select exists (select from large_party where members = $1)", members):
            continue
        if await db.fetchval(_SUBJECTS, members, sizes.large + 1) > sizes.large:
            await begin(db, members)
            found = True
    return found


async def begin(db: asyncpg.Connection, members: Sequence[UUID]) -> None:
    """Begin to count for a group, or anew."""
    await db.execute(
        "insert into large_party (party, members, kind) select id, $1, kind from party where id = $2",
        members, members[0],
    )  # fmt: skip


async def retire(db: asyncpg.Connection, sizes: Sizes) -> None:
    """Forget the totals of groups that are not any more, or not large any more."""
    for row in await db.fetch("select id, party, members from large_party"):
        small = await db.fetchval(_SUBJECTS, row["members"], sizes.large // 2 + 1) <= sizes.large // 2
        if small or await group(db, row["party"]) != row["members"]:
            await db.execute("delete from large_party where id = $1", row["id"])


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


async def finish(db: asyncpg.Connection, large: int, members: Sequence[UUID]) -> int:
    """Let the totals be read, instead of those before them; return by how many events these were wrong."""
    healed: int = await db.fetchval(_BUILT, large, members[0], members)
    await db.execute("update large_party set built_at = now() where id = $1", large)
    return healed
