"""Origins: the systems that say what parties are, and which of them is believed first."""

from typing import Annotated

from fastapi import APIRouter, Depends
from pydantic import AfterValidator, BaseModel, ConfigDict, Field
from pydantic.config import JsonDict

from drm_ingest.postgres.registry import attributes
from drm_ingest.serve.access import Db, Stored, admin, reader
from drm_ingest.serve.attributes import Origin
from drm_ingest.serve.problems import documented, invalid
from drm_ingest.serve.shapes import ITEMS_MAX, Request

routes = APIRouter(prefix="/v1/origins", tags=["parties"])

_EXAMPLES: JsonDict = {"examples": [{"origins": ["crm", "erp", "shop"]}]}


def _once_each(origins: list[str]) -> list[str]:
    if len(set(origins)) < len(origins):
        raise ValueError("names an origin twice")
    return origins


class Trusted(Request):
    model_config = ConfigDict(json_schema_extra=_EXAMPLES)

    origins: Annotated[list[Origin], AfterValidator(_once_each)] = Field(
        max_length=ITEMS_MAX, description="the most trusted first; others come after all of these"
    )


class Origins(BaseModel):
    model_config = ConfigDict(json_schema_extra=_EXAMPLES)

    origins: list[str] = Field(description="the most trusted first; others come after all of these")


@routes.get("", summary="The order of trust", responses=documented(), dependencies=[Depends(reader)])
async def read(db: Db) -> Origins:
    return Origins(origins=await attributes.origins(db))


@routes.put(
    "",
    summary="Declare the order of trust",
    description="In place of the one before; every record shows the values it agrees on with the next read.",
    responses=documented(),
    dependencies=[Depends(admin)],
)
async def put(body: Trusted, db: Db, store: Stored) -> Origins:
    limit = store.settings.origins_max
    if len(body.origins) > limit:
        raise invalid(f"At most {limit} origins are in the order (DRM_ORIGINS_MAX).", pointer="/origins")
    await attributes.declare_origins(db, body.origins)
    return Origins(origins=await attributes.origins(db))
