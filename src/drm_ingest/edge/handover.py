"""Connections that the door handed over: uvicorn's own protocol, with the deadlines and limits that it lacks."""

import asyncio
import logging
from typing import TYPE_CHECKING, Any

from uvicorn.config import Config
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle
from uvicorn.server import ServerState

from drm_ingest.edge.answer import encode
from drm_ingest.edge.replies import client_of
from drm_ingest.edge.request import ONCE, MalformedRequest
from drm_ingest.edge.take import Take
from drm_ingest.errors import Refusal

if TYPE_CHECKING:
    from uvicorn._types import ASGI3Application


QUIET = "uvicorn.error.quiet"
"""A logger whose errors go where those of uvicorn go, and whose warnings go nowhere."""


class HandedOver(HttpToolsProtocol):
    """One connection, served by FastAPI until it closes or becomes a WebSocket."""

    def __init__(
        self,
        take: Take,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        # uvicorn warns of each request that is no HTTP, however many come; `tell` has a line for those, and a limit.
        self.logger = logging.getLogger(QUIET)
        self._take = take
        self._limits, self._settings = take.limits, take.settings
        self._since: float | None = None
        """When the request being read began; None between requests."""
        self._stuck_since: float | None = None
        """When it was first seen that the client does not read its answer."""
        self._in_head = True
        self._head_bytes = 0
        self._answering: RequestResponseCycle | None = None
        self._fault: Refusal | None = None
        """What is wrong with the request, where the parser would only say that something is."""
        self._discarded_bytes = 0
        """Of a body whose request is answered."""
        self._discards_since: float | None = None

    is_websocket = False

    def sweep(self, now: float) -> None:
        """Hold the deadlines of a request and of its answer; uvicorn keeps the one between requests."""
        settings = self._settings
        if self.transport.is_closing() or self.flow.write_paused:
            self._stuck_since = self._limits.now if self._stuck_since is None else self._stuck_since
            if now - self._stuck_since > settings.connection_idle_timeout_s:
                self.transport.abort()  # the client does not read
            return
        self._stuck_since = None
        if self._since is None:
            return
        waited = now - self._since
        if self._discards_since is not None and now - self._discards_since > settings.refused_body_discard_timeout_s:
            self.transport.close()
        if self._in_head and waited > settings.request_header_timeout_s:
            self._refuse(self._take.too_slow("headers", settings.request_header_timeout_s))
        elif waited > settings.request_header_timeout_s + settings.request_body_timeout_s:
            self._refuse(self._take.too_slow("body", settings.request_body_timeout_s))

    def data_received(self, data: bytes) -> None:
        if self._since is None:
            self._since = self._limits.now
            self._in_head, self._head_bytes = True, 0
        if self._in_head:
            self._head_bytes += len(data)
        super().data_received(data)
        cycle = self._answering
        if cycle is not None and cycle is self.cycle and cycle.response_complete and cycle.more_body:
            self._discard(len(data))
        if self._in_head and self._head_bytes > self._settings.request_header_bytes_max:
            self._refuse(self._take.headers_too_large())

    def on_message_begin(self) -> None:
        self._since = self._limits.now
        self._in_head = True
        super().on_message_begin()

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._in_head:  # trailers are left out: they come after it was decided by the headers
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        self._in_head = False
        self._refuse_what_could_be_read_in_two_ways()
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        self._since = None
        self._head_bytes = self._discarded_bytes = 0
        self._discards_since = None
        super().on_message_complete()

    def _discard(self, size: int) -> None:
        """Read over the rest of a body that was refused, for so long; its client may read the answer only then."""
        self._discarded_bytes += size
        self._discards_since = self._limits.now if self._discards_since is None else self._discards_since
        if self._discarded_bytes > self._settings.refused_body_discard_bytes_max:
            self.transport.close()

    def _unsupported_upgrade_warning(self) -> None:
        """End with the answer: after an upgrade that it knows nothing of, llhttp reads no further request."""
        if self._answering is None or self._answering.response_complete:
            self.transport.close()
        else:
            self._answering.keep_alive = False

    def _refuse_what_could_be_read_in_two_ways(self) -> None:
        headers = dict(self.headers)
        names = [name for name, _ in self.headers] if len(headers) < len(self.headers) else []
        upgrade = self.parser.should_upgrade() and self._should_upgrade()
        if sum(len(name) + len(value) + 4 for name, value in self.headers) > self._settings.request_header_bytes_max:
            self._fault = self._take.headers_too_large()
            raise MalformedRequest("the headers are too large")
        if twice := [name for name in ONCE if names.count(name) > 1]:
            raise MalformedRequest(f"{twice[0].decode()} is there twice")
        if b"host" not in headers and self.parser.get_http_version() == "1.1":
            raise MalformedRequest("no Host header")
        if headers.get(b"transfer-encoding", b"chunked").lower() != b"chunked":
            raise MalformedRequest("Transfer-Encoding may be chunked only; compress by Content-Encoding")
        if upgrade and (self.parser.get_method() != b"GET" or {b"content-length", b"transfer-encoding"} & set(headers)):
            raise MalformedRequest("only a GET without a body becomes a WebSocket")

    def send_400_response(self, msg: str) -> None:
        self._refuse(self._fault or Refusal("malformed_request", "Send valid HTTP/1.1."))

    def connection_lost(self, exc: Exception | None) -> None:
        """Tell every request: uvicorn tells the last one only, and the others would write to a closed transport."""
        if self._answering is not None:
            self._answering.disconnected = True
        self.pipeline.clear()
        super().connection_lost(exc)

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: "ASGI3Application") -> None:
        self._answering = cycle
        super()._start_asgi_task(cycle, app)

    def handle_websocket_upgrade(self) -> None:
        if self._answering is not None and not self._answering.response_complete:
            self._refuse(Refusal("malformed_request", "Wait for the last answer before you ask for a WebSocket."))
        elif (why := self._limits.no_more_websockets()) is not None:
            self._refuse(self._take.overloaded(why))
        else:
            super().handle_websocket_upgrade()

    def _refuse(self, refusal: Refusal) -> None:
        """Answer for the server where no application can, and close."""
        self._since = None
        cycle = self._answering
        if self.transport.is_closing():
            return
        if cycle is not None and not cycle.response_complete:
            if cycle.response_started or not (cycle is self.cycle and cycle.more_body):
                cycle.keep_alive = False  # an earlier request is being answered: that is the last answer
                self.pipeline.clear()
                return
            cycle.disconnected = True
            cycle.message_event.set()
        answer = self._take.refuse(refusal, self._take.request_id({}))
        self._take.tell.answered(answer, client=client_of(self.transport))
        self.transport.write(encode(answer, self._limits.date_line + b"connection: close\r\n"))
        self.transport.close()
