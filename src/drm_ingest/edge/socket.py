"""A WebSocket's bytes: uvicorn's protocol, with the bounds that it lacks, and closed so that its client can read why.

What one connection may cost: as long as it has not said who it is, a message of a hello's size; then one message, of so
many frames, whole within a time; so many pings a second; and an end for whoever does not read, answer or close. Nothing
is read, and of what was read nothing is looked at, before the application asks for the next message.
"""

import logging
from typing import Any

from uvicorn.config import Config
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
from uvicorn.server import ServerState
from websockets.frames import Frame
from websockets.http11 import Request

from drm_ingest.edge.handover import QUIET
from drm_ingest.edge.message import NOT_JSON, POLICY, TRY_LATER
from drm_ingest.edge.take import Take

AUTHENTICATED = "drm.authenticated"
"""The extension of the scope to call once it is known who is at the other end."""
READ_BY_CLIENT = "drm.read_by_client"
"""The extension of the scope to wait for until the client has read what it was sent, but for a socket's buffers."""
_PIECE_BYTES = 16 * 1024  # thousands of frames fit into one read: others have their turn after so much
_TIMER_S = 0.1  # how exact a timer has to be: uvloop's may be a little early
_CLOSE_S = 15.0  # for a client to read why, and close; uvicorn's own closing takes 10


class Socket(WebSocketsSansIOProtocol):
    """One connection."""

    is_websocket = True

    def __init__(self, take: Take, config: Config, server_state: ServerState, app_state: dict[str, Any]) -> None:
        """`take` is ours, the rest is what uvicorn passes."""
        super().__init__(config, server_state, app_state)
        self.logger = logging.getLogger(QUIET)  # else a line for each connection, however many come
        self._limits, self._settings = take.limits, take.settings
        self.conn.max_message_size = self._settings.websocket_hello_bytes_max
        self._limits.unauthenticated += 1
        self._unauthenticated = True
        self._reads_over = False
        self._rest = bytearray()  # read from the socket, not looked at yet
        self._looking = False  # at a piece of that, soon
        self._busy = False  # the application, with a message
        self._paused_at = 0.0  # reading, last, and for how long since the last ping
        self._paused_s = 0.0
        self._held_bytes = 0  # as the limits know it
        self._queued_bytes = 0  # messages that the application has not taken
        self._frames_of_message = 0
        self._pings = float(self._settings.websocket_pings_per_s_max)
        self._pings_at = self._limits.now
        self._message_since: float | None = None
        self._stuck_since: float | None = None

    # -- the connection

    def authenticated(self) -> None:
        """Take messages of full size from now on."""
        if self._unauthenticated:
            self._unauthenticated = False
            self._limits.unauthenticated -= 1
            self.conn.max_message_size = self._settings.websocket_message_bytes_max

    def handle_connect(self, event: Request) -> None:
        super().handle_connect(event)
        if hasattr(self, "scope"):
            extensions: Any = self.scope["extensions"]
            extensions[AUTHENTICATED] = self.authenticated
            extensions[READ_BY_CLIENT] = self.writable.wait

    def connection_lost(self, exc: Exception | None) -> None:
        if self._unauthenticated:
            self._unauthenticated = False
            self._limits.unauthenticated -= 1
        self._reads_over = True
        self._rest.clear()
        self.frames = []
        self._queued_bytes = 0
        self._hold(0)
        super().connection_lost(exc)

    def sweep(self, now: float) -> None:
        """Hold the deadlines; called about twice a second."""
        settings, limits = self._settings, self._limits
        closing = self.close_sent or self.transport.is_closing()
        if closing or not self.writable.is_set():
            self._stuck_since = limits.now if self._stuck_since is None else self._stuck_since
            if now - self._stuck_since > (_CLOSE_S if closing else settings.connection_idle_timeout_s):
                self.transport.abort()  # the client does not read, or does not close
            return
        self._stuck_since = None
        if self._busy and self.read_paused:
            return  # it is we who keep the client waiting
        if self._message_since is not None and now - self._message_since > settings.request_body_timeout_s:
            self._fail(POLICY, f"a message must be whole within {settings.request_body_timeout_s:g} s")

    def send_keepalive_ping(self) -> None:
        super().send_keepalive_ping()
        self._paused_at, self._paused_s = self.loop.time(), 0.0

    def keepalive_timeout(self) -> None:
        self.pong_timer = None
        if self.close_sent or self.transport.is_closing():
            return
        now, most_s = self.loop.time(), self._settings.websocket_ping_timeout_s
        paused_s = self._paused_s + (now - self._paused_at if self.read_paused else 0.0)
        left_s = most_s - (now - self.ping_sent_at - paused_s)  # it may be behind what we did not read meanwhile
        if left_s > _TIMER_S:
            self.pong_timer = self.loop.call_later(left_s, self.keepalive_timeout)
        else:
            self._fail(POLICY, f"no pong within {most_s:g} s")

    # -- reading

    def data_received(self, data: bytes) -> None:
        if self._reads_over:
            return
        if not self._rest:
            self._parse(data[:_PIECE_BYTES])
            data = data[_PIECE_BYTES:]
        if data and not self._reads_over:
            self._rest += data
            self._hold(self._held_bytes + len(data))
            self._pause()
            self._go_on()

    def _go_on(self) -> None:
        """Look at the next piece of what was read, or read on, unless the application is busy with what it has."""
        if self._reads_over or ((self._busy or not self.queue.empty()) and not self.close_sent):
            return
        if self._rest:
            if not self._looking:
                self._looking = True
                self.loop.call_soon(self._look)
        elif self.read_paused:
            self.read_paused = False
            self._paused_s += self.loop.time() - self._paused_at
            self.transport.resume_reading()

    def _look(self) -> None:
        self._looking = False
        piece = bytes(self._rest[:_PIECE_BYTES])
        del self._rest[:_PIECE_BYTES]
        if not self._reads_over:
            self._parse(piece)
            self._go_on()

    def _pause(self) -> None:
        if not self.read_paused:
            self.read_paused = True
            self._paused_at = self.loop.time()
            self.transport.pause_reading()

    def _parse(self, piece: bytes) -> None:
        super().data_received(piece)
        if self._reads_over:
            return
        partial_bytes = len(self.conn.reader.buffer) + (len(self.frames[0]) if self.frames else 0)
        if not partial_bytes and not self.frames:
            self._message_since = None
        elif self._message_since is None:
            self._message_since = self._limits.now
        self._hold(partial_bytes + len(self._rest) + self._queued_bytes)
        if partial_bytes > self._settings.websocket_hello_bytes_max and self._limits.full():
            self._fail(TRY_LATER, "overloaded: too many messages are arriving at once")

    def _hold(self, held_bytes: int) -> None:
        self._limits.body_bytes += held_bytes - self._held_bytes
        self._held_bytes = held_bytes

    def handle_text(self, event: Frame) -> None:
        self.curr_msg_data_type = "text"
        self._first(event)

    def handle_bytes(self, event: Frame) -> None:
        self.curr_msg_data_type = "bytes"
        self._first(event)

    def _first(self, event: Frame) -> None:
        if self._reads_over:
            return
        self._frames_of_message = 1
        self.frames = [event.data]  # type: ignore[list-item]  # no copy: the parser holds on to it too
        if event.fin:
            self.send_receive_event_to_app()

    def handle_cont(self, event: Frame) -> None:
        if self._reads_over:
            return
        self._frames_of_message += 1
        if not isinstance(self.frames[0], bytearray):
            self.frames = [bytearray(self.frames[0])]  # type: ignore[list-item]  # thousands of parts cost more
        self.frames[0] += event.data
        if event.fin:
            self.send_receive_event_to_app()
        elif self._frames_of_message >= self._settings.websocket_message_frames_max:
            self._fail(POLICY, f"more than {self._settings.websocket_message_frames_max} frames in a message")

    def send_receive_event_to_app(self) -> None:
        """Queue the message as bytes: as text, one character beyond the basic plane makes it four times as large."""
        message, self.frames = self.frames[0], []
        if self.close_sent:
            return
        if self.curr_msg_data_type == "text":
            try:
                bytes(message).decode()
            except UnicodeDecodeError:
                self._fail(NOT_JSON, "the message is not UTF-8")
                return
        self.queue.put_nowait(message)  # type: ignore[arg-type]  # thousands of the smallest fit into a piece
        self._queued_bytes += len(message)
        self._pause()

    async def receive(self) -> Any:
        if self._busy:
            self._busy = False
            if self._message_since is not None:
                self._message_since = self._limits.now
            self._go_on()
        message: Any = await self.queue.get()
        self._busy = True
        if not isinstance(message, (bytes, bytearray)):
            return message
        if self.queue.empty():
            self._hold(self._held_bytes - self._queued_bytes)
            self._queued_bytes = 0
        return {"type": "websocket.receive", "bytes": message}

    async def send(self, message: Any) -> None:
        await super().send(message)
        if self.close_sent:
            self._go_on()  # until the client has closed too

    def handle_ping(self) -> None:
        if not self._reads_over and self._one_more_ping():
            super().handle_ping()

    def handle_pong(self, event: Frame) -> None:
        if not self._reads_over and (bytes(event.data) == self.pending_ping_payload or self._one_more_ping()):
            super().handle_pong(event)

    def _one_more_ping(self) -> bool:
        """Whether one more is within the limit; closes the connection where it is not."""
        most, now = self._settings.websocket_pings_per_s_max, self.loop.time()
        self._pings = min(float(most), self._pings + (now - self._pings_at) * most)
        self._pings_at = now
        if self._pings < 1:
            self._fail(POLICY, f"more than {most} pings or pongs a second")
            return False
        self._pings -= 1
        return True

    # -- the end

    def _fail(self, code: int, reason: str) -> None:
        """Close at once, with a reason."""
        self.conn.fail(code, reason)
        self.handle_parser_exception()

    def handle_parser_exception(self) -> None:
        """Say why, then read over what still comes.

        uvicorn closes at once: while the client still sends, it would see a reset in place of the code. And it asserts
        that nobody sends nonsense before the handshake is answered.
        """
        close = self.conn.close_sent
        if close is None:
            self.transport.abort()
            return
        if self._reads_over:
            return
        self._reads_over = True
        self._rest.clear()
        self.frames = []
        self._hold(self._queued_bytes)
        self.stop_keepalive()
        self.queue.put_nowait({"type": "websocket.disconnect", "code": close.code, "reason": close.reason})
        self.transport.write(b"".join(self.conn.data_to_send()))
        if self.transport.can_write_eof():
            self.transport.write_eof()
        self.close_sent = True
        if self.read_paused:
            self.read_paused = False
            self.transport.resume_reading()
        self.close_timer = self.loop.call_later(self.close_timeout, self.transport.close)
