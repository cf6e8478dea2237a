"""Back-dated changes that move ten thousand events: when the records that they touch show it."""

import asyncio
import random
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any
from uuid import UUID

import asyncpg

from loadtests.scale.reads import Reader
from loadtests.scale.world import World, device

WAIT_S = 30.0


@dataclass(frozen=True, slots=True)
class Shift:
    """What one change took."""

    events: int
    """That it moved, as counted from the table of events."""
    said_s: float
    """Until it was answered."""
    shown_s: float | None
    """From then until a record was there that had them all; None: there was none within 30 s."""
    reads: int
    """How many records were asked for; 1: the next one had them."""


@asynccontextmanager
async def _user(reader: Reader, world: World, subject: str, role: str, party: UUID) -> AsyncIterator[dict[str, Any]]:
    """Say that a party held a role since before everything; take it back in the end, so that it can be said again."""
    since = world.until - timedelta(days=world.sizes.days + 1)
    body = {
        "subject": subject, "role": role, "party": str(party), "valid_from": since.isoformat(),
        "valid_to": world.until.isoformat(), "reason": "a loadtest",
    }  # fmt: skip
    relation = await reader.ask("POST", "/v1/relationships", body)
    try:
        yield relation
    finally:
        await reader.ask("POST", f"/v1/relationships/{relation['id']}/withdraw", {"reason": "a loadtest"})


async def moved(reader: Reader, db: asyncpg.Connection, world: World, party: UUID, role: str, *, at: bool) -> Shift:
    """Back-date a relation to a device with many events; ask for the record until it has them.

    `at`: ask as of the end of what was built, which live load adds nothing to.
    """
    subject = device(random.randrange(world.sizes.bulk))
    events = await db.fetchval(
        "select count(*) from event where subject = $1 and occurred_at < $2", subject, world.until
    )
    path = f"/v1/parties/{party}?devices=0&relations=0&days=0"
    path += f"&as_of={world.until:%Y-%m-%dT%H:%M:%SZ}" if at else ""
    before = (await reader.ask("GET", path))["events"]
    began = time.perf_counter()
    async with _user(reader, world, subject, role, party):
        said = time.perf_counter()
        reads = await _until(reader, path, lambda shown: shown == before + events if at else shown >= before + events)
        shown_s = time.perf_counter() - said
    # The next change must not find this one half undone.
    await _until(reader, path, lambda shown: shown < before + events)
    return Shift(events, said - began, shown_s if reads else None, reads or 0)


async def _until(reader: Reader, path: str, there: Callable[[int], bool]) -> int | None:
    """Ask for a record until it has what it should; return how often that was, None: it had not within 30 s."""
    gives_up_at, reads = time.perf_counter() + WAIT_S, 0
    while time.perf_counter() < gives_up_at:
        reads += 1
        if there((await reader.ask("GET", path))["events"]):
            return reads
        await asyncio.sleep(0.05)
    return None
