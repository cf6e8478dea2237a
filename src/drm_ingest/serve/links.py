"""Links: two parties found to be the same, read as one until they are unlinked."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated
from uuid import UUID

import asyncpg
from fastapi import APIRouter, Path, Query, Response
from pydantic import BaseModel, ConfigDict, Field

from drm_ingest.postgres import records
from drm_ingest.postgres.registry import parties
from drm_ingest.postgres.relations import link as linking
from drm_ingest.postgres.relations import links
from drm_ingest.serve.access import Admin, Db, Stored
from drm_ingest.serve.parties import InPath, known_party, named
from drm_ingest.serve.problems import documented, invalid
from drm_ingest.serve.shapes import Name, PartyName, Request, StoredTime

routes = APIRouter(prefix="/v1/parties", tags=["parties"])


class NewLink(Request):
    model_config = ConfigDict(
        json_schema_extra={"examples": [{"party": "shop:a9", "reason": "same customer card, checked by phone"}]}
    )

    party: PartyName
    reason: Name
    asserted_by: Name | None = Field(None, description="who says so; left out: the sender of this key")


class Link(BaseModel):
    """That two parties are the same."""

    id: UUID
    party: UUID = Field(description="the one that was made first")
    other: UUID
    reason: str = Field(examples=["same customer card, checked by phone"])
    asserted_by: str = Field(examples=["back office"])
    linked_at: StoredTime


class Linked(Link):
    parties: list[UUID] = Field(description="those that share one record now")


class Counts(BaseModel):
    """What is on one record."""

    parties: list[UUID] = Field(description="those that share it")
    relations: int = Field(description="past ones too", examples=[3])
    devices: int = Field(description="on which a role is held now", examples=[2])
    events: int = Field(examples=[1204])
    events_by_type: dict[str, int] = Field(examples=[{"device.measurement": 1200, "commerce.purchase": 4}])


class Preview(BaseModel):
    """The two records as they are, and the one that they would be. What both have counts once on it."""

    party: Counts
    other: Counts
    joint: Counts


class LinkQuery(Request):
    preview: bool = Field(False, description="say what would change, and change nothing")


class UnlinkQuery(Request):
    reason: Name | None = None


class Unlinked(BaseModel):
    unlinked: int = Field(description="0: they were not linked", examples=[1])
    parties: list[UUID] = Field(description="those that share one record with the first now")


@routes.post(
    "/{party:rest}/links",
    summary="Link two parties that are the same",
    description="From then on either id answers with the one joint record; nothing of either is changed, so unlinking "
    "restores both. 201, or 200 where they were linked already. With `?preview=true` the answer is what would change.",
    responses={201: {"model": Linked, "description": "They are linked now."}, **documented("not_found")},
)
async def link(
    party: InPath,
    body: NewLink,
    query: Annotated[LinkQuery, Query()],
    response: Response,
    caller: Admin,
    db: Db,
    store: Stored,
) -> Linked | Preview:
    id_ = await known_party(db, party)
    other = await parties.find_party(db, named(body.party, store.settings))
    if other is None:
        raise invalid(f"There is no party {body.party}.", pointer="/party")
    if other == id_:
        raise invalid("This is the same party already.", pointer="/party")
    limit = store.settings.linked_parties_max
    with _refused(limit):
        if query.preview:
            return await _preview(db, id_, other, limit)
        claim = linking.Claim(id_, other, body.asserted_by or caller.name, body.reason)
        row, new = await linking.link(db, claim, limit, store.settings.linked_relations_counted_max)
    if new:
        response.status_code = 201
    return Linked(**row, parties=await links.group(db, id_))


@routes.delete(
    "/{party:rest}/links/{other:rest}",
    summary="Unlink two parties",
    description="Both are again what they were, with what has come since on the one it is about. "
    "Where another link still joins them, `parties` says so.",
    responses=documented("not_found"),
)
async def unlink(
    party: InPath,
    other: Annotated[PartyName, Path()],
    query: Annotated[UnlinkQuery, Query()],
    caller: Admin,
    db: Db,
    store: Stored,
) -> Unlinked:
    id_, other_id = await known_party(db, party), await known_party(db, named(other, store.settings))
    claim = linking.Claim(id_, other_id, caller.name, query.reason)
    counted_max = store.settings.linked_relations_counted_max
    unlinked = id_ != other_id and await linking.unlink(db, claim, counted_max)
    return Unlinked(unlinked=int(unlinked), parties=await links.group(db, id_))


async def _preview(db: asyncpg.Connection, party: UUID, other: UUID, limit: int) -> Preview:
    async with db.transaction(isolation="repeatable_read", readonly=True):  # Postgres sees to it that nothing changes
        await linking.expect_possible(db, party, other, limit)
        groups = [await links.group(db, party), await links.group(db, other)]
        counts = [await _counts(db, group) for group in (*groups, sorted({*groups[0], *groups[1]}))]
    return Preview(party=counts[0], other=counts[1], joint=counts[2])


async def _counts(db: asyncpg.Connection, group: list[UUID]) -> Counts:
    found = await records.counts(db, group)
    return Counts(
        parties=group,
        relations=found.relations,
        devices=found.devices_now,
        events=sum(found.events_by_type.values()),
        events_by_type=found.events_by_type,
    )


@contextmanager
def _refused(limit: int) -> Iterator[None]:
    try:
        yield
    except linking.OtherKind as kinds:
        detail = f"A {kinds.other} cannot be the same as a {kinds.kind}; only parties of one kind are linked."
        raise invalid(detail, pointer="/party") from None
    except linking.TooManyLinked as many:
        detail = f"{many.parties} parties would share one record; at most {limit} may (DRM_LINKED_PARTIES_MAX)."
        raise invalid(detail, pointer="/party") from None
