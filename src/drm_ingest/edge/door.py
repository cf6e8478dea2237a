"""The door: `POST /v1/events` straight from the socket, and everything else handed over to uvicorn and FastAPI.

An `asyncio.Protocol` that uvicorn takes as its HTTP class. Per request there is no task, no future and no ASGI message:
the parser's callbacks fill in head and body, `Take` checks and writes, and the answer goes out from the callback of
Kafka's acknowledgement. That is 2.5 times plain ASGI, and it puts every deadline in our own hands.

    connection ──▶ BETWEEN ──▶ HEAD ──▶ BODY ──▶ take ──▶ (Kafka) ──▶ answer, in the order of the requests
                      │          └────────┴──▶ refused for good: answer, DISCARD what still comes, close
                      └──▶ another path, method or version: handed over, with the bytes so far
"""

import asyncio
from collections import deque
from enum import IntEnum
from typing import Any, cast

from uvicorn.config import Config
from uvicorn.server import ServerState

from drm_ingest.edge.answer import Answer, encode
from drm_ingest.edge.credentials import Credential
from drm_ingest.edge.handover import HandedOver
from drm_ingest.edge.limits import Limits
from drm_ingest.edge.request import MalformedRequest, Request
from drm_ingest.edge.take import Take
from drm_ingest.errors import Refusal

OURS = b"POST /v1/events HTTP/1.1\r\n"
_CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
_CLOSE = b"connection: close\r\n"


class State(IntEnum):
    """What a connection waits for from its client."""

    BETWEEN = 0  # the first byte of a request
    HEAD = 1
    BODY = 2
    DISCARD = 3  # nothing more; it is read on so that it can read its answer
    CLOSED = 4


class Exchange:
    """A request that was read, and its answer once there is one."""

    __slots__ = ("answer", "door", "header_lines", "keep_alive")

    def __init__(self, door: "Door", header_lines: bytes, keep_alive: bool) -> None:
        self.door = door
        self.header_lines = header_lines
        self.keep_alive = keep_alive
        self.answer: Answer | None = None

    def reply(self, answer: Answer) -> None:
        """Send the answer as soon as those before it are sent."""
        self.answer = answer
        self.door.send()


class Door(asyncio.Protocol):
    """One connection."""

    __slots__ = (
        "_answered", "_app_state", "_clock_offset_ms", "_config", "_counted_bytes", "_credential", "_discarded_bytes",
        "_exchanges", "_held", "_last", "_left", "_limits", "_loop", "_reading", "_reading_paused", "_refusal",
        "_request", "_request_id", "_server_state", "_settings", "_since", "_state", "_take", "_transport",
        "_writing_paused",
    )  # fmt: skip

    _transport: asyncio.Transport
    _credential: Credential

    def __init__(
        self,
        take: Take,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        """`take` is ours, the rest is what uvicorn passes to its HTTP class."""
        self._take = take
        self._limits: Limits = take.limits
        self._settings = take.settings
        self._config, self._server_state, self._app_state, self._loop = config, server_state, app_state, _loop
        self._request = Request()
        self._state = State.BETWEEN
        self._since = self._limits.now  # of the state, or of the wait it stands for
        self._exchanges: deque[Exchange] = deque()  # read and not yet answered, in order
        self._held = b""  # read from the socket, not looked at yet
        self._answered = False
        self._last = False  # no request is begun any more
        self._reading = False
        self._reading_paused = False
        self._writing_paused = False
        # of the request that is being read
        self._refusal: Refusal | None = None
        self._request_id = ""
        self._clock_offset_ms = 0
        self._counted_bytes = 0
        # of the one that was refused for good
        self._left: int | None = 0  # bytes of it that are still to come; None: unknown
        self._discarded_bytes = 0

    # -- the connection

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        full, abort = self._limits.connections_full(), self._limits.nobody_more()
        self._server_state.connections.add(self)  # type: ignore[arg-type]  # uvicorn asks for shutdown() only
        if abort:
            self._transport.abort()
        elif full:
            self._refuse_for_good(self._take.overloaded("Too many connections"))

    def connection_lost(self, exc: Exception | None) -> None:
        self._server_state.connections.discard(self)
        self._leave()

    def eof_received(self) -> bool:
        """Keep a half-closed connection for as long as an answer is owed."""
        self._last = True
        return bool(self._exchanges)

    def pause_writing(self) -> None:
        self._writing_paused = True
        self._since = self._limits.now

    def resume_writing(self) -> None:
        self._writing_paused = False
        self._since = self._limits.now
        self._read_on()

    def shutdown(self) -> None:
        """Answer what has begun, begin no more (called by uvicorn when the process stops)."""
        self._last = True
        if self._state == State.BETWEEN and not self._exchanges:
            self._close()

    def sweep(self, now: float) -> None:
        """Hold the deadlines; called about twice a second."""
        waited, settings, state = now - self._since, self._settings, self._state
        if self._writing_paused or state == State.CLOSED:
            if waited > settings.connection_idle_timeout_s:
                self._transport.abort()  # the client does not read
        elif state == State.HEAD or (state == State.BETWEEN and self._held and not self._reading_paused):
            if waited > settings.request_header_timeout_s:
                self._too_slow("headers", settings.request_header_timeout_s)
        elif state == State.BODY:
            if waited > settings.request_body_timeout_s:
                self._too_slow("body", settings.request_body_timeout_s)
        elif self._exchanges:
            pass  # Kafka's deadline
        elif state == State.DISCARD:
            if waited > settings.refused_body_discard_timeout_s:
                self._close()
        elif waited > (settings.connection_idle_timeout_s if self._answered else settings.request_header_timeout_s):
            self._close()

    # -- reading

    def data_received(self, data: bytes) -> None:
        if self._state >= State.DISCARD:
            self._discard(len(data))
            return
        if self._held:
            data, self._held = self._held + data, b""
        self._reading = True
        try:
            self._read(data)
        except MalformedRequest as error:
            self._refuse_for_good(Refusal("malformed_request", f"Send valid HTTP/1.1: {error}."))
        finally:
            self._reading = False

    def _read(self, data: bytes) -> None:
        request, size, at = self._request, len(data), 0
        while at < size:
            if self._state == State.BETWEEN and not self._begin(data, at):
                return
            at = request.feed(data, at)
            if self._state == State.HEAD:
                if request.head_bytes > self._settings.request_header_bytes_max:
                    most = self._settings.request_header_bytes_max
                    self._refuse_for_good(Refusal("headers_too_large", f"Send at most {most} bytes.", limit=most))
                    return
                if request.head_complete:
                    self._enter()
            if request.complete:
                self._complete()
                if self._state == State.DISCARD:  # the client said that it was the last
                    return
        if self._state == State.BODY:
            self._wait_for_body()

    def _begin(self, data: bytes, at: int) -> bool:
        """Begin a request at `at`; False: not now, or not here."""
        if self._writing_paused or len(self._exchanges) >= self._settings.pipelined_requests_max:
            self._hold(data[at:])
        elif data.startswith(OURS, at):
            self._state = State.HEAD
            self._since = self._limits.now
            return True
        elif OURS.startswith(data[at:]):  # too little to tell
            if not self._held:
                self._since = self._limits.now
            self._held = data[at:]
        elif self._exchanges:
            self._hold(data[at:])  # ours are answered first
        else:
            self._hand_over(data[at:])
        return False

    def _enter(self) -> None:
        """The head is complete: see whether they may send, and this much."""
        self._state = State.BODY
        self._since = self._limits.now
        headers = self._request.headers
        self._request_id = self._take.request_id(headers)
        self._clock_offset_ms = self._take.clock_offset_ms(headers)
        try:
            self._credential = self._take.enter(headers)
        except Refusal as refusal:
            self._refusal = refusal
            self._request.wanted = False

    def _wait_for_body(self) -> None:
        """All that came was read, and the body is not complete: refuse now, or count what is held of it."""
        request = self._request
        if self._refusal is None:
            try:
                self._take.hold(
                    request.body_bytes, self._counted_bytes
                )  # of a chunked body, whose length nobody stated
            except Refusal as refusal:
                self._refusal = refusal
        if request.framing_bytes > self._settings.request_header_bytes_max:
            self._refusal = Refusal("malformed_request", "Send chunks with content, and short trailers.")
        if self._refusal is not None:
            self._refuse_for_good(self._refusal)
            return
        self._limits.body_bytes += request.body_bytes - self._counted_bytes
        self._counted_bytes = request.body_bytes
        if not request.body_bytes and b"expect" in request.headers and not self._exchanges:
            self._transport.write(_CONTINUE)

    def _complete(self) -> None:
        """The request is complete: take it, and be ready for the next."""
        request, take = self._request, self._take
        headers, body = request.headers, request.body()
        if self._counted_bytes:
            self._release()
        exchange = Exchange(self, take.cors_lines(headers), request.keep_alive)
        self._exchanges.append(exchange)
        refusal, self._refusal = self._refusal, None
        if refusal is None and len(body) > self._settings.request_body_bytes_max:
            refusal = take.body_too_large()
        self._state = State.BETWEEN if request.keep_alive else State.DISCARD
        request.begin()
        if refusal is None:
            take.body(headers, body, self._credential, self._clock_offset_ms, self._request_id, exchange.reply)
        else:
            exchange.reply(take.refuse(refusal, self._request_id))

    def _hold(self, data: bytes) -> None:
        """Look at this later; read no more until then."""
        self._held = data
        if not self._reading_paused:
            self._reading_paused = True
            self._transport.pause_reading()

    def _read_on(self) -> None:
        """Look at what was held."""
        if not self._reading_paused or self._reading or self._state == State.CLOSED:
            return
        self._reading_paused = False
        self._transport.resume_reading()
        self.data_received(b"")

    # -- answering

    def send(self) -> None:
        """Send every answer whose turn it is."""
        exchanges = self._exchanges
        while exchanges and (answer := exchanges[0].answer) is not None:
            exchange = exchanges.popleft()
            closes = not exchange.keep_alive or (self._last and not exchanges)
            lines = self._limits.date_line + exchange.header_lines
            self._transport.write(encode(answer, lines + _CLOSE if closes else lines))
            self._server_state.total_requests += 1
            if closes:
                self._finish()
                return
        self._answered = True
        self._since = self._limits.now
        self._read_on()

    def _refuse_for_good(self, refusal: Refusal) -> None:
        """Refuse a request that was not read to its end: answer, then read over the rest before closing.

        Closing at once would reset the connection, and most clients would see the reset in place of the answer.
        """
        if self._state == State.DISCARD:
            return
        request = self._request
        malformed = refusal.problem.status in (400, 431) or not request.head_complete
        self._left = None if malformed or b"content-length" not in request.headers else request.left
        self._state = State.DISCARD
        self._since = self._limits.now
        self._refusal, self._held = None, b""
        self._release()
        lines = self._take.cors_lines(request.headers)
        request_id = self._request_id if request.head_complete else self._take.request_id({})
        request.close()
        exchange = Exchange(self, lines, keep_alive=False)
        self._exchanges.append(exchange)
        exchange.reply(self._take.refuse(refusal, request_id))

    def _too_slow(self, what: str, seconds: float) -> None:
        self._refuse_for_good(Refusal("request_timeout", f"Send the {what} of a request within {seconds:g} s."))

    def _finish(self) -> None:
        """The last answer is out: close, once the client has had its chance to read it."""
        self._since = self._limits.now
        if self._left == 0:
            self._close()
        elif self._transport.can_write_eof():
            self._transport.write_eof()

    def _discard(self, size: int) -> None:
        self._discarded_bytes += size
        if self._left is not None:
            self._left = max(0, self._left - size)
        done = self._left == 0 and not self._exchanges
        if done or self._discarded_bytes > self._settings.refused_body_discard_bytes_max:
            self._close()

    # -- leaving

    def _close(self) -> None:
        self._state = State.CLOSED
        self._transport.close()

    def _release(self) -> None:
        self._limits.body_bytes -= self._counted_bytes
        self._counted_bytes = 0

    def _leave(self) -> None:
        self._state = State.CLOSED
        self._release()
        self._exchanges.clear()
        self._held = b""
        self._request.close()

    def _hand_over(self, data: bytes) -> None:
        """Let uvicorn, and so FastAPI, serve this connection from here on."""
        self._leave()
        self._server_state.connections.discard(self)
        other = HandedOver(self._take, self._config, self._server_state, self._app_state, self._loop)
        other.connection_made(self._transport)
        self._transport.set_protocol(other)
        other.data_received(data)
