"""One step of the keeper of totals: bounded, in one transaction, whatever there is to do.

    fresh events ─▶ changes, what is due, the next slice of what is built ─▶ compare ─▶ rare parts ─▶ through ─▶ add up

It is one snapshot, which makes it simple to think about; nothing would be lost without it: whatever a statement saw
that came later has a time not before `through` or a number above `number`, and is looked at again. Afterwards the
totals have in them exactly the events of their spans that were recorded before `through`, and the changes up to
`number`; who dies in between has done nothing.
"""

from collections import defaultdict
from collections.abc import Collection
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from uuid import UUID

import asyncpg

from drm_ingest.postgres.record.rare import CONTACT, RATING
from drm_ingest.postgres.totals import compare, find, fresh, parts, shown, touched
from drm_ingest.postgres.totals.compare import Pair
from drm_ingest.postgres.totals.find import Building, Sizes
from drm_ingest.postgres.totals.horizon import Horizon

_LOCK = 0x64726D_746F74  # "drm" "tot": the advisory lock of whoever is at a step
WINDOW = timedelta(seconds=10)
"""Of events recorded, at a time: what came while no keeper worked is caught up piece by piece."""
CHANGES_MAX = 500
RARE_MAX = 1000
"""Faults, ratings and contacts, of everybody, taken at once; if more were recorded at one time, these."""
SLICE_SUBJECTS = 1000
SLICES_MAX = 50
"""Of so many large parties."""
SWEEP_PARTIES = 5000
ADD_UPS_MAX = 500
"""Large parties whose figures are added up at once, of those that changes touched and of all others; the figures of
the rest are as old as their records say."""
YOUNG_MAX = timedelta(seconds=60)
"""What was recorded after the horizon is looked at with each comparison; while it is more, events go first."""


@dataclass(frozen=True, slots=True)
class Paces:
    """How often what is done."""

    sweep_s: float
    recount_s: float
    add_up_s: float
    """After changes the figures are added up at once; after events no more often than this."""


@dataclass(slots=True)
class Done:
    """What a step did."""

    through: datetime
    behind_s: float
    """How old `through` is, or the oldest change that is not in the totals, or the oldest figures, in seconds."""
    more: bool = False
    """There is more to do at once."""
    large: int = 0
    """How many parties are read from totals, or will be."""
    healed: int = 0
    """By how many events totals were wrong that were counted anew."""
    compared: int = 0


@dataclass(slots=True)
class _Work:
    """What is to be looked at, as pairs of a large party and a subject."""

    changed: set[Pair] = field(default_factory=set)
    """To be compared."""
    moved: set[Pair] = field(default_factory=set)
    """To be put together anew, though nothing else is to be compared."""
    rare: dict[str, set[Pair]] = field(default_factory=lambda: defaultdict(set))
    """Only these parts of it, by name."""
    customers: set[Pair] = field(default_factory=set)
    """Of vendors; their answers are to be put together anew."""


_POSITION = """
select through, number, swept_to, swept_at, clock_timestamp() as now,
       coalesce(swept_at < clock_timestamp() - make_interval(secs => $1), true) as sweep_due,
       exists (select from large_party) as any_large
from totals_position for update"""

_BEHIND = """
select greatest(0, extract(epoch from clock_timestamp() - least(
    $1,
    (select min(recorded_at) from relationship_change where number = (
        select min(number) from relationship_change where number > $2)),
    (select min(shown_at) from large_party where stale and shown is not null and built_at is not null),
    (select min(due_at) from large_party_span where due_at <= clock_timestamp())
))::float8)"""


_CHANGED = """
select exists (select from relationship_change where number > (select number from totals_position))"""


async def changed(db: asyncpg.Connection) -> bool:
    """Return whether there are changes of relations that the totals do not have in them."""
    return bool(await db.fetchval(_CHANGED))


async def behind(db: asyncpg.Connection) -> tuple[int, float]:
    """Return how many parties are read from totals, or will be, and how old these are, in seconds; as `Done` has it."""
    at = await db.fetchrow("select through, number, (select count(*) from large_party) as large from totals_position")
    return at["large"], await db.fetchval(_BEHIND, at["through"], at["number"])


async def step(db: asyncpg.Connection, horizon: Horizon, sizes: Sizes, paces: Paces) -> Done | None:
    """Bring the totals on; None: another keeper is at it.

    Raises:
        asyncpg.PostgresError, asyncpg.InterfaceError, OSError, TimeoutError: nothing is done; try again.
    """
    await horizon.look(db)
    try:
        async with db.transaction(isolation="repeatable_read"):
            if not await db.fetchval("select pg_try_advisory_xact_lock($1)", _LOCK):
                return None
            return await _step(db, horizon, sizes, paces)
    except asyncpg.SerializationError:  # it ended after our snapshot and before our lock
        return None


async def _step(db: asyncpg.Connection, horizon: Horizon, sizes: Sizes, paces: Paces) -> Done:
    at = await db.fetchrow(_POSITION, paces.sweep_s)
    since: datetime = at["through"]
    seen = await horizon.of_snapshot(db)
    if seen is None and not at["any_large"]:
        # Whoever is found large now would be caught up from `since` on, window by window, and that may be years ago.
        return Done(since, 0.0)
    until = max(since, seen or since)
    latest, work, slices = until, _Work(), list[_Slice]()
    if at["any_large"]:
        until = await _until(db, since, until)
        await _take_fresh(db, since, until, work)
    young = at["now"] - until > YOUNG_MAX
    number, more = at["number"], until < latest
    if at["swept_at"] is None and at["swept_to"] is None:
        number = await touched.last_number(db)  # all parties are about to be looked at
    elif not young or not at["any_large"]:
        found = await touched.changes(db, number, CHANGES_MAX)
        number, more = found.number, more or not found.all
        more |= await _take_changes(db, found, work, sizes)
        await find.recount(db, paces.recount_s)
        slices = await _take_slices(db, work, paces)
    done = Done(until, 0.0, compared=len(work.changed))
    changed = await _bring_on(db, work, since, until)
    for slice_ in slices:
        done.healed += await _build_on(db, slice_)
    await shown.settle(db, changed | {slice_.of.id for slice_ in slices})
    swept_to = await _sweep(db, at["swept_to"], at["sweep_due"], sizes)
    await db.execute(
        "update totals_position set through = $1, number = $2, swept_to = $3, "
        "swept_at = case when $4 then clock_timestamp() else swept_at end",
        until, number, swept_to, at["sweep_due"] and swept_to is None,
    )  # fmt: skip
    # After `through` is written: the figures are of that time.
    await shown.add_up(db, changed, paces.add_up_s, ADD_UPS_MAX)
    building = await find.building(db, paces.recount_s, 1)
    done.behind_s = await db.fetchval(_BEHIND, until, number)
    done.large = await db.fetchval("select count(*) from large_party")
    done.more = more or swept_to is not None or any(totals.hurried for totals in building)
    return done


async def _until(db: asyncpg.Connection, since: datetime, until: datetime) -> datetime:
    """Return up to when events are taken at once: later than by a window only if none was recorded in it."""
    window = await _window(db, since, until)
    return await fresh.crowded(db, since, since + window, RARE_MAX)


async def _window(db: asyncpg.Connection, since: datetime, until: datetime) -> timedelta:
    """Return how much time is taken at once: more than a window only if no event was recorded in it."""
    window = until - since
    while window > WINDOW and await fresh.recorded(db, since, since + window):
        window = max(window / 2, WINDOW)
    return window


async def _take_fresh(db: asyncpg.Connection, since: datetime, until: datetime, work: _Work) -> None:
    await fresh.add(db, since, until)
    counted, names = await fresh.rare(db, since, until)
    for large, subject, type_ in counted:
        for part in parts.of_event(type_, subject):
            work.rare[part].add((large, subject))
    work.customers |= set(await touched.said_to(db, {name for name, type_ in names if type_ == RATING}))
    visited = {name for name, type_ in names if type_ == CONTACT}
    if visited:
        work.rare["visit"] |= set(await touched.concerned(db, await touched.held_by(db, visited)))


async def _take_changes(db: asyncpg.Connection, found: touched.Changes, work: _Work, sizes: Sizes) -> bool:
    """Take what changes concern, names that came and went, and what was known beforehand; return if there is more."""
    await find.enlist(db, found.parties, sizes)
    if found.linked:
        await find.retire_of(db, found.linked, sizes)
    names = await touched.all_names(db, found.names)
    work.changed |= set(await touched.concerned(db, names))
    if found.linked:
        await _take_said(db, names, names, work)
    renamed = await touched.renamed(db, CHANGES_MAX)
    if renamed.names:
        work.changed |= set(await touched.concerned(db, renamed.names))
        work.changed |= set(await touched.contributing(db, renamed.names))
        await _take_said(db, renamed.names, {*renamed.names, *renamed.parties}, work)
    due = await touched.due(db, SLICE_SUBJECTS)
    work.changed |= set(due)
    await find.agents(db, {*found.employers, *renamed.agents_of})
    return not renamed.all or len(due) == SLICE_SUBJECTS


async def _take_said(db: asyncpg.Connection, names: Collection[str], of: Collection[str], work: _Work) -> None:
    """What is said under these names counts as said by others now, and so by whoever had the devices of these."""
    work.moved |= {*await touched.sold_to(db, of), *await touched.concerned(db, await touched.held_by(db, of))}
    work.customers |= set(await touched.said_to(db, names))


@dataclass(frozen=True, slots=True)
class _Slice:
    """What is built of totals with this step."""

    of: Building
    to: str | None
    """Up to which subject; None: to the last."""


async def _take_slices(db: asyncpg.Connection, work: _Work, paces: Paces) -> list[_Slice]:
    """Take the next of what is being built, one after the other."""
    slices, left = list[_Slice](), SLICE_SUBJECTS
    for totals in await find.building(db, paces.recount_s, SLICES_MAX):
        subjects = await find.next_slice(db, totals.members, totals.built_to, left)
        slices.append(_Slice(totals, subjects[-1] if len(subjects) == left else None))
        own = [f"party:{member}" for member in totals.members] if not totals.built_to else []
        work.changed |= {(totals.id, name) for name in await touched.all_names(db, subjects + own)}
        left -= len(subjects)
        if left <= 0:
            break
    return slices


async def _build_on(db: asyncpg.Connection, slice_: _Slice) -> int:
    """Note what is built; return by how many events totals were wrong that it takes the place of."""
    if slice_.to is None:
        return await find.finish(db, slice_.of.id, slice_.of.members)
    await find.built_to(db, slice_.of.id, slice_.to)
    return 0


async def _bring_on(db: asyncpg.Connection, work: _Work, since: datetime, horizon: datetime) -> set[int]:
    """Do all that; return whose totals something changed that holds, and not only what happened."""
    await compare.compare(db, work.changed, horizon)
    anew = work.changed | work.moved
    if anew:
        said = await parts.reach(db, anew)
        said |= {pair for pair in anew if pair[1].startswith("party:")}
        work.customers |= await touched.customers_names(db, said)
    await parts.put_together(db, {part: anew | work.rare[part] for part in parts.ALL})
    if work.customers:
        await parts.put_together_customers(db, work.customers)
    changed = {large for large, _ in anew}
    rare = {large for pairs in work.rare.values() for large, _ in pairs}
    await shown.stale(db, changed | rare | {large for large, _ in work.customers}, since)
    return changed


async def _sweep(db: asyncpg.Connection, after: UUID | None, due: bool, sizes: Sizes) -> UUID | None:
    """Look for large parties, a slice at a time; return up to whom, None: not at it."""
    if after is None and not due:
        return None
    after = after or find.FIRST
    swept_to, candidates = await find.sweep(db, after, SWEEP_PARTIES, sizes)
    await find.enlist(db, candidates, sizes)
    await find.retire_between(db, after, swept_to, sizes)
    return swept_to
