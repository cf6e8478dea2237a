"""What is measured on the data, in order, and what it has to reach."""

import asyncio
import math
import random
import statistics
import time
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any
from uuid import UUID

import asyncpg
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from drm_ingest.settings import Settings
from loadtests.scale import warm
from loadtests.scale.reads import CONNECTIONS, KINDS, Reader, Times, asks_of, at_rate, by_what, repeated
from loadtests.scale.running import Load
from loadtests.scale.shifts import Shift, moved
from loadtests.scale.world import World

P95_MS, P99_MS = 50.0, 150.0
AS_OF_RATIO = 1.25  # noise of two medians
VENDOR_MS = 150.0
TOTALS_S = 5.0
BUILT_WITHIN_S = 600.0
LARGE_READS = 30
FIRST_A_KIND = 4 * CONNECTIONS
LARGE_SHOWN = 8  # of the parties that are measured by themselves

_LARGE = """
select party.id, kind, count(*) as devices from relationship join party on party.id = party
where upper_inf(recorded) and subject_party is null group by party.id, kind having count(*) > $1 order by 3 desc"""

_COUNTS = """
select (select count(*) from event_identity) as events, (select count(*) from relationship) as relations"""

_UNBUILT = """
select count(*) from unnest($1::uuid[]) as one (party) where not exists (
    select from large_party where one.party = any (members) and built_at is not null and shown is not null)"""

_SIZES = """
select case when relname like 'event\\_2%' or relname = 'event_default' then 'event' else relname end as of,
       sum(pg_table_size(oid))::bigint as heap, sum(pg_indexes_size(oid))::bigint as indexes
from pg_class
where relkind = 'r' and relnamespace = 'public'::regnamespace
  and (relname like 'event\\_2%' or relname in ('event_default', 'event_identity', 'subject_day', 'relationship'))
group by 1"""


@dataclass(slots=True)
class Found:
    """What a run found."""

    table: Table
    misses: list[str] = field(default_factory=list)

    def row(self, what: str, times: Times, limits: tuple[float | None, float | None] = (None, None)) -> None:
        """Add the times of a page, and whether they are as they should be."""
        p50, p95, p99 = (times.ms(share) for share in (0.5, 0.95, 0.99))
        for name, value, limit in (("p95", p95, limits[0]), ("p99", p99, limits[1])):
            if limit is not None and value >= limit:
                self.misses.append(f"{what}: {name} is {value:.0f} ms, to be under {limit:.0f}")
        self.table.add_row(what, str(len(times.seconds)), f"{p50:.1f}", f"{p95:.1f}", f"{p99:.1f}")

    def hold(self, that: bool, otherwise: str) -> None:
        """Remember what does not hold."""
        if not that:
            self.misses.append(otherwise)


async def measure(
    where: dict[str, Any],
    world: World,
    console: Console,
    filled: Path | None,
    *,
    rate: float,
    reads_rate: float,
    a_kind: int,
) -> list[str]:
    """Read under load, from memory if the server in `filled` is to be so; print what was found.

    Returns which targets were missed.
    """
    db = await asyncpg.connect(where["postgres_dsn"], command_timeout=600)
    reader = Reader(where)
    found = Found(Table("page", "read", "p50 ms", "p95 ms", "p99 ms"))
    try:
        console.print(f"shared_buffers: {await db.fetchval('show shared_buffers')}, {'filled' if filled else 'cold'}")
        _tell_sizes(await db.fetch(_SIZES), await db.fetchrow(_COUNTS), console)
        large = {row["id"]: row for row in await db.fetch(_LARGE, Settings().live_record_devices_max)}
        await _built(db, large, found, console)
        if filled:
            with Progress(console=console, transient=True) as progress:
                await warm.fill(filled, where["postgres_dsn"], progress)
        with Load(where, rate, world.sizes.devices) as load, Progress(console=console, transient=True) as progress:
            await _pages(reader, db, world, found, progress, reads_rate, a_kind)
            load.check()
            await _large(reader, list(large.values()), found, progress)
            load.check()
            await _shifts(reader, db, world, large, found, console)
            load.check()
        console.print(found.table)
        console.print(await _kept_up(db))
    finally:
        reader.close()
        await db.close()
    return found.misses


def _tell_sizes(rows: list[asyncpg.Record], counts: asyncpg.Record, console: Console) -> None:
    table = Table("bytes an event", "rows", "indexes", "in all")
    whole = 0
    for row in sorted(rows, key=lambda row: str(row["of"])):
        if row["of"] == "relationship":
            each = (row["heap"] + row["indexes"]) / counts["relations"]
            console.print(f"a relation takes {each:.0f} bytes with its indexes")
            continue
        of = [row["heap"] / counts["events"], row["indexes"] / counts["events"]]
        whole += row["heap"] + row["indexes"]
        table.add_row(row["of"], *(f"{size:.0f}" for size in (*of, sum(of))))
    table.add_row("in all", "", "", f"{whole / counts['events']:.0f}")
    console.print(table)


async def _pages(
    reader: Reader, db: asyncpg.Connection, world: World, found: Found, progress: Progress, rate: float, a_kind: int
) -> None:  # fmt: skip
    draw = random.Random(time.time_ns())
    first, asks = await asks_of(db, world, FIRST_A_KIND, draw), await asks_of(db, world, a_kind, draw)
    task = progress.add_task("reading under load", total=len(first) + len(asks))
    # As on a server that has run for a while: each connection to Postgres plans each kind of question once, in 20 to 40
    # ms. As many at once as there are of them, sorted, so that each is asked each kind.
    first.sort(key=lambda ask: (ask.what, ask.of, ask.view))
    await at_rate(reader, first, math.inf, lambda: progress.advance(task))
    took = await at_rate(reader, asks, rate, lambda: progress.advance(task))
    times = by_what(asks, took)
    for (what, of, view), those in times.items():
        held = (P95_MS, P99_MS) if what in ("record", "timeline") and view != "known_at" else (None, None)
        found.row(" ".join((what, *(() if of == "any" else (of,)), *(() if view == "now" else (view,)))), those, held)
    for what in ("record", "timeline"):
        for view in ("as_of", "known_at"):
            then, now = (
                statistics.median(s for k in KINDS for s in times[what, k, v].seconds) for v in (view, "now")
            )  # fmt: skip
            found.table.add_row(f"{what} {view} to now, medians", "", f"{then / now:.2f}", "", "")
            if view == "as_of":
                found.hold(then / now < AS_OF_RATIO, f"{what} as_of takes {then / now:.2f} of what now takes")


async def _built(db: asyncpg.Connection, large: dict[UUID, asyncpg.Record], found: Found, console: Console) -> None:
    """Wait until the totals of all large parties are there."""
    began = time.monotonic()
    while left := await db.fetchval(_UNBUILT, list(large)):
        if time.monotonic() - began > BUILT_WITHIN_S:
            found.misses.append(f"{left} large parties have no totals after {BUILT_WITHIN_S:g} s")
            return
        await asyncio.sleep(0.2)
    console.print(f"totals of {len(large)} large parties are there after {time.monotonic() - began:.1f} s")


async def _large(reader: Reader, large: list[asyncpg.Record], found: Found, progress: Progress) -> None:
    task = progress.add_task("large parties", total=min(LARGE_SHOWN, len(large)))
    for place, row in enumerate(large[:LARGE_SHOWN]):
        who = f"{row['kind']} of {row['devices']:,} devices"
        for what in ("", "/timeline"):
            times = await repeated(reader, f"/v1/parties/{row['id']}{what}", LARGE_READS if place == 0 else 5)
            found.row(
                f"{'timeline' if what else 'record'} {who}", times, (VENDOR_MS, None) if place == 0 else (None, None)
            )
        if place == 0:
            lags = [await _lag(reader, row["id"]) for _ in range(10)]
            found.table.add_row(
                f"totals of it behind, {who}", "10", f"{statistics.median(lags):.0f}", f"{max(lags):.0f}", ""
            )
        progress.advance(task)


async def _lag(reader: Reader, party: UUID) -> float:
    """Return how far behind the totals of a large party are, in ms; 0: it was read live."""
    freshness = (await reader.ask("GET", f"/v1/parties/{party}?devices=0&relations=0"))["freshness"]
    if freshness["totals_through"] is None:
        return 0.0
    read_at, through = (datetime.fromisoformat(freshness[name]) for name in ("read_at", "totals_through"))
    return (read_at - through).total_seconds() * 1000


async def _shifts(
    reader: Reader, db: asyncpg.Connection, world: World, large: dict[UUID, asyncpg.Record], found: Found,
    console: Console,
) -> None:  # fmt: skip
    customers = [party for party in world.parties["customer"] if party not in large]
    vendor = next((id_ for id_, row in large.items() if row["kind"] == "vendor"), None)
    if not world.sizes.bulk:
        return

    def told(who: str, shift: Shift) -> None:
        shown = "not shown" if shift.shown_s is None else f"shown {shift.shown_s * 1000:.0f} ms after the answer"
        console.print(
            f"a back-dated change of {shift.events:,} events of {who}: answered in {shift.said_s * 1000:.0f} ms, "
            f"{shown}, by read {shift.reads}"
        )

    for _ in range(3):
        shift = await moved(reader, db, world, random.choice(customers), "user", at=True)
        told("a customer", shift)
        found.hold(shift.shown_s is not None and shift.reads == 1, "a back-dated change was not in the next record")
    for _ in range(3 if vendor else 0):
        assert vendor is not None
        shift = await moved(reader, db, world, vendor, "serviced_by", at=False)
        told(f"a vendor of {large[vendor]['devices']:,} devices", shift)
        found.hold(
            shift.shown_s is not None and shift.shown_s < TOTALS_S,
            f"a back-dated change was not in the totals of a large party within {TOTALS_S:g} s",
        )


async def _kept_up(db: asyncpg.Connection) -> str:
    late = await db.fetchrow(
        "select count(*) as events, percentile_cont(array[0.5, 0.99]) within group (order by late) as late from ("
        "select extract(epoch from recorded_at - received_at) as late from event "
        "where occurred_at > now() - interval '60 seconds') as last"
    )
    p50, p99 = (value * 1000 for value in late["late"])
    return (
        f"live load of the last minute: {late['events']:,} events, receipt to commit p50 {p50:.0f} ms, p99 {p99:.0f} ms"
    )
