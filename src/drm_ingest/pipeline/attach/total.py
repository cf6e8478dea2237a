"""Bring on the totals of large parties: bounded steps beside the path of events, as long as there is more to do.

    look at the clock ─▶ one transaction: fresh events, changes, the next slice ─▶ again at once, or after a moment

One worker of all does a step at a time; the others find it taken and come back. A step that ends early did nothing.
"""

import asyncio
import contextlib
import os
import socket
from time import monotonic

import asyncpg
import structlog

from drm_ingest.metrics import Metrics
from drm_ingest.postgres import pool
from drm_ingest.postgres.pool import PASSING
from drm_ingest.postgres.totals.find import Sizes
from drm_ingest.postgres.totals.horizon import Horizon
from drm_ingest.postgres.totals.step import Paces, behind, changed, step
from drm_ingest.settings import Settings

RETRY_S = 2.0
IDLE_TIMES = 5  # without any large party, so many intervals from step to step
SHARE_MAX = 0.25  # of the time, while events come; what is built or caught up, and changes, do not wait
ADD_UP_S = 5.0
# Everything that a step asks has its index; statistics of tables that were empty a moment ago tell nothing.
PLANNER = "set jit = off; set enable_seqscan = off"

log = structlog.get_logger(__name__)


class Totaller:
    """One in each worker."""

    def __init__(self, settings: Settings, metrics: Metrics) -> None:
        self._settings = settings
        self._metrics = metrics
        self._horizon = Horizon()
        self._connection: asyncpg.Connection | None = None
        self._sizes = Sizes(settings.live_record_devices_max, settings.linked_parties_max)
        self._paces = Paces(settings.totals_sweep_s, settings.totals_recount_s, ADD_UP_S)
        self._trouble: str | None = None
        self._failing_since: float | None = None  # monotonic
        self._behind_s = 0.0
        metrics.totals_lag_seconds.set_function(self._lag_s)

    def _lag_s(self) -> float:
        """Return how old totals are: while steps fail, as old as they were and older by each second."""
        now = monotonic()
        return self._behind_s + now - (self._failing_since or now)

    async def work(self) -> None:
        """Go on for ever; failures are told and tried again."""
        try:
            while True:
                try:
                    wait_s = await self._step()
                    self._trouble = self._failing_since = None
                    await self._rest(wait_s)
                except Exception as error:  # a defect of ours would else stop all attaching, for totals
                    self._fail(error)
                    await asyncio.sleep(RETRY_S)
        finally:
            self._drop()

    async def _rest(self, wait_s: float) -> None:
        """Wait so long; where relations change, not much longer than an interval."""
        until = monotonic() + wait_s
        while (left_s := until - monotonic()) > 0:
            await asyncio.sleep(min(left_s, self._settings.totals_interval_s))
            if left_s > self._settings.totals_interval_s and await changed(await self._connected()):
                return

    async def _step(self) -> float:
        """Do a step; return how long to wait before the next."""
        began, interval_s = monotonic(), self._settings.totals_interval_s
        done = await step(await self._connected(), self._horizon, self._sizes, self._paces)
        if done is None:  # another is at it, or hangs with it
            large, behind_s = await behind(await self._connected())
            self._tell(large, behind_s)
            return interval_s
        self._tell(done.large, done.behind_s)
        if done.healed:
            self._metrics.totals_healed.inc(done.healed)
            log.warning("totals were wrong and are counted anew", events=done.healed)
        took_s = monotonic() - began
        if done.more:
            return min(took_s, interval_s)
        return max(interval_s if done.large else IDLE_TIMES * interval_s, took_s * (1 / SHARE_MAX - 1))

    def _tell(self, large: int, behind_s: float) -> None:
        self._metrics.totals_parties.set(large)
        self._behind_s = behind_s if large else 0.0

    def _fail(self, error: Exception) -> None:
        reason = str(error) or type(error).__name__
        if reason != self._trouble:
            log.warning(
                "totals not brought on, to be tried again", reason=reason, exc_info=not isinstance(error, PASSING)
            )
        self._trouble = reason
        self._failing_since = self._failing_since or monotonic()
        self._drop()

    async def _connected(self) -> asyncpg.Connection:
        if self._connection is None or self._connection.is_closed():
            self._connection = await pool.connect(
                self._settings, f"drm totals {socket.gethostname()[:24]} {os.getpid()}"
            )
            await self._connection.execute(PLANNER)
        return self._connection

    def _drop(self) -> None:
        if self._connection is not None:
            with contextlib.suppress(*PASSING):
                self._connection.terminate()
            self._connection = None
