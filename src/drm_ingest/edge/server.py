"""uvicorn with our door, our limits, and a shutdown that finishes what it began."""

import asyncio
import contextlib
import logging
import math
import signal
import socket
from collections.abc import Awaitable, Callable, Iterator
from functools import partial
from typing import TYPE_CHECKING, Any, cast

import uvicorn
from fastapi import FastAPI

from drm_ingest.edge.door import Door
from drm_ingest.edge.handover import QUIET, HandedOver
from drm_ingest.edge.socket import Socket
from drm_ingest.edge.take import Take
from drm_ingest.settings import Settings

if TYPE_CHECKING:
    from uvicorn._types import ASGIApplication


class Server(uvicorn.Server):
    """Serves until SIGTERM or SIGINT; `draining` says that it has come."""

    def __init__(
        self, settings: Settings, app: FastAPI, take: Take, drain_sockets: Callable[[], Awaitable[None]]
    ) -> None:
        """`drain_sockets` ends the WebSockets in peace."""
        door: Any = partial(Door, take)  # uvicorn calls it as it would the class
        websocket: Any = partial(Socket, take)
        super().__init__(
            uvicorn.Config(
                cast("ASGIApplication", app),
                http=door,
                ws=websocket,
                ws_max_size=settings.websocket_message_bytes_max,
                ws_max_queue=1,
                ws_ping_interval=settings.websocket_ping_interval_s,
                ws_ping_timeout=settings.websocket_ping_timeout_s,
                ws_per_message_deflate=False,
                lifespan="off",
                log_config=None,
                access_log=False,
                server_header=False,
                proxy_headers=False,
                backlog=settings.edge_backlog_connections,
                timeout_keep_alive=math.ceil(settings.connection_idle_timeout_s),
            )
        )
        logging.getLogger(QUIET).setLevel(logging.ERROR)
        self.draining = False
        self._drain_sockets = drain_sockets
        self._drain_timeout_s = settings.drain_timeout_s

    def stop(self) -> None:
        """Drain and end, as at SIGTERM; a second time: without waiting."""
        self.force_exit = self.should_exit
        self.should_exit = True
        self.draining = True

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Accept no more, finish the requests and messages that were read, close."""
        self.draining = True
        until = asyncio.get_running_loop().time() + self._drain_timeout_s
        for server in self.servers:
            server.close()
        for connection in list(self.server_state.connections):
            if isinstance(connection, Door | HandedOver):
                connection.shutdown()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout_at(until):
                await self._drain_sockets()
        left_s = until - asyncio.get_running_loop().time()
        self.config.timeout_graceful_shutdown = max(1, math.floor(left_s))
        await super().shutdown(sockets)

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Stop at a signal; unlike uvicorn's own, end with exit code 0 and not by the same signal again."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self.stop)
        try:
            yield
        finally:
            for number in (signal.SIGTERM, signal.SIGINT):
                loop.remove_signal_handler(number)
