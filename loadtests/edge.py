"""The edge alone on one core, with authentication and validation on, acks=all to a real Kafka.

    python -m loadtests.edge --seconds 10

Starts a Kafka, a Postgres (for the key) and one edge of its own; the edge is pinned to the first core, everything else
to the second. For 1 and for 100 events a request it prints requests and events a second, CPU seconds of the edge per
100,000 events (the steadier figure: what else runs on the machine does not count), the time to the answer, and memory.

    python -m loadtests.edge --compare --against 58214bc

Compares what credentials cost: a plain key, a key with quotas, tokens of devices with quotas; and, with `--against`,
another version with a plain key. All edges run on one Kafka, and short rounds of all of them take turns, so that what
else the machine does falls on all alike: then only CPU seconds an event and their ratios say anything, and they do.
"""

import asyncio
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Any

import asyncpg
import httpx
import typer
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from rich.console import Console
from rich.progress import MofNCompleteColumn, Progress
from rich.table import Table

from drm_ingest import public_key
from drm_ingest.device import token
from drm_ingest.kafka import topics
from drm_ingest.postgres.credentials import ensure_key, new_key
from drm_ingest.postgres.migrate import migrate
from drm_ingest.postgres.pool import connect
from drm_ingest.postgres.registry import senders
from drm_ingest.schema import Schemas
from drm_ingest.settings import Settings
from drm_ingest.up.kafka import Kafka
from drm_ingest.up.ports import free_port
from drm_ingest.up.postgres import Postgres
from loadtests.against import checkout, spread
from loadtests.load import TOKEN_DEVICES
from loadtests.usage import cpu_s, exact_cpu_s, family, resident_mb

ROUNDS = ((1, 64), (100, 16))  # events a request, connections
_DEVICES = 1000  # with a token each; a key writes for 5,000
_QUOTA = {
    "events_per_s": 1e7,
    "bytes_per_s": 1e10,
    "device_events_per_s": 1e6,
    "device_bytes_per_s": 1e9,
    "burst_s": 10,
}
"""So much that none is refused: every bucket is looked at and charged all the same."""


async def _prepare(settings: Settings, key: str) -> None:
    await migrate(settings.postgres_dsn.get_secret_value())
    await topics.create(settings, Schemas.load().families)
    connection = await connect(settings, "loadtest")
    try:
        await ensure_key(connection, "loadtest", "sender", key)
    finally:
        await connection.close()


def _pin(pids: list[int], cores: set[int]) -> None:
    for pid in pids:
        for task in Path(f"/proc/{pid}/task").iterdir():
            os.sched_setaffinity(int(task.name), cores)


def _load(url: str, secret: list[str], batch: int, connections: int, seconds: float) -> dict[str, Any]:
    command = [
        sys.executable, "-m", "loadtests.load", "--url", url, *secret, "--batch", str(batch),
        "--connections", str(connections), "--seconds", str(seconds), "--subjects", "meter",
    ]  # fmt: skip
    done = subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True)
    return dict(json.loads(done.stdout))


@dataclass
class Case:
    """Somebody who sends to an edge, and what that cost the edge each time, in CPU seconds per 100,000 events."""

    name: str
    edge: "Edge"
    secret: list[str]
    costs: dict[int, list[float]] = field(default_factory=lambda: {batch: [] for batch, _ in ROUNDS})


@dataclass
class Edge:
    """A running edge: the one of this checkout, or another version."""

    process: subprocess.Popen[bytes]
    url: str


@contextmanager
def _edge(python: list[str], environment: dict[str, str], core: set[int]) -> Iterator[Edge]:
    port = free_port()
    process = subprocess.Popen(
        [*python, "-m", "drm_ingest", "edge"], stderr=subprocess.DEVNULL,
        env=os.environ | environment | {"DRM_EDGE_PORT": str(port)},
    )  # fmt: skip
    try:
        url = f"http://127.0.0.1:{port}"
        _wait(url)
        _pin(family(process.pid), core)
        yield Edge(process, url)
    finally:
        process.terminate()
        process.wait(30)


async def _prepare_credentials(settings: Settings, folder: Path) -> tuple[str, Path]:
    """Make a key and a fleet, both with quotas; return the key, and the file with the tokens."""
    connection = await connect(settings, "loadtest")
    private_key, tokens, key = folder / "private.pem", folder / "tokens", new_key()[0]
    try:
        made = await senders.create_sender(connection, "with-quotas", "sender", None)
        await senders.set_quota(connection, made["id"], _QUOTA)
        await ensure_key(connection, "with-quotas", "sender", key)
        made = await senders.create_sender(connection, "fleet", "sender", None)
        await senders.set_quota(connection, made["id"], _QUOTA)
        private = Ed25519PrivateKey.generate()
        private_key.write_bytes(private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
        public = public_key.of(private.public_key())
        await senders.create_fleet_key(connection, made["id"], None, public, None, senders.Scope())
    finally:
        await connection.close()
    name, hour = TOKEN_DEVICES.decode(), timedelta(hours=1)
    made_tokens = [
        token.make(private_key, f"{name}-{n:06d}", kid=None, audience=settings.token_audience, lifetime=hour)
        for n in range(_DEVICES)
    ]
    tokens.write_text("\n".join(made_tokens))
    return key, tokens


def _prepare_other(python: list[str], environment: dict[str, str], dsn: str, key: str) -> dict[str, str]:
    """Give another version a database as it knows it; return its environment."""
    other = dsn.rpartition("/")[0] + "/against"
    environment = environment | {"DRM_POSTGRES_DSN": other}
    asyncio.run(_execute(dsn, "create database against"))
    migrate_ = [*python, "-m", "drm_ingest", "migrate"]
    subprocess.run(migrate_, env=os.environ | environment, check=True, stdout=subprocess.DEVNULL)
    asyncio.run(_own(other, key))
    return environment


async def _execute(dsn: str, statement: str) -> None:
    connection = await asyncpg.connect(dsn)
    await connection.execute(statement)
    await connection.close()


async def _own(dsn: str, key: str) -> None:
    connection = await asyncpg.connect(dsn)
    await ensure_key(connection, "loadtest", "sender", key)
    await connection.close()


def _take_turns(cases: list[Case], seconds: float, repeat: int, console: Console) -> None:
    """Let each case send for a moment, again and again."""
    turns = [(case, batch, connections) for batch, connections in ROUNDS for case in cases]
    with Progress(*Progress.get_default_columns(), MofNCompleteColumn(), console=console) as progress:
        task = progress.add_task("measuring", total=len(turns) * (repeat + 1))
        for number in range(-1, repeat):  # the first to warm up: tokens are verified, buckets found
            for case, batch, connections in turns:
                before = exact_cpu_s(case.edge.process.pid)
                told = _load(case.edge.url, case.secret, batch, connections, seconds)
                if set(told["statuses"]) != {"200"} or told["lost"]:
                    raise RuntimeError(f"{case.name}: not all were acknowledged: {told}")
                if number >= 0:
                    used = exact_cpu_s(case.edge.process.pid) - before
                    case.costs[batch].append(used / told["events_acked"] * 100_000)
                progress.advance(task)


def _compared(cases: list[Case]) -> Table:
    """Show the least, which others' work disturbed least, and the median with where the middle half of rounds lies."""
    table = Table("events a request", "who sends", "CPU-s per 100k: least", "median", "to the first: least", "median")
    for batch, _ in ROUNDS:
        firsts = cases[0].costs[batch]
        for case in cases:
            costs = case.costs[batch]
            ratios = [cost / first for cost, first in zip(costs, firsts, strict=True)]
            table.add_row(
                str(batch), case.name, f"{min(costs):.2f}", spread(costs), f"{min(costs) / min(firsts):.2f}",
                spread(ratios),
            )  # fmt: skip
    return table


def main(
    seconds: Annotated[float | None, typer.Option(min=1, max=600, help="A round; default 10, comparing 1.5.")] = None,
    repeat: Annotated[int | None, typer.Option(min=1, max=50, help="Rounds of each kind; default 3, or 7.")] = None,
    compare: Annotated[bool, typer.Option("--compare", help="Compare credentials instead; about 2 minutes.")] = False,
    against: Annotated[str | None, typer.Option(help="With it: a commit, or the folder of a checkout.")] = None,
) -> None:
    """Measure, and print a table."""
    console = Console(width=120)
    first, *others = sorted(os.sched_getaffinity(0))
    rest = set(others) or {first}
    os.sched_setaffinity(0, rest)  # inherited by all but the edges
    with tempfile.TemporaryDirectory() as folder:
        kafka, postgres = Kafka(Path(folder) / "kafka"), Postgres(Path(folder) / "postgres")
        kafka.start()
        postgres.start()
        key = new_key()[0]
        os.environ.update({
            "DRM_KAFKA_BOOTSTRAP": kafka.bootstrap, "DRM_POSTGRES_DSN": postgres.dsn,
            "DRM_TOPIC_REPLICATION_FACTOR": "1", "DRM_TOPIC_MIN_INSYNC_REPLICAS": "1",
        })  # fmt: skip
        try:
            asyncio.run(_prepare(Settings(), key))
            if compare or against is not None:
                console.print(_compare(Path(folder), key, against, {first}, seconds or 1.5, repeat or 7, console))
                return
            with _edge([sys.executable], {}, {first}) as edge:
                console.print(_measure(edge, key, seconds or 10, repeat or 3))
        finally:
            kafka.stop()
            postgres.stop()


def _measure(edge: Edge, key: str, seconds: float, repeat: int) -> Table:
    table = Table("events a request", "requests/s", "events/s", "CPU-s per 100k", "ack p50 ms", "p99 ms", "MB")
    for batch, connections in ROUNDS:
        _load(edge.url, ["--key", key], batch, connections, 2)  # warm
        for _ in range(repeat):
            before = cpu_s(edge.process.pid)
            told = _load(edge.url, ["--key", key], batch, connections, seconds)
            used = cpu_s(edge.process.pid) - before
            table.add_row(
                str(batch), f"{told['requests_per_s']:,}", f"{told['events_per_s']:,}",
                f"{used / told['events_acked'] * 100_000:.2f}", str(told["ack_p50_ms"]),
                str(told["ack_p99_ms"]), f"{resident_mb(edge.process.pid):.0f}",
            )  # fmt: skip
    return table


def _compare(
    folder: Path, key: str, against: str | None, core: set[int], seconds: float, repeat: int, console: Console
) -> Table:
    settings = Settings()
    with_quotas, tokens = asyncio.run(_prepare_credentials(settings, folder))
    with ExitStack() as stack:
        cases = []
        if against is not None:
            python, environment = stack.enter_context(checkout(against))
            dsn = settings.postgres_dsn.get_secret_value()
            environment = _prepare_other(python, environment, dsn, key)
            other = stack.enter_context(_edge(python, environment, core))
            cases.append(Case(f"{Path(against).name}, a plain key", other, ["--key", key]))
        edge = stack.enter_context(_edge([sys.executable], {}, core))
        cases += [
            Case("a plain key", edge, ["--key", key]),
            Case("a key with quotas", edge, ["--key", with_quotas]),
            Case("tokens with quotas", edge, ["--tokens", str(tokens)]),
        ]
        _take_turns(cases, seconds, repeat, console)
    return _compared(cases)


def _wait(url: str) -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        try:
            if httpx.get(f"{url}/health/ready").status_code == httpx.codes.OK:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.2)
    raise TimeoutError("the edge did not become ready")


if __name__ == "__main__":
    typer.run(main)
