"""What many relations are held against: their parties, the rules, and what is there, read once it is locked."""

from bisect import bisect_right, insort
from collections.abc import Collection, Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from uuid import UUID

import asyncpg

from drm_ingest.event import PARTY_PREFIX

EVER, NEVER = datetime.min.replace(tzinfo=UTC), datetime.max.replace(tzinfo=UTC)


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
    called: str
    """The subject as the name of a party, said to be one or not."""


@dataclass(frozen=True, slots=True)
class Held:
    """A relation that is there, or is about to be; of one that is about to be in a dry run there is no id."""

    id: UUID | None
    role: str
    party: UUID
    batch: str | None
    valid_from: datetime | None
    valid_to: datetime | None


class Taken:
    """Relations in which one is found without looking at each, for a subject of a file may have very many.

    Of one slot (the role, unless it excludes others with party and batch) no two hold at one time, as the constraint
    relationship_held_once has it: in order of time they begin and end.
    """

    def __init__(self) -> None:
        self._exact: set[tuple[str, Held]] = set()
        self._slots: dict[Hashable, list[Held]] = {}

    def add(self, subject: str, held: Held, *, exclusive: bool) -> None:
        self._exact.add((subject, replace(held, id=None)))
        insort(self._slots.setdefault(_slot(subject, held, exclusive), []), held, key=_first)

    def same(self, subject: str, wanted: Held) -> bool:
        """Return whether it is there just so."""
        return (subject, replace(wanted, id=None)) in self._exact

    def excluding(self, subject: str, wanted: Held, *, exclusive: bool) -> Held | None:
        """Return the first that excludes it."""
        there = self._slots.get(_slot(subject, wanted, exclusive), [])
        at = bisect_right(there, _first(wanted), key=_last)
        return there[at] if at < len(there) and _first(there[at]) < _last(wanted) else None


def _slot(subject: str, held: Held, exclusive: bool) -> Hashable:
    return (subject, held.role) if exclusive else (subject, held.role, held.party, held.batch)


def _first(held: Held) -> datetime:
    return EVER if held.valid_from is None else held.valid_from


def _last(held: Held) -> datetime:
    return NEVER if held.valid_to is None else held.valid_to


@dataclass(frozen=True, slots=True)
class Known:
    """What the rules are held against."""

    parties: Mapping[str, tuple[UUID, str]]
    """By every name that is used, for a device too: id and kind."""
    devices: Collection[str]
    """Which of the devices that are called as a party is are there."""
    joins: Mapping[tuple[str, str], Mapping[str, bool]]
    """By role and kind of the subject: the kinds of parties, and whether it excludes others."""
    taken: Sequence[Taken]
    """What is there; beside it, in a dry run, what lines before would have made."""


async def parties(db: asyncpg.Connection, wanted: Sequence[Wanted]) -> dict[str, tuple[UUID, str]]:
    names = {name for line in wanted for name in (line.party, line.called)}
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


async def devices(
    db: asyncpg.Connection, wanted: Sequence[Wanted], parties: Mapping[str, tuple[UUID, str]]
) -> set[str]:
    subjects = {line.subject for line in wanted if line.called in parties and not line.subject.startswith(PARTY_PREFIX)}
    if not subjects:
        return subjects
    return {
        row["subject"]
        for row in await db.fetch("select subject from device where subject = any ($1::text[])", list(subjects))
    }


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


async def open_relations(db: asyncpg.Connection, subjects: Sequence[str]) -> Taken:
    taken = Taken()
    for row in await db.fetch(
        "select id, subject, role, party, batch, exclusive, lower(valid) as valid_from, upper(valid) as valid_to "
        "from relationship where subject = any ($1::text[]) and upper_inf(recorded) order by lower(valid) nulls first",
        subjects,
    ):
        taken.add(row["subject"], Held(**{name: row[name] for name in Held.__slots__}), exclusive=row["exclusive"])
    return taken
