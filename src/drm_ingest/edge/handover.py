"""Connections that the door handed over: uvicorn's own protocol, with the deadlines and limits that it lacks."""

import asyncio
from typing import Any

from uvicorn.config import Config
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.server import ServerState

from drm_ingest.edge.answer import encode
from drm_ingest.edge.take import Take
from drm_ingest.errors import Refusal


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
        self._take = take
        self._limits, self._settings = take.limits, take.settings
        self._since: float | None = None
        """When the request being read began; None between requests."""
        self._in_head = True
        self._head_bytes = 0

    def sweep(self, now: float) -> None:
        """Hold the deadlines of a request; uvicorn keeps the one between requests."""
        if self._since is None:
            return
        settings, waited = self._settings, now - self._since
        if self._in_head and waited > settings.request_header_timeout_s:
            self._refuse(
                Refusal("request_timeout", f"Send the headers within {settings.request_header_timeout_s:g} s.")
            )
        elif waited > settings.request_header_timeout_s + settings.request_body_timeout_s:
            self._refuse(Refusal("request_timeout", f"Send the body within {settings.request_body_timeout_s:g} s."))

    def data_received(self, data: bytes) -> None:
        if self._since is None:
            self._since = self._limits.now
            self._in_head, self._head_bytes = True, 0
        if self._in_head:
            self._head_bytes += len(data)
        super().data_received(data)
        if self._in_head and self._head_bytes > self._settings.request_header_bytes_max:
            self._refuse(self._take.headers_too_large())

    def on_headers_complete(self) -> None:
        self._in_head = False
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        self._since = None
        super().on_message_complete()

    def send_400_response(self, msg: str) -> None:
        self._refuse(Refusal("malformed_request", "Send valid HTTP/1.1."))

    def _refuse(self, refusal: Refusal) -> None:
        """Answer for the server where no application can, and close."""
        self._since = None
        if self.transport.is_closing():
            return
        if self.cycle is None or self.cycle.response_complete or not self.cycle.response_started:
            answer = self._take.refuse(refusal, self._take.request_id({}))
            self.transport.write(encode(answer, self._limits.date_line + b"connection: close\r\n"))
        self.transport.close()
