"""Many relations at once, under the rules of single ones (relate.py), and written down like them (changes.py)."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Literal
from uuid import UUID

import asyncpg

from drm_ingest.event import PARTY_PREFIX
from drm_ingest.postgres.bulk import known as found
from drm_ingest.postgres.bulk.begun import Fresh, write
from drm_ingest.postgres.bulk.known import Held, Known, Wanted
from drm_ingest.postgres.relations import changes

__all__ = ["Became", "Held", "Imagined", "Impossible", "Misfit", "NoParty", "Wanted", "begin_many"]

WITH_BATCHES = ("made_by", "parts_by")
"""As the constraint relationship_batch_of_a_supplier has it."""


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


async def begin_many(
    db: asyncpg.Connection, wanted: Sequence[Wanted], imagined: Imagined | None = None
) -> list[Became]:
    """Begin relations, in a transaction of the caller's that then commits; return what became of each.

    A `Held` is the relation that excludes one. With `imagined` nothing is written, as in bulk_parties.bring.
    """
    parties = await found.parties(db, wanted)
    subjects = sorted({subject for line in wanted if (subject := _subject(line, parties)) is not None})
    recorded_at = await found.locked(db, subjects) if imagined is None else None
    known = Known(parties, await found.joins(db), await found.open_relations(db, subjects))
    if imagined is not None:
        for subject in subjects:
            known.held.setdefault(subject, []).extend(imagined.get(subject, ()))
    ids = await db.fetch("select uuidv7() as id from generate_series(1, $1)", len(wanted))
    fresh: list[Fresh] = []
    became: list[Became] = []
    for line, row in zip(wanted, ids, strict=True):
        one = _judged(line, row["id"], known)
        if isinstance(one, Fresh):
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
        await write(db, fresh, recorded_at)
    return became


def _subject(line: Wanted, parties: Mapping[str, tuple[UUID, str]]) -> str | None:
    """Return the one name of a subject in relations; None where no party is called so."""
    if not line.subject.startswith(PARTY_PREFIX):
        return line.subject
    found = parties.get(line.subject.removeprefix(PARTY_PREFIX))
    return None if found is None else f"{PARTY_PREFIX}{found[0]}"


def _judged(line: Wanted, id_: UUID, known: Known) -> Fresh | Became:
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
    fresh = Fresh(id_, subject, of_subject, party[0], party[1], kinds[party[1]], line)
    return _beside(fresh, known.held.get(subject, ()))


def _impossible(line: Wanted, subject: str, party: UUID) -> Impossible | None:
    if subject == f"{PARTY_PREFIX}{party}":
        return Impossible("itself")
    if changes.empty(line.valid_from, line.valid_to):
        return Impossible("empty")
    return Impossible("batch") if line.batch is not None and line.role not in WITH_BATCHES else None


def _beside(fresh: Fresh, others: Iterable[Held]) -> Fresh | Literal["same"] | Held:
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
