"""The brake: where an abnormal share of events fails, a worker stops rather than empty the stream into dead letters.

Single events that can never go on are set aside one by one, and hold up nobody. Where many fail at once, something here
is broken more often than they are: a trigger in Postgres, a deploy, a producer that writes past the edge. Then nothing
of the batch in hand moves, and the worker says why and tries again, until the cause is mended or a person says that
these events really are to be set aside (DRM_BRAKE_SHARE_MAX=1).

An `id_conflict` does not count. It is a sender's mistake about its ids, which the edge cannot see, so any sender could
stop everybody's events with it, and it tells nothing about us. No event that the edge accepted should fail otherwise.
"""

from collections import deque
from collections.abc import Callable
from time import monotonic

from drm_ingest.settings import Settings


class Braked(Exception):
    """Too many events fail; the message says how many, why the last did, and what to do."""


class Brake:
    """Remembers what share of the latest events failed; one in each worker."""

    def __init__(self, settings: Settings, clock: Callable[[], float] = monotonic) -> None:
        self._share_max = settings.brake_share_max
        self._letters_min = settings.brake_letters_min
        self._window_events = settings.brake_window_events
        self._window_s = settings.brake_window_s
        self._clock = clock
        self._past: deque[tuple[float, int, int]] = deque()  # when, letters, events
        self._letters = self._events = 0

    def check(self, letters: int, events: int, reason: str) -> None:
        """See whether so many letters among the events in hand may be buried; `reason` is that of one of them.

        Raises:
            Braked: none of them may.
        """
        if not letters or self._share_max >= 1:
            return
        self._forget()
        failed, of = self._letters + letters, self._events + events
        if failed >= self._letters_min and failed > self._share_max * of:
            raise Braked(
                f"{failed} of the last {of} events fail, so nothing is set aside and nothing moves; one of them: "
                f"{reason} · mend the cause and it goes on by itself; if they really are all to be dead letters, "
                "start the worker with DRM_BRAKE_SHARE_MAX=1"
            )

    def passed(self, letters: int, events: int) -> None:
        """Remember what is durable now."""
        self._past.append((self._clock(), letters, events))
        self._letters += letters
        self._events += events
        self._forget()

    def _forget(self) -> None:
        """Keep about `brake_window_events`, none older than `brake_window_s`."""
        since = self._clock() - self._window_s
        while self._past and (self._past[0][0] < since or self._events - self._past[0][2] >= self._window_events):
            _, letters, events = self._past.popleft()
            self._letters -= letters
            self._events -= events
