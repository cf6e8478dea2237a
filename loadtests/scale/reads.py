"""Pages asked for over HTTP at a rate, whatever the answers take, and how long that was."""

import asyncio
import random
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any
from urllib.parse import urlencode, urlsplit

import asyncpg
import orjson

from loadtests.load import percentile
from loadtests.scale.world import World, device

CONNECTIONS = 8
KINDS = ("customer", "vendor", "partner", "employee", "supplier")
VIEWS = ("now", "as_of", "known_at")


@dataclass(frozen=True, slots=True)
class Ask:
    """One page: what it counts for, and where it is."""

    what: str
    of: str
    view: str
    path: str


@dataclass(slots=True)
class Times:
    """Seconds, in order."""

    seconds: list[float]

    def ms(self, share: float) -> float:
        """Return a percentile."""
        return percentile(self.seconds, share) * 1000


class Reader:
    """A few keep-alive connections to serve; HTTP by hand, since the reader shares the cores of what it measures."""

    def __init__(self, where: dict[str, Any]) -> None:
        url = urlsplit(where["serve_url"])
        self._address = url.hostname or "127.0.0.1", url.port or 80
        self._head = f"host: {url.hostname}\r\nauthorization: Bearer {where['admin_key']}\r\n"
        self._free: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []

    async def ask(self, method: str, path: str, body: object = None, *, expect: Sequence[int] = (200, 201)) -> Any:
        """Return the answer.

        Raises:
            AssertionError: it has another status.
        """
        status, answer = await self._exchange(method, path, b"" if body is None else orjson.dumps(body))
        assert status in expect, f"{method} {path} answered {status}: {answer[:500]!r}"
        return orjson.loads(answer)

    async def get(self, path: str) -> None:
        """Read a page, to its last byte; nobody looks into it."""
        status, answer = await self._exchange("GET", path, b"")
        assert status == 200, f"{path} answered {status}: {answer[:500]!r}"

    async def _exchange(self, method: str, path: str, body: bytes) -> tuple[int, bytes]:
        while self._free and self._free[-1][0].at_eof():  # idle for longer than serve keeps a connection
            self._free.pop()[1].close()
        reader, writer = (
            self._free.pop() if self._free else await asyncio.open_connection(*self._address, limit=1 << 24)
        )
        kind = "content-type: application/json\r\n" if body else ""
        head = f"{method} {path} HTTP/1.1\r\n{self._head}{kind}content-length: {len(body)}\r\n\r\n"
        writer.write(head.encode() + body)
        lead = await reader.readuntil(b"\r\n\r\n")
        length = int(lead.lower().split(b"content-length:", 1)[1].split(b"\r\n", 1)[0])
        answer = await reader.readexactly(length)
        if b"connection: close" in lead.lower():
            writer.close()
        else:
            self._free.append((reader, writer))
        return int(lead[9:12]), answer

    def close(self) -> None:
        """Hang up."""
        for _, writer in self._free:
            writer.close()
        self._free.clear()


async def at_rate(
    reader: Reader, asks: Sequence[Ask], rate: float, told: Callable[[], None], connections: int = CONNECTIONS
) -> list[float]:
    """Return how long each took, from when it was due: a slow answer is not spared what it delayed."""
    started, place, took = time.perf_counter(), iter(range(len(asks))), [0.0] * len(asks)

    async def one() -> None:
        for number in place:
            due = started + number / rate
            await asyncio.sleep(max(0.0, due - time.perf_counter()))
            await reader.get(asks[number].path)
            took[number] = time.perf_counter() - due
            told()

    await asyncio.gather(*(one() for _ in range(connections)))
    return took


async def asks_of(db: asyncpg.Connection, world: World, a_kind: int, draw: random.Random) -> list[Ask]:
    """Draw parties of every kind and devices, and what to ask of them, in random order."""
    as_of, known_at = world.until - timedelta(days=30, hours=7), world.until - timedelta(days=20, hours=5)
    views = {"now": {}, "as_of": {"as_of": _time(as_of)}, "known_at": {"known_at": _time(known_at)}}
    asks: list[Ask] = []
    for kind in KINDS:
        for party in draw.sample(world.parties[kind], min(a_kind, len(world.parties[kind]))):
            for view, query in views.items():
                asks.append(Ask("record", kind, view, _path(f"/v1/parties/{party}", query)))
                asks.append(Ask("timeline", kind, view, _path(f"/v1/parties/{party}/timeline", query)))
            of_types = {"type": ["device.fault", "feedback.rating"]}
            asks.append(Ask("timeline of two types", kind, "now", _path(f"/v1/parties/{party}/timeline", of_types)))
    for number in draw.sample(range(world.sizes.devices), min(2 * a_kind, world.sizes.devices)):
        asks.append(Ask("device", "any", "now", f"/v1/devices/{device(number)}"))
        asks.append(Ask("events of a device", "any", "now", f"/v1/devices/{device(number)}/events"))
        asks.append(Ask("relationships by subject", "any", "now", f"/v1/relationships?subject={device(number)}"))
    asks += [
        Ask("relationships by party", "any", "now", f"/v1/relationships?party={party}")
        for party in draw.sample(world.parties["customer"], 2 * a_kind)
    ]
    stored = await db.fetch("select subject, source, id from event tablesample system (0.02) limit $1", 20 * a_kind)
    asks += [
        Ask("event, why", "any", "now", _path("/v1/events", dict(row)))
        for row in draw.sample(stored, min(2 * a_kind, len(stored)))
    ]
    draw.shuffle(asks)
    return asks


def by_what(asks: Iterable[Ask], took: Iterable[float]) -> dict[tuple[str, str, str], Times]:
    """Return the times of each kind of page."""
    found: dict[tuple[str, str, str], list[float]] = defaultdict(list)
    for ask, seconds in zip(asks, took, strict=True):
        found[ask.what, ask.of, ask.view].append(seconds)
    return {what: Times(sorted(times)) for what, times in sorted(found.items())}


async def repeated(reader: Reader, path: str, times: int) -> Times:
    """Ask for one page again and again, one after the other."""
    took = []
    for _ in range(times):
        began = time.perf_counter()
        await reader.get(path)
        took.append(time.perf_counter() - began)
    return Times(sorted(took))


def _path(path: str, query: dict[str, Any]) -> str:
    return f"{path}?{urlencode(query, doseq=True)}" if query else path


def _time(time_: datetime) -> str:
    return time_.isoformat().replace("+00:00", "Z")
