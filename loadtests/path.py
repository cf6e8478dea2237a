"""The whole path, sustained: load on the edge of a running `drm-ingest up`, and how every process bears it.

    python -m loadtests.path --ready .drm/ready.json --rate 12000 --seconds 60

Prints events a second, p50 and p99 of the acknowledgement and of receipt to commit, and CPU seconds per 100,000 events
and resident memory of each process.
"""

import asyncio
import contextlib
import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import asyncpg
import typer
from rich.console import Console
from rich.progress import track
from rich.table import Table

from loadtests.usage import cpu_s, resident_mb
from loadtests.verify import quiet


async def _freshness(dsn: str, run: str) -> Any:
    connection = await asyncpg.connect(dsn)
    try:
        return await connection.fetchrow(
            """
            select count(*) as events,
                   percentile_cont(0.5) within group (order by late) as p50,
                   percentile_cont(0.99) within group (order by late) as p99,
                   max(late) as worst
            from (select extract(epoch from recorded_at - received_at) as late
                  from event where starts_with(subject, $1))
            """,
            f"{run}-",
            timeout=300,
        )
    finally:
        await connection.close()


def loaded(command: list[str], seconds: int, look: Callable[[], None], console: Console) -> Any:
    """Run the load generator, and `look` every second; return what it tells.

    Raises:
        SystemExit: it died; what it said of that, if anything, is on the terminal.
    """
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as generator:
        for _ in track(range(seconds), description="loading", console=console):
            with contextlib.suppress(subprocess.TimeoutExpired):
                generator.wait(1)
                break
            look()
        assert generator.stdout is not None
        said = generator.stdout.read()
    if code := generator.returncode:
        how = f"was ended by signal {-code}" if code < 0 else f"ended with exit code {code}"
        raise SystemExit(f"The load generator {how}; if it said why, that stands above.")
    return json.loads(said)


def main(
    ready: Annotated[Path, typer.Option(exists=True)] = Path(".drm/ready.json"),
    rate: Annotated[float | None, typer.Option(help="Events a second; default: as fast as acknowledged.")] = None,
    seconds: Annotated[int, typer.Option(min=1, max=7200)] = 60,
    batch: Annotated[int, typer.Option(min=1)] = 100,
    connections: Annotated[int, typer.Option(min=1)] = 16,
    devices: Annotated[int, typer.Option(min=1)] = 5000,
) -> None:
    """Load, measure, wait for the last commit, print."""
    console = Console(width=110)
    where = json.loads(ready.read_text())
    pids = {name: pid for name, pid in where["pids"].items() if pid}
    before = {name: cpu_s(pid) for name, pid in pids.items()}
    peak = dict.fromkeys(pids, 0.0)
    command = [
        sys.executable, "-m", "loadtests.load", "--url", where["edge_url"], "--key", where["sender_key"],
        "--batch", str(batch), "--connections", str(connections), "--devices", str(devices), "--seconds", str(seconds),
        *(["--rate", str(rate)] if rate else []),
    ]  # fmt: skip

    def look() -> None:
        for name, pid in pids.items():
            peak[name] = max(peak[name], resident_mb(pid))

    told = loaded(command, seconds, look, console)
    stopped = time.monotonic()
    asyncio.run(quiet(where["kafka_bootstrap"], where["postgres_dsn"], where.get("topic_prefix", "drm"), 600))
    caught_up_s = time.monotonic() - stopped
    used = {name: cpu_s(pid) - before[name] for name, pid in pids.items()}
    freshness = asyncio.run(_freshness(where["postgres_dsn"], told["run"]))
    acked = told["events_acked"]
    console.print(
        f"acknowledged {acked:,} events in {told['seconds']} s = {told['events_per_s']:,}/s, "
        f"answers {told['statuses']}, ack p50 {told['ack_p50_ms']} ms, p99 {told['ack_p99_ms']} ms"
    )
    console.print(
        f"stored {freshness['events']:,}; receipt to commit p50 {freshness['p50'] * 1000:.0f} ms, "
        f"p99 {freshness['p99'] * 1000:.0f} ms, worst {freshness['worst']:.1f} s; quiet {caught_up_s:.1f} s after"
    )
    table = Table("process", "CPU-s per 100k events", "share of a core", "peak resident MB")
    for name in pids:
        table.add_row(
            name, f"{used[name] / acked * 100_000:.2f}", f"{used[name] / (told['seconds'] + caught_up_s):.0%}",
            f"{peak[name]:.0f}",
        )  # fmt: skip
    console.print(table)
    raise typer.Exit(0 if freshness["events"] == acked else 1)


if __name__ == "__main__":
    typer.run(main)
