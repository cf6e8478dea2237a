"""Build the world once, read it under live load, and say whether every target was met.

    python -m loadtests.scale --keep /tmp/scale-data --buffers 13GB
    python -m loadtests.scale --devices 100000 --parties 30000 --relations 150000 --events 2000000 --vendor-devices 5000

Takes 20 GB of disk and, on two cores, ten minutes to build at full size; with `--keep` the data stays, and the next
run measures on it at once, in a quarter of an hour. Ends with 1 if a target was missed, and says which.
"""

import asyncio
import gc
import json
import shutil
import tempfile
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any

import asyncpg
import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from drm_ingest.postgres.migrate import migrate
from drm_ingest.up.postgres import Postgres
from loadtests.imports import parties_in
from loadtests.scale import warm
from loadtests.scale.build import build
from loadtests.scale.measure import measure
from loadtests.scale.running import up
from loadtests.scale.world import Sizes, World, midnight

DISK_BYTES_AN_EVENT = 1000
IMPORT_S = 120.0  # a million parties


def _progress(console: Console) -> Progress:
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
    return Progress(*columns, console=console)


async def _built(dsn: str) -> World | None:
    """Return the world that a database holds; None: it is empty, or its making was broken off."""
    db = await asyncpg.connect(dsn)
    try:
        if not await db.fetchval("select to_regclass('loadtest.scale') is not null"):
            return None
        found = json.loads(await db.fetchval("select built from loadtest.scale"))
    finally:
        await db.close()
    return World.make(Sizes(**found["sizes"]), datetime.fromisoformat(found["until"]), relations=False)


def _ensure(sizes: Sizes, folder: Path, workers: int, console: Console) -> World:
    """Build what is not there; return the world that is."""
    gc.disable()  # millions of tuples, and no cycle among them
    postgres = Postgres(folder / "postgres", log_file=folder / "build.log")
    if (folder / "postgres").exists():
        postgres.start()
        try:
            world = asyncio.run(_built(postgres.dsn))
        finally:
            postgres.stop(120)
        if world is not None:
            console.print(f"{folder} holds {world.sizes}")
            return world
        shutil.rmtree(folder)
    folder.mkdir(parents=True, exist_ok=True)
    needed, free = sizes.events * DISK_BYTES_AN_EVENT, shutil.disk_usage(folder).free
    if needed > free:
        raise typer.BadParameter(f"{needed / 1e9:.0f} GB of disk are needed, {free / 1e9:.0f} are free")
    world = World.make(sizes, midnight())
    gc.freeze()
    postgres.start()
    try:
        with _progress(console) as progress:
            asyncio.run(build(world, postgres.dsn, workers, progress))
    finally:
        postgres.stop(300)
    return world


async def _import(where: dict[str, Any], lines: int) -> float:
    """Import parties into a database of their own on the same server; return how long that took."""
    dsn = where["postgres_dsn"].rpartition("/")[0] + "/imports"
    db = await asyncpg.connect(where["postgres_dsn"])
    try:
        await db.execute("drop database if exists imports")
        await db.execute("create database imports")
        await migrate(dsn)
        took_s, *_ = await asyncio.to_thread(parties_in, where | {"postgres_dsn": dsn}, lines, 1)
        await db.execute("drop database imports")
    finally:
        await db.close()
    return took_s


def main(
    devices: Annotated[int, typer.Option(min=1000)] = 1_000_000,
    parties: Annotated[int, typer.Option(min=1000)] = 300_000,
    relations: Annotated[int, typer.Option(min=1000)] = 1_500_000,
    events: Annotated[int, typer.Option(min=10_000)] = 20_000_000,
    days: Annotated[int, typer.Option(min=10, max=365, help="Over which the events happened.")] = 90,
    vendor_devices: Annotated[int, typer.Option(min=10, help="Of one vendor.")] = 50_000,
    seed: Annotated[int, typer.Option(help="The same seed and sizes make the same world.")] = 7,
    workers: Annotated[int, typer.Option(min=0, help="Processes that make events; 0: this one.")] = 2,
    keep: Annotated[Path | None, typer.Option(help="Where the data stays, and is looked for.")] = None,
    only_build: Annotated[bool, typer.Option("--only-build", help="Do not measure.")] = False,
    rate: Annotated[float, typer.Option(help="Live events a second: a fifth of capacity.")] = 2400,
    reads: Annotated[float, typer.Option(help="Pages a second, of all kinds alike.")] = 20,
    a_kind: Annotated[int, typer.Option(min=10, help="Parties of each kind to read.")] = 100,
    buffers: Annotated[
        str, typer.Option(help="Postgres' shared_buffers, such as 13GB, filled before pages are read.")
    ] = "",
    import_parties: Annotated[int, typer.Option(min=0, help="To import, beside it; 0: none.")] = 1_000_000,
    port: Annotated[int, typer.Option(min=1, max=65_532, help="As of `drm-ingest up`.")] = 18_080,
) -> None:
    """Build, start, load, read, tell."""
    console = Console(width=120)
    sizes = Sizes(devices, parties, relations, events, days, vendor_devices, seed)
    folder = keep or Path(tempfile.mkdtemp(prefix="scale-"))
    try:
        world = _ensure(sizes, folder, workers, console)
        if only_build:
            return
        warm.give(folder, buffers)
        with up(folder, port) as where:
            filled = folder if buffers else None
            misses = asyncio.run(measure(where, world, console, filled, rate=rate, reads_rate=reads, a_kind=a_kind))
            if import_parties:
                took_s = asyncio.run(_import(where, import_parties))
                console.print(f"{import_parties:,} parties imported in {took_s:.1f} s")
                if took_s >= IMPORT_S * import_parties / 1_000_000:
                    misses.append(f"the import took {took_s:.0f} s, to be under {IMPORT_S:g} s a million")
    finally:
        if keep is None:
            shutil.rmtree(folder)
    for miss in misses:
        console.print(miss, style="red", highlight=False)
    console.print("every target was met" if not misses else f"{len(misses)} targets were missed")
    raise typer.Exit(1 if misses else 0)


if __name__ == "__main__":
    typer.run(main)
