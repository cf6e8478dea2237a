"""attach alone: from topics that are full already into Postgres, each event exactly once in effect.

    python -m loadtests.attach --events 300000

Starts a Kafka and a Postgres of its own. For each kind of traffic it makes a database and topics, fills them through
the product's own writer with events as `enrich` leaves them (about 680 bytes), then starts one `drm-ingest attach` and
prints, once the topics are empty: rows a second, CPU seconds of attach and of Postgres per 100,000 rows (the steadier
figures: what else runs on the machine does not count), what Postgres wrote, and the memory of attach.

"few devices" puts 500 devices into each 2,000 events, "many devices" 2,000; a duplicate repeats one of the last 1,000.
`--profile` prints where attach spends its CPU instead of how fast it is.

    python -m loadtests.attach --against 6e4b189 --repeat 8

Compares with another version, each on a database of its own making: both read the same topics, in turns, so that what
else the machine does falls on both alike. Of the ratios of rounds next to each other the median counts, and what their
middle half spans.
"""

import asyncio
import os
import pstats
import random
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import asyncpg
import typer
import uvloop
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from drm_ingest.kafka.topics import Topics
from drm_ingest.postgres.migrate import migrate
from drm_ingest.up.kafka import Kafka
from drm_ingest.up.postgres import Postgres
from loadtests.against import checkout, spread
from loadtests.draining import BATCH, KINDS, OURS, Measured, Traffic, Version, check, database, drain, fill, settings_of


async def measure(
    traffic: Traffic, kafka: Kafka, postgres: Postgres, events: int, devices: int, batch: int, profile: Path | None,
    progress: Progress, identities: float,
) -> Measured:  # fmt: skip
    """Make topics and a database, fill them, drain them."""
    dsn = await database(postgres)
    settings = settings_of(kafka, dsn, dsn.rpartition("/")[2])
    os.environ["DRM_ATTACH_BATCH_RECORDS_MAX"] = str(batch)
    await migrate(dsn)
    await fill(settings, traffic, events, devices, progress, identities)
    assert postgres.pid is not None
    measured = await drain(settings, postgres.pid, events, profile, progress)
    await check(dsn, events, traffic)
    return measured


async def compare(
    traffic: Traffic, kafka: Kafka, postgres: Postgres, events: int, devices: int, repeat: int, against: Version,
    progress: Progress, identities: float,
) -> list[tuple[Measured, Measured]]:  # fmt: skip
    """Drain the same topics again and again, in turns: the other version, then ours; the first round is to warm up."""
    prefix, rounds = f"load_{random.randrange(1 << 40):x}", []
    await fill(settings_of(kafka, postgres.dsn, prefix), traffic, events, devices, progress, identities)
    task = progress.add_task(f"rounds: {traffic.name}", total=repeat + 1)
    for number in range(repeat + 1):
        order = (against, OURS) if number % 2 else (OURS, against)  # what one leaves to be written falls on both alike
        told = {version.python: await _round(kafka, postgres, prefix, traffic, events, version, progress)
                for version in order}  # fmt: skip
        rounds.append((told[against.python], told[OURS.python]))
        progress.advance(task)
    return rounds[1:]


async def _round(
    kafka: Kafka, postgres: Postgres, prefix: str, traffic: Traffic, events: int, version: Version, progress: Progress
) -> Measured:
    dsn = await database(postgres)
    settings, name = settings_of(kafka, dsn, prefix), dsn.rpartition("/")[2]
    environment = {**os.environ, **version.environment, "DRM_POSTGRES_DSN": dsn}
    command = [*version.python, "-m", "drm_ingest", "migrate"]
    await asyncio.to_thread(subprocess.run, command, env=environment, check=True, stdout=subprocess.DEVNULL)
    connection = await asyncpg.connect(dsn)
    # From the beginning, whatever the group has read: each database has positions of its own.
    await connection.execute(
        "insert into consumer_position (consumer_group, topic, partition, next_offset, holder) "
        "select $1, topic, partition, 0, '' from unnest($2::text[]) topic, generate_series(0, $3 - 1) partition",
        f"{prefix}.attach", [Topics.of(settings).events(family) for family in ("measurement", "identity")],
        settings.topic_partitions,
    )  # fmt: skip
    await connection.close()
    assert postgres.pid is not None
    measured = await drain(settings, postgres.pid, events, None, progress, version)
    await check(dsn, events, traffic)
    connection = await asyncpg.connect(postgres.dsn)
    await connection.execute(f"drop database {name}")
    await connection.close()
    return measured


def _compared(
    kafka: Kafka, postgres: Postgres, events: int, devices: int, repeat: int, kind: str, against: str,
    identities: float, progress: Progress,
) -> Table:  # fmt: skip
    table = Table("traffic", "", "before", "now", "now to before: median (middle half)")
    with checkout(against) as (python, environment):
        other = Version((*python, "-P"), environment)  # not the modules of the folder we stand in
        for traffic in [traffic for traffic in KINDS if kind in traffic.name]:
            rounds = uvloop.run(compare(traffic, kafka, postgres, events, devices, repeat, other, progress, identities))
            for what, value in _FIGURES.items():
                pairs = [(value(before), value(now)) for before, now in rounds]
                befores, nows = zip(*pairs, strict=True)
                ratios = [now / before for before, now in pairs]
                table.add_row(traffic.name, what, spread(befores), spread(nows), spread(ratios))
    return table


_FIGURES: dict[str, Callable[[Measured], float]] = {
    "1000 rows/s": lambda did: did.rows / did.seconds / 1000,
    "attach CPU-s/100k": lambda did: did.attach_cpu_s / did.rows * 100_000,
    "Postgres CPU-s/100k": lambda did: did.postgres_cpu_s / did.rows * 100_000,
}


def main(
    events: Annotated[int, typer.Option(min=10_000, help="Events of each kind.")] = 300_000,
    devices: Annotated[int, typer.Option(min=2000, help="Devices in all.")] = 100_000,
    batch: Annotated[int, typer.Option(min=1, help="DRM_ATTACH_BATCH_RECORDS_MAX.")] = BATCH,
    kind: Annotated[str, typer.Option(help="Only kinds whose name contains this.")] = "",
    repeat: Annotated[int, typer.Option(min=1, help="Runs of each kind.")] = 1,
    profile: Annotated[bool, typer.Option(help="Print where attach spends its CPU (slower).")] = False,
    identities: Annotated[float, typer.Option(min=0, max=1, help="Share of sign-ins among the events.")] = 0.0,
    against: Annotated[str | None, typer.Option(help="Compare with a commit, or the folder of a checkout.")] = None,
) -> None:
    """Measure, and print a table."""
    console = Console(width=120)
    table = Table("traffic", "rows/s", "attach CPU-s/100k", "Postgres CPU-s/100k", "WAL B/row", "attach MB")
    with tempfile.TemporaryDirectory() as folder, Progress(console=console, transient=True) as progress:
        kafka, postgres = Kafka(Path(folder) / "kafka"), Postgres(Path(folder) / "postgres")
        try:
            kafka.start()
            postgres.start()
            if against is not None:
                os.environ["DRM_ATTACH_BATCH_RECORDS_MAX"] = str(batch)
                console.print(_compared(kafka, postgres, events, devices, repeat, kind, against, identities, progress))
                return
            for traffic in [traffic for traffic in KINDS for _ in range(repeat) if kind in traffic.name]:
                report = Path(folder) / "profile" if profile else None
                did = uvloop.run(
                    measure(traffic, kafka, postgres, events, devices, batch, report, progress, identities)
                )
                share = 100_000 / did.rows
                table.add_row(
                    traffic.name, f"{did.rows / did.seconds:,.0f}", f"{did.attach_cpu_s * share:.2f}",
                    f"{did.postgres_cpu_s * share:.2f}", f"{did.wal_bytes / did.rows:,.0f}", f"{did.attach_mb:.0f}",
                )  # fmt: skip
                if report:
                    pstats.Stats(str(report), stream=sys.stdout).sort_stats("tottime").print_stats(35)
        finally:
            kafka.stop()
            postgres.stop()
    console.print(table)


if __name__ == "__main__":
    typer.run(main)
