"""Imports into a running `drm-ingest up`: how fast parties come in, and what imported events cost live ones.

    python -m loadtests.imports parties --lines 1000000
    python -m loadtests.imports lane --rate 2000 --seconds 30

`lane` loads the path twice (`loadtests.path`), alone and beside an import of events that goes on all the while, and
prints both; the p99 of the acknowledgement and of receipt to commit are to be the same.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Annotated, Any

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
    """Import parties, each with a reference and an attribute, then the same file again."""
    for time_, took_s in zip(("first", "again"), parties_in(json.loads(ready.read_text()), lines, 2), strict=True):
        print(f"{time_}: {lines:,} parties in {took_s:.1f} s = {lines / took_s:,.0f}/s")


def parties_in(where: dict[str, Any], lines: int, times: int) -> list[float]:
    """Import one file of parties so often; return how long each time took."""
    run, took_s = time.time_ns(), []
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "parties.csv"
        with file.open("w") as out:
            out.write("kind,name,refs.crm,attributes.city,origin\n")
            out.writelines(f"customer,Party {n},{run}-{n},City {n % 500},crm\n" for n in range(lines))
        for _ in range(times):
            started = time.monotonic()
            subprocess.run(_import(where, "parties", file), check=True)
            took_s.append(time.monotonic() - started)
    return took_s


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
