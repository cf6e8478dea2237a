"""What the edges tell each other of the quotas they gave out: notifications through Postgres, kept nowhere."""

from collections.abc import Callable

import asyncpg

from drm_ingest.postgres.pool import connect
from drm_ingest.settings import Settings

_NOTIFY = "select pg_notify('drm_quotas', told) from unnest($1::text[]) told"


class Told:
    """A channel between all edges on one database."""

    def __init__(self, settings: Settings, hear: Callable[[str], None]) -> None:
        """`hear` gets each payload, our own too; nothing is opened before `tell`."""
        self._settings = settings
        self._hear = hear
        self._connection: asyncpg.Connection | None = None

    async def tell(self, payloads: list[str]) -> None:
        """Listen, if that has not begun, and tell everybody.

        Raises:
            OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError: Postgres cannot be asked now.
        """
        try:
            if self._connection is None or self._connection.is_closed():
                self._connection = await connect(self._settings, "drm edge quotas")
                await self._connection.add_listener("drm_quotas", self._heard)
            await self._connection.execute(_NOTIFY, payloads)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Hang up at once."""
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.terminate()

    def _heard(self, *notification: object) -> None:
        self._hear(str(notification[-1]))
