"""Devices from a file."""

from collections.abc import Sequence
from typing import Any

import asyncpg
from pydantic import ValidationError

from drm_ingest.event import PARTY_PREFIX
from drm_ingest.exchange.fields import invalid_field
from drm_ingest.exchange.refused import LineCode, Refused
from drm_ingest.exchange.taking import Became, Context
from drm_ingest.postgres.bulk import devices as bulk
from drm_ingest.serve.devices import DeviceDescription
from drm_ingest.serve.shapes import Subject

LINES = 10_000


class Device(DeviceDescription):
    """What the door takes, with its id."""

    subject: Subject


class Devices:
    """Takes devices, many in one transaction."""

    lines = LINES

    def __init__(self, context: Context) -> None:
        self._imagined: dict[str, bulk.Wanted] | None = {} if context.dry_run else None

    def read(self, fields: Any) -> bulk.Wanted:
        """Return the device of a line, under the rules of the door.

        Raises:
            Refused
        """
        try:
            device = Device.model_validate(fields)
        except ValidationError as error:
            raise invalid_field(error, fields) from None
        if device.subject.startswith(PARTY_PREFIX):
            raise Refused(LineCode.FIELD_INVALID, f"What begins with {PARTY_PREFIX} is no device.", "/subject")
        return bulk.Wanted(device.subject, device.model, device.firmware)

    async def write(self, db: asyncpg.Connection, devices: Sequence[bulk.Wanted]) -> list[Became | Refused]:
        return [*await bulk.put_many(db, devices, self._imagined)]
