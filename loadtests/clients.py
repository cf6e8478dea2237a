"""Senders that keep a ledger: each event is sent again until it is answered, or its fate stays unknown."""

import asyncio
import random
import time
from collections import deque
from collections.abc import Sequence
from typing import Any, Protocol

import orjson
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import InvalidStatus, WebSocketException

from loadtests.traffic import Entry, tick

RETRY_WAIT_S = 0.2


class Ledger:
    """Every sending and its answer, and how long the answers took (seconds)."""

    def __init__(self, give_up_after_s: float) -> None:
        """`give_up_after_s`: how long to send one batch again before its fate is called unknown."""
        self.entries: list[Entry] = []
        self.ack_s: list[float] = []
        self.resent = 0
        self.give_up_after_s = give_up_after_s

    def sending(self, batch: Sequence[Entry]) -> None:
        """Write down that a batch is on its way."""
        now = tick()
        for entry in batch:
            if not entry.sendings:
                entry.first_sent = now
                self.entries.append(entry)
            else:
                self.resent += 1
            entry.sendings += 1

    @staticmethod
    def answered(batch: Sequence[Entry], results: Sequence[dict[str, Any]]) -> None:
        """Write down the answer to a batch: what `results` does not reject is accepted."""
        rejected = {result["index"]: result["code"] for result in results if result["status"] == "rejected"}
        now = tick()
        for index, entry in enumerate(batch):
            entry.answer = f"rejected:{rejected[index]}" if index in rejected else "accepted"
            entry.acked = now

    @staticmethod
    def unknown(batch: Sequence[Entry]) -> None:
        """Write down that a batch may or may not have arrived."""
        for entry in batch:
            entry.answer = "unknown"


class Client(Protocol):
    """Sends batches, in order, and returns when each has its answer in the ledger."""

    async def send(self, batches: Sequence[Sequence[Entry]]) -> None:
        """Send them all."""

    async def close(self) -> None:
        """Hang up."""


class Http:
    """One keep-alive connection, one request at a time; HTTP by hand, since the load shares its subject's cores."""

    def __init__(self, host: str, port: int, key: str, ledger: Ledger) -> None:
        self._address, self._ledger = (host, port), ledger
        self._head = (
            f"POST /v1/events HTTP/1.1\r\nhost: {host}\r\nauthorization: Bearer {key}\r\n"
            "content-type: application/cloudevents-batch+json\r\ncontent-length: "
        ).encode()
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def send(self, batches: Sequence[Sequence[Entry]]) -> None:
        for batch in batches:
            await self._send(batch)

    async def _send(self, batch: Sequence[Entry]) -> None:
        body = b"[" + b",".join([entry.body for entry in batch]) + b"]"
        gives_up_at = time.monotonic() + self._ledger.give_up_after_s
        while True:
            self._ledger.sending(batch)
            started = time.perf_counter()
            try:
                status, answer = await asyncio.wait_for(self._exchange(body), 60)
            except (OSError, TimeoutError, asyncio.IncompleteReadError):
                await self.close()
                status, answer = 0, {}
            if status in {200, 422}:
                self._ledger.ack_s.append(time.perf_counter() - started)
                self._ledger.answered(batch, answer["results"])
                return
            if status not in {0, 503}:
                raise AssertionError(f"an answer nothing in the ledger expects: {status} {answer}")
            if time.monotonic() > gives_up_at:
                self._ledger.unknown(batch)
                return
            await asyncio.sleep(RETRY_WAIT_S * random.uniform(0.5, 1.5))

    async def _exchange(self, body: bytes) -> tuple[int, dict[str, Any]]:
        if self._streams is None:
            self._streams = await asyncio.open_connection(*self._address, limit=1 << 22)
        reader, writer = self._streams
        writer.write(b"%s%d\r\n\r\n%s" % (self._head, len(body), body))
        head = await reader.readuntil(b"\r\n\r\n")
        length = int(head.lower().split(b"content-length:", 1)[1].split(b"\r\n", 1)[0])
        answer = orjson.loads(await reader.readexactly(length))
        if b"connection: close" in head.lower():
            await self.close()
        return int(head[9:12]), answer

    async def close(self) -> None:
        if self._streams is not None:
            self._streams[1].close()
            self._streams = None


class WebSocket:
    """One connection, several messages in flight, resumed by sending again what was not acknowledged."""

    def __init__(self, host: str, port: int, key: str, ledger: Ledger, in_flight: int = 4) -> None:
        self._url, self._headers = f"ws://{host}:{port}/v1/events", {"authorization": f"Bearer {key}"}
        self._ledger, self._in_flight = ledger, in_flight
        self._socket: ClientConnection | None = None
        self._seq = 0

    async def send(self, batches: Sequence[Sequence[Entry]]) -> None:
        waiting = deque(batches)
        unanswered: dict[int, Sequence[Entry]] = {}
        gives_up_at = time.monotonic() + self._ledger.give_up_after_s
        while waiting or unanswered:
            try:
                await asyncio.wait_for(self._converse(waiting, unanswered), 60)
            except (OSError, TimeoutError, WebSocketException) as error:
                if isinstance(error, InvalidStatus) and error.response.status_code < 500:
                    raise
                await self.close()
                waiting.extendleft(reversed([unanswered[seq] for seq in sorted(unanswered)]))
                unanswered.clear()
                if time.monotonic() > gives_up_at:
                    for batch in waiting:
                        self._ledger.unknown([entry for entry in batch if entry.sendings])
                    return
                await asyncio.sleep(RETRY_WAIT_S * random.uniform(0.5, 1.5))

    async def _converse(self, waiting: deque[Sequence[Entry]], unanswered: dict[int, Sequence[Entry]]) -> None:
        if self._socket is None:
            self._socket = await connect(self._url, additional_headers=self._headers, compression=None)
        started: dict[int, float] = {}
        while waiting or unanswered:
            while waiting and len(unanswered) < self._in_flight:
                self._seq += 1
                unanswered[self._seq] = waiting.popleft()
                await self._push(self._seq, unanswered[self._seq], started)
            message = orjson.loads(await self._socket.recv())
            if (seq := message.get("ack")) is not None:
                self._ledger.ack_s.append(time.perf_counter() - started[seq])
                self._ledger.answered(unanswered.pop(seq), message["results"])
            elif (seq := message.get("retry")) is not None:
                await asyncio.sleep(message["after_ms"] / 1000)
                await self._push(seq, unanswered[seq], started)

    async def _push(self, seq: int, batch: Sequence[Entry], started: dict[int, float]) -> None:
        assert self._socket is not None
        self._ledger.sending(batch)
        started[seq] = time.perf_counter()
        events = b",".join([entry.body for entry in batch])
        await self._socket.send(b'{"seq":%d,"events":[%s]}' % (seq, events), text=True)

    async def close(self) -> None:
        if self._socket is not None:
            await self._socket.close()
            self._socket = None
