"""Many relations at once, under the rules of single ones (relate.py), and written down like them (changes.py)."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Literal
from uuid import UUID

import asyncpg
import orjson

from drm_ingest.event import PARTY_PREFIX
from drm_ingest.postgres import changes, moves
from drm_ingest.postgres.links import group

WITH_BATCHES = ("made_by", "parts_by")
"""As the constraint relationship_batch_of_a_supplier has it."""


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
class NoParty:
    """Nobody is called so."""

    name: str
    field: Literal["subject", "party"]


@dataclass(frozen=True, slots=True)
class Misfit:
    """The role does not join a subject and a party of these kinds; `kinds` of parties hold it on such a subject."""

    subject_kind: str
    party_kind: str
    kinds: Sequence[str]


@dataclass(frozen=True, slots=True)
class Impossible:
    """No relation can be like this."""

    why: Literal["empty", "itself", "batch"]


Became = Literal["made", "same"] | NoParty | Misfit | Impossible | Held
Imagined = dict[str, list[Held]]
"""By subject, what a dry run would have made."""


@dataclass(frozen=True, slots=True)
class _Fresh:
    id: UUID
    subject: str
    subject_kind: str
    party: UUID
    party_kind: str
    exclusive: bool
    of: Wanted


@dataclass(frozen=True, slots=True)
class _Known:
    """What the rules are held against."""

    parties: Mapping[str, tuple[UUID, str]]
    """By every name that is used: id and kind."""
    joins: Mapping[tuple[str, str], Mapping[str, bool]]
    """By role and kind of the subject: the kinds of parties, and whether it excludes others."""
    held: dict[str, list[Held]]
    """By subject, those that are open."""


async def begin_many(
    db: asyncpg.Connection, wanted: Sequence[Wanted], imagined: Imagined | None = None
) -> list[Became]:
    """Begin relations, in a transaction of the caller's that then commits; return what became of each.

    A `Held` is the relation that excludes one. With `imagined` nothing is written, as in bulk_parties.bring.
    """
    parties = await _parties(db, wanted)
    subjects = sorted({subject for line in wanted if (subject := _subject(line, parties)) is not None})
    recorded_at = await _locked(db, subjects) if imagined is None else None
    known = _Known(parties, await _joins(db), await _open(db, subjects))
    if imagined is not None:
        for subject in subjects:
            known.held.setdefault(subject, []).extend(imagined.get(subject, ()))
    ids = await db.fetch("select uuidv7() as id from generate_series(1, $1)", len(wanted))
    fresh: list[_Fresh] = []
    became: list[Became] = []
    for line, row in zip(wanted, ids, strict=True):
        one = _judged(line, row["id"], known)
        if isinstance(one, _Fresh):
            held = Held(None if imagined is not None else one.id, line.role, one.party, line.batch, line.valid_from,
                        line.valid_to)  # fmt: skip
            known.held.setdefault(one.subject, []).append(held)
            if imagined is not None:
                imagined.setdefault(one.subject, []).append(held)
            fresh.append(one)
            became.append("made")
        else:
            became.append(one)
    if fresh and recorded_at is not None:
        await _write(db, fresh, recorded_at)
    return became


def _subject(line: Wanted, parties: Mapping[str, tuple[UUID, str]]) -> str | None:
    """Return the one name of a subject in relations; None where no party is called so."""
    if not line.subject.startswith(PARTY_PREFIX):
        return line.subject
    found = parties.get(line.subject.removeprefix(PARTY_PREFIX))
    return None if found is None else f"{PARTY_PREFIX}{found[0]}"


def _judged(line: Wanted, id_: UUID, known: _Known) -> _Fresh | Became:
    """Hold a line against the rules, in the order of the door: who, which role, when, and beside what is there."""
    subject, party = _subject(line, known.parties), known.parties.get(line.party)
    if subject is None or party is None:
        unknown = (line.subject.removeprefix(PARTY_PREFIX), "subject") if subject is None else (line.party, "party")
        return NoParty(*unknown)  # type: ignore[arg-type]
    about = line.subject.startswith(PARTY_PREFIX)
    of_subject = known.parties[line.subject.removeprefix(PARTY_PREFIX)][1] if about else "device"
    kinds = known.joins.get((line.role, of_subject), {})
    if why := _impossible(line, subject, party[0]):
        return why
    if party[1] not in kinds:
        return Misfit(of_subject, party[1], sorted(kinds))
    fresh = _Fresh(id_, subject, of_subject, party[0], party[1], kinds[party[1]], line)
    return _beside(fresh, known.held.get(subject, ()))


def _impossible(line: Wanted, subject: str, party: UUID) -> Impossible | None:
    if subject == f"{PARTY_PREFIX}{party}":
        return Impossible("itself")
    if changes.empty(line.valid_from, line.valid_to):
        return Impossible("empty")
    return Impossible("batch") if line.batch is not None and line.role not in WITH_BATCHES else None


def _beside(fresh: _Fresh, others: Iterable[Held]) -> _Fresh | Literal["same"] | Held:
    """Return what is there already just so, or what excludes it, as the constraint relationship_held_once does."""
    line = fresh.of
    wanted = Held(None, line.role, fresh.party, line.batch, line.valid_from, line.valid_to)
    excluding = None
    for held in others:
        if replace(held, id=None) == wanted:
            return "same"
        same_slot = fresh.exclusive or (held.party, held.batch) == (fresh.party, line.batch)
        apart = _before(held.valid_to, line.valid_from) or _before(line.valid_to, held.valid_from)
        if held.role == line.role and same_slot and not apart:
            excluding = held
    return excluding or fresh


def _before(ends: datetime | None, starts: datetime | None) -> bool:
    return ends is not None and starts is not None and ends <= starts


async def _parties(db: asyncpg.Connection, wanted: Sequence[Wanted]) -> dict[str, tuple[UUID, str]]:
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


async def _locked(db: asyncpg.Connection, subjects: Sequence[str]) -> datetime:
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


async def _joins(db: asyncpg.Connection) -> dict[tuple[str, str], dict[str, bool]]:
    joins: dict[tuple[str, str], dict[str, bool]] = {}
    for row in await db.fetch("select role, subject_kind, party_kind, exclusive from role_kind"):
        joins.setdefault((row["role"], row["subject_kind"]), {})[row["party_kind"]] = row["exclusive"]
    return joins


async def _open(db: asyncpg.Connection, subjects: Sequence[str]) -> dict[str, list[Held]]:
    held: dict[str, list[Held]] = {}
    for row in await db.fetch(
        "select id, subject, role, party, batch, lower(valid) as valid_from, upper(valid) as valid_to "
        "from relationship where subject = any ($1::text[]) and upper_inf(recorded)",
        subjects,
    ):
        held.setdefault(row["subject"], []).append(Held(**{name: row[name] for name in Held.__slots__}))
    return held


# What each line adds to what its party, and those linked with it, hold: beside what is there and the lines before it.
_GAINED = """
with fresh as (
    select line, subject, shared, tstzrange(starts, ends) as valid
    from unnest($1::text[], $2::uuid[], $3::timestamptz[], $4::timestamptz[])
        with ordinality as fresh (subject, shared, starts, ends, line)
),
member as (select * from unnest($5::uuid[], $6::uuid[]) as member (shared, party)),
before as (
    select subject, shared, range_agg(relationship.valid) as held
    from (select distinct subject, shared from fresh) as pair
    join member using (shared)
    join relationship using (subject, party)
    where upper_inf(recorded)
    group by subject, shared
),
gained as (
    select line, subject, unnest(
        tstzmultirange(valid) - coalesce(held, '{}')
        - coalesce(range_agg(valid) over (partition by subject, shared order by line
                                          rows between unbounded preceding and 1 preceding), '{}')
    ) as during
    from fresh left join before using (subject, shared)
)
select line::int - 1 as line, subject, lower(during) as starts, upper(during) as ends
from gained order by line, lower(during) nulls first"""

_WITH_EVENTS = """
select subject from unnest($1::text[]) as subject
where exists (select from subject_day where subject_day.subject = subject.subject)
   or exists (
       select from party_ref join subject_day on subject_day.subject = ('party:' || namespace || ':' || ref) collate "C"
       where party = case when starts_with(subject.subject, 'party:') then substr(subject.subject, 7)::uuid end
   )"""

_LINKED = """
select party from unnest($1::uuid[]) as of (party)
where exists (select from party_link where upper_inf(recorded) and party_link.party = of.party)
   or exists (select from party_link where upper_inf(recorded) and party_link.other = of.party)"""

_INSERT = """
insert into relationship (id, subject, role, party, exclusive, subject_kind, party_kind, batch, valid, recorded,
                          asserted_by, reason)
select id, subject, role, party, exclusive, subject_kind, party_kind, batch, tstzrange(valid_from, valid_to),
       tstzrange($1, null), asserted_by, reason
from unnest($2::uuid[], $3::text[], $4::text[], $5::uuid[], $6::bool[], $7::text[], $8::text[], $9::text[],
            $10::timestamptz[], $11::timestamptz[], $12::text[], $13::text[])
    as fresh (id, subject, role, party, exclusive, subject_kind, party_kind, batch, valid_from, valid_to, asserted_by,
              reason)"""


async def _write(db: asyncpg.Connection, fresh: Sequence[_Fresh], recorded_at: datetime) -> None:
    devices = sorted({one.subject for one in fresh if one.subject_kind == "device"})
    await db.execute(
        "insert into device (subject, registered_by) select subject, 'relationship' from unnest($1::text[]) as subject "
        "on conflict do nothing",
        devices,
    )
    moved = await _moved(db, fresh)
    await db.execute(
        _INSERT,
        recorded_at,
        *_columns(
            (one.id, one.subject, one.of.role, one.party, one.exclusive, one.subject_kind, one.party_kind,
             one.of.batch, one.of.valid_from, one.of.valid_to, one.of.asserted_by, one.of.reason)
            for one in fresh
        ),
    )  # fmt: skip
    await changes.write_begun(
        db,
        [(one.id, one.subject, one.party, one.of.role, _detail(one.of)) for one in fresh],
        recorded_at,
        [(fresh[line].id, move) for line, move in moved],
    )


def _columns(rows: Iterable[tuple[object, ...]]) -> list[list[object]]:
    return [list(column) for column in zip(*rows, strict=True)]


def _detail(of: Wanted) -> str:
    """Return what changes.note writes of a beginning."""
    detail = {name: getattr(of, name) for name in ("valid_from", "valid_to", "batch", "asserted_by", "reason")}
    return orjson.dumps(detail, option=orjson.OPT_UTC_Z).decode()


async def _moved(db: asyncpg.Connection, fresh: Sequence[_Fresh]) -> list[tuple[int, moves.Move]]:
    """Return what each line brings its party, as moves.between: only gains, for nothing is taken from anybody."""
    parties = list({one.party for one in fresh})
    linked = await db.fetch(_LINKED, parties)
    shared: dict[UUID, UUID] = dict(zip(parties, parties, strict=True))
    members = dict.fromkeys(zip(parties, parties, strict=True))
    for row in linked:
        together = await group(db, row["party"])
        shared[row["party"]] = together[0]
        members |= dict.fromkeys((together[0], party) for party in together)
    rows = await db.fetch(
        _GAINED,
        *_columns((one.subject, shared[one.party], one.of.valid_from, one.of.valid_to) for one in fresh),
        *_columns(members),
    )
    with_events = {
        row["subject"] for row in await db.fetch(_WITH_EVENTS, list({row["subject"] for row in rows}))
    }  # fmt: skip
    moved = []
    for row in rows:
        counts = (
            await moves.counted(db, row["subject"], row["starts"], row["ends"]) if row["subject"] in with_events else {}
        )
        moved.append((row["line"], moves.Move(fresh[row["line"]].party, "gained", row["starts"], row["ends"], counts)))
    return moved
