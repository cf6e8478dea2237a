"""The keeper in `attach`: waits for a migrated Postgres, makes and drops partitions of events, tells whether all is well."""

import asyncio
from datetime import UTC, datetime
from time import monotonic

import asyncpg
import structlog

from drm_ingest.postgres.migrate import pending
from drm_ingest.postgres.partitions import keep
from drm_ingest.postgres.pool import Pool
from drm_ingest.settings import Settings

PROBE_INTERVAL_S = 2.0

PASSING = (asyncpg.PostgresError, asyncpg.InterfaceError, OSError, TimeoutError)

log = structlog.get_logger(__name__)


class Keeper:
    """One in each worker; an advisory lock lets one of them at a time do the work."""

    def __init__(self, settings: Settings, pool: Pool) -> None:
        self._settings = settings
        self._pool = pool
        self._trouble: str | None = "Postgres has not been asked yet"
        self._kept_at: float | None = None

    def unready(self) -> str | None:
        """Return why nothing could be stored now; None: it could."""
        return self._trouble

    async def prepare(self) -> None:
        """Wait until Postgres is there, migrated, and has partitions for what comes.

        Raises:
            BadMigrations: a migration was changed after it was applied.
        """
        said = None
        while await self._round() is not None:
            if self._trouble != said:
                log.warning("waiting", reason=self._trouble)
            said = self._trouble
            await asyncio.sleep(0.5)

    async def work(self) -> None:
        """Go on for ever; failures are told and tried again."""
        while True:
            await asyncio.sleep(PROBE_INTERVAL_S)
            await self._round()

    async def _round(self) -> str | None:
        """Ask whether rows could be stored, keep partitions when it is time; return and remember what is wrong."""
        try:
            trouble = await self._ask()
            if trouble is None and self._is_time():
                await self._keep()
        except PASSING as error:
            trouble = f"Postgres cannot be used: {error or type(error).__name__}; check DRM_POSTGRES_DSN and the server"
        if trouble != self._trouble and trouble is not None and self._kept_at is not None:
            log.warning("not ready", reason=trouble)
        self._trouble = trouble
        return trouble

    async def _ask(self) -> str | None:
        if await self._pool.fetchval("select pg_is_in_recovery()"):
            return "Postgres is a standby or still recovering; nothing can be written to it"
        if self._kept_at is None and (missing := await pending(self._pool)):
            return f"migrations are missing ({', '.join(missing)}); run: drm-ingest migrate"
        return None

    def _is_time(self) -> bool:
        return self._kept_at is None or monotonic() - self._kept_at >= self._settings.keeper_interval_s

    async def _keep(self) -> None:
        kept = await keep(
            self._pool,
            datetime.now(UTC),
            months_ahead=self._settings.event_partitions_ahead_months,
            retention_days=self._settings.event_retention_days,
        )
        self._kept_at = monotonic()
        if kept is not None and (kept.made or kept.dropped or kept.busy or kept.deleted):
            log.info("partitions kept", made=kept.made, dropped=kept.dropped, busy=kept.busy, deleted=kept.deleted)
