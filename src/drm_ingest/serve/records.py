"""Records: what a party's relations brought it, and what a device has done; put together when they are read."""

from collections.abc import Sequence
from typing import Annotated, Any
from uuid import UUID

import asyncpg
from fastapi import APIRouter, Depends, Query
from pydantic import BaseModel, Field

from drm_ingest.event import PARTY_PREFIX
from drm_ingest.postgres import records
from drm_ingest.serve import events
from drm_ingest.serve.access import Db, Stored, reader
from drm_ingest.serve.attributes import Attributes, agreed
from drm_ingest.serve.links import Link
from drm_ingest.serve.parties import InPath, Party, known_party
from drm_ingest.serve.problems import documented
from drm_ingest.serve.shapes import ITEMS_MAX, Page, Request, Time, from_json

routes = APIRouter(prefix="/v1/parties", tags=["parties"], dependencies=[Depends(reader)])


class State(BaseModel):
    """The latest event of one type, by when it happened."""

    subject: str = Field(examples=["meter-7"])
    id: str | None = Field(description="null: the event itself has been dropped by retention", examples=["8f14e45f"])
    source: str | None
    occurred_at: Time
    data: Annotated[Any, from_json] = Field(examples=[{"temperature": 21.4}])


class Activity(BaseModel):
    """What happened, in counts and in its latest state."""

    events: int = Field(examples=[51_235])
    events_by_type: dict[str, int] = Field(examples=[{"device.measurement": 51_204, "device.status": 31}])
    first_seen: Time | None
    last_seen: Time | None
    latest: dict[str, State] = Field(description="by type")


class Held(BaseModel):
    """A role held now."""

    role: str = Field(examples=["owner"])
    party: UUID = Field(description="that holds it: of several that are linked, which")
    relationship: UUID
    valid_from: Time | None


class HeldDevice(BaseModel):
    """A device on which the party holds a role now."""

    id: str = Field(examples=["meter-7"])
    model: str | None
    firmware: str | None
    roles: Annotated[list[Held], from_json]
    latest: dict[str, State] = Field(description="by type; of the time the party held a role on it")


class Record(Activity, Party):  # the fields of the last come first
    """A party and everything its relations brought it.

    Of linked parties it is one record, the same for each of them: `id`, `name` and `created_at` are those of the one
    made first.
    """

    parties: list[Party] = Field(description="whose record it is, by age; one, if it is not linked")
    links: list[Link] = Field(description="what makes several parties one")
    attributes: Attributes
    devices: list[HeldDevice] = Field(description="by id; more than asked for: GET /v1/relationships?party=…")
    devices_now: int = Field(description="how many there are", examples=[1])


class TimelineItem(BaseModel):
    """An event that happened on a device while the party held a role on it, or that is about the party itself."""

    device: str | None = Field(description="null: about the party itself, or a party it stands in relation to")
    roles: list[str] = Field(description="held when it happened; `self`: it is about the party", examples=[["owner"]])
    event: events.Event


class RecordQuery(Request):
    devices: int = Field(100, ge=0, le=ITEMS_MAX, description="how many of the devices to show")


def _joint_refs(parties: Sequence[Party]) -> dict[str, list[str]]:
    joint: dict[str, list[str]] = {}
    for party in parties:
        for namespace, refs in party.refs.items():
            joint.setdefault(namespace, []).extend(refs)
    return {namespace: sorted(joint[namespace]) for namespace in sorted(joint)}


def activity(rows: Sequence[asyncpg.Record]) -> Activity:
    """Return what rows of a record say, those over all devices."""
    over_all = [row for row in rows if row["device"] is None]
    return Activity(
        events=sum(row["events"] for row in over_all),
        events_by_type={row["type"]: row["events"] for row in over_all},
        first_seen=min((row["first_seen"] for row in over_all), default=None),
        last_seen=max((row["occurred_at"] for row in over_all), default=None),
        latest={row["type"]: State(**row) for row in over_all},
    )


# The name of a party may hold a slash (crm:a/7): the parameter takes what is left of the path; the longer stands first.
@routes.get(
    "/{party:rest}/timeline",
    summary="What happened, newest first",
    description="Everything that happened on a device while the party held a role on it, and what is about the party "
    "itself. An event is on it once, however many roles the party held.",
    responses=documented("not_found"),
)
async def timeline(
    party: InPath, query: Annotated[events.EventsQuery, Query()], db: Db, store: Stored
) -> Page[TimelineItem]:
    id_ = await known_party(db, party)
    list_ = f"timeline of {id_}"
    found = await records.timeline(db, id_, events.wanted(query, list_, store.settings.serve_page_bytes_max))
    rows, next_ = events.page(found, query, list_)
    return Page(
        items=[
            TimelineItem(
                device=None if row["subject"].startswith(PARTY_PREFIX) else row["subject"],
                roles=row["roles"] or ["self"],
                event=events.Event(**row),
            )
            for row in rows
        ],
        next=next_,
    )


@routes.get(
    "/{party:rest}",
    summary="The record of a party",
    description="Right at once: put together from its relations and the events as they are now. "
    "An event counts once for a party, however many roles it held, and only in [`valid_from`, `valid_to`).",
    responses=documented("not_found"),
)
async def record(party: InPath, query: Annotated[RecordQuery, Query()], db: Db) -> Record:
    found = await records.of_party(db, await known_party(db, party), query.devices)
    latest: dict[str, dict[str, State]] = {}
    for row in found.latest:
        if row["device"] is not None:
            latest.setdefault(row["device"], {})[row["type"]] = State(**row)
    members = [Party(**row) for row in found.parties]
    return Record(
        **dict(members[0]) | {"refs": _joint_refs(members)},
        parties=members,
        links=[Link(**row) for row in found.links],
        attributes=agreed(found.attributes),
        **dict(activity(found.latest)),
        devices=[
            HeldDevice(
                id=row["subject"],
                model=row["model"],
                firmware=row["firmware"],
                roles=row["roles"],
                latest=latest.get(row["subject"], {}),
            )
            for row in found.devices
        ],
        devices_now=found.devices_now,
    )
