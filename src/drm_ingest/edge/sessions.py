"""The open WebSockets of a process: each is served to its end, watched while silent, and told when it has to go."""

import asyncio
from collections.abc import Callable

from starlette.websockets import WebSocket

from drm_ingest.edge.take import Take
from drm_ingest.edge.websocket import Session

WATCH_INTERVAL_S = 1.0
_WATCHED_AT_ONCE = 50  # a token whose key was revoked takes a tenth of a millisecond


class Sessions:
    """The open WebSockets of a process."""

    def __init__(self, take: Take, ready: Callable[[], str | None]) -> None:
        """`ready` returns None, or why no events can be taken now."""
        self._take = take
        self._ready = ready
        self._open: set[Session] = set()
        self._watching: asyncio.Task[None] | None = None

    async def serve(self, socket: WebSocket) -> None:
        """Serve one WebSocket to its end."""
        session = Session(self._take, socket)
        self._open.add(session)
        if self._watching is None or self._watching.done():
            self._watching = asyncio.create_task(self._watch(), name="credentials of WebSockets")
        try:
            await session.run(self._ready())
        finally:
            self._open.discard(session)
            session.gone.set()

    async def drain(self) -> None:
        """Take no new message, acknowledge those that were taken, tell the clients to come back, and close."""
        for session in self._open:
            session.go_away()
        await asyncio.gather(*(session.gone.wait() for session in self._open))
        if self._watching is not None:
            self._watching.cancel()

    async def _watch(self) -> None:
        """Close those whose credential is revoked or expires, though they send nothing; ends with the last of them."""
        while self._open:
            await asyncio.sleep(WATCH_INTERVAL_S)
            for number, session in enumerate(tuple(self._open), 1):
                session.close_unless_known()
                if not number % _WATCHED_AT_ONCE:
                    await asyncio.sleep(0)
