"""Back-dated changes that move ten thousand events: when the records that they touch show it."""

import asyncio
import random
import time
from collections.abc import AsyncIterator
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
        said, reads = time.perf_counter(), 0
        while time.perf_counter() - said < WAIT_S:
            shown, reads = (await reader.ask("GET", path))["events"], reads + 1
            if shown == before + events if at else shown >= before + events:
                return Shift(events, said - began, time.perf_counter() - said, reads)
            await asyncio.sleep(0.05)
        return Shift(events, said - began, None, reads)
