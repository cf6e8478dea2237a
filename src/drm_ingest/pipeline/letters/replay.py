"""Write dead letters again where they came from, note that, and see what becomes of them.

A letter is noted as replayed once Kafka has it, so a replay that was interrupted goes on where it stopped. What it had
written but not yet noted is written twice; each event is stored once all the same, as any repeat is.
"""

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from time import monotonic

import asyncpg

from drm_ingest.errors import EventCode
from drm_ingest.kafka import dead_letters
from drm_ingest.kafka.topics import Topics
from drm_ingest.kafka.writer import Outgoing, Writer
from drm_ingest.metrics import Metrics
from drm_ingest.pipeline.letters.find import Letter, Position, Wanted, find
from drm_ingest.pipeline.letters.mend import CannotReplay, identity, outgoing
from drm_ingest.postgres.pool import PASSING, connect
from drm_ingest.postgres.store import fates
from drm_ingest.settings import Settings

ROUND_MAX = 200
ROUND_S = 0.2  # at a stated rate
FOLLOWED_MAX = 10_000
LOOK_S = 0.3


@dataclass(frozen=True, slots=True)
class Plan:
    """What to replay, and how."""

    wanted: Wanted
    mended: Mapping[Position, bytes] = field(default_factory=dict)
    again: bool = False  # those too that were replayed before
    limit: int | None = None
    rate: float | None = None  # letters a second


@dataclass(slots=True)
class Replayed:
    """What came of it."""

    written: int = 0
    before: int = 0
    conflicts: int = 0
    impossible: int = 0
    missing: int = 0  # named, and not found
    followed: dict[bytes, bytes] = field(default_factory=dict)  # identity → content hash

    @property
    def wrong(self) -> bool:
        """Whether something that was asked for was not done."""
        return bool(self.impossible or self.missing)


@dataclass(frozen=True, slots=True)
class Afterwards:
    """What became of those that are followed."""

    stored: int = 0
    conflicts: int = 0
    refused: int = 0
    open: int = 0


class Replay:
    """One replay; `tell` is given a sentence about each letter that cannot be replayed."""

    def __init__(self, settings: Settings, plan: Plan, tell: Callable[[str], None]) -> None:
        self._settings = settings
        self._plan = plan
        self._tell = tell
        self._topics = Topics.of(settings)
        self._writer = Writer(settings, Metrics("enrich"))
        self._unseen = set(plan.wanted.positions)
        self.done = Replayed()

    async def dry(self, show: Callable[[Letter, Outgoing], None]) -> None:
        """Go through it and write nothing."""
        async for letter in find(self._settings, self._plan.wanted):
            if (out := self._outgoing(letter)) is not None:
                show(letter, out)
                self.done.written += 1
                if self.done.written == self._plan.limit:
                    return
        self._tell_missing()

    async def run(self, advance: Callable[[int], None]) -> None:
        """Write them; `advance` is told how many more are done.

        Raises:
            NotAcknowledged: Kafka did not take some; run it again, it goes on where it stopped.
            KafkaUnreachable, NoSuchTopic
        """
        await self._writer.start()
        try:
            rate, limit = self._plan.rate, self._plan.limit
            round_max = ROUND_MAX if rate is None else max(1, min(ROUND_MAX, round(rate * ROUND_S)))
            began, taken = monotonic(), 0
            waiting: list[tuple[Letter, Outgoing]] = []
            async for letter in find(self._settings, self._plan.wanted):
                if (out := self._outgoing(letter)) is None:
                    continue
                waiting.append((letter, out))
                taken += 1
                if len(waiting) >= round_max or taken == limit:
                    await self._write(waiting)
                    advance(len(waiting))
                    waiting = []
                    if rate is not None:
                        await asyncio.sleep(began + self.done.written / rate - monotonic())
                if taken == limit:
                    break
            await self._write(waiting)
            advance(len(waiting))
            if taken != limit:  # else it has not looked at all
                self._tell_missing()
        finally:
            await self._writer.stop(self._settings.drain_timeout_s)

    def _outgoing(self, letter: Letter) -> Outgoing | None:
        """Return the record to write; None, and counted, where there is none."""
        self._unseen.discard(letter.position)
        mended = self._plan.mended.get(letter.position)
        if letter.replayed and not self._plan.again:
            self.done.before += 1
            return None
        named = mended is not None or letter.position in self._plan.wanted.positions
        if letter.reason.get("code") == EventCode.ID_CONFLICT and not named and self._plan.wanted.code is None:
            self.done.conflicts += 1
            return None
        try:
            return outgoing(self._writer, self._topics, letter, mended)
        except CannotReplay as error:
            self.done.impossible += 1
            self._tell(f"{letter.name}: {error}")
            return None

    def _tell_missing(self) -> None:
        self.done.missing = len(self._unseen)
        for partition, offset in sorted(self._unseen):
            self._tell(f"{partition}:{offset}: no such dead letter; `drm-ingest dead-letters list` shows them")

    async def _write(self, some: list[tuple[Letter, Outgoing]]) -> None:
        if not some:
            return
        await self._writer.write([out for _, out in some])
        await self._writer.write(
            [dead_letters.replayed(self._topics.dead_letters, *letter.position, letter.key) for letter, _ in some]
        )
        self.done.written += len(some)
        for _, out in some:
            if len(self.done.followed) < FOLLOWED_MAX and (found := identity(out)) is not None:
                self.done.followed[found[0]] = found[1]


async def clock(settings: Settings) -> datetime | None:
    """Return Postgres' time, before a replay; None where it cannot be asked: then nothing is followed."""
    try:
        connection = await connect(settings, "drm dead-letters")
    except PASSING:
        return None
    try:
        return await fates.now(connection)
    except PASSING:
        return None
    finally:
        await connection.close()


async def follow(settings: Settings, followed: Mapping[bytes, bytes], since: datetime, wait_s: float) -> Afterwards:
    """Wait until each event is stored or set aside again, at most so long, and return how many are.

    Raises:
        asyncpg.PostgresError, asyncpg.InterfaceError, OSError, TimeoutError: Postgres cannot be asked.
    """
    connection = await connect(settings, "drm dead-letters")
    try:
        until = monotonic() + wait_s
        while True:
            seen = await _look(connection, followed, since)
            if not seen.open or monotonic() > until:
                return seen
            await asyncio.sleep(LOOK_S)
    finally:
        await connection.close()


async def _look(connection: asyncpg.Connection, followed: Mapping[bytes, bytes], since: datetime) -> Afterwards:
    keys = list(followed)
    first = await fates.stored_hashes(connection, keys)
    refused = await fates.refused_since(connection, keys, since)
    stored = sum(first.get(key) == hash_ for key, hash_ in followed.items())
    conflicts = sum(key in first and first[key] != hash_ for key, hash_ in followed.items())
    again = sum(key not in first and key in refused for key in followed)
    return Afterwards(stored, conflicts, again, len(followed) - stored - conflicts - again)
