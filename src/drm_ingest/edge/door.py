"""The door: `POST /v1/events` straight from the socket, and everything else handed over to uvicorn and FastAPI.

An `asyncio.Protocol` that uvicorn takes as its HTTP class. Per request there is no task, no future and no ASGI message:
the parser's callbacks fill in head and body, `Take` checks and writes, and the answer goes out from the callback of
Kafka's acknowledgement. That is several times cheaper than ASGI, and it puts every deadline in our own hands.

    connection ──▶ BETWEEN ──▶ HEAD ──▶ BODY ──▶ take ──▶ (Kafka) ──▶ answer, in the order of the requests
                      │          └────────┴──▶ refused for good: answer, DISCARD what still comes, close
                      └──▶ another path, method or version: handed over, with the bytes so far
"""

import asyncio
from functools import partial
from typing import Any, cast

from uvicorn.config import Config
from uvicorn.server import ServerState

from drm_ingest.edge.arrival import Arrival
from drm_ingest.edge.handover import HandedOver
from drm_ingest.edge.replies import Replies, client_of
from drm_ingest.edge.request import MalformedRequest
from drm_ingest.edge.take import Take
from drm_ingest.errors import Refusal

OURS = b"POST /v1/events HTTP/1.1\r\n"
_CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"


# What a connection waits for from its client. Plain numbers: a request looks at them a dozen times, and with an IntEnum
# each look takes five times as long.
BETWEEN = 0  # the first byte of a request
HEAD = 1
BODY = 2
DISCARD = 3  # nothing more; it is read on so that the client can read its answer
CLOSED = 4


class Door(asyncio.Protocol):
    """One connection."""

    __slots__ = (
        "_app_state", "_config", "_discarded_bytes", "_held", "_left", "_limits", "_loop", "_reading",
        "_reading_paused", "_replies", "_request", "_server_state", "_settings", "_since", "_state", "_take",
        "_transport", "_unsent_bytes", "_writing_paused",
    )  # fmt: skip

    is_websocket = False
    _transport: asyncio.Transport
    _replies: Replies

    def __init__(
        self,
        take: Take,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        """`take` is ours, the rest is what uvicorn passes to its HTTP class."""
        self._take, self._limits, self._settings = take, take.limits, take.settings
        self._config, self._server_state, self._app_state, self._loop = config, server_state, app_state, _loop
        self._request = Arrival(take)
        self._state = BETWEEN
        self._since = self._limits.now  # when the state began, or the wait that its deadline is for
        self._held = b""  # read from the socket, not looked at yet
        self._reading = False
        self._reading_paused = False
        self._writing_paused = False
        self._unsent_bytes = 0  # of answers that the client does not read, as the limits know it
        # Of the request that was refused for good:
        self._left: int | None = 0  # bytes still to come; None: unknown
        self._discarded_bytes = 0

    # -- the connection

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self._request.client = partial(client_of, self._transport)
        self._replies = Replies(self._transport, self._limits, self._server_state, self._take.tell, self._sent)
        full, overfull = self._limits.connections_full(), self._limits.no_room_to_refuse()
        self._server_state.connections.add(self)  # type: ignore[arg-type]  # uvicorn asks for shutdown() only
        if overfull:
            self._transport.abort()
        elif full:
            self._refuse_for_good(self._take.overloaded("Too many connections"))

    def connection_lost(self, exc: Exception | None) -> None:
        self._server_state.connections.discard(self)
        self._count_unsent(0)
        self._leave()

    def eof_received(self) -> bool:
        """Keep a half-closed connection for as long as an answer is owed."""
        self._replies.last = True
        return bool(self._replies.owed)

    def pause_writing(self) -> None:
        self._writing_paused = True
        self._since = self._limits.now
        self._count_unsent(self._transport.get_write_buffer_size())

    def resume_writing(self) -> None:
        self._writing_paused = False
        self._since = self._limits.now
        self._count_unsent(0)
        self._read_on()

    def _count_unsent(self, unsent_bytes: int) -> None:
        self._limits.body_bytes += unsent_bytes - self._unsent_bytes
        self._unsent_bytes = unsent_bytes

    def shutdown(self) -> None:
        """Answer what has begun, then close (called when the process stops)."""
        self._replies.last = True
        if self._state == BETWEEN and not self._replies.owed:
            self._close()

    def sweep(self, now: float) -> None:
        """Hold the deadlines; called about twice a second."""
        waited, settings, state = now - self._since, self._settings, self._state
        if self._writing_paused or state == CLOSED:
            if waited > settings.connection_idle_timeout_s:
                self._transport.abort()  # the client does not read
        elif state == HEAD or (state == BETWEEN and self._held and not self._reading_paused):
            if waited > settings.request_header_timeout_s:
                self._too_slow("headers", settings.request_header_timeout_s)
        elif state == BODY:
            if waited > settings.request_body_timeout_s:
                self._too_slow("body", settings.request_body_timeout_s)
        elif self._replies.owed:
            pass  # Kafka's deadline
        elif state == DISCARD:
            if waited > settings.refused_body_discard_timeout_s:
                self._close()
        elif waited > self._idle_max_s():
            self._close()

    def _idle_max_s(self) -> float:
        settings = self._settings
        return settings.connection_idle_timeout_s if self._replies.any_sent else settings.request_header_timeout_s

    # -- reading

    def data_received(self, data: bytes) -> None:
        if self._state >= DISCARD:
            self._discard(len(data))
            return
        if self._held:
            data, self._held = self._held + data, b""
        elif self._state == BETWEEN:
            self._since = self._limits.now
        self._reading = True
        try:
            self._read(data)
        except MalformedRequest as error:
            self._refuse_for_good(self._take.malformed_request(error))
        finally:
            self._reading = False

    def _read(self, data: bytes) -> None:
        request, size, at = self._request, len(data), 0
        while at < size:
            if self._state == BETWEEN and not self._begin(data, at):
                return
            at = request.feed(data, at)
            if self._state == HEAD:
                if request.head_bytes > self._settings.request_header_bytes_max:
                    self._refuse_for_good(self._take.headers_too_large())
                    return
                if request.head_complete:
                    self._state = BODY
                    self._since = self._limits.now
                    request.enter(was_limited=self._replies.was_limited)
            if request.complete:
                self._state = BETWEEN if request.keep_alive else DISCARD
                lines = self._take.cors_lines(request.headers) if b"origin" in request.headers else b""
                request.finish(self._replies.owe(lines, keep_alive=request.keep_alive))
                if self._state >= DISCARD:  # that was the last, says the client, or the process stops
                    return
        if self._state == BODY:
            request.wait()
            if request.refusal is None:
                self._say_continue()
            elif not request.reads_over:
                self._refuse_for_good(request.refusal)

    def _begin(self, data: bytes, at: int) -> bool:
        """Begin a request at `at`; False: not now, or not here."""
        owed = self._replies.owed
        if self._writing_paused or len(owed) >= self._settings.pipelined_requests_max or (owed and owed[-1].alone):
            self._hold(data[at:])
        elif data.startswith(OURS, at):
            self._state = HEAD
            self._since = self._limits.now
            return True
        elif OURS.startswith(data[at:]):  # too little to tell
            self._since = self._limits.now if at else self._since  # else it counts from the first read of it
            self._held = data[at:]
        elif owed:
            self._hold(data[at:])  # ours are answered first
        else:
            self._hand_over(data[at:])
        return False

    def _say_continue(self) -> None:
        request = self._request
        if request.expects_continue and not self._replies.owed:
            request.expects_continue = False
            if not request.body_bytes:
                self._transport.write(_CONTINUE)

    def _hold(self, data: bytes) -> None:
        """Look at this later; read no more until then."""
        self._held = data
        if not self._reading_paused:
            self._reading_paused = True
            self._transport.pause_reading()

    def _read_on(self) -> None:
        """Look at what was held."""
        if self._reading_paused and not self._reading and self._state != CLOSED:
            self._reading_paused = False
            self._transport.resume_reading()
            self.data_received(b"")

    # -- after an answer, and leaving

    def _sent(self, closes: bool) -> None:
        """Answers went out: wait for the next request, or see that the client can read the last answer, and close."""
        if self._writing_paused:
            self._count_unsent(self._transport.get_write_buffer_size())
        elif self._state in (BETWEEN, DISCARD):
            self._since = self._limits.now
        if not closes:
            if self._request.expects_continue and self._state == BODY:
                self._say_continue()
            self._read_on()
        elif self._left == 0:
            self._close()
        elif self._transport.can_write_eof():
            self._transport.write_eof()

    def _refuse_for_good(self, refusal: Refusal) -> None:
        """Refuse a request that was not read to its end: answer, then read over the rest before closing.

        Closing at once would reset the connection, and most clients would see the reset in place of the answer.
        """
        if self._state >= DISCARD:
            return
        request = self._request
        known = request.head_complete and refusal.problem.status not in (400, 431)
        self._left = request.left if known and b"content-length" in request.headers else None
        self._state = DISCARD
        self._since = self._limits.now
        self._held = b""
        request_id = request.request_id or self._take.request_id({})
        exchange = self._replies.owe(self._take.cors_lines(request.headers), keep_alive=False)
        request.tell(exchange)
        request.close()
        exchange.reply(self._take.refuse(refusal, request_id))

    def _too_slow(self, what: str, seconds: float) -> None:
        self._refuse_for_good(self._take.too_slow(what, seconds))

    def _discard(self, size: int) -> None:
        self._discarded_bytes += size
        if self._left is not None:
            self._left = max(0, self._left - size)
        done = self._left == 0 and not self._replies.owed
        if done or self._discarded_bytes > self._settings.refused_body_discard_bytes_max:
            self._close()

    def _close(self) -> None:
        self._leave()
        self._since = self._limits.now
        self._transport.close()

    def _leave(self) -> None:
        self._state = CLOSED
        self._replies.forget()
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
        if self._replies.last:
            other.shutdown()
