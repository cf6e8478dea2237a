"""Relations: who holds which role on which device or party, and when."""

from datetime import datetime
from typing import Annotated, Any, Literal
from uuid import UUID

import asyncpg
from fastapi import APIRouter, Depends, Query, Response
from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from drm_ingest.errors import Refusal
from drm_ingest.event import PARTY_PREFIX
from drm_ingest.postgres.registry import parties
from drm_ingest.postgres.relations import relate
from drm_ingest.postgres.relations import relationships as stored
from drm_ingest.postgres.relations.changes import Claim, EmptyRange, HeldAlready
from drm_ingest.serve import pages
from drm_ingest.serve.access import Admin, Db, Stored, reader
from drm_ingest.serve.conditional import IfNoneMatch, names
from drm_ingest.serve.parties import known_party, named, named_subject, refuse_half_a_name
from drm_ingest.serve.problems import documented, invalid
from drm_ingest.serve.shapes import (
    Name,
    Page,
    PageQuery,
    PartyName,
    Request,
    StoredTime,
    Subject,
    Text,
    Time,
    during,
    from_json,
    told,
)

routes = APIRouter(prefix="/v1/relationships", tags=["relationships"])

_PARTY = "01a202fd-12a9-75d6-a27e-21b5246620a3"

Role = Annotated[Text, StringConstraints(min_length=1, max_length=40)]
AssertedBy = Annotated[Name | None, Field(description="who says so; left out: the sender of this key")]
OfWithdrawn = Annotated[str | None, Field(exclude_if=lambda said: said is None)]


class NewRelationship(Request):
    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {"subject": "meter-7", "role": "owner", "party": _PARTY, "valid_from": "2026-03-01T09:30:00Z"},
                {"subject": "party:crm:778", "role": "buys_from", "party": "erp:v-12", "valid_from": None},
                {"subject": "meter-7", "role": "parts_by", "party": "erp:s-3", "batch": "2026-02/17"},
            ]
        }
    )

    subject: Subject
    role: Role = Field(description="owner, user, sold_by, serviced_by, …; between two parties buys_from, …")
    party: PartyName
    valid_from: Time | None = Field(None, description="from then on; null: since ever; left out: from now on")
    valid_to: Time | None = Field(None, description="until then, and not at it; null: no end known")
    batch: Annotated[Text, StringConstraints(min_length=1, max_length=100)] | None = Field(
        None, description="of what was delivered, for made_by and parts_by"
    )
    asserted_by: AssertedBy = None
    reason: Name | None = None


class Relationship(BaseModel):
    id: UUID = Field(description="it keeps it through its corrections")
    version: int = Field(description="1, and one more with each change", examples=[1])
    subject: str = Field(examples=["meter-7"])
    role: str = Field(examples=["owner"])
    party: UUID
    valid_from: StoredTime | None
    valid_to: StoredTime | None
    batch: str | None
    recorded_at: StoredTime = Field(description="since when we know this version")
    withdrawn_at: StoredTime | None = Field(description="since when we know that it never held")
    withdrawn_by: OfWithdrawn = Field(None, description="who said so; there where one withdrawn relation is answered")
    withdrawn_reason: OfWithdrawn = Field(None, description="why; left out where none was given")
    asserted_by: str | None
    reason: str | None


class Moved(BaseModel):
    """Events that a change moved onto the record of a party, or off it."""

    party: UUID
    direction: Literal["gained", "lost"]
    starts: StoredTime | None
    ends: StoredTime | None
    events: int = Field(description="as counted at the change; those that came later are not among them")
    events_by_type: dict[str, int] = Field(examples=[{"device.measurement": 51_204}])


class Change(BaseModel):
    """What was said of a relation, by whom and why, and what that moved."""

    change: Literal["begun", "ended", "corrected", "withdrawn"]
    version: int
    number: int | None = Field(description="in the order of all changes")
    valid_from: StoredTime | None
    valid_to: StoredTime | None
    recorded_at: StoredTime
    asserted_by: str | None
    reason: str | None
    moves: Annotated[list[Moved], from_json]


class VersionQuery(Request):
    known_at: Time | None = Field(None, description="as we knew it then; left out: as we know it now")


class RelationshipQuery(VersionQuery, PageQuery):
    subject: Subject | None = None
    party: PartyName | None = None
    role: Role | None = None
    as_of: Time | None = Field(None, description="only those that held then")


def as_known(row: asyncpg.Record) -> Relationship:
    """Return a version as it was known while it was the latest: nobody knew what would come of it."""
    return Relationship(**row, withdrawn_at=None)


def shown(row: asyncpg.Record) -> Relationship:
    """Return a relation whose version is the latest."""
    return Relationship(**row, withdrawn_at=row["superseded_at"])


def etag(relation: Relationship) -> str:
    """Return what names this version of it, and changes when it is withdrawn."""
    return f'"{relation.version}{"-withdrawn" if relation.withdrawn_at else ""}"'


@routes.post(
    "",
    status_code=201,
    summary="Begin a relation",
    description="A device not heard of yet is registered by it. "
    "Where the role is held already at that time, 409 names that row in `relationship`; "
    "where just this relation is there already, 200 answers with it. Without `valid_from` that is one that holds "
    "now and ends as asked for.",
    responses={200: {"model": Relationship, "description": "It was there."}, **documented("conflict")},
)
async def begin(body: NewRelationship, response: Response, caller: Admin, db: Db, store: Stored) -> Relationship:
    subject = await stored.canonical_subject(db, named_subject(body.subject, store.settings))
    if subject is None:
        raise invalid(f"There is no party {body.subject.removeprefix(PARTY_PREFIX)}.", pointer="/subject")
    if not subject.startswith(PARTY_PREFIX):
        await refuse_half_a_name(db, subject, store.settings)
    party = await parties.find_party(db, named(body.party, store.settings))
    if party is None:
        raise invalid(f"There is no party {body.party}; make it with POST /v1/parties.", pointer="/party")
    if subject == f"{PARTY_PREFIX}{party}":
        raise invalid("A party stands in no relation to itself.", pointer="/party")
    claim = Claim(
        subject=subject,
        role=body.role,
        party=party,
        valid_from=body.valid_from,
        valid_to=body.valid_to,
        asserted_by=body.asserted_by or caller.name,
        reason=body.reason,
        from_now="valid_from" not in body.model_fields_set,
        batch=body.batch,
    )
    try:
        row, new = await relate.begin(db, claim)
    except EmptyRange:
        raise invalid("Must be later than valid_from.", pointer="/valid_to") from None
    except relate.NoBatch:
        raise invalid("Only made_by and parts_by have one.", pointer="/batch") from None
    except relate.UnknownRole as unknown:
        raise _misfit(body, unknown) from None
    except HeldAlready as held:
        raise conflict(held) from None
    relation = shown(row)
    response.status_code = 201 if new else 200
    response.headers["location"] = f"/v1/relationships/{relation.id}"
    response.headers["etag"] = etag(relation)
    return relation


def _misfit(body: NewRelationship, unknown: relate.UnknownRole) -> Refusal:
    if not unknown.kinds:
        detail = f"There is no such role on a {unknown.subject_kind}; there are {', '.join(unknown.roles)}."
        return invalid(detail, pointer="/role")
    kinds = " or ".join(unknown.kinds)
    detail = (
        f"Its kind is {unknown.party_kind}; {body.role} of a {unknown.subject_kind} is a party of the kind {kinds}."
    )
    return invalid(detail, pointer="/party")


def conflict(held: HeldAlready) -> Refusal:
    """Return the refusal of what another relation excludes."""
    other = shown(held.row)
    return Refusal(
        "conflict",
        f"Party {other.party} is {other.role} of {other.subject} {during(other.valid_from, other.valid_to)} "
        f"(relationship {other.id}). "
        f"Choose a time outside of that, or first POST /v1/relationships/{other.id}/end, /correct or /withdraw.",
        relationship=other.model_dump(mode="json"),
    )


def not_there(relationship: UUID, known_at: datetime | None = None) -> Refusal:
    """Return the refusal of an id that no relation has, or none had then."""
    known = f" that we knew of at {told(known_at)}" if known_at else ""
    return Refusal("not_found", f"There is no relationship {relationship}{known}.")


@routes.get(
    "",
    summary="List relations, past ones too",
    description="Withdrawn ones only with a `known_at` at which they were not.",
    responses=documented("not_found"),
    dependencies=[Depends(reader)],
)
async def list_(query: Annotated[RelationshipQuery, Query()], db: Db, store: Stored) -> Page[Relationship]:
    after = pages.start(query, "relationships", UUID)
    settings, subject, party = store.settings, None, None
    if query.subject:
        subject = await stored.canonical_subject(db, named_subject(query.subject, settings))
        if subject is None:
            raise Refusal("not_found", f"There is no party {query.subject.removeprefix(PARTY_PREFIX)}.")
    if query.party:
        party = await known_party(db, named(query.party, settings))
    if query.role and query.role not in (roles := await stored.roles(db)):
        raise invalid(f"There is no such role; there are {', '.join(roles)}.", parameter="role")
    found = await stored.relationships(
        db, subject=subject, party=party, role=query.role, as_of=query.as_of, known_at=query.known_at, after=after,
        limit=query.limit + 1,
    )  # fmt: skip
    rows, last = pages.cut(found, query)
    return Page(
        items=[as_known(row) for row in rows],
        next=last and pages.end(query, "relationships", last["id"]),
    )


@routes.get(
    "/{relationship}",
    summary="Read a relation",
    description="Its latest version, and whether it was withdrawn; with `known_at` the version that was known then. "
    "304 with `If-None-Match` where it is still the version of that ETag.",
    response_model=Relationship,
    responses={304: {"description": "It is still that version."}, **documented("not_found")},
    dependencies=[Depends(reader)],
)
async def read(
    relationship: UUID,
    query: Annotated[VersionQuery, Query()],
    response: Response,
    db: Db,
    if_none_match: IfNoneMatch = None,
) -> Any:
    row = await stored.relationship(db, relationship, query.known_at)
    if row is None:
        raise not_there(relationship, query.known_at)
    relation = shown(row) if query.known_at is None else as_known(row)
    tag = etag(relation)
    if names(if_none_match, tag):
        return Response(status_code=304, headers={"etag": tag})
    response.headers["etag"] = tag
    return relation


@routes.get(
    "/{relationship}/versions",
    summary="What was said of a relation, oldest first",
    responses=documented("not_found"),
    dependencies=[Depends(reader)],
)
async def versions(relationship: UUID, query: Annotated[PageQuery, Query()], db: Db) -> Page[Change]:
    list_ = f"versions of {relationship}"
    found = await stored.versions(
        db, relationship, after=pages.start(query, list_, tuple[int, bool]), limit=query.limit + 1
    )
    if not found and await stored.relationship(db, relationship) is None:
        raise not_there(relationship)
    rows, last = pages.cut(found, query)
    return Page(
        items=[Change(**row) for row in rows],
        next=last and pages.end(query, list_, (last["version"], last["withdrawn"])),
    )
