"""Timelines: what happened to a party, on its devices and in its relations, in one order."""

from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query
from pydantic import BaseModel, Field

from drm_ingest.event import PARTY_PREFIX
from drm_ingest.postgres.record import timeline as stored
from drm_ingest.postgres.record.page import BEGUN, ENDED, EVENT_RANK
from drm_ingest.serve import events
from drm_ingest.serve.access import Db, Stored, reader
from drm_ingest.serve.activity import ViewQuery
from drm_ingest.serve.conditional import NOT_MODIFIED, IfNoneMatch, answer
from drm_ingest.serve.parties import InPath, known_party
from drm_ingest.serve.problems import documented
from drm_ingest.serve.relationships import Relationship
from drm_ingest.serve.shapes import Page, StoredTime, from_json

routes = APIRouter(prefix="/v1/parties", tags=["parties"], dependencies=[Depends(reader)])


class TimelineItem(BaseModel):
    """An event while the party held a role on its device, or about the party itself; or a relation that began or ended.

    It has either `event` or `relationship`.
    """

    type: str = Field(description=f"of the event; or {BEGUN}, {ENDED}", examples=["device.measurement"])
    occurred_at: StoredTime
    device: str | None = Field(description="null: about the party itself, or a party it stands in relation to")
    roles: list[str] = Field(description="held when it happened; `self`: it is about the party", examples=[["owner"]])
    event: events.Event | None
    relationship: Annotated[Relationship | None, from_json]


class TimelineQuery(events.EventsQuery, ViewQuery):
    """Of timelines."""


# The name of a party may hold a slash (crm:a/7): the parameter takes what is left of the path; the longer stands first.
@routes.get(
    "/{party:rest}/timeline",
    summary="What happened, newest first",
    description="Everything that happened on a device while the party held a role on it, what is about the party "
    "itself, and when its relations began and ended. An event is on it once, however many roles the party held.",
    response_model=Page[TimelineItem],
    responses={**NOT_MODIFIED, **documented("not_found", "method_not_allowed")},
)
async def timeline(
    party: InPath,
    query: Annotated[TimelineQuery, Query()],
    db: Db,
    store: Stored,
    if_none_match: IfNoneMatch = None,
) -> Any:
    id_ = await known_party(db, party)
    list_ = f"timeline of {id_}"
    wanted = events.wanted(query, list_, store.settings.serve_page_bytes_max, query.view)
    found = await stored.of_party(db, id_, wanted, store.settings.live_timeline_relations_max)
    rows, next_ = events.page(found, query, list_)
    items = [
        TimelineItem(
            type=row["type"],
            occurred_at=row["occurred_at"],
            device=None if row["subject"].startswith(PARTY_PREFIX) else row["subject"],
            roles=row["roles"] or ["self"],
            event=events.Event(**row) if row["rank"] == EVENT_RANK else None,
            relationship=row["relation"],
        )
        for row in rows
    ]
    return answer(Page(items=items, next=next_), if_none_match)
