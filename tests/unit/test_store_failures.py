"""What Postgres does on a bad day is a 503 of serve, whichever way asyncpg tells it."""

import asyncpg
import pytest

from drm_ingest.errors import Refusal
from drm_ingest.postgres.pool import PASSING
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
