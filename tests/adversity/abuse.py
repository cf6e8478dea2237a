"""What abuse needs: ways in that say exactly the bytes they are told to, what must hold after it, what it may cost."""

import asyncio
import contextlib
import itertools
import os
import re
import socket
import threading
import time
import uuid
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import asyncpg
import pytest
from tests.adversity.bad_input import UNTYPED, an_event
from tests.adversity.running import Running
from tests.integration.edge import Reply, Wire

STORED_WITHIN_S = 40
BROKEN = r'drm_requests_total\{.*status="500"'
ERRORS = (Path(__file__).parents[2] / "docs" / "errors.md").read_text()
STATUS = {code: int(status) for status, code in re.findall(r"^\| (\d{3}) \| `(\w+)` ", ERRORS, re.MULTILINE)}


# -- what must hold after it


@dataclass
class Holds:
    """What bad input must leave as it was."""

    path: Running
    db: asyncpg.Connection
    pids: dict[str, int]
    dead: int

    async def check(self, subject: str, *ids: str) -> None:
        """Wait for the sentinel; then only these of the subject are kept, and every process counts and lives."""
        async with asyncio.timeout(STORED_WITHIN_S):
            while "sentinel" not in (kept := await self._kept(subject)):  # noqa: ASYNC110 - it is far away
                await asyncio.sleep(0.02)
        assert kept == sorted([*ids, "sentinel"])
        metrics = await self.path.samples()
        for process in ("edge", "enrich", "attach"):  # serve is not on the path of an event
            samples = metrics[process]
            total = sum(value for name, value in samples.items() if name.startswith("drm_events_total"))
            assert samples["drm_events_received_total"] == total + samples["drm_events_in_flight"], process
            assert not sum(value for name, value in samples.items() if re.match(BROKEN, name)), process
        assert self.path.where["pids"] == self.pids
        assert await self.db.fetchval("select count(*) from dead_letter") == self.dead

    async def _kept(self, subject: str) -> list[str]:
        rows = await self.db.fetch("select id from event where subject like $1 || '%'", subject)
        return sorted(row["id"] for row in rows)


@pytest.fixture
async def holds(path: Running) -> AsyncIterator[Holds]:
    db = await asyncpg.connect(path.where["postgres_dsn"])
    yield Holds(path, db, path.where["pids"], await db.fetchval("select count(*) from dead_letter"))
    await db.close()


@pytest.fixture
def subject() -> str:
    return f"bad-{uuid.uuid4().hex}"


def sentinel_behind(bad: bytes, subject: str) -> bytes:
    """Return a good event of the same type, so that it takes the same way."""
    return an_event(subject, type_=UNTYPED if UNTYPED.encode() in bad else "device.measurement", id_="sentinel")


# -- ways in


@contextlib.asynccontextmanager
async def at_the_door(edge: str) -> AsyncIterator[Wire]:
    host, port = edge.removeprefix("http://").split(":")
    wire = Wire(*await asyncio.open_connection(host, int(port)))
    try:
        yield wire
    finally:
        wire.writer.close()
        with contextlib.suppress(ConnectionError):
            await wire.writer.wait_closed()


@contextlib.asynccontextmanager
async def at_the_route(edge: str) -> AsyncIterator[Wire]:
    """A connection that was handed over: FastAPI serves it since its other request."""
    async with at_the_door(edge) as wire:
        await wire.send("GET /health/live HTTP/1.1\r\nHost: edge\r\n\r\n")
        assert (await wire.reply()).status == 200
        yield wire


async def post(wire: Wire, key: str, body: bytes, headers: dict[str, str]) -> Reply:
    """Send and read at the same time, as most clients do; an empty header is left out."""
    lines = {"host": "edge", "authorization": f"Bearer {key}", "content-type": "application/json"} | headers
    if "transfer-encoding" in headers:
        parts = [body[at : at + 1_000_000] for at in range(0, len(body), 1_000_000)]
        body = b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in parts) + b"0\r\n\r\n"
    else:
        lines["content-length"] = str(len(body))
    head = "".join(f"{name}: {value}\r\n" for name, value in lines.items() if value)
    sending = asyncio.create_task(wire.send(f"POST /v1/events HTTP/1.1\r\n{head}\r\n".encode("latin-1") + body))
    async with asyncio.timeout(60):
        reply = await wire.reply()
        with contextlib.suppress(ConnectionError):
            await sending
    return reply


# -- what it costs


@dataclass
class Cost:
    """What a process used while somebody abused it."""

    cpu_s: float = 0.0
    waited_s: float = 0.0
    """How long it waited for a core, and we did: others of the machine are to blame for that."""
    grown_bytes: int = 0
    """Its peak of resident memory, above what was resident before."""
    pongs: list[float] = field(default_factory=list)
    """The CPU time that the process had used at each answer of another, busy client."""

    @property
    def stall_s(self) -> float:
        """The most CPU time between two answers: for so long the event loop did nothing else.

        CPU time, because a process that waits for a core stands still too, and is not to blame.
        """
        return max(later - before for before, later in itertools.pairwise(self.pongs))


def cpu_s(pid: int) -> float:
    """Return the CPU time of a process, exact to the nanosecond."""
    return _scheduled_s(pid)[0]


def _scheduled_s(pid: int) -> tuple[float, float]:
    """Return for how long a process has run, and for how long it was kept waiting for a core."""
    ran, waited = 0, 0
    for task in Path(f"/proc/{pid}/task").iterdir():
        with contextlib.suppress(FileNotFoundError):  # a thread that has just ended
            times = (task / "schedstat").read_text().split()
            ran, waited = ran + int(times[0]), waited + int(times[1])
    return ran / 1e9, waited / 1e9


def _status_bytes(pid: int, name: str) -> int:
    [kilobytes] = re.findall(rf"^{name}:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
    return int(kilobytes) * 1024


@contextlib.contextmanager
def watched(pid: int, edge: str, every_s: float = 0.005) -> Iterator[Cost]:
    """Measure an edge while the body abuses it, and keep asking it for something cheap in another thread."""
    cost, stop = Cost(), threading.Event()
    host, port = edge.removeprefix("http://").split(":")

    def ping() -> None:
        with socket.create_connection((host, int(port)), timeout=60) as wire:
            while True:
                wire.sendall(b"GET /health/live HTTP/1.1\r\nHost: edge\r\n\r\n")
                answer = b""
                while b'{"status":"live"}' not in answer:
                    if not (part := wire.recv(65536)):
                        raise ConnectionError(f"{pid} hung up on a good client")
                    answer += part
                cost.pongs.append(cpu_s(pid))
                if stop.is_set():
                    return
                time.sleep(every_s)

    pinging = threading.Thread(target=ping)
    pinging.start()
    while len(cost.pongs) < 3:
        assert pinging.is_alive(), "nobody answers"
        time.sleep(0.005)
    Path(f"/proc/{pid}/clear_refs").write_text("5")  # the peak is what is resident now
    resident_bytes, used_s, own = _status_bytes(pid, "VmRSS"), _scheduled_s(pid), _scheduled_s(os.getpid())
    try:
        yield cost
    finally:
        ran_s, waited_s = _scheduled_s(pid)
        cost.cpu_s = ran_s - used_s[0]
        cost.waited_s = waited_s - used_s[1] + _scheduled_s(os.getpid())[1] - own[1]
        cost.grown_bytes = _status_bytes(pid, "VmHWM") - resident_bytes
        stop.set()
        pinging.join()
