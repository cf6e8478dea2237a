"""Who may send and read: senders and their keys."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self
from uuid import UUID

from fastapi import APIRouter, Depends, Query, Response
from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError

from drm_ingest import public_key
from drm_ingest.errors import Refusal
from drm_ingest.event import SUBJECT_CHARACTERS_MAX, TYPE_CHARACTERS_MAX
from drm_ingest.postgres import registry
from drm_ingest.serve import pages
from drm_ingest.serve.access import Db, admin
from drm_ingest.serve.problems import documented, invalid
from drm_ingest.serve.shapes import Page, PageQuery, Request, Subject, Text, Time

routes = APIRouter(prefix="/v1/senders", tags=["senders"], dependencies=[Depends(admin)])

Rate = Annotated[float, Field(ge=1e-6, le=1e12, allow_inf_nan=False)]
_ID = "01a202fd-12a9-75d6-a27e-21b5246620a3"


class NewSender(Request):
    model_config = ConfigDict(json_schema_extra={"examples": [{"name": "thermostat fleet"}]})

    name: Annotated[Text, StringConstraints(min_length=1, max_length=100)]
    role: Literal["sender", "reader", "admin"] = Field(
        "sender", description="sender: sends events; reader: reads parties, devices, relationships, events; admin: all"
    )
    device: Subject | None = Field(None, description="the only device it may send for, and the one it means")


class Quota(Request):
    """What a sender may send on average, events and bytes before compression; null: as much as it likes."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"events_per_s": 1000, "device_events_per_s": 10}]})

    events_per_s: Rate | None = Field(None, description="all its keys and devices together")
    bytes_per_s: Rate | None = Field(None, description="all its keys and devices together")
    device_events_per_s: Rate | None = Field(None, description="each of its devices")
    device_bytes_per_s: Rate | None = Field(None, description="each of its devices")
    burst_s: int = Field(10, ge=1, le=3600, description="so many seconds' worth may come at once")


class Sender(BaseModel):
    id: UUID = Field(examples=[_ID])
    name: str = Field(examples=["thermostat fleet"])
    role: str = Field(examples=["sender"])
    device: str | None = Field(examples=[None])
    created_at: Time
    quota: Quota

    @classmethod
    def of(cls, row: Mapping[str, Any]) -> Self:
        """Return it as it is shown."""
        quota = Quota(**{name: row[name] for name in Quota.model_fields})
        return cls(**{name: row[name] for name in cls.model_fields if name != "quota"}, quota=quota)


Devices = Annotated[
    list[Annotated[Text, StringConstraints(min_length=1, max_length=SUBJECT_CHARACTERS_MAX + 1)]],
    Field(min_length=1, max_length=10_000, description="ids, or beginnings as in meter-*", examples=[["meter-*"]]),
]
Types = Annotated[
    list[Annotated[Text, StringConstraints(min_length=1, max_length=TYPE_CHARACTERS_MAX + 1)]],
    Field(min_length=1, max_length=1000, description="types, or beginnings as in device.*", examples=[["device.*"]]),
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
                {"expires_at": "2027-06-30T00:00:00Z", "scope": {"devices": ["meter-*"], "types": ["device.*"]}}
            ]
        }
    )

    expires_at: Time | None = Field(None, description="null: never")
    scope: Scope | None = Field(None, description="null: everything")


class Key(BaseModel):
    id: UUID = Field(examples=[_ID])
    prefix: str = Field(description="its first characters, to recognise it by", examples=["drm_Xk3v9aQ2"])
    created_at: Time
    expires_at: Time | None
    revoked_at: Time | None
    scope: Scope

    @classmethod
    def of(cls, row: Mapping[str, Any], **more: str) -> Self:
        scope = {name: row[name] for name in Scope.model_fields}
        return cls(**{name: value for name, value in row.items() if name not in scope}, scope=Scope(**scope), **more)


class KeyShownOnce(Key):
    key: str = Field(description="stored nowhere: keep it now", examples=["drm_Xk3v9aQ2…"])


class NewFleetKey(Request):
    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {"public_key": {"kty": "OKP", "crv": "Ed25519", "x": "11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"}}
            ]
        }
    )

    public_key: Annotated[Text, StringConstraints(max_length=4000)] | dict[str, Any] = Field(
        description="Ed25519 or P-256; PEM (BEGIN PUBLIC KEY), or a JWK. Never the private half."
    )
    kid: Annotated[Text, StringConstraints(pattern=r"^[A-Za-z0-9._:/+=-]{1,100}$")] | None = Field(
        None, description="how tokens name it; left out: the kid of the JWK, or the key's thumbprint (RFC 7638)"
    )
    expires_at: Time | None = Field(None, description="null: never")
    scope: DeviceScope = Field(default_factory=DeviceScope)


class FleetKey(BaseModel):
    id: UUID = Field(examples=[_ID])
    kid: str = Field(examples=["kPrK_qmxVWaYVA9wwBF6Iuo3vVzz7TxHCTwXBygrS4k"])
    algorithm: str = Field(examples=["EdDSA"])
    public_key: str = Field(description="PEM")
    created_at: Time
    expires_at: Time | None
    revoked_at: Time | None
    scope: DeviceScope

    @classmethod
    def of(cls, row: Mapping[str, Any]) -> "FleetKey":
        scope = {name: row[name] for name in DeviceScope.model_fields}
        return cls(**{name: value for name, value in row.items() if name not in scope}, scope=DeviceScope(**scope))


class Revoked(BaseModel):
    revoked: int = Field(description="keys that were in force until now", examples=[2])


def _unknown(sender: UUID) -> Refusal:
    return Refusal("not_found", f"There is no sender {sender}; GET /v1/senders lists them.")


@routes.post("", status_code=201, summary="Make a sender", responses=documented("conflict"))
async def create(body: NewSender, response: Response, db: Db) -> Sender:
    if body.device is not None and body.role != "sender":
        raise invalid("Only the role sender can be bound to a device.", pointer="/device")
    try:
        row = await registry.create_sender(db, body.name, body.role, body.device)
    except registry.NameTaken as taken:
        detail = f"Sender {taken.sender} has that name; make a key for it, or choose another name."
        raise Refusal("conflict", detail, sender=taken.sender) from None
    response.headers["location"] = f"/v1/senders/{row['id']}"
    return Sender.of(row)


@routes.get("", summary="List senders", responses=documented())
async def list_(query: Annotated[PageQuery, Query()], db: Db) -> Page[Sender]:
    after = pages.start(query, "senders", UUID)
    rows, last = pages.cut(await registry.senders(db, after, query.limit + 1), query)
    return Page(items=[Sender.of(row) for row in rows], next=last and pages.end(query, "senders", last["id"]))


@routes.get("/{sender}", summary="Read a sender", responses=documented("not_found"))
async def read(sender: UUID, db: Db) -> Sender:
    row = await registry.sender(db, sender)
    if row is None:
        raise _unknown(sender)
    return Sender.of(row)


@routes.put(
    "/{sender}/quota",
    summary="Set the quotas of a sender",
    description="All of them: what is left out is no quota. In force at every edge within seconds.",
    responses=documented("not_found"),
)
async def set_quota(sender: UUID, body: Quota, db: Db) -> Sender:
    row = await registry.set_quota(db, sender, body.model_dump())
    if row is None:
        raise _unknown(sender)
    return Sender.of(row)


@routes.post(
    "/{sender}/keys",
    status_code=201,
    summary="Make a key",
    description="The key is in this answer and nowhere else.",
    responses=documented("not_found"),
)
async def create_key(sender: UUID, response: Response, db: Db, body: NewKey | None = None) -> KeyShownOnce:
    body = body or NewKey(expires_at=None, scope=None)
    scope = registry.Scope() if body.scope is None else registry.Scope(**body.scope.model_dump())
    created = await registry.create_key(db, sender, body.expires_at, scope)
    if created is None:
        raise _unknown(sender)
    row, key = created
    response.headers["cache-control"] = "no-store"
    return KeyShownOnce.of(row, key=key)


@routes.get("/{sender}/keys", summary="List keys by their first characters", responses=documented("not_found"))
async def list_keys(sender: UUID, query: Annotated[PageQuery, Query()], db: Db) -> Page[Key]:
    list_ = f"keys of {sender}"
    after = pages.start(query, list_, UUID)
    if await registry.sender(db, sender) is None:
        raise _unknown(sender)
    rows, last = pages.cut(await registry.keys(db, sender, after, query.limit + 1), query)
    return Page(items=[Key.of(row) for row in rows], next=last and pages.end(query, list_, last["id"]))


@routes.delete(
    "/{sender}/keys/{key}",
    summary="Revoke a key",
    description="Refused from now on by serve, and within seconds by the edge. Revoking it again changes nothing.",
    responses=documented("not_found", "conflict"),
)
async def revoke_key(sender: UUID, key: UUID, db: Db) -> Revoked:
    return await _revoke(db, sender, key)


@routes.delete(
    "/{sender}/keys",
    summary="Revoke all keys of a sender, and the public keys of its fleets with every token they signed",
    responses=documented("not_found", "conflict"),
)
async def revoke_keys(sender: UUID, db: Db) -> Revoked:
    return await _revoke(db, sender, None)


@routes.post(
    "/{sender}/fleet-keys",
    status_code=201,
    summary="Register the public key of a fleet",
    description="Whoever holds its private half signs tokens for the devices of the fleet: docs/credentials.md. "
    "Several may be in force; one that was registered before, and revoked, is not taken again.",
    responses=documented("not_found", "conflict"),
)
async def create_fleet_key(sender: UUID, body: NewFleetKey, db: Db) -> FleetKey:
    row = await registry.sender(db, sender)
    if row is None:
        raise _unknown(sender)
    if row["role"] != "sender" or row["device"] is not None:
        detail = "Fleets belong to a sender with the role sender that is not bound to one device."
        raise Refusal("conflict", detail)
    try:
        key = public_key.read(body.public_key)
    except public_key.BadKey as bad:
        raise invalid(str(bad), pointer="/public_key") from None
    try:
        made = await registry.create_fleet_key(
            db, sender, _kid(body), key, body.expires_at, registry.Scope(**body.scope.model_dump())
        )
    except registry.KeyTaken as taken:
        detail = f"The key or its kid is registered, or was: fleet key {taken.key} of sender {taken.sender}."
        raise Refusal("conflict", detail, sender=taken.sender, fleet_key=taken.key) from None
    return FleetKey.of(made)


@routes.get("/{sender}/fleet-keys", summary="List the public keys of a fleet", responses=documented("not_found"))
async def list_fleet_keys(sender: UUID, query: Annotated[PageQuery, Query()], db: Db) -> Page[FleetKey]:
    list_ = f"fleet keys of {sender}"
    after = pages.start(query, list_, UUID)
    if await registry.sender(db, sender) is None:
        raise _unknown(sender)
    rows, last = pages.cut(await registry.fleet_keys(db, sender, after, query.limit + 1), query)
    return Page(items=[FleetKey.of(row) for row in rows], next=last and pages.end(query, list_, last["id"]))


@routes.delete(
    "/{sender}/fleet-keys/{key}",
    summary="Revoke the public key of a fleet, and with it every token it signed",
    description="The edge refuses them within seconds. Revoking it again changes nothing.",
    responses=documented("not_found"),
)
async def revoke_fleet_key(sender: UUID, key: UUID, db: Db) -> Revoked:
    revoked = await registry.revoke_fleet_key(db, sender, key)
    if revoked is None:
        detail = f"Sender {sender} has no fleet key {key}; GET /v1/senders/{sender}/fleet-keys lists them."
        raise Refusal("not_found", detail)
    return Revoked(revoked=revoked)


def _kid(body: NewFleetKey) -> str | None:
    """Return the name the key is to have, if it was given one.

    Raises:
        Refusal: invalid_parameters.
    """
    if body.kid is not None or not isinstance(body.public_key, dict) or "kid" not in body.public_key:
        return body.kid
    try:
        return NewFleetKey(public_key="", kid=body.public_key["kid"], expires_at=None).kid
    except ValidationError:
        raise invalid("kid is 1 to 100 of A-Z a-z 0-9 . _ : / + = -", pointer="/public_key/kid") from None


async def _revoke(db: Db, sender: UUID, key: UUID | None) -> Revoked:
    try:
        revoked = await registry.revoke_keys(db, sender, key)
    except registry.LastKey:
        detail = "No administrator would be left with a key; make another one first."
        raise Refusal("conflict", detail) from None
    if revoked is None:
        detail = f"Sender {sender} has no key {key}; GET /v1/senders/{sender}/keys lists them."
        raise _unknown(sender) if key is None else Refusal("not_found", detail)
    return Revoked(revoked=revoked)
