"""What works beside the path of events ends when it is told to, whatever else it is told at that moment."""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, cast

import pytest

from drm_ingest.metrics import Metrics
from drm_ingest.pipeline.attach.keep import Keeper
from drm_ingest.pipeline.attach.link import Linker
from drm_ingest.postgres.pool import Pool
from drm_ingest.settings import Settings


class Busy:
    """A pool of which no connection ever comes free."""

    def acquire(self) -> "Busy":
        return self

    async def __aenter__(self) -> None:
        await asyncio.Event().wait()

    async def __aexit__(self, *_: object) -> None:
        pass

    async def fetchval(self, _: str) -> None:
        await asyncio.Event().wait()


def linker() -> Callable[[], Coroutine[Any, Any, None]]:
    made = Linker(Settings(), Metrics("attach"), cast("Pool", Busy()))
    made.wake()
    return made.work


def keeper() -> Callable[[], Coroutine[Any, Any, None]]:
    made = Keeper(Settings(), cast("Pool", Busy()))
    made._woken.set()  # as notice() does
    return made.work


@pytest.mark.parametrize("woken", [linker, keeper])
@pytest.mark.parametrize("turns", range(6))
async def test_work_beside_attaching_ends_when_it_is_cancelled_just_as_it_wakes(
    woken: Callable[[], Callable[[], Coroutine[Any, Any, None]]], turns: int
) -> None:
    running = asyncio.create_task(woken()())
    for _ in range(turns):
        await asyncio.sleep(0)
    running.cancel()
    await asyncio.wait([running], timeout=5)
    assert running.cancelled()
