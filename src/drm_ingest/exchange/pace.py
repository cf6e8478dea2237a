"""The lane of imported events: it yields to live ones.

Two things tell how busy the path is. The edge: after each answer the lane pauses in proportion to how long the answer
took, so that it has a share of one connection's time and less the slower the edge gets. And what enrich and attach have
not read yet (Kafka's committed offsets): above a bound the lane stands still until it is below. A live event so waits
behind `lag_max_events` of others at most, and what the lane sent since it last looked, which is half as many.
"""

import asyncio
import time
from collections.abc import Callable

from drm_ingest.exchange.refused import Stopped
from drm_ingest.kafka.connection import KafkaUnreachable
from drm_ingest.kafka.probe import probe_group
from drm_ingest.settings import Settings

GROUPS = ("enrich", "attach")
LOOK_AGAIN_S = 1.0
PAUSE_MAX_S = 5.0

Lags = Callable[[], dict[str, int | None]]
"""How many events each group has not read; None: it never read any."""


class Pace:
    """Says when the next events may be sent."""

    def __init__(
        self,
        lags: Lags | None,
        lag_max_events: int,
        share: float,
        tell: Callable[[str], None],
        *,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        """`share` of one connection's time is the lane's; without `lags` the edge's answers alone pace it."""
        self._lags, self._lag_max, self._share = lags, lag_max_events, share
        self._tell, self._clock, self._sleep = tell, clock, sleep
        self._looked_at: float | None = None
        self._sent = 0
        self._sent_unseen = 0

    def answered(self, events: int, took_s: float) -> None:
        """Pause after an answer to so many events, and then until the workers are near enough."""
        self._sent += events
        self._sent_unseen += events
        self._sleep(min(PAUSE_MAX_S, took_s * (1 / self._share - 1)))
        if self._lags is None:
            return
        long_ago = self._looked_at is None or self._clock() - self._looked_at >= LOOK_AGAIN_S
        if not long_ago and self._sent_unseen < self._lag_max // 2:
            return
        waiting = False
        while (behind := self._behind(self._lags())) is not None:
            if not waiting:
                self._tell(f"waiting: {behind[0]} has {behind[1]:,} events before it; going on below {self._lag_max:,}")
                waiting = True
            self._sleep(LOOK_AGAIN_S)
        self._looked_at, self._sent_unseen = self._clock(), 0

    def _behind(self, lags: dict[str, int | None]) -> tuple[str, int] | None:
        for group, lag in lags.items():
            # Of a group that never committed nothing is known but that it has not read what was sent.
            unread = self._sent if lag is None else lag
            if unread > self._lag_max:
                return group, unread
        return None


def lags_of(settings: Settings) -> Lags:
    """Return what looks at Kafka.

    Raises from it:
        Stopped: it cannot be reached.
    """

    async def look() -> dict[str, int | None]:
        probes = await asyncio.gather(*(probe_group(settings, group) for group in GROUPS))
        return {group: probe.lag_events for group, probe in zip(GROUPS, probes, strict=True)}

    def lags() -> dict[str, int | None]:
        try:
            return asyncio.run(look())
        except KafkaUnreachable as error:
            raise Stopped(
                f"how far enrich and attach are behind cannot be seen: {error} · with --lag-max-events 0 "
                "the edge's answers alone set the pace"
            ) from None

    return lags
