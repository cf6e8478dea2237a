"""Many parties at once, under the rules of single ones (parties.py, attributes.py); those known by a reference stay.

Meanwhile   another took a reference between looking and writing: nothing was changed, look again
"""

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Literal
from uuid import UUID

import asyncpg

from drm_ingest.postgres.bulk import said
from drm_ingest.postgres.registry.parties import Reference


class Meanwhile(Exception):
    """Another took a reference between looking and writing: nothing was changed, look again."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """A party as a file has it: found by any of its references, made where none is known."""

    kind: str
    name: str
    refs: Sequence[Reference]
    origin: str
    values: Mapping[str, str | None]
    """Attributes, as in attributes.Said."""
    said_at: datetime


@dataclass(slots=True, eq=False)
class Found:
    """A party that is there, or is about to be."""

    kind: str
    id: UUID | None = None
    refs: int = 0
    name: str = ""


@dataclass(frozen=True, slots=True)
class Several:
    """The references name several parties."""

    names: Mapping[str, UUID | None]


@dataclass(frozen=True, slots=True)
class OtherKind:
    """The party is there, of this kind."""

    kind: str


@dataclass(frozen=True, slots=True)
class TooMany:
    """The party would have more of these than it may."""

    what: Literal["references", "attributes"]
    limit: int


Became = Literal["made", "changed", "same"] | Several | OtherKind | TooMany


@dataclass(frozen=True, slots=True)
class Limits:
    references_max: int
    attributes_max: int


@dataclass(slots=True)
class _Plan:
    became: list[Became]
    of_line: list[Found | None]
    new: list[Found] = field(default_factory=list)
    refs: list[tuple[Reference, Found]] = field(default_factory=list)
    counts: dict[Found, int] = field(default_factory=dict)
    """How many references each has afterwards."""


_HELD = """
select wanted.namespace, wanted.ref, held.id, held.kind
from unnest($1::text[], $2::text[]) as wanted (namespace, ref)
cross join lateral (
    select party.id, party.kind from party_ref join party on party.id = party_ref.party
    where party_ref.namespace = wanted.namespace and party_ref.ref = wanted.ref offset 0  -- one by one, by index
) as held"""


async def bring(
    db: asyncpg.Connection,
    wanted: Sequence[Wanted],
    limits: Limits,
    asserted_by: str,
    imagined: dict[Reference, Found] | None = None,
) -> list[Became]:
    """Make or complete these parties, in a transaction of the caller's; return what became of each.

    With `imagined` nothing is written: there is noted what would have been, which the next call then takes as being
    there. What follows a line sees what that line made.

    Raises:
        Meanwhile
    """
    refused: dict[int, Became] = {}
    while True:
        known = await _known(db, wanted, lock=imagined is None)
        if imagined is not None:
            known |= {ref: found for line in wanted for ref in line.refs if (found := imagined.get(ref)) is not None}
        plan = _planned(wanted, known, limits.references_max, refused)
        over = await _too_many_attributes(db, wanted, plan, limits.attributes_max)
        if not over:
            break
        refused |= dict.fromkeys(over, TooMany("attributes", limits.attributes_max))
    for found, count in plan.counts.items():
        found.refs = count
    if imagined is None:
        await _make(db, plan)
    else:
        imagined.update(plan.refs)
    rows = _said(wanted, plan)
    if imagined is None:
        changed = await said.say(db, await said.copy_new(db, plan.new, rows, asserted_by), asserted_by)
    else:
        changed = await said.news(db, rows)
    _tell_changed(wanted, plan, changed)
    return plan.became


def _tell_changed(wanted: Sequence[Wanted], plan: _Plan, changed: Collection[UUID]) -> None:
    """Of the lines about a party whose attributes changed, those that say what no line before them did."""
    if "same" not in plan.became:
        return
    new = set(plan.new)
    before_of: dict[Found, set[tuple[str, str, str | None]]] = {}
    for number, (line, found) in enumerate(zip(wanted, plan.of_line, strict=True)):
        if found is None or not line.values or not (found in new or found.id in changed):
            continue
        before = before_of.setdefault(found, set())
        says = {(line.origin, name, value) for name, value in line.values.items()}
        if plan.became[number] == "same" and not says <= before:
            plan.became[number] = "changed"
        before |= says


async def _known(db: asyncpg.Connection, wanted: Sequence[Wanted], *, lock: bool) -> dict[Reference, Found]:
    """Return whom the references name; locked as by single requests, so that nothing is added beside their limits."""
    refs = list({ref for line in wanted for ref in line.refs})
    rows = await db.fetch(_HELD, [namespace for namespace, _ in refs], [ref for _, ref in refs])
    if not rows:
        return {}
    ids = list({row["id"] for row in rows})
    if lock:
        await db.execute("select from party where id = any ($1::uuid[]) order by id for no key update", ids)
    counts = dict(
        await db.fetch("select party, count(*) from party_ref where party = any ($1::uuid[]) group by party", ids)
    )
    parties = {row["id"]: Found(row["kind"], row["id"], counts.get(row["id"], 0)) for row in rows}
    return {(row["namespace"], row["ref"]): parties[row["id"]] for row in rows}


def _planned(
    wanted: Sequence[Wanted], known: dict[Reference, Found], refs_max: int, refused: Mapping[int, Became]
) -> _Plan:
    """Take line after line; each sees what those before it made."""
    plan = _Plan([], [])
    for number, line in enumerate(wanted):
        parties = {ref: known[ref] for ref in line.refs if ref in known}
        different = list(dict.fromkeys(parties.values()))
        found = different[0] if different else Found(line.kind, name=line.name)
        fresh = [ref for ref in dict.fromkeys(line.refs) if ref not in known]
        became: Became
        if number in refused:
            became = refused[number]
        elif len(different) > 1:
            became = Several({":".join(ref): party.id for ref, party in parties.items()})
        elif found.kind != line.kind:
            became = OtherKind(found.kind)
        elif plan.counts.get(found, found.refs) + len(fresh) > refs_max:
            became = TooMany("references", refs_max)
        else:
            became = "changed" if fresh and different else "same" if different else "made"
        plan.became.append(became)
        if not isinstance(became, str):
            plan.of_line.append(None)
            continue
        plan.of_line.append(found)
        if became == "made":
            plan.new.append(found)
        plan.counts[found] = plan.counts.get(found, found.refs) + len(fresh)
        for ref in fresh:
            known[ref] = found
            plan.refs.append((ref, found))
    return plan


async def _too_many_attributes(
    db: asyncpg.Connection, wanted: Sequence[Wanted], plan: _Plan, attributes_max: int
) -> list[int]:
    """Return the lines of parties that would have too many."""
    at_most: Counter[Found] = Counter()
    for line, found in zip(wanted, plan.of_line, strict=True):
        if found is not None and found.id is None:
            at_most[found] += len(line.values)
    of_new: dict[Found, set[tuple[str, str]]] = {
        found: set() for found, count in at_most.items() if count > attributes_max
    }
    if of_new:
        for line, found in zip(wanted, plan.of_line, strict=True):
            if found in of_new:
                of_new[found].update((name, line.origin) for name in line.values)
    over: set[Found | UUID] = {found for found, names in of_new.items() if len(names) > attributes_max}
    over |= await said.too_many(db, _said(wanted, plan), attributes_max)
    if not over:
        return []
    return [
        number
        for number, found in enumerate(plan.of_line)
        if found is not None and wanted[number].values and (found in over or (found.id and found.id in over))
    ]


def _said(wanted: Sequence[Wanted], plan: _Plan) -> list[said.Row]:
    """Return what is said of parties that are there."""
    return [
        (found.id, name, line.origin, value, line.said_at)
        for line, found in zip(wanted, plan.of_line, strict=True)
        if found is not None and found.id is not None
        for name, value in line.values.items()
    ]


async def _make(db: asyncpg.Connection, plan: _Plan) -> None:
    if plan.new:
        ids = await db.fetch("select uuidv7() as id from generate_series(1, $1)", len(plan.new))
        for found, row in zip(plan.new, ids, strict=True):
            found.id = row["id"]
        await db.copy_records_to_table(
            "party", records=[(found.id, found.kind, found.name) for found in plan.new], columns=("id", "kind", "name")
        )
    if plan.refs:
        # In one order for all, or two imports could wait for each other.
        refs = sorted((namespace, ref, found.id) for (namespace, ref), found in plan.refs)
        try:
            await db.copy_records_to_table("party_ref", records=refs, columns=("namespace", "ref", "party"))
        except asyncpg.UniqueViolationError:
            raise Meanwhile from None
