"""The keys of senders, and what each may send."""

import re
from collections.abc import Mapping
from typing import Annotated, Any, Self
from uuid import UUID

from fastapi import APIRouter, Depends, Query, Response
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StringConstraints

from drm_ingest.errors import Refusal
from drm_ingest.event import SUBJECT_CHARACTERS_MAX, TYPE_CHARACTERS_MAX
from drm_ingest.postgres.credentials import KEY_PREFIX, PREFIX_CHARACTERS
from drm_ingest.postgres.registry import senders as stored
from drm_ingest.serve import pages, senders
from drm_ingest.serve.access import Db, admin
from drm_ingest.serve.problems import documented
from drm_ingest.serve.shapes import Expiry, Page, PageQuery, Request, StoredTime, Text

routes = APIRouter(prefix="/v1", tags=["senders"], dependencies=[Depends(admin)])

_ID = "01a202fd-12a9-75d6-a27e-21b5246620a3"


Devices = Annotated[
    list[Annotated[Text, StringConstraints(min_length=1, max_length=SUBJECT_CHARACTERS_MAX + 1)]],
    Field(
        min_length=1,
        max_length=10_000,
        description="ids, or beginnings as in meter-*; a * elsewhere is a letter",
        examples=[["meter-*"]],
    ),
]
Types = Annotated[
    list[Annotated[Text, StringConstraints(min_length=1, max_length=TYPE_CHARACTERS_MAX + 1)]],
    Field(
        min_length=1,
        max_length=1000,
        description="types, or beginnings as in device.*; a * elsewhere is a letter",
        examples=[["device.*"]],
    ),
]


def _prefix(text: str) -> str:
    if not _is_prefix(text):
        raise ValueError(
            f"Must be the first {PREFIX_CHARACTERS} characters of a key ({KEY_PREFIX}…), and no more of it."
        )
    return text


_PREFIX = rf"{KEY_PREFIX}[A-Za-z0-9_-]{{{PREFIX_CHARACTERS - len(KEY_PREFIX)}}}"
_is_prefix = re.compile(_PREFIX).fullmatch
KeyPrefix = Annotated[
    str, AfterValidator(_prefix), Field(examples=["drm_Xk3v9aQ2"], json_schema_extra={"pattern": f"^{_PREFIX}$"})
]


class DeviceScope(Request):
    """What the devices of a fleet may send, each as itself; what is left out is not limited, but `identities` is."""

    devices: Devices | None = Field(None, description="those that tokens may be for; null: any")
    types: Types | None = Field(None, description="null: any")
    identities: bool = Field(False, description="whether it may send identity.*, which links devices with parties")


class Scope(DeviceScope):
    """What a key may send. A key made without a scope may send everything; in a scope, a yes has to be said."""

    devices: Devices | None = Field(None, description="those it may write for; null: any")
    parties: bool = Field(False, description="whether it may write for party: subjects")


class NewKey(Request):
    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {"expires_at": "2099-12-31T00:00:00Z", "scope": {"devices": ["meter-*"], "types": ["device.*"]}}
            ]
        }
    )

    expires_at: Expiry | None = Field(None, description="lies ahead; null: never")
    scope: Scope | None = Field(None, description="null: everything")


class Key(BaseModel):
    id: UUID = Field(examples=[_ID])
    prefix: str = Field(description="its first characters, to recognise it by", examples=["drm_Xk3v9aQ2"])
    created_at: StoredTime
    expires_at: StoredTime | None
    revoked_at: StoredTime | None
    scope: Scope

    @classmethod
    def of(cls, row: Mapping[str, Any], **more: str) -> Self:
        scope = {name: row[name] for name in Scope.model_fields}
        return cls(**{name: value for name, value in row.items() if name not in scope}, scope=Scope(**scope), **more)


class KeyShownOnce(Key):
    key: str = Field(description="stored nowhere: keep it now", examples=["drm_Xk3v9aQ2…"])


class KeyOfSender(Key):
    sender: UUID = Field(description="whose it is", examples=[_ID])
    sender_name: str = Field(examples=["thermostat fleet"])


class KeysQuery(PageQuery):
    prefix: KeyPrefix = Field(description="the first characters of a key, as `key_prefix` in the logs has them")


class Revoked(BaseModel):
    revoked: int = Field(description="keys that were in force until now", examples=[2])


@routes.post(
    "/senders/{sender}/keys",
    status_code=201,
    summary="Make a key",
    description="The key is in this answer and nowhere else.",
    responses=documented("not_found"),
)
async def create_key(sender: UUID, response: Response, db: Db, body: NewKey | None = None) -> KeyShownOnce:
    body = body or NewKey(expires_at=None, scope=None)
    scope = stored.Scope() if body.scope is None else stored.Scope(**body.scope.model_dump())
    created = await stored.create_key(db, sender, body.expires_at, scope)
    if created is None:
        raise senders.unknown(sender)
    row, key = created
    response.headers["cache-control"] = "no-store"
    return KeyShownOnce.of(row, key=key)


@routes.get("/senders/{sender}/keys", summary="List keys by their first characters", responses=documented("not_found"))
async def list_keys(sender: UUID, query: Annotated[PageQuery, Query()], db: Db) -> Page[Key]:
    list_ = f"keys of {sender}"
    after = pages.start(query, list_, UUID)
    await senders.known(db, sender)
    rows, last = pages.cut(await stored.keys(db, sender, after, query.limit + 1), query)
    return Page(items=[Key.of(row) for row in rows], next=last and pages.end(query, list_, last["id"]))


@routes.get(
    "/keys",
    summary="Find whose key it is by its first characters",
    description="Keys of all senders that begin so, the revoked and expired ones too; more than one hardly ever does.",
    responses=documented(),
)
async def find_keys(query: Annotated[KeysQuery, Query()], db: Db) -> Page[KeyOfSender]:
    after = pages.start(query, "keys", UUID)
    rows, last = pages.cut(await stored.keys_that_begin(db, query.prefix, after, query.limit + 1), query)
    return Page(items=[KeyOfSender.of(row) for row in rows], next=last and pages.end(query, "keys", last["id"]))


@routes.delete(
    "/senders/{sender}/keys/{key}",
    summary="Revoke a key",
    description="Refused from now on by serve, and within seconds by the edge. Revoking it again changes nothing.",
    responses=documented("not_found", "conflict"),
)
async def revoke_key(sender: UUID, key: UUID, db: Db) -> Revoked:
    return await _revoke(db, sender, key)


@routes.delete(
    "/senders/{sender}/keys",
    summary="Revoke all keys of a sender, and the public keys of its fleets with every token they signed",
    responses=documented("not_found", "conflict"),
)
async def revoke_keys(sender: UUID, db: Db) -> Revoked:
    return await _revoke(db, sender, None)


async def _revoke(db: Db, sender: UUID, key: UUID | None) -> Revoked:
    try:
        revoked = await stored.revoke_keys(db, sender, key)
    except stored.LastKey:
        detail = "No administrator would be left with a key; make another one first."
        raise Refusal("conflict", detail) from None
    if revoked is None:
        detail = f"Sender {sender} has no key {key}; GET /v1/senders/{sender}/keys lists them."
        raise senders.unknown(sender) if key is None else Refusal("not_found", detail)
    return Revoked(revoked=revoked)
