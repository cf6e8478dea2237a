"""Load at full speed or at a rate: keep-alive connections, valid events of about 290 bytes, each with an id of its own.

    python -m loadtests.load --url http://127.0.0.1:8080 --key drm_… --batch 100 --connections 16 --seconds 10

Prints one JSON line. With --rate it sends on a schedule and measures each answer from when its request was due, so that
a slow server is not spared the requests that it delayed.
"""

import asyncio
import json
import secrets
import time
from collections import Counter, deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Annotated, cast
from urllib.parse import urlsplit

import typer
import uvloop

EVENT = (
    b'{"specversion":"1.0","id":"%s-%012d","type":"device.measurement","source":"loadtest","subject":"%s-%06d",'
    b'"time":"%s","sequence":"%012d","data":{"temperature":%.2f,"humidity":%d,"pressure":1013.2,"battery":%d,'
    b'"rssi":-67,"units":{"battery":"%%","rssi":"dBm"}}}'
)
TOKEN_DEVICES = b"fleet"
ANSWERED_WITHIN_S = 60.0  # the last requests, once the time is over


@dataclass(slots=True)
class Load:
    """What to send, and what came back; times in seconds."""

    key: str
    batch: int
    devices: int
    host: str
    connections: int
    until: float
    rate: float | None = None  # requests a second, over all connections
    tokens: list[str] = field(default_factory=list)  # of devices, in place of the key: line n is for `fleet-00000n`
    # No e: "7e123456" might be a number with an exponent, and the edge would look at each event number by number.
    subjects: str = ""  # what devices are called, before their number; empty: as the run, so that they are new
    run: bytes = field(default_factory=lambda: secrets.token_hex(4).replace("e", "x").encode())
    statuses: Counter[int] = field(default_factory=Counter)
    answers_s: list[float] = field(default_factory=list)
    lost: int = 0
    _next: Iterator[bytes] = field(init=False)
    _due: deque[float] = field(default_factory=deque)

    def __post_init__(self) -> None:
        """Start counting events."""
        self._next = self._requests()

    def request(self) -> bytes:
        """Make the next request."""
        return next(self._next)

    def _requests(self) -> Iterator[bytes]:
        kind = "application/cloudevents+json" if self.batch == 1 else "application/cloudevents-batch+json"
        leads = [
            f"POST /v1/events HTTP/1.1\r\nhost: {self.host}\r\nauthorization: Bearer {secret}\r\n"
            f"content-type: {kind}\r\ncontent-length: ".encode()
            for secret in self.tokens or [self.key]
        ]
        run, devices, number, requests = self.run, self.devices, 0, 0
        fleet = TOKEN_DEVICES if self.tokens else self.subjects.encode() or run
        while True:
            own = requests % len(leads)
            lead, requests = leads[own], requests + 1
            now = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z").encode()
            events = [
                EVENT
                % (
                    run, n, fleet, own if self.tokens else n % devices, now, n,
                    15 + n % 1000 / 100, n % 100, n % 101,
                )
                for n in range(number, number + self.batch)
            ]  # fmt: skip
            number += self.batch
            body = events[0] if self.batch == 1 else b"[" + b",".join(events) + b"]"
            yield b"%s%d\r\n\r\n%s" % (lead, len(body), body)


class Connection(asyncio.Protocol):
    """One connection: a request, its answer, the next request."""

    def __init__(self, load: Load, done: asyncio.Future[None]) -> None:
        self._load, self._done = load, done
        self._buffer = b""
        self._sent_at = 0.0
        self.idle = True
        self.closed = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # uvloop's is one by its methods, not by its class
        if self._load.rate is None:
            self.go(time.perf_counter())

    def go(self, due: float) -> None:
        """Send a request; its answer counts from `due`."""
        self.idle = False
        self._sent_at = due
        self._transport.write(self._load.request())

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        end = self._buffer.find(b"\r\n\r\n")
        if end < 0:
            return
        at = self._buffer.find(b"ontent-length: ", 0, end)
        if len(self._buffer) < end + 4 + int(self._buffer[at + 15 : self._buffer.find(b"\r\n", at)]):
            return
        load = self._load
        load.statuses[int(self._buffer[9:12])] += 1
        now = time.perf_counter()
        load.answers_s.append(now - self._sent_at)
        self._buffer = b""
        self.idle = True
        if load.rate is not None:
            if load._due:
                self.go(load._due.popleft())
        elif now < load.until:
            self.go(now)
        else:
            self._transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.idle:
            self._load.lost += 1
        self.idle, self.closed = False, True
        if not self._done.done():
            self._done.set_result(None)


async def drive(load: Load, port: int) -> None:
    """Open the connections and keep them busy until the time is over.

    Raises:
        SystemExit: an answer did not come for too long after that.
    """
    loop = asyncio.get_running_loop()
    ends = [loop.create_future() for _ in range(load.connections)]
    made = [await loop.create_connection(partial(Connection, load, end), load.host, port) for end in ends]
    if load.rate is not None:
        connections = [protocol for _, protocol in made]
        started = time.perf_counter()
        number = 0
        while (now := time.perf_counter()) < load.until:
            while (due := started + number / load.rate) <= now:
                number += 1
                free = next((connection for connection in connections if connection.idle), None)
                if free is None:
                    load._due.append(due)
                else:
                    free.go(due)
                    connections.remove(free)  # in turn, since the edge closes a connection that nobody uses
                    connections.append(free)
            await asyncio.sleep(0.002)
        for _ in range(100):
            if all(connection.idle or connection.closed for connection in connections):
                break
            await asyncio.sleep(0.1)
        for transport, _ in made:
            transport.close()
    left_s = max(0.0, load.until - time.perf_counter())
    _, silent = await asyncio.wait(ends, timeout=left_s + ANSWERED_WITHIN_S)
    if silent:
        raise SystemExit(f"{len(silent)} of {load.connections} connections had no answer for {ANSWERED_WITHIN_S:g} s")


def percentile(sorted_values: list[float], share: float) -> float:
    """Return the value below which that share lies; 0 if there is none."""
    return sorted_values[min(len(sorted_values) - 1, int(len(sorted_values) * share))] if sorted_values else 0.0


def main(
    url: Annotated[str, typer.Option(envvar="DRM_EDGE_URL")] = "http://127.0.0.1:8080",
    key: Annotated[str, typer.Option(envvar="DRM_SENDER_KEY")] = "",
    batch: Annotated[int, typer.Option(min=1, max=10_000, help="Events a request.")] = 100,
    connections: Annotated[int, typer.Option(min=1, max=5000)] = 16,
    devices: Annotated[int, typer.Option(min=1)] = 5000,
    seconds: Annotated[float, typer.Option(min=0.1, max=7200)] = 10,
    rate: Annotated[float | None, typer.Option(help="Events a second; default: as fast as acknowledged.")] = None,
    subjects: Annotated[str, typer.Option(help="The names of devices, but for their number; default: new ones.")] = "",
    tokens: Annotated[Path | None, typer.Option(help="A file: the token of fleet-000000, of the next…")] = None,
) -> None:
    """Load one edge and print what it answered."""
    where = urlsplit(url)
    started = time.perf_counter()
    load = Load(
        key, batch, devices, where.hostname or "127.0.0.1", connections, started + seconds,
        rate=None if rate is None else rate / batch, tokens=tokens.read_text().split() if tokens else [],
        subjects=subjects,
    )  # fmt: skip
    uvloop.run(drive(load, where.port or 80))
    took = time.perf_counter() - started
    answers = sorted(load.answers_s)
    told = {
        "run": load.run.decode(),
        "seconds": round(took, 2),
        "requests_per_s": round(len(answers) / took),
        "events_per_s": round(load.statuses[200] * batch / took),
        "events_acked": load.statuses[200] * batch,
        "statuses": {str(status): count for status, count in load.statuses.items()},
        "lost": load.lost,
        "ack_p50_ms": round(percentile(answers, 0.5) * 1000, 2),
        "ack_p99_ms": round(percentile(answers, 0.99) * 1000, 2),
    }
    print(json.dumps(told))


if __name__ == "__main__":
    typer.run(main)
