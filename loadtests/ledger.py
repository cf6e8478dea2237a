"""The ledger: send events of every kind, keep each answer, and compare with what is stored once the path is quiet.

    python -m loadtests.ledger --ready .drm/ready.json --events 100000

Exits 0 only if every acknowledged event is stored exactly once with the same content hash (or, where the ledger says
so, is a dead letter), nothing rejected is stored, nothing is stored that was not sent, the order within each subject is
kept in each topic, and received = sum of outcomes on every process.
"""

import asyncio
import itertools
import json
import random
import secrets
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

import typer
from rich.console import Console
from rich.progress import Progress

from loadtests.clients import Client, Http, Ledger, WebSocket
from loadtests.traffic import Device, devices
from loadtests.verify import Findings, verify

Transport = Literal["http", "ws"]
SIZES = (1, 10, 100)


async def generate(
    ledger: Ledger,
    *,
    edge_url: str,
    key: str,
    events: int,
    seed: int,
    connections: int = 8,
    devices_per_connection: int = 25,
    transports: Sequence[Transport] = ("http", "ws"),
    sizes: Sequence[int] = SIZES,
    duplicates: float = 0.02,
    invalid: float = 0.02,
    conflicts: float = 0.001,
    rate: float | None = None,
    progress: Progress | None = None,
) -> None:
    """Send `events` events over some connections, each with devices of its own, in order; `rate` is events a second."""
    host, port = urlsplit(edge_url).hostname or "127.0.0.1", urlsplit(edge_url).port or 80
    bar = progress.add_task("sending", total=events) if progress else None
    prefix = f"load-{secrets.token_hex(4)}"
    started = time.monotonic()

    async def one(number: int) -> None:
        own = list(
            devices(
                f"{prefix}-{number}", devices_per_connection, seed + number,
                duplicates=duplicates, invalid=invalid, conflicts=conflicts,
            )
        )  # fmt: skip
        by_subject = {device.subject: device for device in own}
        draw = random.Random(seed * 7919 + number)
        transport = transports[number % len(transports)]
        client: Client = (Http if transport == "http" else WebSocket)(host, port, key, ledger)
        sent = 0
        share = events // connections
        try:
            while sent < share:
                batches = [_batch(own, draw, sizes) for _ in range(1 if transport == "http" else 4)]
                await client.send(batches)
                for entry in itertools.chain.from_iterable(batches):
                    by_subject[entry.subject].settle(entry)
                count = sum(map(len, batches))
                sent += count
                if progress is not None and bar is not None:
                    progress.advance(bar, count)
                if rate is not None:
                    await asyncio.sleep(max(0.0, started + sent / (rate / connections) - time.monotonic()))
        finally:
            await client.close()

    await asyncio.gather(*(one(number) for number in range(connections)))


def _batch(own: Sequence[Device], draw: random.Random, sizes: Sequence[int]) -> list[Any]:
    """Draw a batch of one of the sizes, spread over some devices."""
    size = draw.choice(sizes)
    per_device = max(1, size // 10)
    chosen = draw.sample(own, k=min(len(own), -(-size // per_device)))
    batch = [entry for device in chosen for entry in device.events(per_device)]
    return batch[:size]


def tell(console: Console, ledger: Ledger, findings: Findings, seconds: float) -> int:
    """Print the result and return the exit code."""
    answers = Counter(entry.answer for entry in ledger.entries)
    console.print(f"{len(ledger.entries)} events in {seconds:.1f} s, {ledger.resent} sent again")
    for answer, count in answers.most_common():
        console.print(f"  {count:>8} {answer}")
    if findings.counts:
        console.print(str(findings), style="red", highlight=False)
        return 1
    console.print("the ledger is exact", style="green")
    return 0


def main(
    ready: Annotated[Path, typer.Option(exists=True, help="The ready file of a running `drm-ingest up`.")] = Path(
        ".drm/ready.json"
    ),
    events: Annotated[int, typer.Option(min=1, help="How many to send.")] = 50_000,
    connections: Annotated[int, typer.Option(min=1, max=200, help="Half of them HTTP, half WebSocket.")] = 8,
    rate: Annotated[float | None, typer.Option(help="Events a second; default: as fast as acknowledged.")] = None,
    seed: Annotated[int | None, typer.Option(help="To repeat a run; printed.")] = None,
    file: Annotated[Path | None, typer.Option(help="Keep the ledger here, as NDJSON.")] = None,
) -> None:
    """Send, wait until quiet, compare."""
    console = Console()
    where = json.loads(ready.read_text())
    seed = seed if seed is not None else secrets.randbelow(1_000_000)
    console.print(f"seed {seed}")
    ledger = Ledger(give_up_after_s=60)
    started = time.monotonic()
    with Progress(console=console) as progress:
        asyncio.run(
            generate(
                ledger, edge_url=where["edge_url"], key=where["sender_key"], events=events, seed=seed,
                connections=connections, rate=rate, progress=progress,
            )
        )  # fmt: skip
    seconds = time.monotonic() - started
    if file is not None:
        with file.open("wb") as out:
            out.writelines(entry.line() for entry in ledger.entries)
    findings = asyncio.run(
        verify(
            ledger.entries, kafka_bootstrap=where["kafka_bootstrap"], postgres_dsn=where["postgres_dsn"],
            prefix=where.get("topic_prefix", "drm"), metrics=where["metrics"],
        )
    )  # fmt: skip
    raise typer.Exit(tell(console, ledger, findings, seconds))


if __name__ == "__main__":
    typer.run(main)
