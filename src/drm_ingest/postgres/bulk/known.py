"""What many relations are held against: their parties, the rules, and what is there, read once it is locked."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

import asyncpg

from drm_ingest.event import PARTY_PREFIX


@dataclass(frozen=True, slots=True)
class Wanted:
    """A relation as a file has it; subject and party by any of their names."""

    subject: str
    role: str
    party: str
    valid_from: datetime | None
    valid_to: datetime | None
    batch: str | None
    asserted_by: str
    reason: str | None


@dataclass(frozen=True, slots=True)
class Held:
    """A relation that is there, or is about to be; of one that is about to be in a dry run there is no id."""

    id: UUID | None
    role: str
    party: UUID
    batch: str | None
    valid_from: datetime | None
    valid_to: datetime | None


@dataclass(frozen=True, slots=True)
class Known:
    """What the rules are held against."""

    parties: Mapping[str, tuple[UUID, str]]
    """By every name that is used: id and kind."""
    joins: Mapping[tuple[str, str], Mapping[str, bool]]
    """By role and kind of the subject: the kinds of parties, and whether it excludes others."""
    held: dict[str, list[Held]]
    """By subject, those that are open."""


async def parties(db: asyncpg.Connection, wanted: Sequence[Wanted]) -> dict[str, tuple[UUID, str]]:
    names = {line.party for line in wanted}
    names |= {line.subject.removeprefix(PARTY_PREFIX) for line in wanted if line.subject.startswith(PARTY_PREFIX)}
    ids: dict[UUID, list[str]] = {}
    refs = []
    for name in names:
        namespace, colon, ref = name.partition(":")
        if colon:
            refs.append((namespace, ref))
            continue
        try:
            ids.setdefault(UUID(name), []).append(name)
        except ValueError:
            continue
    found = {
        f"{row['namespace']}:{row['ref']}": (row["id"], row["kind"])
        for row in await db.fetch(
            "select namespace, ref, party.id, kind from unnest($1::text[], $2::text[]) as wanted (namespace, ref) "
            "join party_ref using (namespace, ref) join party on party.id = party_ref.party",
            [namespace for namespace, _ in refs], [ref for _, ref in refs],
        )
    }  # fmt: skip
    for row in await db.fetch("select id, kind from party where id = any ($1::uuid[])", list(ids)):
        found |= dict.fromkeys(ids[row["id"]], (row["id"], row["kind"]))
    return found


async def locked(db: asyncpg.Connection, subjects: Sequence[str]) -> datetime:
    """Lock all subjects, in order; return when what changes is recorded: later than what is recorded of any of them."""
    await db.execute(
        "select pg_advisory_xact_lock(hashtextextended(subject, 0)) "
        'from (select subject from unnest($1::text[]) as subject order by subject collate "C" offset 0) as ordered',
        subjects,
    )
    recorded_at: datetime = await db.fetchval(
        """
        select greatest(clock_timestamp(), max(case when upper_inf(recorded)
            then lower(recorded) + interval '1 microsecond' else upper(recorded) end))
        from relationship where subject = any ($1::text[])
        """,
        subjects,
    )
    return recorded_at


async def joins(db: asyncpg.Connection) -> dict[tuple[str, str], dict[str, bool]]:
    joins: dict[tuple[str, str], dict[str, bool]] = {}
    for row in await db.fetch("select role, subject_kind, party_kind, exclusive from role_kind"):
        joins.setdefault((row["role"], row["subject_kind"]), {})[row["party_kind"]] = row["exclusive"]
    return joins


async def open_relations(db: asyncpg.Connection, subjects: Sequence[str]) -> dict[str, list[Held]]:
    held: dict[str, list[Held]] = {}
    for row in await db.fetch(
        "select id, subject, role, party, batch, lower(valid) as valid_from, upper(valid) as valid_to "
        "from relationship where subject = any ($1::text[]) and upper_inf(recorded)",
        subjects,
    ):
        held.setdefault(row["subject"], []).append(Held(**{name: row[name] for name in Held.__slots__}))
    return held
