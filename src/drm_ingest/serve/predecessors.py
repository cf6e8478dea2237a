"""Which devices a device took the place of, and which took its place."""

from uuid import UUID

import asyncpg
from pydantic import BaseModel, Field

from drm_ingest.postgres.record.known import View
from drm_ingest.postgres.relations import predecessors
from drm_ingest.serve.shapes import StoredTime


class Predecessor(BaseModel):
    """A device whose history goes on on this one."""

    id: str = Field(examples=["thermo-12"])
    until: StoredTime = Field(description="what happened on it before then is of this history")
    replacement: UUID
    reason: str | None = Field(examples=["display broken"])


class Successor(BaseModel):
    """The device on which the history of this one goes on."""

    id: str = Field(examples=["thermo-44"])
    since: StoredTime
    replacement: UUID
    reason: str | None = Field(examples=["display broken"])


class Lineage(BaseModel):
    predecessors: list[Predecessor] = Field(description="whose history it continues, the last first")
    replaced_by: Successor | None


async def lineage(db: asyncpg.Connection, device: str, view: View) -> Lineage:
    """Return the place of a device in its line of replacements."""
    after = await predecessors.replaced_by(db, device, view)
    return Lineage(
        predecessors=[
            Predecessor(id=row["device"], until=row["at"], replacement=row["id"], reason=row["reason"])
            for row in await predecessors.predecessors(db, device, view)
        ],
        replaced_by=after
        and Successor(id=after["by"], since=after["at"], replacement=after["id"], reason=after["reason"]),
    )
