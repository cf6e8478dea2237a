"""Devices without an owner: finding them, and claiming one with the code that proves possession."""

from datetime import UTC, datetime
from typing import Annotated, Literal

from fastapi import APIRouter, Depends, Query, Response
from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from drm_ingest.errors import Refusal
from drm_ingest.postgres.registry import devices as stored
from drm_ingest.postgres.registry import parties
from drm_ingest.postgres.relations import claims
from drm_ingest.postgres.relations.changes import HeldAlready
from drm_ingest.serve import pages
from drm_ingest.serve.access import Admin, Db, Stored, reader
from drm_ingest.serve.devices import Device, DeviceId, known_device
from drm_ingest.serve.parties import named
from drm_ingest.serve.problems import documented, invalid
from drm_ingest.serve.relationships import AssertedBy, Relationship, conflict, etag, shown
from drm_ingest.serve.shapes import Name, Page, PageQuery, PartyName, Request, StoredTime, Text, Time

routes = APIRouter(prefix="/v1/devices", tags=["devices"])

_CODE = "K7QM-2R4X-9TPD-6WFA"


class DevicesQuery(PageQuery):
    unclaimed: bool = Field(False, description="only those on which nobody holds a role now")


class NewClaimCode(Request):
    model_config = ConfigDict(json_schema_extra={"examples": [{"expires_at": "2027-03-01T00:00:00Z"}]})

    expires_at: Time | None = Field(None, description="left out or null: as DRM_CLAIM_CODE_HOURS says")


class ClaimCode(BaseModel):
    device: str = Field(examples=["thermo-12"])
    code: str = Field(description="shown once", examples=[_CODE])
    made_at: StoredTime
    made_by: str = Field(examples=["office"])
    expires_at: StoredTime


class NewClaim(Request):
    model_config = ConfigDict(json_schema_extra={"examples": [{"party": "crm:778", "code": _CODE}]})

    party: PartyName
    code: Annotated[Text, StringConstraints(min_length=1, max_length=100)] = Field(
        description="as it was typed: case, spaces and hyphens do not matter, nor O for 0 and I or L for 1"
    )
    role: Literal["owner"] = "owner"
    asserted_by: AssertedBy = None
    reason: Name | None = None


@routes.get(
    "",
    summary="List devices, by id",
    description="A page of `unclaimed` ones may hold fewer than `limit`, or none, and still have a `next`.",
    responses=documented(),
    dependencies=[Depends(reader)],
)
async def list_(query: Annotated[DevicesQuery, Query()], db: Db, store: Stored) -> Page[Device]:
    after = pages.start(query, "devices", str)
    last: str | None
    if query.unclaimed:
        found, reach = await stored.unclaimed(db, after, query.limit + 1, store.settings.devices_scanned_max)
        rows, cut = pages.cut(found, query)
        last = cut["subject"] if cut else reach
    else:
        rows, cut = pages.cut(await stored.devices(db, after, query.limit + 1), query)
        last = cut and cut["subject"]
    return Page(
        items=[Device(**row, id=row["subject"]) for row in rows], next=last and pages.end(query, "devices", last)
    )


@routes.post(
    "/{device:rest}/claim-code",
    status_code=201,
    summary="Make a code that proves possession of a device",
    description="It is shown once and stored hashed; the one that the device had is good no more. "
    "Print it on the device or its box, or show it on its display: whoever sends it has the device at hand.",
    responses=documented("not_found"),
)
async def make_code(
    device: DeviceId, caller: Admin, db: Db, store: Stored, body: NewClaimCode | None = None
) -> ClaimCode:
    await known_device(db, device)
    expires_at = body.expires_at if body else None
    if expires_at is not None and expires_at <= datetime.now(UTC):
        raise invalid("Must be in the future.", pointer="/expires_at")
    code, row = await claims.make(db, device, store.settings.claim_code_hours, expires_at, caller.name)
    return ClaimCode(device=device, code=code, **row)


_DEAD = {
    "none": "No code was made for this device",
    "used": "The code of this device was used, by another party or for a relation that holds no more",
    "guessed": "Too many wrong codes were tried on this device",
    "expired": "The code of this device has expired, or it was handed over since",
}


@routes.post(
    "/{device:rest}/claims",
    status_code=201,
    summary="Claim a device with its code",
    description="The party owns it from now on. A code is good for one claim; the same claim again answers 200 with "
    "its relation, as long as that holds. Wrong codes are counted for the device, and after "
    "DRM_CLAIM_CODE_GUESSES_MAX of them its code is dead. Where somebody owns the device, 409 names that relation, "
    "once the code is right.",
    responses={
        200: {"model": Relationship, "description": "It was claimed so before."},
        **documented("not_found", "claim_code_wrong", "claim_code_dead", "conflict"),
    },
)
async def claim(
    device: DeviceId, body: NewClaim, response: Response, caller: Admin, db: Db, store: Stored
) -> Relationship:
    await known_device(db, device)
    party = await parties.find_party(db, named(body.party, store.settings))
    if party is None:
        raise invalid(f"There is no party {body.party}; make it with POST /v1/parties.", pointer="/party")
    proof = claims.Proof(device, body.code, party, body.asserted_by or caller.name, body.reason)
    try:
        row, new = await claims.claim(db, proof, store.settings.claim_code_guesses_max)
    except claims.WrongCode as wrong:
        left = wrong.guesses_left
        detail = (
            f"Read it again from the device; {left} more {'is' if left == 1 else 'are'} looked at."
            if left else f"That was one too many; {_NEW}"
        )  # fmt: skip
        raise Refusal("claim_code_wrong", detail, guesses_left=left) from None
    except claims.DeadCode as dead:
        raise Refusal("claim_code_dead", f"{_DEAD[dead.why]}; {_NEW}", reason=dead.why) from None
    except HeldAlready as held:
        raise conflict(held) from None
    relation = shown(row)
    response.status_code = 201 if new else 200
    response.headers["location"] = f"/v1/relationships/{relation.id}"
    response.headers["etag"] = etag(relation)
    return relation


_NEW = "an administrator makes a new one with POST /v1/devices/…/claim-code."
