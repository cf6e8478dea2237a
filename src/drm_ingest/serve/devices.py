"""Devices: what each is, who is related to it, and what it has done."""

from typing import Annotated, Any
from uuid import UUID

from fastapi import APIRouter, Depends, Path, Query, Response
from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from drm_ingest.errors import Refusal
from drm_ingest.event import PARTY_PREFIX
from drm_ingest.postgres import records
from drm_ingest.postgres.record import timeline
from drm_ingest.postgres.registry import devices as stored
from drm_ingest.postgres.relations import relationships
from drm_ingest.serve import events
from drm_ingest.serve.access import Db, Stored, admin, reader
from drm_ingest.serve.activity import Activity, ViewQuery, activity
from drm_ingest.serve.conditional import NOT_MODIFIED, IfNoneMatch, answer
from drm_ingest.serve.predecessors import Lineage, lineage
from drm_ingest.serve.problems import documented, invalid
from drm_ingest.serve.shapes import ITEMS_MAX, Page, Request, StoredTime, Subject, Text

routes = APIRouter(prefix="/v1/devices", tags=["devices"])

DeviceId = Annotated[Subject, Path(description="its id, percent-encoded", examples=["meter-7"])]
Label = Annotated[Text, StringConstraints(min_length=1, max_length=200)]


class DeviceDescription(Request):
    model_config = ConfigDict(json_schema_extra={"examples": [{"model": "Thermo 3", "firmware": "3.1.4"}]})

    model: Label | None = Field(None, description="left out or null: unknown")
    firmware: Label | None = Field(None, description="left out or null: unknown")


class Device(BaseModel):
    id: str = Field(examples=["meter-7"])
    model: str | None = Field(examples=["Thermo 3"])
    firmware: str | None = Field(examples=["3.1.4"])
    registered_at: StoredTime
    registered_by: str = Field(description="what made it known first, or `registry`: was described since")


class Related(BaseModel):
    """Who holds a role on it, or held one, or will."""

    party: UUID
    kind: str = Field(examples=["customer"])
    name: str = Field(examples=["Ada Byron"])
    role: str = Field(examples=["owner"])
    batch: str | None
    relationship: UUID
    version: int
    valid_from: StoredTime | None
    valid_to: StoredTime | None


class DeviceRecord(Activity, Lineage, Device):  # the fields of the last come first
    """A device and all that happened on it and on those whose place it took, whoever held them."""

    claimed: bool = Field(description="somebody holds a role on it now")
    related: list[Related] = Field(
        description=f"now; of all three lists at most {ITEMS_MAX}, the others: GET /v1/relationships?subject=…"
    )
    related_later: list[Related] = Field(description="from a time that has not come")
    related_before: list[Related] = Field(description="the last to end first")
    relations_before: int = Field(description="how many there are of these", examples=[1])


async def known_device(db: Db, id_: str) -> Device:
    """Return a device; raises not_found."""
    row = await stored.device(db, id_)
    if row is None:
        detail = f"There is no device {id_}; its first event, a relation or PUT /v1/devices/… makes it known."
        raise Refusal("not_found", detail)
    return Device(id=id_, **row)


@routes.put(
    "/{device:rest}",
    summary="Register a device, or describe it anew",
    description="200, or 201 where it was unknown.",
    responses={201: {"model": Device, "description": "It was unknown."}, **documented()},
    dependencies=[Depends(admin)],
)
async def put(device: DeviceId, body: DeviceDescription, response: Response, db: Db) -> Device:
    if device.startswith(PARTY_PREFIX):
        raise invalid(f"{PARTY_PREFIX} is how subjects that are parties begin.", parameter="device")
    if await stored.put_device(db, device, body.model, body.firmware):
        response.status_code = 201
    return await known_device(db, device)


# An id may hold a slash, so the path parameter takes what is left; the longer path stands first.
@routes.get(
    "/{device:rest}/events",
    summary="What happened on a device, newest first",
    responses=documented("not_found"),
    dependencies=[Depends(reader)],
)
async def list_events(
    device: DeviceId, query: Annotated[events.EventsQuery, Query()], db: Db, store: Stored
) -> Page[events.Event]:
    await known_device(db, device)
    list_ = f"events of {device}"
    found = await timeline.of_subject(db, device, events.wanted(query, list_, store.settings.serve_page_bytes_max))
    rows, next_ = events.page(found, query, list_)
    return Page(items=[events.Event(**row) for row in rows], next=next_)


@routes.get(
    "/{device:rest}",
    summary="The record of a device",
    description="Everyone related to it, past and present, and all that happened on it, whoever held it.",
    response_model=DeviceRecord,
    responses={**NOT_MODIFIED, **documented("not_found", "method_not_allowed")},
    dependencies=[Depends(reader)],
)
async def read(
    device: DeviceId, query: Annotated[ViewQuery, Query()], db: Db, if_none_match: IfNoneMatch = None
) -> Any:
    async with db.transaction(isolation="repeatable_read", readonly=True):
        known = await known_device(db, device)
        rows = await relationships.related(db, device, query.view, ITEMS_MAX)
        line = await lineage(db, device, query.view)
        done = activity(await records.of_subject(db, device, query.view))
    related: dict[str, list[Related]] = {"now": [], "later": [], "before": []}
    for row in rows:
        related[row["holds"]].append(Related(**row))
    content = DeviceRecord(
        **dict(known),
        **dict(line),
        **dict(done),
        claimed=bool(related["now"]),
        related=related["now"],
        related_later=related["later"],
        related_before=related["before"],
        relations_before=rows[0]["past"] if rows else 0,
    )
    return answer(content, if_none_match)
