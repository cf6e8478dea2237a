"""Reading a figure of a record: put together live, or as it was counted beforehand (totals/)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

import asyncpg

from drm_ingest.postgres.record import then
from drm_ingest.postgres.record.figures import Rows

PARTS_MAX = 100
"""Of each list in the part that is of one kind: visits, batches, customers, codes of faults."""


@dataclass(frozen=True, slots=True)
class Reading:
    """One record, being read in one snapshot."""

    db: asyncpg.Connection
    of: tuple[Sequence[UUID], datetime | None, datetime | None]
    """$1 to $3 of every statement (known.py)."""
    large: int | None = None
    """Its totals, which say how it is now; None: it is read as of another time, or has none."""
    figures: Mapping[str, Rows] | None = None
    """What was added up in them."""
    ranges: int | None = None
    """The totals whose ranges serve as of another time."""

    async def live(self, statement: str, *values: object) -> Rows:
        """Return the rows of a statement."""
        rows: Rows = await self.db.fetch(statement, *self.of, *values)
        return rows

    async def figure(self, name: str, statement: str, *values: object) -> Rows:
        """Return the rows that were added up under a name, or else those of a statement."""
        if self.figures is not None:
            return self.figures[name]
        if self.ranges is not None and name in then.FIGURES:
            return await self.live(then.FIGURES[name], *values, self.ranges)
        return await self.live(statement, *values)
