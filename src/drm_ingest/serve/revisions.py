"""Relations that are there are changed: ended, corrected, withdrawn; each time with who says so, and why."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated
from uuid import UUID

import asyncpg
from fastapi import APIRouter, Body, Depends, Header, Response
from pydantic import ConfigDict, Field

from drm_ingest.errors import Refusal
from drm_ingest.postgres.relations import revise
from drm_ingest.postgres.relations.changes import (
    ChangedMeanwhile,
    EmptyRange,
    HeldAlready,
    Say,
    Withdrawn,
    WithItself,
)
from drm_ingest.serve.access import Admin, Caller, Db
from drm_ingest.serve.problems import documented, invalid
from drm_ingest.serve.relationships import AssertedBy, Relationship, conflict, etag, not_there, shown
from drm_ingest.serve.shapes import Name, Request, Time, told

routes = APIRouter(prefix="/v1/relationships", tags=["relationships"])

_REASON = Field(None, description="why; kept with the change")


class Withdrawal(Request):
    model_config = ConfigDict(json_schema_extra={"examples": [{"reason": "wrong serial number"}]})

    asserted_by: AssertedBy = None
    reason: Name | None = _REASON


class End(Request):
    model_config = ConfigDict(json_schema_extra={"examples": [{"at": "2026-06-01T12:00:00Z", "reason": "returned"}]})

    at: Time | None = Field(None, description="until then, and not at it; left out or null: now")
    asserted_by: AssertedBy = None
    reason: Name | None = _REASON


class Correction(Request):
    model_config = ConfigDict(
        json_schema_extra={"examples": [{"valid_from": "2026-02-27T00:00:00Z", "reason": "invoice found"}]}
    )

    valid_from: Time | None = Field(None, description="from then on; null: since ever; left out: as it is")
    valid_to: Time | None = Field(None, description="until then, and not at it; null: no end known; left out: as it is")
    asserted_by: AssertedBy = None
    reason: Name | None = _REASON


_VERSION = re.compile(r'"([0-9]{1,9})"')


def _versions(
    if_match: Annotated[str | None, Header(description="ETag of the version to change")] = None,
) -> set[int] | None:
    """Return the versions that If-Match names; None: any. What is no ETag of ours, or weak, matches none (RFC 9110)."""
    if if_match is None or if_match.strip() == "*":
        return None
    named = (_VERSION.fullmatch(tag.strip()) for tag in if_match.split(","))
    return {int(tag[1]) for tag in named if tag}


Versions = Annotated[set[int] | None, Depends(_versions)]

_REFUSED = documented("not_found", "conflict", "precondition_failed")
_BODY = "No body is taken as `{}`."
_AGAIN = "Asking again for what is so already changes nothing. "


@routes.post(
    "/{relationship}/end",
    summary="End a relation",
    description=f"{_AGAIN}An end further on than it had is refused with 409 where another relation stands there. "
    f"{_BODY}",
    responses=_REFUSED,
)
async def end(
    relationship: UUID,
    body: Annotated[End, Body(default_factory=End)],
    response: Response,
    caller: Admin,
    db: Db,
    versions: Versions,
) -> Relationship:
    with _refused("/at"):
        return _answer(
            relationship, await revise.end(db, relationship, body.at, _say(body, caller, versions)), response
        )


@routes.post(
    "/{relationship}/correct",
    summary="Say anew when a relation held",
    description=f"{_AGAIN}It keeps its id; GET …/versions has what was known before.",
    responses=_REFUSED,
)
async def correct(
    relationship: UUID, body: Correction, response: Response, caller: Admin, db: Db, versions: Versions
) -> Relationship:
    given = body.model_fields_set
    if not given & {"valid_from", "valid_to"}:
        raise invalid("Say valid_from, valid_to or both.", pointer="/valid_from")
    with _refused("/valid_to" if "valid_to" in given else "/valid_from"):
        found = await revise.correct(
            db,
            relationship,
            body.valid_from if "valid_from" in given else revise.UNCHANGED,
            body.valid_to if "valid_to" in given else revise.UNCHANGED,
            _say(body, caller, versions),
        )
        return _answer(relationship, found, response)


@routes.post(
    "/{relationship}/withdraw",
    summary="Say that a relation never held",
    description=f"{_AGAIN}What it brought goes off all records; GET with known_at still shows it as it was known. "
    f"{_BODY}",
    responses=_REFUSED,
)
async def withdraw(
    relationship: UUID,
    body: Annotated[Withdrawal, Body(default_factory=Withdrawal)],
    response: Response,
    caller: Admin,
    db: Db,
    versions: Versions,
) -> Relationship:
    with _refused(""):
        return _answer(relationship, await revise.withdraw(db, relationship, _say(body, caller, versions)), response)


def _say(body: End | Correction | Withdrawal, caller: Caller, versions: set[int] | None) -> Say:
    return Say(body.asserted_by or caller.name, body.reason, versions)


def _answer(id_: UUID, row: asyncpg.Record | None, response: Response) -> Relationship:
    if row is None:
        raise not_there(id_)
    relation = shown(row)
    response.headers["etag"] = etag(relation)
    return relation


@contextmanager
def _refused(pointer: str) -> Iterator[None]:
    """Turn what a change may meet into refusals; `pointer` is where its times are."""
    try:
        yield
    except EmptyRange:
        raise invalid(
            "It would end before it begins, or as it begins; withdraw what never held.", pointer=pointer
        ) from None
    except HeldAlready as held:
        raise conflict(held) from None
    except Withdrawn as withdrawn:
        relation = shown(withdrawn.row)
        raise Refusal(
            "conflict",
            f"Relationship {relation.id} was withdrawn at {told(withdrawn.row['superseded_at'])} and stays so; "
            "where it did hold, begin it anew with POST /v1/relationships.",
            relationship=relation.model_dump(mode="json"),
        ) from None
    except WithItself as itself:
        relation = shown(itself.row)
        raise Refusal(
            "conflict",
            f"Relationship {relation.id} is one of a party to itself, which there cannot be; "
            f"POST /v1/relationships/{relation.id}/withdraw says that it never held.",
            relationship=relation.model_dump(mode="json"),
        ) from None
    except ChangedMeanwhile as changed:
        relation = shown(changed.row)
        raise Refusal(
            "precondition_failed",
            f"Relationship {relation.id} is at version {relation.version} now; read it before you ask again.",
            relationship=relation.model_dump(mode="json"),
        ) from None
