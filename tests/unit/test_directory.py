"""What the directory remembers, with a Postgres made up for the test."""

import asyncio
from collections.abc import Iterable, Sequence
from typing import Any

import asyncpg
import pytest

from drm_ingest.metrics import Metrics
from drm_ingest.pipeline.enrich.directory import Directory
from drm_ingest.postgres.directory import Row
from drm_ingest.settings import Settings


class Connection:
    """Knows nobody, and goes away in the middle of a question when it is told to."""

    def __init__(self) -> None:
        self.lost = asyncio.Event()
        self.goes_away = False

    async def look_up(self, subjects: Iterable[str], relations_max: int, timeout_s: float) -> Sequence[Row]:
        if self.goes_away:
            self.lost.set()
            await asyncio.sleep(0.01)
            raise asyncpg.ConnectionDoesNotExistError("closed in the middle of operation")
        return []

    def give_up(self) -> None:
        self.lost.set()


@pytest.fixture
def connections(monkeypatch: pytest.MonkeyPatch) -> list[Connection]:
    made: list[Connection] = []

    async def connect(self: Directory) -> Any:
        made.append(Connection())
        return made[-1]

    monkeypatch.setattr(Directory, "_connect", connect)
    return made


async def test_a_connection_lost_during_a_question_leaves_events_without_context(connections: list[Connection]) -> None:
    async with Directory(Settings(), Metrics("enrich")) as directory:
        connections[0].goes_away = True
        contexts = await directory.look_up([b"meter-1"])
        assert b"missing" in contexts[b"meter-1"].at(contexts[b"meter-1"].since)
        while not directory.connected:  # noqa: ASYNC110 - there is no event for it
            await asyncio.sleep(0.01)
        contexts = await directory.look_up([b"meter-1"])
        assert b"missing" not in contexts[b"meter-1"].at(contexts[b"meter-1"].since)


async def test_changes_heard_while_nobody_asks_take_no_memory(connections: list[Connection]) -> None:
    async with Directory(Settings(), Metrics("enrich")) as directory:
        await directory.look_up([b"meter-1"])
        for number in range(1000):
            directory._on_change(f"meter-{number}")
        assert not directory._changed
        await directory.look_up([b"meter-1"])
