"""Hours of load with connections that break, and whether any process keeps memory, descriptors or tasks of it.

    python -m loadtests.soak --ready .drm/ready.json --minutes 60

Exits 0 only if, on each of our processes, resident memory rose by less than the bound (the slope of a line through all
samples after warm-up, by least squares), descriptors and tasks came back to where they were before the load, none was
started anew, and exactly the acknowledged events are stored.

An event takes nearly 2 KB of disk: 0.6 in Postgres, 1.1 in Kafka, which keeps it twice (as sent, and in context) for
DRM_TOPIC_RETENTION_HOURS. An hour at 8,400 a second is 30 million events: about 60 GB.
"""

import asyncio
import csv
import json
import shutil
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from statistics import linear_regression
from typing import Annotated, Any

import asyncpg
import httpx
import typer
import uvloop
from prometheus_client.parser import text_string_to_metric_families
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from loadtests.rough import Senders
from loadtests.usage import usage
from loadtests.verify import quiet

SAMPLE_S = 10.0
PRELUDE_S = 10.0  # of load before the baseline is taken: connections that live as long as the process are made in it
SETTLE_S = 330.0  # longer than an idle connection lives, also one in a pool for Postgres (300 s)
SUSTAINED_EVENTS_PER_S = 12_000  # loadtests/README.md, the whole path
EVENT_DISK_BYTES = 2000
FILLING_EVENTS = 400_000  # enrich remembers half as many identities: its memory has to be full before a slope tells
SERVE_EVERY_S = 0.5


@dataclass(frozen=True, slots=True)
class Sample:
    """One process at one moment; tasks is -1 where it has no event loop of ours."""

    at_s: float
    process: str
    pid: int
    resident_mb: float
    descriptors: int
    threads: int
    tasks: int
    events_acked: int


class Watch:
    """Looks at every process of a running `up`."""

    def __init__(self, ready: Path) -> None:
        self._ready = ready
        self.samples: list[Sample] = []
        self.began = time.monotonic()

    async def look(self, events_acked: int) -> list[Sample]:
        """Take one sample of each process, and keep it."""
        where = json.loads(self._ready.read_text())
        used = {name: await asyncio.to_thread(usage, pid) for name, pid in where["pids"].items() if pid}
        tasks = {name: await _tasks(url) for name, url in where["metrics"].items()}
        at_s = round(time.monotonic() - self.began, 1)
        found = [
            Sample(at_s, name, where["pids"][name], *used[name], tasks.get(name, -1), events_acked) for name in used
        ]
        self.samples += found
        return found

    def of(self, process: str, after_s: float = 0.0, until_s: float = float("inf")) -> list[Sample]:
        """Return the samples of one process within a time."""
        return [sample for sample in self.samples if sample.process == process and after_s <= sample.at_s <= until_s]


async def _tasks(url: str) -> int:
    async with httpx.AsyncClient(timeout=10) as client:  # a connection of its own, closed before the next sample
        text = (await client.get(url)).text
    return int(
        sum(
            sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
            if sample.name == "drm_asyncio_tasks"
        )
    )


def slope_mb_per_h(samples: Sequence[Sample]) -> float:
    """Return the slope of resident memory: ordinary least squares over time."""
    line = linear_regression([sample.at_s / 3600 for sample in samples], [sample.resident_mb for sample in samples])
    return line.slope


async def _ask_serve(where: dict[str, Any], senders: Senders) -> None:
    """Read what is being stored, a little, so that serve works too."""
    headers = {"authorization": f"Bearer {where['admin_key']}"}
    async with httpx.AsyncClient(base_url=where["serve_url"], headers=headers, timeout=30) as client:
        for number in range(1 << 62):
            subject = f"{senders.run}-{number % senders.devices:06d}"
            answer = await client.get(f"/v1/devices/{subject}/events", params={"limit": 20})
            senders.trouble[f"serve {answer.status_code}"] += answer.status_code not in {200, 404}
            await asyncio.sleep(SERVE_EVERY_S)


async def _stored(dsn: str, run: str) -> tuple[int, int]:
    """Return how many events are stored of requests that were answered, and of those that were cut off."""
    connection = await asyncpg.connect(dsn)
    try:
        row = await connection.fetchrow(
            """
            select count(*) filter (where not starts_with(subject, $1 || '-cut-')) as whole,
                   count(*) filter (where starts_with(subject, $1 || '-cut-')) as cut
            from event where starts_with(subject, $1 || '-')
            """,
            run,
            timeout=1800,
        )
    finally:
        await connection.close()
    return row["whole"], row["cut"]


@dataclass(slots=True)
class Soak:
    """A run: what is sent, what is watched, and what came of it."""

    ready: Path
    senders: Senders
    seconds: float
    watch: Watch
    console: Console
    baseline: dict[str, Sample]
    load_ended_s: float = 0.0

    async def run(self) -> None:
        """Load, sample, stop, and wait until everything is quiet and back."""
        where = json.loads(self.ready.read_text())
        asking = asyncio.create_task(_ask_serve(where, self.senders))
        await self.senders.send(PRELUDE_S)
        asking.cancel()
        await self._quiet(where)
        await asyncio.sleep(5)
        self.baseline = {sample.process: sample for sample in await self.watch.look(self.senders.acked)}
        async with asyncio.TaskGroup() as tasks:
            others = [tasks.create_task(self._sample()), tasks.create_task(_ask_serve(where, self.senders))]
            with Progress(console=self.console) as progress:
                others.append(tasks.create_task(self._tell(progress)))
                await self.senders.send(self.seconds)
                for task in others:
                    task.cancel()
        self.load_ended_s = time.monotonic() - self.watch.began
        await self._quiet(where)
        until = time.monotonic() + SETTLE_S
        while time.monotonic() < until:
            await self.watch.look(self.senders.acked)
            if not any(self.left_over()):
                break
            await asyncio.sleep(SAMPLE_S)

    async def _quiet(self, where: dict[str, Any]) -> None:
        await quiet(where["kafka_bootstrap"], where["postgres_dsn"], where.get("topic_prefix", "drm"), 600)

    async def _sample(self) -> None:
        while True:
            await asyncio.sleep(SAMPLE_S)
            await self.watch.look(self.senders.acked)

    async def _tell(self, progress: Progress) -> None:
        bar = progress.add_task("soaking", total=self.seconds)
        began = time.monotonic()
        while True:
            progress.update(bar, completed=time.monotonic() - began, description=f"{self.senders.acked:,} acknowledged")
            await asyncio.sleep(1)

    def left_over(self) -> Iterator[str]:
        """Yield what each of our processes has more of than before the load."""
        where = json.loads(self.ready.read_text())
        for process in where["metrics"]:
            last, before = self.watch.of(process)[-1], self.baseline[process]
            if last.descriptors > before.descriptors:
                yield f"{process} keeps {last.descriptors - before.descriptors} descriptors"
            if last.tasks > before.tasks:
                yield f"{process} keeps {last.tasks - before.tasks} tasks"


def _table(soak: Soak, warm_s: float) -> tuple[Table, dict[str, float]]:
    table = Table(
        "process", "resident MB at first", "warm", "at the end", "MB/h", "descriptors before, most, after",
        "threads", "tasks before, most, after",
    )  # fmt: skip
    slopes = {}
    for process, before in soak.baseline.items():
        every = soak.watch.of(process)
        warm = soak.watch.of(process, warm_s, soak.load_ended_s)
        slopes[process] = slope_mb_per_h(warm)
        table.add_row(
            process, f"{before.resident_mb:.1f}", f"{warm[0].resident_mb:.1f}", f"{warm[-1].resident_mb:.1f}",
            f"{slopes[process]:+.2f}",
            f"{before.descriptors}, {max(sample.descriptors for sample in every)}, {every[-1].descriptors}",
            str(max(sample.threads for sample in every)),
            f"{before.tasks}, {max(sample.tasks for sample in every)}, {every[-1].tasks}" if before.tasks >= 0 else "",
        )  # fmt: skip
    return table, slopes


def main(
    ready: Annotated[Path, typer.Option(exists=True, help="The ready file of a running `drm-ingest up`.")] = Path(
        ".drm/ready.json"
    ),
    minutes: Annotated[float, typer.Option(min=0.5, max=7 * 24 * 60)] = 60,
    warm_up_minutes: Annotated[
        float | None, typer.Option(help="Left out of the slope; default: a third. Caches must be full by then.")
    ] = None,
    rate: Annotated[
        float, typer.Option(min=10, help="Events a second; default: 70 % of what loadtests/README.md calls sustained.")
    ] = 0.7 * SUSTAINED_EVENTS_PER_S,
    connections: Annotated[int, typer.Option(min=2, help="Half of them HTTP, half WebSocket.")] = 24,
    devices: Annotated[int, typer.Option(min=1)] = 20_000,
    cut: Annotated[float, typer.Option(min=0, max=1, help="Share of requests cut off half-way.")] = 0.05,
    mb_per_hour_max: Annotated[float, typer.Option(help="The bound; a short run needs a loose one.")] = 1.0,
    file: Annotated[Path, typer.Option(help="Where the samples go, as CSV.")] = Path("soak.csv"),
) -> None:
    """Load for a long time, watch every process, compare with the beginning; about 2 KB of disk an event."""
    console = Console(width=140)
    warm_s = 60 * (warm_up_minutes if warm_up_minutes is not None else minutes / 3)
    events = rate * minutes * 60
    needed = events * EVENT_DISK_BYTES
    free = shutil.disk_usage(ready.resolve().parent).free
    console.print(f"{events:,.0f} events, about {needed / 1e9:.1f} GB of disk; {free / 1e9:.0f} GB are free")
    if needed > free:
        raise typer.BadParameter("there is not so much disk: lower --minutes or --rate")
    if rate * warm_s < FILLING_EVENTS:
        console.print(f"warm-up is too short to fill what enrich remembers ({FILLING_EVENTS:,} events)", style="yellow")
    where = json.loads(ready.read_text())
    senders = Senders(where["edge_url"], where["sender_key"], rate, connections, devices, cut)
    soak = Soak(ready, senders, minutes * 60, Watch(ready), console, {})
    try:
        uvloop.run(soak.run())
    finally:
        with file.open("w", newline="") as out:
            writer = csv.DictWriter(out, [field.name for field in fields(Sample)])
            writer.writeheader()
            writer.writerows(map(asdict, soak.watch.samples))
    table, slopes = _table(soak, warm_s)
    stored, of_cut = asyncio.run(_stored(where["postgres_dsn"], senders.run))
    console.print(
        f"acknowledged {senders.acked:,} = {senders.acked / (soak.seconds + PRELUDE_S):,.0f}/s, stored {stored:,}; "
        f"cut off {senders.cut:,}, of which {of_cut:,} had arrived; {senders.connects:,} connections; "
        f"trouble {dict(+senders.trouble)}"
    )
    console.print(table)
    wrong = list(soak.left_over())
    wrong += [f"{name} rose by {slopes[name]:.2f} MB/h" for name in where["metrics"] if slopes[name] >= mb_per_hour_max]
    restarts = Counter({name: len({sample.pid for sample in soak.watch.of(name)}) - 1 for name in soak.baseline})
    wrong += [f"{name} was started anew {count} times" for name, count in (+restarts).items()]
    if stored != senders.acked:
        wrong.append(f"{senders.acked:,} were acknowledged, {stored:,} are stored")
    if of_cut > senders.cut:
        wrong.append(f"{of_cut:,} stored of {senders.cut:,} cut off")
    console.print(f"samples are in {file}")
    for sentence in wrong:
        console.print(sentence, style="red")
    console.print("back where it began" if not wrong else "not back where it began")
    raise typer.Exit(1 if wrong else 0)


if __name__ == "__main__":
    typer.run(main)
