"""Parties: the people and companies that events belong to."""

from typing import Annotated, Literal
from uuid import UUID

from fastapi import APIRouter, Depends, Query, Response
from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from drm_ingest.errors import Refusal
from drm_ingest.postgres import registry
from drm_ingest.serve import pages
from drm_ingest.serve.access import Db, admin, reader
from drm_ingest.serve.problems import documented
from drm_ingest.serve.shapes import Name, Page, PageQuery, Request, Text, Time, from_json

routes = APIRouter(prefix="/v1/parties", tags=["parties"])

Kind = Literal["customer", "vendor", "partner", "employee", "supplier"]
Namespace = Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9-]{0,39}$")]
Ref = Annotated[Text, StringConstraints(min_length=1, max_length=150)]
Reference = Annotated[Text, StringConstraints(pattern=r"^[a-z][a-z0-9-]{0,39}:[\s\S]{1,150}$")]
Refs = Annotated[
    dict[Namespace, Ref],
    Field(max_length=20, description="what other systems call it, by namespace", examples=[{"crm": "778"}]),
]


class NewParty(Request):
    model_config = ConfigDict(
        json_schema_extra={"examples": [{"kind": "customer", "name": "Ada Byron", "refs": {"crm": "778"}}]}
    )

    kind: Kind
    name: Name
    refs: Refs = Field(default_factory=dict)


class Party(BaseModel):
    id: UUID = Field(examples=["01a202fd-12a9-75d6-a27e-21b5246620a3"])
    kind: Kind
    name: str = Field(examples=["Ada Byron"])
    refs: Annotated[dict[str, str], from_json] = Field(examples=[{"crm": "778"}])
    created_at: Time


class PartyQuery(PageQuery):
    ref: Reference | None = Field(None, description="a reference, which names at most one party", examples=["crm:778"])
    kind: Kind | None = None


@routes.post(
    "", status_code=201, summary="Make a party", responses=documented("conflict"), dependencies=[Depends(admin)]
)
async def create(body: NewParty, response: Response, db: Db) -> Party:
    try:
        row = await registry.create_party(db, body.kind, body.name, body.refs)
    except registry.ReferenceTaken as taken:
        detail = f"{taken.reference} is party {taken.party}; use that one, or another reference."
        raise Refusal("conflict", detail, party=taken.party, ref=taken.reference) from None
    response.headers["location"] = f"/v1/parties/{row['id']}"
    return Party(**row)


@routes.get("", summary="List parties", responses=documented(), dependencies=[Depends(reader)])
async def list_(query: Annotated[PartyQuery, Query()], db: Db) -> Page[Party]:
    after = pages.start(query, "parties", UUID)
    found = await registry.parties(db, kind=query.kind, reference=query.ref, after=after, limit=query.limit + 1)
    rows, last = pages.cut(found, query)
    return Page(items=[Party(**row) for row in rows], next=last and pages.end(query, "parties", last["id"]))
