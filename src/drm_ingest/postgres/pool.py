"""Connections to Postgres: every wait has an end, and `pg_stat_activity` tells whose they are.

asyncpg's own types throughout: `jsonb` goes in and comes out as `str`, never decoded on the way (the hot path has the
sender's bytes, and `serve` hands the text on); times are aware `datetime`, identifiers `uuid.UUID`.
"""

import asyncio
import contextlib
import functools
from collections.abc import Mapping
from typing import Any

import asyncpg
from asyncpg.pool import PoolAcquireContext

from drm_ingest import silence
from drm_ingest.settings import Settings

PASSING = (asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError, OSError, TimeoutError)
"""What passes with time or by a person's hand: no connection, no lock, no space, no such table. Try again, and say so.

(asyncpg raises InternalClientError from a pooled connection whose server died at the wrong moment.)
"""

CLOSE_TIMEOUT_S = 2.0
"""A server that does not answer must not keep a process from ending."""

APPLICATION_NAME_CHARACTERS_MAX = 63  # Postgres cuts the rest off (NAMEDATALEN)


class Pool(asyncpg.Pool):  # type: ignore[misc]  # asyncpg has no types
    """An asyncpg pool whose `acquire`, and so `fetch` and its like, never waits longer than the settings say.

    Raises from any method:
        TimeoutError: no connection came free or could be made in time.
        asyncpg.PostgresConnectionError, OSError: Postgres cannot be reached.
        asyncpg.QueryCanceledError: the statement time-out.
        asyncpg.LockNotAvailableError: the lock time-out.
    """

    __slots__ = ("_acquire_timeout_s",)
    _acquire_timeout_s: float

    def acquire(self, *, timeout: float | None = None) -> PoolAcquireContext:
        return super().acquire(timeout=self._acquire_timeout_s if timeout is None else timeout)

    async def close(self) -> None:
        """Close; what is still lent after `CLOSE_TIMEOUT_S`, or not answered, is cut off."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(CLOSE_TIMEOUT_S):
                await super().close()


def open_pool(
    settings: Settings,
    application_name: str,
    *,
    connections_max: int | None = None,
    server_settings: Mapping[str, str] | None = None,
    stateless: bool = False,
) -> Pool:
    """Return a pool to enter with `async with`; connections are made when first needed, so Postgres may be down.

    `server_settings` are further parameters of its sessions, such as those of the planner. `stateless`: whoever borrows
    leaves nothing in a session but perhaps an open transaction, which is rolled back; asyncpg then cleans nothing up,
    which is a question to Postgres at each return.
    """
    pool = Pool(
        settings.postgres_dsn.get_secret_value(),
        min_size=0,
        max_size=connections_max or settings.postgres_connections_max,
        max_queries=50_000,
        max_inactive_connection_lifetime=300.0,
        max_cached_statement_lifetime=0,  # Postgres itself plans anew when it knows more; else it is work for nothing
        max_cacheable_statement_size=0,  # of any size: the longest, those of records, take the most planning
        loop=asyncio.get_running_loop(),
        connection_class=asyncpg.Connection,
        record_class=asyncpg.Record,
        reset=_leave_as_it_is if stateless else None,
        init=functools.partial(_end_silence, settings=settings),
        **_bounds(settings, application_name, server_settings or {}),
    )
    pool._acquire_timeout_s = settings.postgres_acquire_timeout_s
    return pool


async def _leave_as_it_is(_connection: asyncpg.Connection) -> None:
    """Asyncpg has rolled back by now what was open."""


async def connect(settings: Settings, application_name: str) -> asyncpg.Connection:
    """Return one connection of its own, with the same bounds as those of a pool."""
    made = await asyncpg.connect(settings.postgres_dsn.get_secret_value(), **_bounds(settings, application_name, {}))
    await _end_silence(made, settings)
    return made


async def _end_silence(connection: asyncpg.Connection, settings: Settings) -> None:
    silence.end_silence(connection._transport, settings.connection_silent_max_s)


def _bounds(settings: Settings, application_name: str, server_settings: Mapping[str, str]) -> dict[str, Any]:
    statement_ms = round(settings.postgres_statement_timeout_s * 1000)
    return {
        "timeout": settings.postgres_acquire_timeout_s,
        # A little later than the server's own time-out: it is for a network that swallows packets.
        "command_timeout": settings.postgres_statement_timeout_s + 2.0,
        "server_settings": {
            "application_name": application_name[:APPLICATION_NAME_CHARACTERS_MAX],
            "statement_timeout": str(statement_ms),
            "lock_timeout": str(round(settings.postgres_lock_timeout_s * 1000)),
            # A process that hangs in mid-transaction must not hold its locks for ever.
            "idle_in_transaction_session_timeout": str(statement_ms),
            **_silence(settings),
            "timezone": "UTC",
            **server_settings,
        },
    }


def _silence(settings: Settings) -> dict[str, str]:
    """Return what ends the server's side of a connection that we cannot reach any more, and frees its locks."""
    interval_s = max(1, round(settings.connection_silent_max_s / (silence.PROBES + 1)))
    return {
        "tcp_keepalives_idle": str(interval_s),
        "tcp_keepalives_interval": str(interval_s),
        "tcp_keepalives_count": str(silence.PROBES),
        "tcp_user_timeout": str(round(settings.connection_silent_max_s * 1000)),
    }
