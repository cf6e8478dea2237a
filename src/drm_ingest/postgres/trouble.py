"""Why Postgres cannot be used, for the person whom it wakes: what happened, and what to do."""

import asyncpg
from asyncpg.exceptions import ClientConfigurationError

_WORDS: tuple[tuple[tuple[type[BaseException], ...], str, str], ...] = (
    ((ClientConfigurationError,), "DRM_POSTGRES_DSN cannot be read ({})", "correct it and restart this process"),
    ((TimeoutError,), "it did not answer in time", "see whether it hangs, has too much to do, or is cut off from here"),
    (
        (asyncpg.InvalidAuthorizationSpecificationError,),
        "it does not let this process in ({})",
        "correct its pg_hba.conf or the password there, or DRM_POSTGRES_DSN here",
    ),
    ((asyncpg.InvalidCatalogNameError,), "it has no such database ({})", "create it, or correct DRM_POSTGRES_DSN"),
    (
        (asyncpg.UndefinedTableError, asyncpg.UndefinedColumnError, asyncpg.UndefinedFunctionError),
        "its tables are not up to date ({})",
        "run: drm-ingest migrate",
    ),
    (
        (asyncpg.AdminShutdownError, asyncpg.CrashShutdownError, asyncpg.CannotConnectNowError),
        "it is stopping or starting ({})",
        "wait, or start it",
    ),
    # Of these the messages speak of the insides of asyncpg, and not of what happened.
    (
        (asyncpg.PostgresConnectionError, asyncpg.InterfaceError, asyncpg.InternalClientError, ConnectionResetError),
        "it died, or closed the connection",
        "start it if it is down; its log says why it ended",
    ),
    ((OSError,), "it cannot be reached ({})", "start it, or correct DRM_POSTGRES_DSN"),
    ((BaseException,), "it says: {}", "mend that there; its log says more"),
)
"""The first that fits holds."""


def in_words(error: BaseException) -> str:
    """Return one line for an error of `PASSING`: what happened · what to do (`drm-ingest doctor` shows them apart)."""
    what, to_do = next((what, to_do) for kinds, what, to_do in _WORDS if isinstance(error, kinds))
    said = (isinstance(error, OSError) and error.strerror) or str(error) or type(error).__name__
    return f"Postgres cannot be used: {what.format(said)} · {to_do}"
