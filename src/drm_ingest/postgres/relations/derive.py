"""Making the relations of a subject equal to what identity events say, with as little change as that takes.

A relation that goes on being what it was is left; one that holds at another time keeps its id and gets a version; what
is said no more is withdrawn. People's relations are never touched (`derived` tells them apart).
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Literal
from uuid import UUID

import asyncpg

from drm_ingest.postgres.relations import moves
from drm_ingest.postgres.relations.changes import write
from drm_ingest.postgres.relations.links import group

_EARLIEST, _LATEST = datetime.min.replace(tzinfo=UTC), datetime.max.replace(tzinfo=UTC)

_Held = tuple[datetime | None, datetime | None]
"""From when (None: ever) until when (None: no end known)."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """A party of that kind holds a role from `starts` (None: ever) to `ends` (None: no end known): who says so, how."""

    role: str
    exclusive: bool
    party: UUID
    party_kind: str
    starts: datetime | None
    ends: datetime | None
    asserted_by: str
    reason: str | None


@dataclass(slots=True)
class Change:
    """From one row to another: without the first it begins, without the second it is withdrawn."""

    was: asyncpg.Record | None
    wanted: Wanted | None
    id: UUID | None = None

    @property
    def party(self) -> UUID:
        party: UUID = self.wanted.party if self.wanted else self.was["party"]  # type: ignore[index]  # one is there
        return party

    @property
    def kind(self) -> Literal["begun", "ended", "corrected", "withdrawn"]:
        if self.was is None:
            return "begun"
        if self.wanted is None:
            return "withdrawn"
        was, wanted = self.was, self.wanted
        return "ended" if was["valid_from"] == wanted.starts and was["valid_to"] is None else "corrected"


async def make_equal(
    db: asyncpg.Connection,
    subject: str,
    open_: Sequence[asyncpg.Record],
    wanted: Iterable[Wanted],
    recorded_at: datetime,
    cause: tuple[str, str | None],
) -> int:
    """Let the derived ones among the open relations of a locked subject be as wanted; return how many changed.

    `cause` is who said last what changes them, and how: for those that are said no more.
    """
    changed = changes([row for row in open_ if row["derived"]], wanted)
    if not changed:
        return 0
    held = await _held(db, subject, changed)
    # First all that goes, then all that comes: in between nothing excludes anything.
    for change in changed:
        if change.was is not None:
            await db.execute(
                "update relationship set recorded = tstzrange(lower(recorded), $3) where id = $1 and version = $2",
                change.was["id"], change.was["version"], recorded_at,
            )  # fmt: skip
    for change in changed:
        change.id = await _insert(db, subject, change, recorded_at)
    counted = await _count(db, subject, held, changed)
    for change, moved in zip(changed, counted, strict=True):
        await _write(db, subject, change, moved, recorded_at, cause)
    return len(changed)


def changes(derived: Sequence[asyncpg.Record], wanted: Iterable[Wanted]) -> list[Change]:
    """Pair what is there with what should be: what is equal not at all, then by beginning, then in order."""
    # One person may have been on a device ten thousand times, so what is equal is looked up, and not looked for.
    equal: dict[tuple[object, ...], list[asyncpg.Record]] = {}
    for row in sorted(derived, key=lambda row: row["valid_from"] or _EARLIEST, reverse=True):
        equal.setdefault((row["role"], row["party"], row["valid_from"], row["valid_to"]), []).append(row)
    new = []
    for want in wanted:
        if rows := equal.get((want.role, want.party, want.starts, want.ends)):
            rows.pop()
        else:
            new.append(want)
    there: dict[tuple[str, UUID], list[asyncpg.Record]] = {}
    left = [row for rows in equal.values() for row in rows]
    for row in sorted(left, key=lambda row: row["valid_from"] or _EARLIEST):
        there.setdefault((row["role"], row["party"]), []).append(row)
    found = []
    for by_beginning in (True, False):
        for want in list(new):
            rows = there.get((want.role, want.party), [])
            fitting = [row for row in rows if not by_beginning or row["valid_from"] == want.starts]
            if fitting:
                rows.remove(fitting[0])
                new.remove(want)
                found.append(Change(fitting[0], want))
    found += [Change(row, None) for rows in there.values() for row in rows]
    return found + [Change(None, want) for want in new]


async def _insert(db: asyncpg.Connection, subject: str, change: Change, recorded_at: datetime) -> UUID:
    was, wanted = change.was, change.wanted
    if wanted is None:
        id_: UUID = was["id"]  # type: ignore[index]  # one of them is there
        return id_
    return await db.fetchval(  # type: ignore[no-any-return]
        "insert into relationship (id, version, subject, role, party, exclusive, subject_kind, party_kind, valid, "
        "recorded, asserted_by, reason, derived) "
        "values (coalesce($1, uuidv7()), $2, $3, $4, $5, $6, 'device', $7, tstzrange($8, $9), tstzrange($10, null), "
        "$11, $12, true) returning id",
        was["id"] if was else None, was["version"] + 1 if was else 1, subject, wanted.role, wanted.party,
        wanted.exclusive, wanted.party_kind, wanted.starts, wanted.ends, recorded_at, wanted.asserted_by,
        wanted.reason,
    )  # fmt: skip


_HELD = """
select party, id, lower(valid) as valid_from, upper(valid) as valid_to from relationship
where subject = $1 and party = any ($2::uuid[]) and upper_inf(recorded)
    and (lower_inf(valid) or lower(valid) <= $4) and (upper_inf(valid) or upper(valid) >= $3)
"""

_ByGroup = dict[frozenset[UUID], dict[UUID | None, _Held]]
"""What those who are linked, and so share a record, hold on a subject: relation → when."""


async def _held(db: asyncpg.Connection, subject: str, changes: Sequence[Change]) -> _ByGroup:
    """Return what is there that touches the time in which anything changes."""
    groups = {frozenset(await group(db, party)) for party in {change.party for change in changes}}
    bounds = [_bounds(change) for change in changes]
    rows = await db.fetch(
        _HELD, subject, [party for same in groups for party in same],
        min(first for first, _ in bounds), max(last for _, last in bounds),
    )  # fmt: skip
    held: _ByGroup = {same: {} for same in groups}
    shared = {party: same for same in groups for party in same}
    for row in rows:
        held[shared[row["party"]]][row["id"]] = row["valid_from"], row["valid_to"]
    return held


async def _count(
    db: asyncpg.Connection, subject: str, held: _ByGroup, changes: Sequence[Change]
) -> list[list[moves.Move]]:
    """Return what each change moved, one after the other."""
    groups = {party: same for same in held for party in same}
    counted = []
    for change in changes:
        same = groups[change.party]
        before = await _union(db, near(held[same].values(), change))
        if change.wanted is None:
            held[same].pop(change.id, None)
        else:
            held[same][change.id] = change.wanted.starts, change.wanted.ends
        after = await _union(db, near(held[same].values(), change))
        was, is_ = (moves.Held([subject], sorted(same), ranges) for ranges in (before, after))
        counted.append(await moves.between(db, change.party, was, is_))
    return counted


def near(held: Iterable[_Held], change: Change) -> list[_Held]:
    """Return what touches the stretch from where a change begins to where it ends: beside that nothing moves."""
    first, last = _bounds(change)
    return [
        (starts, ends) for starts, ends in held
        if (starts is None or starts <= last) and (ends is None or first <= ends)
    ]  # fmt: skip


def _bounds(change: Change) -> tuple[datetime, datetime]:
    bounds = [(change.was["valid_from"], change.was["valid_to"])] if change.was else []
    if change.wanted:
        bounds.append((change.wanted.starts, change.wanted.ends))
    return min(starts or _EARLIEST for starts, _ in bounds), max(ends or _LATEST for _, ends in bounds)


async def _union(db: asyncpg.Connection, held: Sequence[_Held]) -> moves.Ranges:
    ranges: moves.Ranges = await db.fetchval(
        "select coalesce(range_agg(tstzrange(starts, ends)), '{}') "
        "from unnest($1::timestamptz[], $2::timestamptz[]) as held (starts, ends)",
        [starts for starts, _ in held], [ends for _, ends in held],
    )  # fmt: skip
    return ranges


async def _write(
    db: asyncpg.Connection,
    subject: str,
    change: Change,
    moved: Sequence[moves.Move],
    recorded_at: datetime,
    cause: tuple[str, str | None],
) -> None:
    was, wanted = change.was, change.wanted
    asserted_by, reason = (wanted.asserted_by, wanted.reason) if wanted else cause
    starts, ends = (wanted.starts, wanted.ends) if wanted else (was["valid_from"], was["valid_to"])  # type: ignore[index]
    detail: dict[str, object] = {
        "valid_from": starts, "valid_to": ends, "batch": None, "asserted_by": asserted_by, "reason": reason,
        "derived": True,
    }  # fmt: skip
    if was is not None and wanted is not None:
        detail["instead_of"] = {name: was[name] for name in ("valid_from", "valid_to")}
    version = 1 if was is None else was["version"] + (wanted is not None)
    role = wanted.role if wanted else was["role"]  # type: ignore[index]
    of = {"id": change.id, "version": version, "subject": subject, "party": change.party, "role": role}
    await write(db, change.kind, of, detail, recorded_at, moved)
