"""What the edge bounds over all its connections: how many, their bytes in memory, and their time.

Deadlines cost nothing per request: a connection notes the coarse time at which its state began, and one timer sweeps
over all of them.
"""

import asyncio
from collections.abc import Collection
from email.utils import formatdate

from drm_ingest.settings import Settings

SWEEP_INTERVAL_S = 0.5
"""How coarse the deadlines are."""

# A little room above `connections_max`, only to tell those who come too late why they are not served.
_LINGERING_PART = 0.05


class Limits:
    """The bounds of one process, and the coarse clock that its connections read."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.now = 0.0
        """The event loop's time at the last sweep."""
        self.date_line = b""
        """The `Date` header of answers, as a line."""
        self.body_bytes = 0
        """Bodies that have arrived in part."""
        self.body_bytes_max = settings.request_in_flight_bytes_max
        self.connections: Collection[object] = ()
        self._timer: asyncio.TimerHandle | None = None

    def watch(self, connections: Collection[object]) -> None:
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
        for connection in list(self.connections):
            sweep = getattr(connection, "sweep", None)  # uvicorn's WebSocket protocol keeps time by its pings
            if sweep is not None:
                sweep(now - SWEEP_INTERVAL_S)  # what they noted may be that old; never cut too early
        self._timer = loop.call_later(SWEEP_INTERVAL_S, self._tick, loop)

    def connections_full(self) -> bool:
        """Whether one more connection is one too many."""
        return len(self.connections) >= self.settings.connections_max

    def no_room_to_refuse(self) -> bool:
        """Whether there are so many that one more is not even told."""
        most = self.settings.connections_max
        return len(self.connections) >= most + max(16, int(most * _LINGERING_PART))

    def open_connections(self, *, websocket: bool) -> int:
        """Return how many there are of a kind."""
        return sum(hasattr(connection, "sweep") != websocket for connection in list(self.connections))
