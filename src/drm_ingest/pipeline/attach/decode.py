"""Read records of events topics into rows for Postgres, in one pass; `data` stays the sender's bytes."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Annotated

import msgspec
from aiokafka import ConsumerRecord
from msgspec import UNSET, Meta, Raw, Struct, UnsetType

from drm_ingest.errors import EventCode
from drm_ingest.event import identity_key, identity_source
from drm_ingest.pipeline.splice import without
from drm_ingest.postgres.store.dead import Dead
from drm_ingest.postgres.store.rows import Packer, Row

RECORDS_A_TURN = 250  # about 1 ms


class Unreadable(Exception):
    """The record is not an event as `enrich` writes them; the message says why."""


class Enriched(Struct, gc=False):
    """What is stored of an enriched event; other attributes are for product teams."""

    type: str
    id: str
    subject: str
    occurredat: Annotated[datetime, Meta(tz=True)]
    receivedat: Annotated[datetime, Meta(tz=True)]
    timequality: str
    contenthash: str
    sender: str
    source: str | None = None
    time: str | None = None
    sequence: str | None = None
    dataschema: str | None = None
    data: Raw | UnsetType = UNSET


@dataclass(slots=True)
class Decoded:
    """Records sorted by what can be told before Postgres is asked; the rows have distinct keys."""

    rows: list[Row] = field(default_factory=list)
    rivals: list[Row] = field(default_factory=list)
    """Each has the key of a row and another content; Postgres may know it all the same, from before the two."""
    dead: list[Dead] = field(default_factory=list)
    duplicates: int = 0


class Decoder:
    """Turns records into rows."""

    def __init__(self) -> None:
        self._decode = msgspec.json.Decoder(Enriched).decode
        self._pack = Packer().pack

    async def decode(self, records: Sequence[ConsumerRecord]) -> Decoded:
        """Decode all; now and then others get their turn, so that Postgres never waits long for its next bytes."""
        rows: dict[bytes, Row] = {}
        decoded = Decoded()
        for index, record in enumerate(records):
            if index % RECORDS_A_TURN == 0:
                await asyncio.sleep(0)
            try:
                row = self.row(record)
            except Unreadable as error:
                decoded.dead.append(Dead(record, EventCode.UNREADABLE, str(error)))
                continue
            first = rows.setdefault(row.key, row)
            if first is row:
                continue
            if first.content_hash == row.content_hash:
                decoded.duplicates += 1
            else:
                decoded.rivals.append(row)
        decoded.rows = list(rows.values())
        return decoded

    def _decode_last(self, value: bytes) -> Enriched:
        """Of an attribute given twice the last counts, as at the edge; msgspec minds the first too."""
        try:
            return self._decode(value)
        except msgspec.ValidationError:
            return self._decode(without(value, ()))

    def row(self, record: ConsumerRecord) -> Row:
        """Return the row of one record.

        Raises:
            Unreadable: see there.
        """
        if record.value is None:
            raise Unreadable("the record has no value")
        try:
            event = self._decode_last(record.value)
            subject = event.subject
            source = identity_source(subject, event.source)
            content_hash = bytes.fromhex(event.contenthash)
            if len(content_hash) != 16:
                raise Unreadable("contenthash must be 32 hexadecimal digits")
            data = event.data
            return self._pack(
                record, identity_key(subject, source, event.id), content_hash, event.occurredat, event.receivedat,
                subject, source, event.id, event.type, event.time, event.timequality, event.sequence, event.sender,
                event.dataschema, None if data is UNSET else data,
            )  # fmt: skip
        except RecursionError:
            raise Unreadable("nested too deeply") from None
        # msgspec's errors are ValueErrors, as are those of hexadecimal digits and of a lone surrogate.
        except (ValueError, OverflowError) as error:
            raise Unreadable(str(error)) from None
