"""Many relations at once, under the rules of single ones (relate.py), and written down like them (changes.py)."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal
from uuid import UUID

import asyncpg

from drm_ingest.event import PARTY_PREFIX
from drm_ingest.postgres.bulk import known as found
from drm_ingest.postgres.bulk.begun import Fresh, write
from drm_ingest.postgres.bulk.known import Held, Known, Taken, Wanted
from drm_ingest.postgres.relations import changes

__all__ = ["Became", "HalfAName", "Held", "Imagined", "Impossible", "Misfit", "NoParty", "Wanted", "begin_many"]

WITH_BATCHES = ("made_by", "parts_by")
"""As the constraint relationship_batch_of_a_supplier has it."""


@dataclass(frozen=True, slots=True)
class NoParty:
    """Nobody is called so."""

    name: str
    field: Literal["subject", "party"]


@dataclass(frozen=True, slots=True)
class HalfAName:
    """No device is called so, and a party is: `party:` was left out."""


@dataclass(frozen=True, slots=True)
class Misfit:
    """The role does not join a subject and a party of these kinds.

    `kinds` of parties hold it on such a subject; where none does, there are other `roles` on it.
    """

    subject_kind: str
    party_kind: str
    kinds: Sequence[str]
    roles: Sequence[str]


@dataclass(frozen=True, slots=True)
class Impossible:
    """No relation can be like this."""

    why: Literal["empty", "itself", "batch"]


Became = Literal["made", "same"] | NoParty | HalfAName | Misfit | Impossible | Held
Imagined = Taken
"""What a dry run would have made."""


async def begin_many(
    db: asyncpg.Connection, wanted: Sequence[Wanted], imagined: Imagined | None = None
) -> list[Became]:
    """Begin relations, in a transaction of the caller's that then commits; return what became of each.

    A `Held` is the relation that excludes one. With `imagined` nothing is written, as in parties.bring.
    """
    parties = await found.parties(db, wanted)
    subjects = sorted({subject for line in wanted if (subject := _subject(line, parties)) is not None})
    recorded_at = await found.locked(db, subjects) if imagined is None else None
    there = await found.open_relations(db, subjects)
    made = there if imagined is None else imagined
    devices = await found.devices(db, wanted, parties)
    known = Known(parties, devices, await found.joins(db), [there] if imagined is None else [there, imagined])
    ids = await db.fetch("select uuidv7() as id from generate_series(1, $1)", len(wanted))
    fresh: list[Fresh] = []
    became: list[Became] = []
    for line, row in zip(wanted, ids, strict=True):
        one = _judged(line, row["id"], known)
        if isinstance(one, Fresh):
            id_ = one.id if imagined is None else None
            made.add(one.subject, _held(line, one.party, id_), exclusive=one.exclusive)
            fresh.append(one)
            became.append("made")
        else:
            became.append(one)
    if fresh and recorded_at is not None:
        await write(db, fresh, recorded_at)
    return became


def _subject(line: Wanted, parties: Mapping[str, tuple[UUID, str]]) -> str | None:
    """Return the one name of a subject in relations; None where no party is called so."""
    if not line.subject.startswith(PARTY_PREFIX):
        return line.subject
    found = parties.get(line.called)
    return None if found is None else f"{PARTY_PREFIX}{found[0]}"


def _judged(line: Wanted, id_: UUID, known: Known) -> Fresh | Became:
    """Hold a line against the rules, in the order of the door: who, which role, when, and beside what is there."""
    subject, party = _subject(line, known.parties), known.parties.get(line.party)
    if subject is None:
        return NoParty(line.called, "subject")
    about = line.subject.startswith(PARTY_PREFIX)
    if not about and line.called in known.parties and subject not in known.devices:
        return HalfAName()
    if party is None:
        return NoParty(line.party, "party")
    of_subject = known.parties[line.called][1] if about else "device"
    kinds = known.joins.get((line.role, of_subject), {})
    if why := _impossible(line, subject, party[0]):
        return why
    if party[1] not in kinds:
        roles = sorted(role for role, kind in known.joins if kind == of_subject)
        return Misfit(of_subject, party[1], sorted(kinds), roles)
    fresh = Fresh(id_, subject, of_subject, party[0], party[1], kinds[party[1]], line)
    return _beside(fresh, known.taken)


def _impossible(line: Wanted, subject: str, party: UUID) -> Impossible | None:
    if subject == f"{PARTY_PREFIX}{party}":
        return Impossible("itself")
    if changes.empty(line.valid_from, line.valid_to):
        return Impossible("empty")
    return Impossible("batch") if line.batch is not None and line.role not in WITH_BATCHES else None


def _beside(fresh: Fresh, taken: Iterable[Taken]) -> Fresh | Literal["same"] | Held:
    """Return what is there already just so, or what excludes it, as the constraint relationship_held_once does."""
    wanted = _held(fresh.of, fresh.party)
    if any(some.same(fresh.subject, wanted) for some in taken):
        return "same"
    excluding = (some.excluding(fresh.subject, wanted, exclusive=fresh.exclusive) for some in taken)
    return next(filter(None, excluding), fresh)


def _held(line: Wanted, party: UUID, id_: UUID | None = None) -> Held:
    return Held(id_, line.role, party, line.batch, line.valid_from, line.valid_to)
