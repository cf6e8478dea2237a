"""Senders of which some hang up half-way: HTTP and WebSocket at a steady rate, and an exact count of what was promised.

An event of a request that is to be cut off has a subject with `-cut-` in it: of those any number may be stored. All
others are sent again until they are acknowledged, so exactly as many must be stored as were acknowledged.
"""

import asyncio
import contextlib
import itertools
import random
import secrets
import struct
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any
from urllib.parse import urlsplit

import orjson
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import WebSocketException

from loadtests.load import EVENT

SIZES = (1, 10, 100)
WS_IN_FLIGHT = 4
RETRY_WAIT_S = 0.2
ANSWER_TIMEOUT_S = 60.0


@dataclass(slots=True)
class Senders:
    """What to send, for how long, and what came of it."""

    edge_url: str
    key: str
    rate: float  # events a second, over all connections
    connections: int
    devices: int
    cut_share: float  # of the requests, and of the rounds of a WebSocket
    run: str = field(default_factory=lambda: f"soak-{secrets.token_hex(4)}")
    acked: int = 0
    cut: int = 0
    connects: int = 0
    trouble: Counter[str] = field(default_factory=Counter)
    _numbers: Iterator[int] = field(default_factory=itertools.count)

    async def send(self, seconds: float) -> None:
        """Send for that long; return when the last answer has come and all connections are closed."""
        until = time.monotonic() + seconds
        lanes = [self._http if number % 2 == 0 else self._websocket for number in range(self.connections)]
        await asyncio.gather(*(lane(until) for lane in lanes))

    def batch(self, size: int, *, cut: bool) -> bytes:
        """Return `size` events as a JSON array without its brackets."""
        run = f"{self.run}-cut" if cut else self.run
        now = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z").encode()
        if cut:
            self.cut += size
        return b",".join(
            EVENT
            % (self.run.encode(), n, run.encode(), n % self.devices, now, n, 15 + n % 1000 / 100, n % 100, n % 101)
            for n in itertools.islice(self._numbers, size)
        )

    def _is_cut(self) -> bool:
        return random.random() < self.cut_share

    async def _pace(self, started: float, sent: int) -> None:
        await asyncio.sleep(max(0.0, started + sent * self.connections / self.rate - time.monotonic()))

    # -- HTTP ---------------------------------------------------------------------------------------------------------

    async def _http(self, until: float) -> None:
        wire = _Wire(self)
        started, sent = time.monotonic(), 0
        while time.monotonic() < until:
            size, cut = random.choice(SIZES), self._is_cut()
            body = b"[%b]" % self.batch(size, cut=cut)
            if cut:
                await wire.cut(body)
            else:
                await wire.insist(body, size)
            sent += size
            await self._pace(started, sent)
        await wire.close()

    # -- WebSocket ----------------------------------------------------------------------------------------------------

    async def _websocket(self, until: float) -> None:
        where = urlsplit(self.edge_url)
        url, headers = f"ws://{where.netloc}/v1/events", {"authorization": f"Bearer {self.key}"}
        socket: ClientConnection | None = None
        seqs = itertools.count(1)
        waiting: dict[int, tuple[bytes, int]] = {}
        started, sent = time.monotonic(), 0
        while time.monotonic() < until or waiting:
            try:
                if socket is None:
                    socket = await connect(url, additional_headers=headers, compression=None)
                    self.connects += 1
                    for seq, (message, _) in waiting.items():
                        await socket.send(message, text=True)
                        self.trouble["sent again"] += bool(seq)
                while time.monotonic() < until and len(waiting) < WS_IN_FLIGHT:
                    seq, size = next(seqs), random.choice(SIZES)
                    message = b'{"seq":%d,"events":[%b]}' % (seq, self.batch(size, cut=False))
                    waiting[seq] = message, size
                    sent += size
                    await socket.send(message, text=True)
                async with asyncio.timeout(ANSWER_TIMEOUT_S):
                    while waiting:
                        await self._hear(socket, waiting)
                if self._is_cut():
                    size = random.choice(SIZES)
                    await _cut_frame(socket, b'{"seq":%d,"events":[%b]}' % (next(seqs), self.batch(size, cut=True)))
                    sent += size
                    await socket.wait_closed()
                    socket = None
                await self._pace(started, sent)
            except (OSError, TimeoutError, WebSocketException) as error:
                self.trouble[type(error).__name__] += 1
                socket = None
                await asyncio.sleep(RETRY_WAIT_S)
        if socket is not None:
            await socket.close()

    async def _hear(self, socket: ClientConnection, waiting: dict[int, tuple[bytes, int]]) -> None:
        told = orjson.loads(await socket.recv())
        if (seq := told.get("ack")) is not None:
            _, size = waiting.pop(seq)
            if told["accepted"] != size:
                raise AssertionError(f"{told['accepted']} of {size} accepted: {told['results'][:3]}")
            self.acked += size
        elif (seq := told.get("retry")) is not None:
            self.trouble["retry"] += 1
            await asyncio.sleep(told["after_ms"] / 1000)
            await socket.send(waiting[seq][0], text=True)
        elif "refused" in told:
            raise AssertionError(f"a good message was refused: {told}")


class _Wire:
    """One keep-alive connection, made anew whenever it broke or was cut."""

    def __init__(self, senders: Senders) -> None:
        where = urlsplit(senders.edge_url)
        self._senders = senders
        self._address = (where.hostname or "127.0.0.1", where.port or 80)
        self._head = (
            f"POST /v1/events HTTP/1.1\r\nhost: {where.hostname}\r\nauthorization: Bearer {senders.key}\r\n"
            "content-type: application/cloudevents-batch+json\r\ncontent-length: "
        ).encode()
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def insist(self, body: bytes, size: int) -> None:
        """Send it until it is acknowledged."""
        while True:
            try:
                async with asyncio.timeout(ANSWER_TIMEOUT_S):
                    status, answer = await self._exchange(body)
            except (OSError, TimeoutError, asyncio.IncompleteReadError) as error:
                self._senders.trouble[type(error).__name__] += 1
                await self.close()
                status = 0
            else:
                if status == 200:
                    if answer["accepted"] != size:
                        raise AssertionError(f"{answer['accepted']} of {size} accepted: {answer['results'][:3]}")
                    self._senders.acked += size
                    return
                self._senders.trouble[str(status)] += 1
            if status not in {0, 429, 503}:
                raise AssertionError(f"a good request was answered {status}: {answer}")
            await asyncio.sleep(RETRY_WAIT_S)

    async def cut(self, body: bytes) -> None:
        """Send it, or only a part of it, and hang up without listening."""
        with contextlib.suppress(OSError):
            _, writer = await self._connected()
            request = b"%b%d\r\n\r\n%b" % (self._head, len(body), body)
            writer.write(_part(request))
            await writer.drain()
            await asyncio.sleep(random.choice((0, 0.001, 0.02)))  # before, while or after the edge hands it to Kafka
            writer.transport.abort()
        self._streams = None

    async def _connected(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        if self._streams is None:
            self._streams = await asyncio.open_connection(*self._address, limit=1 << 22)
            self._senders.connects += 1
        return self._streams

    async def _exchange(self, body: bytes) -> tuple[int, dict[str, Any]]:
        reader, writer = await self._connected()
        writer.write(b"%b%d\r\n\r\n%b" % (self._head, len(body), body))
        head = (await reader.readuntil(b"\r\n\r\n")).lower()
        length = int(head.split(b"content-length:", 1)[1].split(b"\r\n", 1)[0])
        answer = orjson.loads(await reader.readexactly(length))
        if b"connection: close" in head:
            await self.close()
        return int(head[9:12]), answer

    async def close(self) -> None:
        if self._streams is not None:
            self._streams[1].close()
            with contextlib.suppress(OSError):
                await self._streams[1].wait_closed()
            self._streams = None


def _part(message: bytes) -> bytes:
    """Return all of it one time in three, else a part."""
    return message[: random.choice((len(message), random.randint(1, len(message)), random.randint(1, len(message))))]


async def _cut_frame(socket: ClientConnection, message: bytes) -> None:
    """Send a part of a frame, or all of it, and hang up; RFC 6455 section 5.2, masked with zeros."""
    frame = struct.pack("!BBQI", 0x81, 0x80 | 127, len(message), 0) + message
    socket.transport.write(_part(frame))
    await asyncio.sleep(random.choice((0, 0.001, 0.02)))
    socket.transport.abort()
