"""Relations: who holds which role on which device or party, and when."""

from typing import Annotated
from uuid import UUID

from fastapi import APIRouter, Depends, Query, Response
from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from drm_ingest.errors import Refusal
from drm_ingest.event import PARTY_PREFIX
from drm_ingest.postgres import registry
from drm_ingest.postgres import relationships as stored
from drm_ingest.serve import pages
from drm_ingest.serve.access import Admin, Db, reader
from drm_ingest.serve.problems import documented, invalid
from drm_ingest.serve.shapes import Name, Page, PageQuery, PartyName, Request, Subject, Text, Time

routes = APIRouter(prefix="/v1/relationships", tags=["relationships"])

_PARTY = "01a202fd-12a9-75d6-a27e-21b5246620a3"

Role = Annotated[Text, StringConstraints(min_length=1, max_length=40)]


class NewRelationship(Request):
    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {"subject": "meter-7", "role": "owner", "party": _PARTY, "valid_from": "2026-03-01T09:30:00Z"},
                {"subject": "party:crm:778", "role": "buys_from", "party": "erp:v-12", "valid_from": None},
            ]
        }
    )

    subject: Subject
    role: Role = Field(description="owner, user, sold_by, serviced_by, …; between two parties buys_from, …")
    party: PartyName
    valid_from: Time | None = Field(None, description="from then on; null: since ever; left out: from now on")
    valid_to: Time | None = Field(None, description="until then, and not at it; null: no end known")
    asserted_by: Name | None = Field(None, description="who says so; left out: the sender of this key")
    reason: Name | None = None


class Relationship(BaseModel):
    id: UUID
    subject: str = Field(examples=["meter-7"])
    role: str = Field(examples=["owner"])
    party: UUID
    valid_from: Time | None
    valid_to: Time | None
    recorded_at: Time = Field(description="since when we know")
    asserted_by: str | None
    reason: str | None


class RelationshipQuery(PageQuery):
    subject: Subject | None = None
    party: PartyName | None = None
    role: Role | None = None


@routes.post(
    "",
    status_code=201,
    summary="Begin a relation",
    description="A device not heard of yet is registered by it. "
    "Where the role is held already at that time, 409 names that row in `relationship`.",
    responses=documented("conflict"),
)
async def begin(body: NewRelationship, response: Response, caller: Admin, db: Db) -> Relationship:
    subject = await stored.canonical_subject(db, body.subject)
    if subject is None:
        raise invalid(f"There is no party {body.subject.removeprefix(PARTY_PREFIX)}.", pointer="/subject")
    party = await registry.find_party(db, body.party)
    if party is None:
        raise invalid(f"There is no party {body.party}; make it with POST /v1/parties.", pointer="/party")
    if subject == f"{PARTY_PREFIX}{party}":
        raise invalid("A party stands in no relation to itself.", pointer="/party")
    claim = stored.Claim(
        subject=subject,
        role=body.role,
        party=party,
        valid_from=body.valid_from,
        valid_to=body.valid_to,
        asserted_by=body.asserted_by or caller.name,
        reason=body.reason,
        from_now="valid_from" not in body.model_fields_set,
    )
    try:
        row = await stored.begin(db, claim)
    except stored.EmptyRange:
        raise invalid("Must be later than valid_from.", pointer="/valid_to") from None
    except stored.UnknownRole as unknown:
        kind = "party" if subject.startswith(PARTY_PREFIX) else "device"
        detail = f"There is no such role on a {kind}; there are {', '.join(unknown.roles)}."
        raise invalid(detail, pointer="/role") from None
    except stored.HeldAlready as held:
        raise _conflict(claim, held) from None
    response.headers["location"] = f"/v1/relationships/{row['id']}"
    return Relationship(**row)


def _conflict(claim: stored.Claim, held: stored.HeldAlready) -> Refusal:
    if held.row is None:
        return Refusal("conflict", f"The role {claim.role} on {claim.subject} has just changed; ask again.")
    other = Relationship(**held.row)
    since = f"from {other.valid_from:%Y-%m-%dT%H:%M:%SZ}" if other.valid_from else "since ever"
    until = f"to {other.valid_to:%Y-%m-%dT%H:%M:%SZ}" if other.valid_to else "on"
    return Refusal(
        "conflict",
        f"Party {other.party} is {other.role} of {other.subject} {since} {until} (relationship {other.id}). "
        "Claim it for a time outside of that; a relation that is there cannot be ended or changed yet.",
        relationship=other.model_dump(mode="json"),
    )


@routes.get("", summary="List relations, past ones too", responses=documented(), dependencies=[Depends(reader)])
async def list_(query: Annotated[RelationshipQuery, Query()], db: Db) -> Page[Relationship]:
    after = pages.start(query, "relationships", UUID)
    subject = await stored.canonical_subject(db, query.subject) if query.subject else None
    party = await registry.find_party(db, query.party) if query.party else None
    if (query.subject and subject is None) or (query.party and party is None):
        return Page(items=[], next=None)
    found = await stored.relationships(
        db, subject=subject, party=party, role=query.role, after=after, limit=query.limit + 1
    )
    rows, last = pages.cut(found, query)
    return Page(
        items=[Relationship(**row) for row in rows], next=last and pages.end(query, "relationships", last["id"])
    )


@routes.get(
    "/{relationship}", summary="Read a relation", responses=documented("not_found"), dependencies=[Depends(reader)]
)
async def read(relationship: UUID, db: Db) -> Relationship:
    row = await stored.relationship(db, relationship)
    if row is None:
        raise Refusal("not_found", f"There is no relationship {relationship}.")
    return Relationship(**row)
