"""Read a record of the ingress topic: the event's own attributes, the facts of its receipt, what the edge assigned."""

from datetime import UTC, datetime, timedelta
from typing import Annotated

import msgspec
from aiokafka import ConsumerRecord
from msgspec import UNSET, Meta, Struct, UnsetType

from drm_ingest.errors import Rejected
from drm_ingest.event import (
    HEADER_ASSIGNED,
    HEADER_CONTENT_HASH,
    HEADER_RECEIPT,
    ID_CHARACTERS_MAX,
    SOURCE_CHARACTERS_MAX,
    SUBJECT_CHARACTERS_MAX,
    TYPE_CHARACTERS_MAX,
    Assigned,
    Receipt,
    parse_time,
)
from drm_ingest.examine import far_off, refuse_too_deep, refuse_unreadable, refuse_unstorable
from drm_ingest.pipeline.splice import fragment, without

DEPTH_MAX = 500  # the most that DRM_EVENT_DEPTH_MAX can be, so that nothing an edge took is refused here
Text = Annotated[str, Meta(max_length=SOURCE_CHARACTERS_MAX)] | UnsetType | None


class Unreadable(Exception):
    """The record is not an event as the edge writes them; the message says why."""


class Sent(Struct, gc=False):
    """The attributes that enrichment needs; `data` is skipped, its bytes go on as they are.

    UNSET and None differ: what is missing is spliced in, an explicit null has to go first.
    """

    type: Annotated[str, Meta(min_length=1, max_length=TYPE_CHARACTERS_MAX)]
    id: Annotated[str, Meta(max_length=ID_CHARACTERS_MAX)] | UnsetType | None = UNSET
    subject: Annotated[str, Meta(max_length=SUBJECT_CHARACTERS_MAX)] | UnsetType | None = UNSET
    source: Text = UNSET
    specversion: Text = UNSET
    time: Annotated[datetime, Meta(tz=True)] | UnsetType | None = UNSET


class Timed(Struct, gc=False):
    """The time alone, as text."""

    time: str


class Received(Struct, gc=False, frozen=True):
    """A receipt, with what follows from it for each of its events."""

    receipt: Receipt
    clock_offset: timedelta
    attributes: bytes  # receivedat, sender, requestid


_NO_OFFSET = timedelta()
_NOTHING_ASSIGNED = Assigned()


class IngressReader:
    """Turns records into what the steps of enrichment need."""

    def __init__(self) -> None:
        self._decode = msgspec.json.Decoder(Sent).decode
        self._decode_time = msgspec.json.Decoder(Timed).decode
        self._decode_receipt = msgspec.json.Decoder(Receipt).decode
        self._decode_assigned = msgspec.json.Decoder(Assigned).decode
        self._receipt = b""  # the latest
        self._received: Received

    def read(self, record: ConsumerRecord) -> tuple[Sent, Received, Assigned, bytes]:
        """Return the event's attributes, its receipt, what was assigned, and the hash of its content.

        Raises:
            Unreadable: it was not the edge that wrote this, or something broke it.
        """
        headers = dict(record.headers)
        receipt, content_hash = headers.get(HEADER_RECEIPT), headers.get(HEADER_CONTENT_HASH)
        if not receipt or content_hash is None or len(content_hash) != 16:
            raise Unreadable(
                "the record has no receipt or no content-hash header: only the edge writes to the ingress topic"
            )
        # All events of a request carry the same receipt, and follow one another.
        received = self._received if receipt == self._receipt else self._read_receipt(receipt)
        assigned = self._read_assigned(headers[HEADER_ASSIGNED]) if HEADER_ASSIGNED in headers else _NOTHING_ASSIGNED
        return self._event(record.value), received, assigned, content_hash

    def _event(self, value: bytes | None) -> Sent:
        if not value:
            raise Unreadable("the record is empty")
        try:
            sent = self._decode_last(value)
            # msgspec does not look at the encoding of what it skips. Plain ASCII without escapes needs no second look.
            if not value.isascii():
                value.decode()
            # The edge has looked at all this; what was written past it has to be found before readers stumble on it.
            refuse_unstorable(value)
            if far_off(value):
                refuse_unreadable(value)
            if value.count(b"[") + value.count(b"{") > DEPTH_MAX:
                refuse_too_deep(value, DEPTH_MAX)
        except Rejected as rejected:
            raise Unreadable(f"{rejected.code}: {rejected.detail}") from None
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise Unreadable(f"not an event: {error}") from None
        return sent

    def _decode_last(self, value: bytes) -> Sent:
        """Of an attribute given twice the last counts, as at the edge; msgspec minds the first too."""
        try:
            return self._decode(value)
        except msgspec.ValidationError:
            value = without(value, ())
        try:
            return self._decode(value)
        except msgspec.ValidationError as error:
            return self._decode_leap_second(value, error)

    def _decode_leap_second(self, value: bytes, error: msgspec.ValidationError) -> Sent:
        """Try what the decoder's own calendar has no place for; if that is not it, raise the error."""
        try:
            time = parse_time(self._decode_time(value).time)
        except ValueError:
            raise error from None
        sent = self._decode(without(value, ("time",)))
        sent.time = time
        return sent

    def _read_receipt(self, header: bytes) -> Received:
        try:
            receipt = self._decode_receipt(header)
            offset = timedelta(milliseconds=receipt.clock_offset_ms) if receipt.clock_offset_ms else _NO_OFFSET
            if receipt.received_at.tzinfo is not UTC:
                receipt.received_at = receipt.received_at.astimezone(UTC)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, OverflowError) as error:
            raise Unreadable(f"its receipt header cannot be read: {error}") from None
        attributes = fragment(receivedat=receipt.received_at, sender=receipt.sender, requestid=receipt.request_id)
        self._receipt, self._received = header, Received(receipt, offset, attributes)
        return self._received

    def _read_assigned(self, header: bytes | None) -> Assigned:
        try:
            return self._decode_assigned(header or b"")
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise Unreadable(f"its assigned header cannot be read: {error}") from None
