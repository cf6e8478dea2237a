"""What is said of a party, by whom: each origin has one word on each attribute, and the most trusted one is agreed on.

TooManyAttributes  a party would have more than it may
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

import asyncpg


class TooManyAttributes(Exception):
    """A party would have more attributes than it may; nothing was changed."""


@dataclass(frozen=True, slots=True)
class Said:
    """What an origin says of a party, as of one time."""

    origin: str
    values: Mapping[str, str | None]
    """By attribute, as JSON text; None: the origin takes its word back."""
    at: datetime | None
    """None: when it is recorded."""
    asserted_by: str


# Of two words of one time the greater is the later one, by its text: so any order of arrival ends the same.
_SAY = """
insert into party_attribute as held (party, name, origin, value, said_at, asserted_by)
select $1, said.name, $2, said.value::jsonb, coalesce($3, statement_timestamp()), $4
from unnest($5::text[], $6::text[]) as said (name, value)
on conflict (party, name, origin) do update
set value = excluded.value, said_at = excluded.said_at, recorded_at = excluded.recorded_at,
    asserted_by = excluded.asserted_by
where (excluded.said_at, coalesce(excluded.value::text, '') collate "C")
    > (held.said_at, coalesce(held.value::text, '') collate "C")"""

_OUTLIVED = """
select said.name
from unnest($4::text[], $5::text[]) as said (name, value)
join party_attribute as held on held.party = $1 and held.name = said.name and held.origin = $2
where held.said_at > $3 or held.value is distinct from said.value::jsonb
order by said.name"""

OF_PARTIES = """
select party_attribute.name, party_attribute.origin, value::text as value, said_at, recorded_at, asserted_by, party
from party_attribute left join origin on origin.name = party_attribute.origin
where party = any ($1::uuid[]) and value is not null
order by party_attribute.name, trust nulls last, said_at desc, party_attribute.origin, party"""


async def say(db: asyncpg.Connection, party: UUID, said: Said, attributes_max: int) -> list[str]:
    """Keep what an origin says of a party; return the attributes on which it has said something later already.

    Raises:
        TooManyAttributes: and nothing was changed.
    """
    names = sorted(said.values)
    values = [said.values[name] for name in names]
    async with db.transaction():
        # Or two requests could each add the last one that there is room for.
        await db.execute("select from party where id = $1 for no key update", party)
        await db.execute(_SAY, party, said.origin, said.at, said.asserted_by, names, values)
        if await db.fetchval("select count(*) from party_attribute where party = $1", party) > attributes_max:
            raise TooManyAttributes
        rows = await db.fetch(_OUTLIVED, party, said.origin, said.at, names, values)
    return [row["name"] for row in rows]


async def of_parties(db: asyncpg.Connection, parties: Sequence[UUID]) -> list[asyncpg.Record]:
    """Return every origin's word: name, origin, value (JSON text), said_at, recorded_at, asserted_by, party.

    By name; of each attribute the one agreed on comes first: of the most trusted origin, then the latest.
    """
    rows: list[asyncpg.Record] = await db.fetch(OF_PARTIES, parties)
    return rows


async def origins(db: asyncpg.Connection) -> list[str]:
    """Return the origins whose trust is declared, the most trusted first."""
    return [row["name"] for row in await db.fetch("select name from origin order by trust")]


async def declare_origins(db: asyncpg.Connection, names: Sequence[str]) -> None:
    """Trust these origins in this order, and no others before them."""
    async with db.transaction():
        # One declaration after the other: of two at once each would add its own to what both found.
        await db.execute("lock table origin in share row exclusive mode")
        await db.execute("delete from origin")
        await db.execute(
            "insert into origin (name, trust) "
            "select name, trust from unnest($1::text[]) with ordinality as declared (name, trust)",
            names,
        )
