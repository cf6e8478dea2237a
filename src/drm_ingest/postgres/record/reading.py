"""Reading a figure of a record: put together live, or as it was counted beforehand (totals/)."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

import asyncpg

from drm_ingest.postgres.record import whole

Rows = list[asyncpg.Record]

PARTS_MAX = 100
"""Of each list in the part that is of one kind: visits, batches, customers, codes of faults."""


@dataclass(frozen=True, slots=True)
class Reading:
    """One record, being read in one snapshot."""

    db: asyncpg.Connection
    of: tuple[Sequence[UUID], datetime | None, datetime | None]
    """$1 to $3 of every statement (known.py)."""
    large: int | None
    """Its totals, which say how it is now; None: it is read as of another time, or has none."""
    ranges: int | None = None
    """The totals whose ranges serve as of another time."""

    async def live(self, statement: str, *values: object) -> Rows:
        """Return the rows of a statement."""
        rows: Rows = await self.db.fetch(statement, *self.of, *values)
        return rows

    async def figure(self, name: str, statement: str, *values: object) -> Rows:
        """Return the rows that were counted under a name, or else those of a statement."""
        if self.large is not None:
            rows: Rows = await self.db.fetch(whole.FIGURES[name], self.large)
            return rows
        if self.ranges is not None and name in whole.THEN:
            return await self.live(whole.THEN[name], *values, self.ranges)
        return await self.live(statement, *values)
