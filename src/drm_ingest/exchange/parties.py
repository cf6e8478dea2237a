"""Parties from a file: found again by their references, with attributes under an origin."""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import asyncpg
from pydantic import Field, ValidationError

from drm_ingest.errors import Refusal
from drm_ingest.exchange.fields import Wrong, invalid_field, refusal_of, wrong_in_all
from drm_ingest.exchange.refused import LineCode, Refused
from drm_ingest.exchange.taking import Became, Context
from drm_ingest.postgres.bulk import parties as bulk
from drm_ingest.postgres.registry.parties import Reference
from drm_ingest.serve import parties as door
from drm_ingest.serve.attributes import AttributeName, Origin, stored
from drm_ingest.serve.shapes import Time

LINES = 10_000
_NO_ORIGIN = "Say which system its attributes are from."


class Party(door.NewParty):
    """What the door takes, with attributes."""

    attributes: dict[AttributeName, Any] = Field(default_factory=dict, max_length=1000)
    origin: Origin | None = None
    said_at: Time | None = None


def wrong(known: Mapping[str, Any]) -> Wrong:
    """Tell what is wrong in every line."""
    yield from wrong_in_all(Party, known)
    if not known.get("refs"):
        yield "/refs", LineCode.REFERENCE_MISSING.remedy
    if known.get("attributes") and "origin" not in known:
        yield "/origin", _NO_ORIGIN


class Parties:
    """Takes parties, many in one transaction."""

    lines = LINES

    def __init__(self, context: Context) -> None:
        settings = context.settings
        self._context = context
        self._limits = bulk.Limits(settings.party_references_max, settings.party_attributes_max)
        self._imagined: dict[Reference, bulk.Found] | None = {} if context.dry_run else None

    def read(self, fields: Any) -> bulk.Wanted:
        """Return the party of a line, under the rules of the door.

        Raises:
            Refused
        """
        try:
            party = Party.model_validate(fields)
        except ValidationError as error:
            raise invalid_field(error, fields) from None
        settings = self._context.settings
        try:
            refs = tuple(door.kept(party.refs, settings))
        except Refusal as refusal:
            raise refusal_of(refusal, LineCode.REFERENCE_REFUSED) from None
        if not refs:
            raise Refused(LineCode.REFERENCE_MISSING, pointer="/refs")
        said_at = party.said_at or self._context.file_written_at
        if said_at > datetime.now(UTC) + timedelta(seconds=settings.event_future_max_s):
            raise Refused(LineCode.FIELD_INVALID, "It lies in the future; check the time zone.", "/said_at")
        if party.attributes and party.origin is None:
            raise Refused(LineCode.FIELD_INVALID, _NO_ORIGIN, "/origin")
        try:
            values = {
                name: stored(name, value, settings.attribute_bytes_max) for name, value in party.attributes.items()
            }
        except Refusal as refusal:
            raise refusal_of(refusal, LineCode.FIELD_INVALID) from None
        return bulk.Wanted(party.kind, party.name, refs, party.origin or "", values, said_at)

    async def write(self, db: asyncpg.Connection, parties: Sequence[bulk.Wanted]) -> list[Became | Refused]:
        became = await bulk.bring(db, parties, self._limits, self._context.asserted_by, self._imagined)
        return [one if isinstance(one, str) else _refused(one) for one in became]


def _refused(why: bulk.Several | bulk.OtherKind | bulk.TooMany) -> Refused:
    if isinstance(why, bulk.Several):
        named = ", ".join(f"{ref} is party {party or 'of a line before'}" for ref, party in why.names.items())
        return Refused(LineCode.REFERENCE_CONFLICT, f"{named}. {LineCode.REFERENCE_CONFLICT.remedy}", "/refs")
    if isinstance(why, bulk.OtherKind):
        return Refused(LineCode.KIND_CONFLICT, f"The party is there as {why.kind}; correct one of the two.", "/kind")
    setting = f"DRM_PARTY_{why.what.upper()}_MAX"
    pointer = "/refs" if why.what == "references" else "/attributes"
    return Refused(LineCode.TOO_MANY, f"A party has at most {why.limit} {why.what} ({setting}).", pointer)
