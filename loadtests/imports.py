"""Imports into a running `drm-ingest up`: how fast parties come in, and what imported events cost live ones.

    python -m loadtests.imports parties --lines 1000000
    python -m loadtests.imports lane --rate 2000 --seconds 30

`lane` loads the path twice (`loadtests.path`), alone and beside an import of events that goes on all the while, and
prints both; the p99 of the acknowledgement and of receipt to commit are to be the same.
"""

import asyncio
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Annotated, Any

import asyncpg
import psutil
import typer
from rich.console import Console

cli = typer.Typer(no_args_is_help=True)
Ready = Annotated[Path, typer.Option(exists=True)]
READY = Path(".drm/ready.json")


def _import(where: dict[str, Any], what: str, file: Path, *options: str) -> list[str]:
    """Return the command, and set what it needs."""
    os.environ |= {
        "DRM_POSTGRES_DSN": where["postgres_dsn"],
        "DRM_KAFKA_BOOTSTRAP": where["kafka_bootstrap"],
        "DRM_EDGE_URL": where["edge_url"],
        "DRM_SENDER_KEY": where["sender_key"],
    }
    return [sys.executable, "-m", "drm_ingest", "import", what, str(file), *options]


@cli.command()
def parties(ready: Ready = READY, lines: Annotated[int, typer.Option(min=1)] = 1_000_000) -> None:
    """Import parties, each with two references and three attributes, then the same file again."""
    for time_, took_s in zip(("first", "again"), parties_in(json.loads(ready.read_text()), lines, 2), strict=True):
        print(f"{time_}: {lines:,} parties in {took_s:.1f} s = {lines / took_s:,.0f}/s")


def parties_in(where: dict[str, Any], lines: int, times: int) -> list[float]:
    """Import one file of parties so often; return how long each time took."""
    run, took_s = time.time_ns(), []
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "parties.csv"
        with file.open("w") as out:
            out.write("kind,name,refs.crm,refs.shop,attributes.city,attributes.segment,attributes.since,origin\n")
            out.writelines(
                f"customer,Party {n},{run}-{n},{run}-s{n * 7919 % lines}-{n},City {n % 500},{'ABC'[n % 3]},"
                f"20{n % 26:02}-01-01,crm\n"
                for n in range(lines)
            )
        for _ in range(times):
            started, postgres_s, own_s = time.monotonic(), _postgres_s(where["postgres_dsn"]), _children_s()
            subprocess.run(_import(where, "parties", file), check=True)
            took_s.append(time.monotonic() - started)
            print(
                f"CPU: the import {_children_s() - own_s:.1f} s, "
                f"Postgres {_postgres_s(where['postgres_dsn']) - postgres_s:.1f} s"
            )
    return took_s


def _children_s() -> float:
    """Return the CPU seconds of our children that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _postgres_s(dsn: str) -> float:
    """Return the CPU seconds of a Postgres on this machine, those of backends that have ended among them."""

    async def postmaster() -> psutil.Process:
        db = await asyncpg.connect(dsn)
        try:
            return psutil.Process(await db.fetchval("select pg_backend_pid()")).parent()
        finally:
            await db.close()

    server = asyncio.run(postmaster())
    ended = server.cpu_times()
    alive = [child.cpu_times() for child in server.children()]
    return float(ended.children_user + ended.children_system + sum(times.user + times.system for times in alive))


@cli.command()
def lane(
    ready: Ready = READY,
    rate: Annotated[float, typer.Option(help="Live events a second.")] = 2000,
    seconds: Annotated[int, typer.Option(min=5)] = 30,
    share: Annotated[float, typer.Option(min=0.01, max=1)] = 0.25,
    lag_max_events: Annotated[int, typer.Option(min=0)] = 5_000,
) -> None:
    """Measure live events alone, and beside imported ones."""
    where, run, console = json.loads(ready.read_text()), time.time_ns(), Console(width=110)
    live = [
        sys.executable, "-m", "loadtests.path", "--ready", str(ready), "--rate", str(rate), "--seconds", str(seconds),
    ]  # fmt: skip
    console.rule("live events alone")
    subprocess.run(live, check=True)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "past.ndjson"
        with file.open("w") as out:
            for n in range(seconds * 100_000):
                event = {
                    "type": "device.measurement", "subject": f"past-{run}-{n % 5000}", "id": str(n),
                    "time": "2026-01-01T00:00:00Z", "data": {"temperature": n % 40},
                }  # fmt: skip
                out.write(json.dumps(event) + "\n")
        options = ("--share", str(share), "--lag-max-events", str(lag_max_events))
        with subprocess.Popen(_import(where, "events", file, *options), stderr=subprocess.DEVNULL) as importing:
            console.rule("beside an import")
            subprocess.run(live, check=True)
            going_on = importing.poll() is None
            note = json.loads((Path(folder) / ".past.ndjson.events.import").read_text())["progress"]
            importing.terminate()
    console.print(
        f"imported meanwhile: {note['made']:,} events; it was {'' if going_on else 'NOT '}going on all the while"
    )
    raise typer.Exit(0 if going_on else 1)


if __name__ == "__main__":
    cli()
