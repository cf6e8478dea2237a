"""A device is replaced by another, which continues its history."""

from typing import Annotated
from uuid import UUID

from fastapi import APIRouter, Query, Response
from pydantic import BaseModel, ConfigDict, Field

from drm_ingest.errors import Refusal
from drm_ingest.event import PARTY_PREFIX
from drm_ingest.postgres.relations import replace as replacing
from drm_ingest.postgres.relations.changes import EmptyRange, HeldAlready, Say
from drm_ingest.serve.access import Admin, Db
from drm_ingest.serve.devices import DeviceId, known_device
from drm_ingest.serve.problems import documented, invalid
from drm_ingest.serve.relationships import AssertedBy, conflict, shown
from drm_ingest.serve.shapes import Name, Request, StoredTime, Subject, Time, told

routes = APIRouter(prefix="/v1/devices", tags=["devices"])


class NewReplacement(Request):
    model_config = ConfigDict(
        json_schema_extra={
            "examples": [{"by": "thermo-44", "at": "2026-09-01T08:00:00Z", "reason": "display broken, under warranty"}]
        }
    )

    by: Subject = Field(description="the new device; registered, if it is not known")
    at: Time | None = Field(None, description="until then the one, from then on the other; left out or null: now")
    asserted_by: AssertedBy = None
    reason: Name | None = None


class Moved(BaseModel):
    """A relation that went on to the new device."""

    role: str = Field(examples=["owner"])
    party: UUID
    ended: UUID = Field(description="the relation on the old device")
    begun: UUID | None = Field(description="that on the new one; null: the party held the role there already")


class Replacement(BaseModel):
    id: UUID
    device: str = Field(examples=["thermo-12"])
    by: str = Field(examples=["thermo-44"])
    at: StoredTime
    asserted_by: str = Field(examples=["office"])
    reason: str | None = Field(examples=["display broken, under warranty"])
    recorded_at: StoredTime
    relations: list[Moved]


class Undone(BaseModel):
    undone: int = Field(description="0: it was not replaced", examples=[1])
    replacement: Replacement | None = Field(description="what was undone")


class UndoQuery(Request):
    reason: Name | None = None


def _answer(replacement: replacing.Replacement) -> Replacement:
    return Replacement(**replacement.row, relations=[Moved(**row) for row in replacement.relations])


@routes.post(
    "/{device:rest}/replacement",
    status_code=201,
    summary="Replace a device by another",
    description="Relations that hold then end on the old device and begin on the new one, but for `made_by` and "
    "`parts_by`, which are of the thing itself. The record of the new device and its events go on from those of the "
    "old one. The same replacement again answers 200 and changes nothing.",
    responses={
        200: {"model": Replacement, "description": "It was replaced so before."},
        **documented("not_found", "conflict"),
    },
)
async def replace(device: DeviceId, body: NewReplacement, response: Response, caller: Admin, db: Db) -> Replacement:
    await known_device(db, device)
    if body.by.startswith(PARTY_PREFIX):
        raise invalid(f"{PARTY_PREFIX} is how subjects that are parties begin.", pointer="/by")
    order = replacing.Order(device, body.by, body.at, body.asserted_by or caller.name, body.reason)
    try:
        replacement, new = await replacing.replace(db, order)
    except replacing.OneDevice as one:
        raise invalid(_ONE[one.why], pointer="/by") from None
    except replacing.JustBegun as begun:
        relation = shown(begun.row)
        detail = f"Party {relation.party} is {relation.role} from just then on (relationship {relation.id})."
        raise invalid(detail, pointer="/at") from None
    except replacing.InLine as line:
        row = line.row
        raise Refusal(
            "conflict",
            f"{row['device']} was replaced by {row['by']} at {told(row['at'])}. Replace the last of the "
            "line, or first DELETE /v1/devices/…/replacement of the former.",
            replacement={name: row[name] for name in ("id", "device", "by", "at")},
        ) from None
    except EmptyRange:
        raise invalid("A relation would end before it begins.", pointer="/at") from None
    except HeldAlready as held:
        raise conflict(held) from None
    response.status_code = 201 if new else 200
    return _answer(replacement)


_ONE = {
    "same": "A device does not replace itself.",
    "circle": "This device was replaced before, and its history is that of the other.",
    "long": "The line of replacements is too long.",
}


@routes.delete(
    "/{device:rest}/replacement",
    summary="Undo the replacement of a device",
    description="Both are what they were, relations too; what has come since stays on the device it is about. "
    "Where one of those relations was changed since, 409 names it. Undoing it again changes nothing.",
    responses=documented("not_found", "conflict"),
)
async def undo(device: DeviceId, query: Annotated[UndoQuery, Query()], caller: Admin, db: Db) -> Undone:
    await known_device(db, device)
    try:
        undone = await replacing.undo(db, device, Say(caller.name, query.reason))
    except replacing.Changed as changed:
        relation = shown(changed.row)
        raise Refusal(
            "conflict",
            f"Relationship {relation.id} (party {relation.party}, {relation.role} of {relation.subject}) was changed "
            "after the replacement; end, correct or withdraw the relations of both devices one by one.",
            relationship=relation.model_dump(mode="json"),
        ) from None
    except HeldAlready as held:
        raise conflict(held) from None
    return Undone(undone=int(undone is not None), replacement=undone and _answer(undone))
