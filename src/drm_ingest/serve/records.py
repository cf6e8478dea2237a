"""Records: a party and what its relations brought it, put together when it is read."""

import asyncio
from collections.abc import Sequence
from typing import Annotated, Any, Literal
from uuid import UUID

import asyncpg
from fastapi import APIRouter, Depends, Query
from pydantic import BaseModel, Field

from drm_ingest.errors import Refusal
from drm_ingest.postgres import records
from drm_ingest.postgres.record.kinds import Shown
from drm_ingest.postgres.record.known import NOW
from drm_ingest.postgres.records import PartyRecord
from drm_ingest.serve import kinds
from drm_ingest.serve.access import Db, Stored, reader
from drm_ingest.serve.activity import (
    Activity,
    Day,
    OpenFaults,
    Satisfaction,
    State,
    ViewQuery,
    activity,
    days,
    open_faults,
    satisfaction,
)
from drm_ingest.serve.attributes import Attributes, agreed
from drm_ingest.serve.conditional import NOT_MODIFIED, IfNoneMatch, answer
from drm_ingest.serve.links import Link
from drm_ingest.serve.parties import InPath, Party, known_party
from drm_ingest.serve.problems import documented
from drm_ingest.serve.relationships import Relationship
from drm_ingest.serve.shapes import ITEMS_MAX, StoredTime, from_json

routes = APIRouter(prefix="/v1/parties", tags=["parties"], dependencies=[Depends(reader)])

DAYS_MAX = 366
DEVICES_LISTED, RELATIONS_LISTED = 10, 25
"""Unless more are asked for. A household has fewer devices; each costs its latest state of every type."""
_LESS = {
    True: "ask again in a while: if it is large, it is being counted beforehand.",
    False: "that of a large party is counted beforehand as it is now, and else at most in part. "
    "Ask without as_of and known_at, or with them for its devices (/v1/devices/…) and relations (/v1/relationships) "
    "one by one, or for its timeline.",
}
"""What to do; by whether it was asked for as it is now."""


class Held(BaseModel):
    """A role held now."""

    role: str = Field(examples=["owner"])
    party: UUID = Field(description="that holds it: of several that are linked, which")
    relationship: UUID
    version: int
    valid_from: StoredTime | None


class HeldDevice(BaseModel):
    """A device on which the party holds a role now."""

    id: str = Field(examples=["meter-7"])
    model: str | None
    firmware: str | None
    roles: Annotated[list[Held], from_json]
    latest: dict[str, State] = Field(description="by type; of the time the party held a role on it")


class RelationHeld(Relationship):
    """A relation of the party to a device or to another party, or of another party to it."""

    holds: Literal["now", "later", "before"]


class Relations(BaseModel):
    now: int = Field(description="how many hold now", examples=[1])
    later: int = Field(description="how many are known beforehand", examples=[0])
    before: int = Field(description="how many held and have ended", examples=[2])
    items: list[RelationHeld] = Field(
        description="what holds now, later, and held before; in each the last to begin first. "
        "More than asked for: GET /v1/relationships?party=…"
    )


class Freshness(BaseModel):
    """Of when it is what is shown. Not part of what the ETag names."""

    read_at: StoredTime
    recorded_at: StoredTime | None = Field(description="when the last of the events in `latest` was stored")
    attached_at: StoredTime | None = Field(description="when events were last stored, of anybody; null: never yet")
    totals_through: StoredTime | None = Field(
        description="null: everything stored is in the answer. Of a party with very many devices counts are kept "
        "beforehand: events stored until then are in them, later ones are not yet; nor are relations that changed in "
        "the seconds before"
    )


class Record(Activity, Party):  # the fields of the last come first
    """A party and everything its relations brought it.

    Of linked parties it is one record, the same for each of them: `id`, `name` and `created_at` are those of the one
    made first.
    """

    parties: list[Party] = Field(description="whose record it is, by age; one, if it is not linked")
    links: list[Link] = Field(description="what makes several parties one")
    attributes: Attributes
    relations: Relations
    devices: list[HeldDevice] = Field(description="by id; more than asked for: GET /v1/relationships?party=…")
    devices_now: int = Field(description="how many there are", examples=[1])
    by_day: list[Day] = Field(description="UTC days with events up to the last one, newest first; see `days`")
    faults: OpenFaults = Field(description="open on the devices, since the party has held a role on them")
    satisfaction: Satisfaction
    sales: kinds.Sales | None = Field(description="of a vendor")
    service: kinds.Service | None = Field(description="of a partner")
    care: kinds.Care | None = Field(description="of an employee")
    supply: kinds.Supply | None = Field(description="of a supplier")
    freshness: Freshness


class RecordQuery(ViewQuery):
    devices: int = Field(DEVICES_LISTED, ge=0, le=ITEMS_MAX, description="how many of the devices to show")
    relations: int = Field(RELATIONS_LISTED, ge=0, le=ITEMS_MAX, description="how many of the relations to show")
    days: int = Field(30, ge=0, le=DAYS_MAX, description="how many days up to the last event to show by day")
    around_visit_days: int = Field(30, ge=1, le=DAYS_MAX, description="of a partner: days before and after a visit")


def _joint_refs(parties: Sequence[Party]) -> dict[str, list[str]]:
    joint: dict[str, list[str]] = {}
    for party in parties:
        for namespace, refs in party.refs.items():
            joint.setdefault(namespace, []).extend(refs)
    return {namespace: sorted(joint[namespace]) for namespace in sorted(joint)}


def _relations(found: PartyRecord) -> Relations:
    now, later, before = found.relations_now
    return Relations(
        now=now,
        later=later,
        before=before,
        items=[RelationHeld(**row, withdrawn_at=row["superseded_at"]) for row in found.relations],
    )


def _devices(found: PartyRecord) -> list[HeldDevice]:
    latest: dict[str, dict[str, State]] = {}
    for row in found.latest:
        if row["device"] is not None:
            latest.setdefault(row["device"], {})[row["type"]] = State(**row)
    return [HeldDevice(id=row["subject"], **row, latest=latest.get(row["subject"], {})) for row in found.devices]


# The name of a party may hold a slash (crm:a/7): the parameter takes what is left of the path.
@routes.get(
    "/{party:rest}",
    summary="The record of a party",
    description="Right at once: put together from its relations and the events as they are now. "
    "An event counts once for a party, however many roles it held, and only in [`valid_from`, `valid_to`).",
    response_model=Record,
    responses={**NOT_MODIFIED, **documented("not_found", "method_not_allowed", "took_too_long")},
)
async def record(
    party: InPath,
    query: Annotated[RecordQuery, Query()],
    db: Db,
    store: Stored,
    if_none_match: IfNoneMatch = None,
) -> Any:
    wanted = Shown(query.devices, query.relations, query.days, query.around_visit_days)
    id_, settings = await known_party(db, party), store.settings
    try:
        async with asyncio.timeout(settings.record_timeout_s) as bound:
            found = await records.of_party(db, id_, query.view, wanted)
    except (TimeoutError, asyncpg.QueryCanceledError) as error:
        if isinstance(error, TimeoutError) and not bound.expired():
            raise
        timeout_s = settings.record_timeout_s if bound.expired() else settings.postgres_statement_timeout_s
        detail = f"This record could not be put together within {timeout_s:g} s; {_LESS[query.view == NOW]}"
        raise Refusal("took_too_long", detail, retry_after_s=settings.retry_after_s) from None
    members = [Party(**row) for row in found.parties]
    kind = members[0].kind
    stored = [row["recorded_at"] for row in found.latest if row["recorded_at"] is not None]
    content = Record(
        **dict(members[0]) | {"refs": _joint_refs(members)},
        parties=members,
        links=[Link(**row) for row in found.links],
        attributes=agreed(found.figures["attributes"]),
        **dict(activity(found.latest)),
        relations=_relations(found),
        devices=_devices(found),
        devices_now=found.devices_now,
        by_day=days(found.days),
        faults=open_faults(found.figures["faults"]),
        satisfaction=satisfaction(found.figures["satisfaction"]),
        sales=kinds.sales(found.figures) if kind == "vendor" else None,
        service=kinds.service(found.figures, query.around_visit_days) if kind == "partner" else None,
        care=kinds.care(found.figures) if kind == "employee" else None,
        supply=kinds.supply(found.figures) if kind == "supplier" else None,
        freshness=Freshness(
            read_at=found.read_at,
            recorded_at=max(stored, default=None),
            attached_at=found.attached_at,
            totals_through=found.totals_through,
        ),
    )
    return answer(content, if_none_match, but={"freshness"})
