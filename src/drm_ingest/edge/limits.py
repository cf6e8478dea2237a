"""What the edge bounds over all its connections: how many, their bytes in memory, and their time.

Deadlines cost nothing per request: a connection notes the coarse time at which its state began, and one timer sweeps
over all of them.
"""

import asyncio
from collections.abc import Callable, Collection
from email.utils import formatdate
from time import monotonic
from typing import Any, Protocol

import structlog

from drm_ingest.settings import Settings

SWEEP_INTERVAL_S = 0.5
"""How coarse the deadlines are."""

# A little room above `connections_max`, only to tell those who come too late why they are not served.
_LINGERING_PART = 0.05

log = structlog.get_logger(__name__)


class Connection(Protocol):
    """What the limits know of a connection."""

    is_websocket: bool

    def sweep(self, now: float) -> None:
        """Hold the deadlines."""


class Limits:
    """The bounds of one process, and the coarse clock that its connections read."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.now = 0.0
        """The event loop's time at the last sweep."""
        self.date_line = b""
        """The `Date` header of answers, as a line."""
        self.body_bytes = 0
        """Bodies and messages that have arrived in part or wait to be judged, and answers that wait."""
        self.body_bytes_max = settings.request_in_flight_bytes_max
        self.unauthenticated = 0
        """WebSockets that have not said whose they are."""
        self._handshakes = float(settings.websocket_handshakes_per_s_max)
        self._handshakes_at = 0.0
        self.connections: Collection[Connection] = ()
        self._timer: asyncio.TimerHandle | None = None

    def watch(self, connections: Collection[Connection]) -> None:
        """Call `sweep(now)` on each of these (a live set: uvicorn's own) twice a second, until `stop`."""
        self.connections = connections
        self._tick(asyncio.get_running_loop())

    def stop(self) -> None:
        """Sweep no more."""
        if self._timer is not None:
            self._timer.cancel()

    def _tick(self, loop: asyncio.AbstractEventLoop) -> None:
        late = self.now and loop.time() - self.now > 4 * SWEEP_INTERVAL_S
        self.now = now = loop.time()
        self.date_line = b"date: %b\r\n" % formatdate(usegmt=True).encode()
        if late:  # we did not read for a while: the clients are not to blame
            self._timer = loop.call_later(SWEEP_INTERVAL_S, self._tick, loop)
            return
        self._timer = loop.call_later(SWEEP_INTERVAL_S, self._tick, loop)
        for connection in list(self.connections):
            try:
                connection.sweep(now - SWEEP_INTERVAL_S)  # what they noted may be that old; never cut too early
            except Exception:  # one that is broken must not end the deadlines of all others
                log.exception("a connection's deadlines cannot be held")

    def holding(self, held_bytes: int, reply: Callable[[Any], None]) -> Callable[[Any], None]:
        """Count so many bytes as held until `reply` is called; returns what is to be called in its place."""
        self.body_bytes += held_bytes

        def release(answer: Any) -> None:
            self.body_bytes -= held_bytes
            reply(answer)

        return release

    def full(self) -> bool:
        """Whether as much is held as may be."""
        return self.body_bytes > self.body_bytes_max

    def no_more_websockets(self) -> str | None:
        """Say why one more WebSocket cannot be opened now, or count it."""
        settings, now = self.settings, monotonic()
        if self.unauthenticated >= settings.websocket_unauthenticated_max:
            return "Too many WebSockets have not said whose they are"
        most = settings.websocket_handshakes_per_s_max
        self._handshakes = min(float(most), self._handshakes + (now - self._handshakes_at) * most)
        self._handshakes_at = now
        if self._handshakes < 1:
            return "Too many WebSockets are being opened at once"
        self._handshakes -= 1
        return None

    def connections_full(self) -> bool:
        """Whether one more connection is one too many."""
        return len(self.connections) >= self.settings.connections_max

    def no_room_to_refuse(self) -> bool:
        """Whether there are so many that one more is not even told."""
        most = self.settings.connections_max
        return len(self.connections) >= most + max(16, int(most * _LINGERING_PART))

    def open_connections(self, *, websocket: bool) -> int:
        """Return how many there are of a kind."""
        return sum(connection.is_websocket == websocket for connection in list(self.connections))
