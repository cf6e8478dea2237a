"""The horizon: everything recorded before it is committed and visible, or never will be.

`recorded_at` of an event is when its COPY began, and its transaction had a number before that (it moves positions and
notes identities first). So where X is a number drawn after the time T was read, everything recorded before T has a
number below X; and once no transaction below X is in flight, none of it can still appear. (The end of a snapshot would
not do for X: it is where the last transaction that has ended was, and those in flight may be beyond it.)
"""

from collections import deque
from datetime import datetime

import asyncpg

SEEN_MAX = 1000


class Horizon:
    """What was seen of times and transactions, oldest first."""

    def __init__(self) -> None:
        self._seen: deque[tuple[datetime, int]] = deque(maxlen=SEEN_MAX)

    async def look(self, db: asyncpg.Connection) -> None:
        """Look at the clock, and then draw a number; outside of any transaction."""
        time = await db.fetchval("select clock_timestamp()")
        number = await db.fetchval("select pg_current_xact_id()::text::bigint")
        self._seen.append((time, number))

    async def of_snapshot(self, db: asyncpg.Connection) -> datetime | None:
        """Return the horizon of the snapshot of the transaction in hand; None: none is known yet."""
        oldest = await db.fetchval("select pg_snapshot_xmin(pg_current_snapshot())::text::bigint")
        passed = [time for time, number in self._seen if number <= oldest]
        while len(self._seen) > 1 and self._seen[1][1] <= oldest:
            self._seen.popleft()
        return passed[-1] if passed else None
