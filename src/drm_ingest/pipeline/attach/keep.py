"""The keeper in `attach`: waits for a migrated Postgres, keeps partitions of events, tells whether all is well."""

import asyncio
import contextlib
from collections.abc import Iterable
from datetime import timedelta
from time import monotonic

import structlog

from drm_ingest.postgres.migrate import pending
from drm_ingest.postgres.pool import PASSING, Pool
from drm_ingest.postgres.store.partitions import keep
from drm_ingest.postgres.store.rows import DAY_US, EPOCH, Row
from drm_ingest.postgres.trouble import in_words
from drm_ingest.settings import Settings

PREPARE_INTERVAL_S = 0.5
PROBE_INTERVAL_S = 2.0
KEEP_RETRY_S = 60.0
KEEP_AFTER_ANOTHER_S = 5.0

log = structlog.get_logger(__name__)


class Keeper:
    """One in each worker; an advisory lock lets one of them at a time do the work."""

    def __init__(self, settings: Settings, pool: Pool) -> None:
        self._settings = settings
        self._pool = pool
        self._trouble: str | None = "Postgres has not been asked yet"
        self._migrated = False
        self._keep_at = 0.0  # monotonic
        self._woken = asyncio.Event()
        self._oldest_day = 0  # that is kept; days count from 2000-01-01
        self._days_seen: set[int] = set()
        self._months_seen: set[tuple[int, int]] = set()
        self._too_large: frozenset[str] = frozenset()

    def unready(self) -> str | None:
        """Return why nothing could be stored now; None: it could."""
        return self._trouble

    async def prepare(self, stop: asyncio.Event) -> bool:
        """Wait until Postgres is there, migrated, and has partitions for what comes; False: `stop` came first.

        Raises:
            BadMigrations: a migration was changed after it was applied.
        """
        said = None
        while await self._round() is not None:
            if self._trouble != said:
                log.warning("waiting", reason=self._trouble)
            said = self._trouble
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(stop.wait(), PREPARE_INTERVAL_S)
            if stop.is_set():
                return False
        return True

    async def work(self) -> None:
        """Go on for ever; failures are told and tried again."""
        while True:
            # Not wait_for: in Python 3.11 that loses a cancellation which comes as the wait ends.
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(PROBE_INTERVAL_S):
                    await self._woken.wait()
            self._woken.clear()
            await self._round()

    def notice(self, rows: Iterable[Row]) -> None:
        """Keep at once when rows of a month come for the first time: of a year sent late, little is to be moved then.

        What waits an hour in the default partition takes long to move, and rows that come late wait for that.
        """
        if new := {row.occurred_us // DAY_US for row in rows} - self._days_seen:
            days = {day for day in new if day >= self._oldest_day}  # older ones never get a month
            self._days_seen |= days
            months = {(day.year, day.month) for day in (EPOCH + timedelta(days=number) for number in days)}
            if months - self._months_seen:
                self._months_seen |= months
                self._keep_at = 0.0
                self._woken.set()

    async def _round(self) -> str | None:
        """Ask whether rows could be stored, keep partitions when it is time; return and remember what is wrong."""
        try:
            trouble = await self._ask()
        except PASSING as error:
            trouble = in_words(error)
        if trouble is None and monotonic() >= self._keep_at:
            await self._keep()
        self._trouble = trouble
        return trouble

    async def _ask(self) -> str | None:
        if await self._pool.fetchval("select pg_is_in_recovery()"):
            return "Postgres is a standby or still recovering; nothing can be written to it"
        if not self._migrated and (missing := await pending(self._pool)):
            return f"migrations are missing ({', '.join(missing)}); run: drm-ingest migrate"
        self._migrated = True
        return None

    async def _keep(self) -> None:
        """Failing is no reason to stop: rows without a month of their own go to the default partition meanwhile."""
        try:
            # Not our own clock: each worker has another, and one that is wrong must not drop what is kept.
            now = await self._pool.fetchval("select clock_timestamp()")
            self._oldest_day = (now - EPOCH).days - self._settings.event_retention_days
            kept = await keep(
                self._pool,
                now,
                months_ahead=self._settings.event_partitions_ahead_months,
                retention_days=self._settings.event_retention_days,
                leave=self._too_large,
            )
        except PASSING as error:
            log.error("partitions could not be kept", error=str(error) or type(error).__name__)
            self._keep_at = monotonic() + KEEP_RETRY_S
            return
        if kept is None:  # another is at work, and may have begun before what we noticed
            self._keep_at = monotonic() + KEEP_AFTER_ANOTHER_S
            return
        self._keep_at = monotonic() + (KEEP_RETRY_S if kept.busy else self._settings.keeper_interval_s)
        self._too_large |= frozenset(kept.too_large)
        if kept.spared:
            log.error(
                "months past keeping are kept: by the clock they are too old, and no events are as new as the clock; "
                "check the clock of Postgres, or drop them if nothing was received for long",
                months=kept.spared,
            )
        if kept.made or kept.dropped or kept.busy or kept.deleted:
            log.info("partitions kept", made=kept.made, dropped=kept.dropped, busy=kept.busy, deleted=kept.deleted)
        if kept.too_large:
            log.warning("these months stay in the default partition: moving them would take too long, and late events "
                        "would wait for it", months=kept.too_large)  # fmt: skip
