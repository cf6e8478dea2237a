"""Attributes of a party: what each origin says of it, when and by whom, and the one value agreed on."""

import json
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any
from uuid import UUID

from fastapi import APIRouter, Path
from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from drm_ingest.errors import Rejected, json_pointer
from drm_ingest.examine import refuse_unstorable
from drm_ingest.postgres.record.figures import Rows
from drm_ingest.postgres.registry import attributes
from drm_ingest.postgres.relations import links
from drm_ingest.serve.access import Admin, Db, Stored
from drm_ingest.serve.parties import InPath, known_party
from drm_ingest.serve.problems import documented, invalid
from drm_ingest.serve.shapes import Name, Request, StoredTime, Time, from_json

routes = APIRouter(prefix="/v1/parties", tags=["parties"])

AttributeName = Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9_.-]{0,59}$")]
Origin = Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9-]{0,39}$")]


class Words(Request):
    model_config = ConfigDict(
        json_schema_extra={
            "examples": [{"said_at": "2026-03-01T09:30:00Z", "attributes": {"city": "Lund", "segment": None}}]
        }
    )

    said_at: Time | None = Field(None, description="when the origin said so; left out: now")
    attributes: dict[AttributeName, Any] = Field(
        min_length=1,
        max_length=1000,
        description="any JSON; null takes the origin's word back; what is left out stays as it is",
    )
    asserted_by: Name | None = Field(None, description="who says so; left out: the sender of this key")


class Word(BaseModel):
    """What one origin says."""

    origin: str = Field(examples=["crm"])
    value: Annotated[Any, from_json] = Field(examples=["Lund"])
    said_at: StoredTime
    recorded_at: StoredTime
    asserted_by: str = Field(examples=["back office"])
    party: UUID = Field(description="of which it was said; of linked parties each has its own words")


class Attribute(BaseModel):
    """The value agreed on: that of the most trusted origin, and of those not declared or equal the latest."""

    value: Any = Field(examples=["Lund"])
    origin: str = Field(examples=["crm"])
    words: list[Word] = Field(description="of every origin; the one agreed on comes first")


Attributes = Annotated[dict[str, Attribute], Field(description="by name")]


class Stand(BaseModel):
    """What is known of the party now, and what of this request is not, because the origin has said otherwise since."""

    attributes: Attributes
    outlived: list[str] = Field(description="on these the origin has said something later already", examples=[[]])


def agreed(rows: Rows) -> dict[str, Attribute]:
    """Return the attributes of `attributes.of_parties`: of each the first word is the one agreed on."""
    found: dict[str, Attribute] = {}
    for row in rows:
        word = Word(**row)
        found.setdefault(row["name"], Attribute(value=word.value, origin=word.origin, words=[])).words.append(word)
    return found


@routes.put(
    "/{party:rest}/attributes/{origin}",
    summary="Say what an origin knows of a party",
    description="Each origin has one word on each attribute, its latest by `said_at`, whatever the order of arrival; "
    "others' words stay beside it. Repeating is safe.",
    responses=documented("not_found"),
)
async def put(
    party: InPath,
    origin: Annotated[Origin, Path(description="the system that says so", examples=["crm"])],
    body: Words,
    caller: Admin,
    db: Db,
    store: Stored,
) -> Stand:
    settings = store.settings
    if body.said_at and body.said_at > datetime.now(UTC) + timedelta(seconds=settings.event_future_max_s):
        raise invalid("Lies in the future; nothing said until then would count. Check the clock.", pointer="/said_at")
    values = {name: stored(name, value, settings.attribute_bytes_max) for name, value in body.attributes.items()}
    id_ = await known_party(db, party)
    said = attributes.Said(origin, values, body.said_at, body.asserted_by or caller.name)
    try:
        outlived = await attributes.say(db, id_, said, settings.party_attributes_max)
    except attributes.TooManyAttributes:
        detail = f"A party has at most {settings.party_attributes_max} attributes, those of each origin counted; "
        raise invalid(f"{detail}DRM_PARTY_ATTRIBUTES_MAX says so.", pointer="/attributes") from None
    rows = await attributes.of_parties(db, await links.group(db, id_))
    return Stand(attributes=agreed(rows), outlived=outlived)


_as_json = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode


def stored(name: str, value: Any, bytes_max: int) -> str | None:
    """Return a value as JSON text.

    Raises:
        Refusal: it is too long, or nothing that Postgres and every reader of JSON can hold.
    """
    if value is None:
        return None
    try:
        text = _as_json(value).encode()
        refuse_unstorable(b"[" + text + b"]")  # it looks for numbers inside of something
    except Rejected as rejected:
        raise invalid(rejected.detail, pointer=_pointer(name)) from None
    except (ValueError, RecursionError):  # NaN, a lone surrogate, too deep
        raise invalid("Cannot be stored: numbers must be finite and text UTF-8.", pointer=_pointer(name)) from None
    if len(text) > bytes_max:
        detail = f"Has {len(text)} bytes as JSON; at most {bytes_max} are kept (DRM_ATTRIBUTE_BYTES_MAX)."
        raise invalid(detail, pointer=_pointer(name))
    return text.decode()


def _pointer(name: str) -> str:
    return json_pointer("attributes", name)
