"""Parties: their kinds, names and references.

ReferenceTaken     a reference already names a party
TooManyReferences  a party would have more than it may
"""

from collections.abc import Iterable, Sequence
from uuid import UUID

import asyncpg

PARTY = """
select id, kind, name, created_at, coalesce(
           (select jsonb_object_agg(namespace, refs)
            from (select namespace, jsonb_agg(ref order by ref collate "C") as refs
                  from party_ref where party = party.id group by namespace) as named),
           '{}') as refs
from party"""
"""As rows of parties are returned."""

Reference = tuple[str, str]
"""A namespace and what stands in it, as it is kept."""


class ReferenceTaken(Exception):
    """A reference already names a party."""

    def __init__(self, reference: str, party: UUID) -> None:
        super().__init__(f"{reference} is party {party}")
        self.reference, self.party = reference, party


class TooManyReferences(Exception):
    """A party would have more references than it may; nothing was changed."""


async def create(db: asyncpg.Connection, kind: str, name: str, refs: Iterable[Reference], refs_max: int) -> UUID:
    """Return the new party.

    Raises:
        ReferenceTaken, TooManyReferences: and nothing was created.
    """
    async with db.transaction():
        party: UUID = await db.fetchval("insert into party (kind, name) values ($1, $2) returning id", kind, name)
        await _add(db, party, refs, refs_max)
        return party


async def add_references(db: asyncpg.Connection, party: UUID, refs: Iterable[Reference], refs_max: int) -> None:
    """Call a party by these names too; those it has already are left as they are.

    Raises:
        ReferenceTaken, TooManyReferences: and nothing was changed.
    """
    async with db.transaction():
        # Or two requests could each add the last one that there is room for.
        await db.execute("select from party where id = $1 for no key update", party)
        await _add(db, party, refs, refs_max)


async def _add(db: asyncpg.Connection, party: UUID, refs: Iterable[Reference], refs_max: int) -> None:
    for namespace, ref in sorted(refs):  # in one order for all, or two requests could wait for each other
        added = await db.fetchval(
            "insert into party_ref (namespace, ref, party) values ($1, $2, $3) on conflict do nothing returning true",
            namespace, ref, party,
        )  # fmt: skip
        if added:
            continue
        holder = await db.fetchval("select party from party_ref where namespace = $1 and ref = $2", namespace, ref)
        if holder != party:
            raise ReferenceTaken(f"{namespace}:{ref}", holder)
    if await db.fetchval("select count(*) from party_ref where party = $1", party) > refs_max:
        raise TooManyReferences


async def remove_reference(db: asyncpg.Connection, party: UUID, reference: Reference) -> bool:
    """Call a party by this name no more; return whether it was called so.

    Raises:
        ReferenceTaken: another party is called so, and still is.
    """
    removed = await db.fetchval(
        "delete from party_ref where namespace = $1 and ref = $2 and party = $3 returning true", *reference, party
    )
    if not removed:
        holder = await db.fetchval("select party from party_ref where namespace = $1 and ref = $2", *reference)
        if holder is not None and holder != party:
            raise ReferenceTaken(":".join(reference), holder)
    return bool(removed)


async def find_party(db: asyncpg.Connection, name: str) -> UUID | None:
    """Return the id of the party called `name`: its id, or a reference such as `crm:778`; None where there is none."""
    namespace, colon, ref = name.partition(":")
    found: UUID | None
    if colon:
        found = await db.fetchval("select party from party_ref where namespace = $1 and ref = $2", namespace, ref)
        return found
    try:
        id_ = UUID(name)
    except ValueError:
        return None
    found = await db.fetchval("select id from party where id = $1", id_)
    return found


async def party(db: asyncpg.Connection, id_: UUID) -> asyncpg.Record | None:
    """Return id, kind, name, created_at, refs (JSON text); parties are never deleted."""
    return await db.fetchrow(f"{PARTY} where id = $1", id_)


async def kinds(db: asyncpg.Connection, ids: Sequence[UUID]) -> list[asyncpg.Record]:
    """Return of which kind each of these is, by age: party, kind."""
    rows: list[asyncpg.Record] = await db.fetch(
        "select id as party, kind from party where id = any ($1::uuid[]) order by id", ids
    )
    return rows


async def parties(
    db: asyncpg.Connection, *, kind: str | None, reference: str | None, after: UUID | None, limit: int
) -> list[asyncpg.Record]:
    """Return parties by age, those after `after`."""
    if reference is not None:
        found = await find_party(db, reference)
        row = await party(db, found) if found else None
        return [row] if row and kind in (None, row["kind"]) and (after is None or row["id"] > after) else []
    return list(
        await db.fetch(
            f"{PARTY} where id > $1 and ($2::text is null or kind = $2) order by id limit $3",
            after or UUID(int=0), kind, limit,
        )
    )  # fmt: skip
