"""A device goes from one owner to the next."""

from typing import Literal

from fastapi import APIRouter, Response
from pydantic import BaseModel, ConfigDict, Field

from drm_ingest.errors import Refusal
from drm_ingest.postgres.registry import parties
from drm_ingest.postgres.relations import hand_over as handing
from drm_ingest.postgres.relations.changes import EmptyRange, HeldAlready
from drm_ingest.serve.access import Admin, Db, Stored
from drm_ingest.serve.devices import DeviceId, known_device
from drm_ingest.serve.parties import named
from drm_ingest.serve.problems import documented, invalid
from drm_ingest.serve.relationships import AssertedBy, Relationship, conflict, shown
from drm_ingest.serve.shapes import Name, PartyName, Request, Time, told

routes = APIRouter(prefix="/v1/devices", tags=["devices"])


class NewHandOver(Request):
    model_config = ConfigDict(
        json_schema_extra={
            "examples": [{"from": "crm:778", "to": "crm:779", "at": "2026-06-01T12:00:00Z", "reason": "sold on"}]
        }
    )

    from_: PartyName = Field(alias="from", description="who owns it; a party linked with the owner will do")
    to: PartyName
    at: Time | None = Field(None, description="until then the one's, from then on the other's; left out or null: now")
    users: Literal["owner", "all"] = Field(
        "owner", description="who stops using it: the old owner, or everybody but the new one"
    )
    asserted_by: AssertedBy = None
    reason: Name | None = None


class HandOver(BaseModel):
    """What a hand-over came to."""

    ended: list[Relationship] = Field(description="of the old owner; withdrawn, where it would have begun later")
    begun: Relationship
    using: list[Relationship] = Field(description="of others, who go on using it")


@routes.post(
    "/{device:rest}/hand-over",
    status_code=201,
    summary="Hand a device over to its next owner",
    description="All at one time, or nothing: the owner's relations `owner` and `user` end, and the next owner's "
    "begins, so that neither sees what happens on it while it is the other's. A claim code of the device is dead "
    "from then on. The same hand-over again answers 200 and changes nothing.",
    responses={
        200: {"model": HandOver, "description": "It was handed over so before."},
        **documented("not_found", "conflict"),
    },
)
async def hand_over(
    device: DeviceId, body: NewHandOver, response: Response, caller: Admin, db: Db, store: Stored
) -> HandOver:
    await known_device(db, device)
    giver, taker = [await parties.find_party(db, named(name, store.settings)) for name in (body.from_, body.to)]
    if giver is None:
        raise invalid(f"There is no party {body.from_}.", pointer="/from")
    if taker is None:
        raise invalid(f"There is no party {body.to}; make it with POST /v1/parties.", pointer="/to")
    order = handing.HandOver(
        device, giver, taker, body.at, body.users == "all", body.asserted_by or caller.name, body.reason
    )
    try:
        done = await handing.hand_over(db, order)
    except handing.OneParty:
        raise invalid("It is the owner already, or is linked with it and shares its record.", pointer="/to") from None
    except handing.NotTheOwner as other:
        raise _not_the_owner(device, body, other) from None
    except EmptyRange:
        raise invalid("The owner's relation begins just then; it must have held before.", pointer="/at") from None
    except HeldAlready as held:
        raise conflict(held) from None
    response.status_code = 201 if done.new else 200
    return HandOver(
        ended=[shown(row) for row in done.ended],
        begun=shown(done.begun),
        using=[shown(row) for row in done.using],
    )


def _not_the_owner(device: str, body: NewHandOver, other: handing.NotTheOwner) -> Refusal:
    at = f"at {told(other.at)}"
    if other.row is None:
        return Refusal(
            "conflict", f"Nobody owns {device} {at}; begin the new relation with POST /v1/relationships, or a claim."
        )
    owner = shown(other.row)
    return Refusal(
        "conflict",
        f"{body.from_} does not own {device} {at}; party {owner.party} does (relationship {owner.id}).",
        relationship=owner.model_dump(mode="json"),
    )
