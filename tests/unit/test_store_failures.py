"""What Postgres does on a bad day is a 503 of serve and a reason not to be ready, whichever way asyncpg tells it."""

import asyncpg
import pytest

from drm_ingest.errors import Refusal
from drm_ingest.postgres.pool import PASSING
from drm_ingest.postgres.trouble import in_words
from drm_ingest.serve.problems import store_failures_refused


@pytest.mark.parametrize(
    "error",
    [
        *(kind("gone") for kind in PASSING if kind is not asyncpg.PostgresError),
        asyncpg.AdminShutdownError(""),
        asyncpg.DeadlockDetectedError(""),
        asyncpg.DiskFullError(""),
    ],
    ids=lambda error: type(error).__name__,
)
def test_it_is_refused_with_503(error: Exception) -> None:
    with pytest.raises(Refusal) as refused, store_failures_refused(retry_after_s=1):
        raise error
    assert (refused.value.problem.code, refused.value.problem.status) == ("store_unavailable", 503)


@pytest.mark.parametrize(
    ("error", "what", "to_do"),
    [
        (asyncpg.InterfaceError("connection is closed"), "it died, or closed the connection", "start it"),
        (asyncpg.InternalClientError("got result for unknown protocol state 3"), "it died", "start it"),
        (asyncpg.ConnectionDoesNotExistError("connection was closed in the middle of operation"), "it died", "its log"),
        (ConnectionResetError(104, "Connection reset by peer"), "it died", "its log"),
        (ConnectionRefusedError(111, "Connect call failed ('127.0.0.1', 5432)"), "Connect call failed", "start it"),
        (TimeoutError(), "it did not answer in time", "hangs"),
        (asyncpg.CannotConnectNowError("the database system is starting up"), "is starting up", "wait"),
        (asyncpg.InvalidPasswordError('password authentication failed for user "drm"'), "let this process in", "DSN"),
        (asyncpg.UndefinedTableError('relation "event" does not exist'), "not up to date", "drm-ingest migrate"),
        (asyncpg.DiskFullError("No space left on device"), "it says: No space left on device", "mend that"),
    ],
)  # fmt: skip
def test_it_is_said_in_words_with_what_to_do(error: Exception, what: str, to_do: str) -> None:
    """And never in those of asyncpg, which speak of its own insides; Postgres's own are passed on."""
    told, _, wanted = in_words(error).partition(" · ")
    assert told.startswith("Postgres cannot be used: ")
    assert what in told
    assert to_do in wanted
    assert not [inner for inner in ("connection is closed", "protocol state", "in the middle") if inner in told]
