"""How late background work is goes on growing while it fails: an alarm must not see the last good figure for ever."""

import asyncio
from typing import Any, NoReturn, cast

import pytest

from drm_ingest.metrics import Metrics
from drm_ingest.pipeline.attach.link import Linker
from drm_ingest.pipeline.attach.total import Totaller
from drm_ingest.postgres import pool
from drm_ingest.postgres.pool import Pool
from drm_ingest.settings import Settings


class Away:
    """A pool whose Postgres cannot be reached."""

    def acquire(self) -> NoReturn:
        raise OSError("refused")


async def away(*_: Any) -> NoReturn:
    raise OSError("refused")


@pytest.mark.parametrize("lag", ["drm_identity_lag_seconds", "drm_totals_lag_seconds"])
async def test_what_cannot_be_done_grows_older(lag: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool, "connect", away)
    metrics = Metrics("attach")
    workers = Linker(Settings(), metrics, cast("Pool", Away())), Totaller(Settings(), metrics)
    assert metrics.registry.get_sample_value(lag) == 0
    working = [asyncio.create_task(worker.work()) for worker in workers]
    try:
        async with asyncio.timeout(10):
            while not (first := metrics.registry.get_sample_value(lag)):  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        await asyncio.sleep(0.05)
        assert (metrics.registry.get_sample_value(lag) or 0) >= first + 0.05
    finally:
        for task in working:
            task.cancel()
        await asyncio.wait(working)
