"""Who may send and read, and how much."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self
from uuid import UUID

from fastapi import APIRouter, Depends, Query, Response
from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from drm_ingest.errors import Refusal
from drm_ingest.postgres.registry import senders as stored
from drm_ingest.serve import pages
from drm_ingest.serve.access import Db, admin
from drm_ingest.serve.problems import documented, invalid
from drm_ingest.serve.shapes import Page, PageQuery, Request, StoredTime, Subject, Text

routes = APIRouter(prefix="/v1/senders", tags=["senders"], dependencies=[Depends(admin)])

Rate = Annotated[float, Field(ge=1e-6, le=1e12, allow_inf_nan=False)]
_ID = "01a202fd-12a9-75d6-a27e-21b5246620a3"


class NewSender(Request):
    model_config = ConfigDict(json_schema_extra={"examples": [{"name": "thermostat fleet"}]})

    name: Annotated[Text, StringConstraints(min_length=1, max_length=100)]
    role: Literal["sender", "reader", "admin"] = Field(
        "sender", description="sender: sends events; reader: reads parties, devices, relationships, events; admin: all"
    )
    device: Subject | None = Field(None, description="the only device it may send for, and the one it means")


class Quota(Request):
    """What a sender may send on average, events and bytes before compression; null: as much as it likes."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"events_per_s": 1000, "device_events_per_s": 10}]})

    events_per_s: Rate | None = Field(None, description="all its keys and devices together")
    bytes_per_s: Rate | None = Field(None, description="all its keys and devices together")
    device_events_per_s: Rate | None = Field(None, description="each of its devices")
    device_bytes_per_s: Rate | None = Field(None, description="each of its devices")
    burst_s: int = Field(10, ge=1, le=3600, description="so many seconds' worth may come at once")


class Sender(BaseModel):
    id: UUID = Field(examples=[_ID])
    name: str = Field(examples=["thermostat fleet"])
    role: str = Field(examples=["sender"])
    device: str | None = Field(examples=[None])
    created_at: StoredTime
    quota: Quota

    @classmethod
    def of(cls, row: Mapping[str, Any]) -> Self:
        """Return it as it is shown."""
        quota = Quota(**{name: row[name] for name in Quota.model_fields})
        return cls(**{name: row[name] for name in cls.model_fields if name != "quota"}, quota=quota)


def unknown(sender: UUID) -> Refusal:
    return Refusal("not_found", f"There is no sender {sender}; GET /v1/senders lists them.")


async def known(db: Db, sender: UUID) -> Mapping[str, Any]:
    """Return the row of a sender.

    Raises:
        Refusal: not_found.
    """
    row: Mapping[str, Any] | None = await stored.sender(db, sender)
    if row is None:
        raise unknown(sender)
    return row


@routes.post("", status_code=201, summary="Make a sender", responses=documented("conflict"))
async def create(body: NewSender, response: Response, db: Db) -> Sender:
    if body.device is not None and body.role != "sender":
        raise invalid("Only the role sender can be bound to a device.", pointer="/device")
    try:
        row = await stored.create_sender(db, body.name, body.role, body.device)
    except stored.NameTaken as taken:
        detail = f"Sender {taken.sender} has that name; make a key for it, or choose another name."
        raise Refusal("conflict", detail, sender=taken.sender) from None
    response.headers["location"] = f"/v1/senders/{row['id']}"
    return Sender.of(row)


@routes.get("", summary="List senders", responses=documented())
async def list_(query: Annotated[PageQuery, Query()], db: Db) -> Page[Sender]:
    after = pages.start(query, "senders", UUID)
    rows, last = pages.cut(await stored.senders(db, after, query.limit + 1), query)
    return Page(items=[Sender.of(row) for row in rows], next=last and pages.end(query, "senders", last["id"]))


@routes.get("/{sender}", summary="Read a sender", responses=documented("not_found"))
async def read(sender: UUID, db: Db) -> Sender:
    return Sender.of(await known(db, sender))


@routes.put(
    "/{sender}/quota",
    summary="Set the quotas of a sender",
    description="All of them: what is left out is no quota. In force at every edge within seconds.",
    responses=documented("not_found"),
)
async def set_quota(sender: UUID, body: Quota, db: Db) -> Sender:
    row = await stored.set_quota(db, sender, body.model_dump())
    if row is None:
        raise unknown(sender)
    return Sender.of(row)
