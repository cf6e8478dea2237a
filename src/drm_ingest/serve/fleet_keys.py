"""The public keys of fleets, whose tokens let devices in."""

from collections.abc import Mapping
from typing import Annotated, Any
from uuid import UUID

from fastapi import APIRouter, Depends, Query
from pydantic import BaseModel, ConfigDict, Discriminator, Field, StringConstraints, Tag, ValidationError

from drm_ingest import public_key
from drm_ingest.errors import Refusal
from drm_ingest.postgres.registry import senders as stored
from drm_ingest.serve import pages, senders
from drm_ingest.serve.access import Db, admin
from drm_ingest.serve.keys import DeviceScope, Revoked
from drm_ingest.serve.problems import documented, invalid
from drm_ingest.serve.shapes import Expiry, Page, PageQuery, Request, StoredTime, Text

routes = APIRouter(prefix="/v1/senders", tags=["senders"], dependencies=[Depends(admin)])

_ID = "01a202fd-12a9-75d6-a27e-21b5246620a3"


PublicKey = Annotated[
    Annotated[Text, StringConstraints(max_length=4000), Tag("PEM")] | Annotated[dict[str, Any], Tag("JWK")],
    Discriminator(lambda sent: {str: "PEM", dict: "JWK"}.get(type(sent))),
]


class NewFleetKey(Request):
    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {"public_key": {"kty": "OKP", "crv": "Ed25519", "x": "11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"}}
            ]
        }
    )

    public_key: PublicKey = Field(
        description="Ed25519 or P-256; PEM (BEGIN PUBLIC KEY), or a JWK. Never the private half."
    )
    kid: Annotated[Text, StringConstraints(pattern=r"^[A-Za-z0-9._:/+=-]{1,100}$")] | None = Field(
        None, description="how tokens name it; left out: the kid of the JWK, or the key's thumbprint (RFC 7638)"
    )
    expires_at: Expiry | None = Field(None, description="lies ahead; null: never")
    scope: DeviceScope = Field(default_factory=DeviceScope)


class FleetKey(BaseModel):
    id: UUID = Field(examples=[_ID])
    kid: str = Field(examples=["kPrK_qmxVWaYVA9wwBF6Iuo3vVzz7TxHCTwXBygrS4k"])
    algorithm: str = Field(examples=["EdDSA"])
    public_key: str = Field(description="PEM")
    created_at: StoredTime
    expires_at: StoredTime | None
    revoked_at: StoredTime | None
    scope: DeviceScope

    @classmethod
    def of(cls, row: Mapping[str, Any]) -> "FleetKey":
        scope = {name: row[name] for name in DeviceScope.model_fields}
        return cls(**{name: value for name, value in row.items() if name not in scope}, scope=DeviceScope(**scope))


@routes.post(
    "/{sender}/fleet-keys",
    status_code=201,
    summary="Register the public key of a fleet",
    description="Whoever holds its private half signs tokens for the devices of the fleet: docs/credentials.md. "
    "Several may be in force; one that was registered before, and revoked, is not taken again.",
    responses=documented("not_found", "conflict"),
)
async def create_fleet_key(sender: UUID, body: NewFleetKey, db: Db) -> FleetKey:
    row = await senders.known(db, sender)
    if row["role"] != "sender" or row["device"] is not None:
        detail = "Fleets belong to a sender with the role sender that is not bound to one device."
        raise Refusal("conflict", detail)
    try:
        key = public_key.read(body.public_key)
    except public_key.BadKey as bad:
        raise invalid(str(bad), pointer="/public_key") from None
    try:
        made = await stored.create_fleet_key(
            db, sender, _kid(body), key, body.expires_at, stored.Scope(**body.scope.model_dump())
        )
    except stored.KeyTaken as taken:
        detail = f"The key or its kid is registered, or was: fleet key {taken.key} of sender {taken.sender}."
        raise Refusal("conflict", detail, sender=taken.sender, fleet_key=taken.key) from None
    return FleetKey.of(made)


@routes.get("/{sender}/fleet-keys", summary="List the public keys of a fleet", responses=documented("not_found"))
async def list_fleet_keys(sender: UUID, query: Annotated[PageQuery, Query()], db: Db) -> Page[FleetKey]:
    list_ = f"fleet keys of {sender}"
    after = pages.start(query, list_, UUID)
    await senders.known(db, sender)
    rows, last = pages.cut(await stored.fleet_keys(db, sender, after, query.limit + 1), query)
    return Page(items=[FleetKey.of(row) for row in rows], next=last and pages.end(query, list_, last["id"]))


@routes.delete(
    "/{sender}/fleet-keys/{key}",
    summary="Revoke the public key of a fleet, and with it every token it signed",
    description="The edge refuses them within seconds. Revoking it again changes nothing.",
    responses=documented("not_found"),
)
async def revoke_fleet_key(sender: UUID, key: UUID, db: Db) -> Revoked:
    revoked = await stored.revoke_fleet_key(db, sender, key)
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
