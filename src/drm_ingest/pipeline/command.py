"""How a worker starts and ends as a process: settings, logs, signals, and what it says when it cannot go on."""

import asyncio
import signal
from collections.abc import Awaitable, Callable

import structlog
import uvloop

from drm_ingest import logs
from drm_ingest.kafka.connection import KafkaUnreachable
from drm_ingest.kafka.reader import PositionLost
from drm_ingest.kafka.topics import TopicsWrong
from drm_ingest.postgres.migrate import BadMigrations
from drm_ingest.schema import BadSchema
from drm_ingest.settings import Settings

ENDED_AFTER_DRAIN_S = 3.5
"""What committing, leaving the group and closing may take when nobody answers any more."""

Work = Callable[[Settings, asyncio.Event], Awaitable[None]]


def run_until_told(settings: Settings, process: str, work: Work) -> int:
    """Work until SIGTERM or SIGINT sets the event that `work` was given; return the exit code.

    0 after an end that was asked for, 1 when a person has to act: the last line of the log says on what.
    """
    logs.configure(settings, process)
    code = 0
    try:
        uvloop.run(_work(work, settings))
    except* (KafkaUnreachable, TopicsWrong, PositionLost, BadMigrations, BadSchema) as errors:
        for error in errors.exceptions:
            structlog.get_logger(__name__).critical("stopped", reason=str(error))
        code = 1
    return code


async def _work(work: Work, settings: Settings) -> None:
    """Let it work, and end by itself when told; cut it off when it does not, or at a second signal.

    Cutting off loses nothing: what was not committed is read again.
    """
    loop, stop = asyncio.get_running_loop(), asyncio.Event()
    working = asyncio.ensure_future(work(settings, stop))

    def told() -> None:
        if stop.is_set():
            working.cancel()
        stop.set()
        loop.call_later(settings.drain_timeout_s + ENDED_AFTER_DRAIN_S, working.cancel)

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, told)
    await asyncio.wait([working])
    if working.cancelled():
        structlog.get_logger(__name__).warning("stopped before all was done; what is not committed is read again")
    else:
        working.result()
