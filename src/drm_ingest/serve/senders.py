"""Who may send and read: senders and their keys."""

from typing import Annotated, Literal
from uuid import UUID

from fastapi import APIRouter, Depends, Query, Response
from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from drm_ingest.errors import Refusal
from drm_ingest.postgres import registry
from drm_ingest.serve import pages
from drm_ingest.serve.access import Db, admin
from drm_ingest.serve.problems import documented, invalid
from drm_ingest.serve.shapes import Page, PageQuery, Request, Subject, Text, Time

routes = APIRouter(prefix="/v1/senders", tags=["senders"], dependencies=[Depends(admin)])

_ID = "01a202fd-12a9-75d6-a27e-21b5246620a3"


class NewSender(Request):
    model_config = ConfigDict(json_schema_extra={"examples": [{"name": "thermostat fleet"}]})

    name: Annotated[Text, StringConstraints(min_length=1, max_length=100)]
    role: Literal["sender", "reader", "admin"] = Field(
        "sender", description="sender: sends events; reader: reads parties, devices, relationships, events; admin: all"
    )
    device: Subject | None = Field(None, description="the only device it may send for, and the one it means")


class Sender(BaseModel):
    id: UUID = Field(examples=[_ID])
    name: str = Field(examples=["thermostat fleet"])
    role: str = Field(examples=["sender"])
    device: str | None = Field(examples=[None])
    created_at: Time


class NewKey(Request):
    model_config = ConfigDict(json_schema_extra={"examples": [{"expires_at": "2027-06-30T00:00:00Z"}]})

    expires_at: Time | None = Field(None, description="null: never")


class Key(BaseModel):
    id: UUID = Field(examples=[_ID])
    prefix: str = Field(description="its first characters, to recognise it by", examples=["drm_Xk3v9aQ2"])
    created_at: Time
    expires_at: Time | None
    revoked_at: Time | None


class KeyShownOnce(Key):
    key: str = Field(description="stored nowhere: keep it now", examples=["drm_Xk3v9aQ2…"])


class Revoked(BaseModel):
    revoked: int = Field(description="keys that were in force until now", examples=[2])


def _unknown(sender: UUID) -> Refusal:
    return Refusal("not_found", f"There is no sender {sender}; GET /v1/senders lists them.")


@routes.post("", status_code=201, summary="Make a sender", responses=documented("conflict"))
async def create(body: NewSender, response: Response, db: Db) -> Sender:
    if body.device is not None and body.role != "sender":
        raise invalid("Only the role sender can be bound to a device.", pointer="/device")
    try:
        row = await registry.create_sender(db, body.name, body.role, body.device)
    except registry.NameTaken as taken:
        detail = f"Sender {taken.sender} has that name; make a key for it, or choose another name."
        raise Refusal("conflict", detail, sender=taken.sender) from None
    response.headers["location"] = f"/v1/senders/{row['id']}"
    return Sender(**row)


@routes.get("", summary="List senders", responses=documented())
async def list_(query: Annotated[PageQuery, Query()], db: Db) -> Page[Sender]:
    after = pages.start(query, "senders", UUID)
    rows, last = pages.cut(await registry.senders(db, after, query.limit + 1), query)
    return Page(items=[Sender(**row) for row in rows], next=last and pages.end(query, "senders", last["id"]))


@routes.get("/{sender}", summary="Read a sender", responses=documented("not_found"))
async def read(sender: UUID, db: Db) -> Sender:
    row = await registry.sender(db, sender)
    if row is None:
        raise _unknown(sender)
    return Sender(**row)


@routes.post(
    "/{sender}/keys",
    status_code=201,
    summary="Make a key",
    description="The key is in this answer and nowhere else.",
    responses=documented("not_found"),
)
async def create_key(sender: UUID, response: Response, db: Db, body: NewKey | None = None) -> KeyShownOnce:
    created = await registry.create_key(db, sender, body.expires_at if body else None)
    if created is None:
        raise _unknown(sender)
    row, key = created
    response.headers["cache-control"] = "no-store"
    return KeyShownOnce(**row, key=key)


@routes.get("/{sender}/keys", summary="List keys by their first characters", responses=documented("not_found"))
async def list_keys(sender: UUID, query: Annotated[PageQuery, Query()], db: Db) -> Page[Key]:
    list_ = f"keys of {sender}"
    after = pages.start(query, list_, UUID)
    if await registry.sender(db, sender) is None:
        raise _unknown(sender)
    rows, last = pages.cut(await registry.keys(db, sender, after, query.limit + 1), query)
    return Page(items=[Key(**row) for row in rows], next=last and pages.end(query, list_, last["id"]))


@routes.delete(
    "/{sender}/keys/{key}",
    summary="Revoke a key",
    description="Refused from now on by serve, and within seconds by the edge. Revoking it again changes nothing.",
    responses=documented("not_found", "conflict"),
)
async def revoke_key(sender: UUID, key: UUID, db: Db) -> Revoked:
    return await _revoke(db, sender, key)


@routes.delete(
    "/{sender}/keys",
    summary="Revoke all keys of a sender",
    responses=documented("not_found", "conflict"),
)
async def revoke_keys(sender: UUID, db: Db) -> Revoked:
    return await _revoke(db, sender, None)


async def _revoke(db: Db, sender: UUID, key: UUID | None) -> Revoked:
    try:
        revoked = await registry.revoke_keys(db, sender, key)
    except registry.LastKey:
        detail = "No administrator would be left with a key; make another one first."
        raise Refusal("conflict", detail) from None
    if revoked is None:
        detail = f"Sender {sender} has no key {key}; GET /v1/senders/{sender}/keys lists them."
        raise _unknown(sender) if key is None else Refusal("not_found", detail)
    return Revoked(revoked=revoked)
