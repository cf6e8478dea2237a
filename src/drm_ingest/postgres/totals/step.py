"""One step of the keeper of totals: bounded, in one transaction, whatever there is to do.

    fresh events ─▶ changes, what is due, the next slice of what is built ─▶ compare ─▶ rare parts ─▶ add up ─▶ through

It is one snapshot. Afterwards the totals have in them exactly the events of their spans that were recorded before
`through`, and the changes up to `number`; who dies in between has done nothing.
"""

from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from uuid import UUID

import asyncpg

from drm_ingest.postgres.totals import compare, find, fresh, parts, shown, touched
from drm_ingest.postgres.totals.find import Sizes
from drm_ingest.postgres.totals.horizon import Horizon

_LOCK = 0x64726D_746F74  # "drm" "tot": the advisory lock of whoever is at a step
WINDOW = timedelta(seconds=10)
"""Of events recorded, at a time: what came while no keeper worked is caught up piece by piece."""
CHANGES_MAX = 500
SLICE_SUBJECTS = 1000
SWEEP_PARTIES = 5000
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
    """How old `through` is, or the oldest change that is not in the totals, in seconds."""
    more: bool = False
    """There is more to do at once."""
    large: int = 0
    """How many parties are read from totals, or will be."""
    healed: int = 0
    """By how many events totals were wrong that were counted anew."""
    compared: int = 0


@dataclass(slots=True)
class _Large:
    id: int
    members: list[UUID]
    kind: str
    built_to: str
    built: bool
    stale: bool
    old: bool
    """What is shown is as old as it may be."""
    recount: bool
    """It is time to count it anew."""
    subjects: set[str] = field(default_factory=set)
    """To be compared."""
    rare: set[str] = field(default_factory=set)
    """To be put together anew, though nothing else is to be compared."""
    sliced: bool = False
    """The next of its subjects are among them."""
    next_to: str | None = None
    """Up to which subject it will be built with this step; None: to the last."""


_POSITION = """
select through, number, swept_to, swept_at, clock_timestamp() as now,
       coalesce(swept_at < clock_timestamp() - make_interval(secs => $1), true) as sweep_due
from totals_position for update"""

_LARGE = """
select id, members, kind, built_to, built_at is not null as built, stale,
       coalesce(shown_at < clock_timestamp() - make_interval(secs => $2), true) as old,
       built_at < clock_timestamp() - make_interval(secs => $1)
       and not exists (select from large_party other where other.party = large.party and other.id > large.id) as recount
from large_party large order by id"""

_BEHIND = """
select greatest(0, extract(epoch from clock_timestamp() - least($1, (
    select min(recorded_at) from relationship_change where number = (
        select min(number) from relationship_change where number > $2))))::float8)"""


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
    parties = {row["id"]: _Large(**dict(row)) for row in await db.fetch(_LARGE, paces.recount_s, paces.add_up_s)}
    since: datetime = at["through"]
    seen = await horizon.of_snapshot(db)
    if seen is None and not parties:
        # Whoever is found large now would be caught up from `since` on, window by window, and that may be years ago.
        return Done(since, 0.0)
    until = max(since, seen or since)
    latest = until
    if parties:
        until = since + await _window(db, since, until)
        await _take_fresh(db, since, until, parties)
    young = at["now"] - until > YOUNG_MAX
    number, more = at["number"], until < latest
    if at["swept_at"] is None and at["swept_to"] is None:
        number = await touched.last_number(db)  # all parties are about to be looked at
    elif not young or not parties:
        found = await touched.changes(db, number, CHANGES_MAX)
        number, more = found.number, more or not found.all
        await _take_changes(db, found, parties, sizes)
        concerned, agents_of = await touched.renamed(db, CHANGES_MAX)
        _take_agents(agents_of, parties)
        for large, subject in concerned + await touched.due(db, SLICE_SUBJECTS):
            if large in parties:
                parties[large].subjects.add(subject)
        await _take_slices(db, parties)
    done = Done(until, 0.0)
    for party in parties.values():
        if party.recount:
            await find.begin(db, party.members)
        await _bring_on(db, party, until, done)
    swept_to = await _sweep(db, at["swept_to"], at["sweep_due"], sizes)
    await db.execute(
        "update totals_position set through = $1, number = $2, swept_to = $3, "
        "swept_at = case when $4 then clock_timestamp() else swept_at end",
        until, number, swept_to, at["sweep_due"] and swept_to is None,
    )  # fmt: skip
    for party in parties.values():
        # After `through` is written: the figures are of that time.
        if party.built and party.stale and (party.old or party.subjects):
            await shown.settle(db, party.id)
            await shown.add_up(db, party.id, party.kind, party.members)
    done.behind_s = await db.fetchval(_BEHIND, until, number)
    done.large, building = await db.fetchrow(
        "select count(*), count(*) filter (where built_at is null) from large_party"
    )
    done.more = more or swept_to is not None or building > 0
    return done


async def _window(db: asyncpg.Connection, since: datetime, until: datetime) -> timedelta:
    """Return how much time is taken at once: more than a window only if no event was recorded in it."""
    window = until - since
    while window > WINDOW and await fresh.recorded(db, since, since + window):
        window = max(window / 2, WINDOW)
    return window


async def _take_fresh(db: asyncpg.Connection, since: datetime, until: datetime, parties: dict[int, _Large]) -> None:
    await fresh.add(db, since, until)
    counted, names = await fresh.rare(db, since, until)
    for large, subject in counted:
        parties[large].rare.add(subject)
    if names and any(party.kind in ("vendor", "partner") for party in parties.values()):
        for large, subject in await touched.sold_to(db, names):
            parties[large].rare.add(subject)
        for large, subject in await touched.concerned(db, await touched.held_by(db, names)):
            parties[large].rare.add(subject)


async def _take_changes(
    db: asyncpg.Connection, found: touched.Changes, parties: dict[int, _Large], sizes: Sizes
) -> None:
    await find.enlist(db, found.parties, sizes)
    if not parties or not found.names:
        return
    names = await touched.all_names(db, found.names)
    for large, subject in await touched.concerned(db, names):
        if large in parties:  # else it was enlisted just now
            parties[large].subjects.add(subject)
    _take_agents(found.employers, parties)
    if found.linked:
        for large, subject in await touched.sold_to(db, names):
            parties[large].subjects |= {subject, *_parties(names)}  # whoever was linked may have been a customer
        for large, subject in await touched.concerned(db, await touched.held_by(db, names)):
            if large in parties:  # what is said by one counts as said by whoever had the device
                parties[large].rare.add(subject)
        await find.retire(db, sizes)
        left = {row["id"] for row in await db.fetch("select id from large_party")}
        for gone in parties.keys() - left:
            del parties[gone]


def _take_agents(of: Collection[UUID], parties: dict[int, _Large]) -> None:
    """Who visits for these is somebody else by now: all their visits are looked at again."""
    for party in parties.values():
        if party.kind == "partner" and not set(of).isdisjoint(party.members):
            party.recount = party.built and not any(
                other.members == party.members and not other.built for other in parties.values()
            )
            party.built_to = ""


async def _take_slices(db: asyncpg.Connection, parties: dict[int, _Large]) -> None:
    for party in parties.values():
        if party.built:
            continue
        subjects = await find.next_slice(db, party.members, party.built_to, SLICE_SUBJECTS)
        party.sliced = True
        party.next_to = subjects[-1] if len(subjects) == SLICE_SUBJECTS else None
        own = [f"party:{member}" for member in party.members] if not party.built_to else []
        party.subjects |= await touched.all_names(db, subjects + own)
        break  # one after the other


async def _bring_on(db: asyncpg.Connection, party: _Large, horizon: datetime, done: Done) -> None:
    if party.subjects:
        await compare.compare(db, party.id, party.members, sorted(party.subjects), horizon)
        done.compared += len(party.subjects)
    if subjects := party.subjects | party.rare:
        customers = await parts.put_together(db, party.id, party.kind, party.members, subjects)
        if party.kind == "vendor":
            names = await touched.all_names(db, customers | set(_parties(subjects)))
            names = set(_parties(names))
            if names:
                await parts.put_together_customers(db, party.id, party.members, names)
        party.stale = True
        await db.execute("update large_party set stale = true where id = $1 and not stale", party.id)
    if party.sliced:
        if party.next_to is None:
            done.healed += await find.finish(db, party.id, party.members)
            party.built = party.stale = True
        else:
            await db.execute("update large_party set built_to = $2 where id = $1", party.id, party.next_to)


def _parties(names: Iterable[str]) -> list[str]:
    return [name for name in names if name.startswith("party:")]


async def _sweep(db: asyncpg.Connection, after: UUID | None, due: bool, sizes: Sizes) -> UUID | None:
    """Look for large parties, a slice at a time; return up to whom, None: not at it."""
    if after is None and not due:
        return None
    swept_to, candidates = await find.sweep(db, after or find.FIRST, SWEEP_PARTIES, sizes)
    await find.enlist(db, candidates, sizes)
    if swept_to is None:
        await find.retire(db, sizes)
    return swept_to
