"""Judge one event: take it through all the rules, to a record for Kafka or to the reason why not.

size → depth → decode → storable → type → subject → time → data against its schema → identity → record
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from secrets import token_hex
from typing import Literal

import msgspec
import orjson
from msgspec import UNSET, Raw, Struct, UnsetType

from drm_ingest.edge.check import check_party, own_subject, refuse_ambiguous
from drm_ingest.edge.credentials import Credential
from drm_ingest.edge.decode import decode
from drm_ingest.errors import EventCode, Rejected
from drm_ingest.event import (
    HEADER_ASSIGNED,
    HEADER_CONTENT_HASH,
    HEADER_RECEIPT,
    PARTY_PREFIX,
    Assigned,
    Receipt,
    TimeQuality,
    content_hash,
    derived_id,
    occurred_at,
    parse_time,
)
from drm_ingest.examine import id_of, odd, reason, refuse_too_deep, refuse_unreadable, refuse_unstorable
from drm_ingest.schema import Schema, Schemas, UnknownVersion
from drm_ingest.settings import Settings

Headers = list[tuple[str, bytes]]
Record = tuple[bytes, bytes, Headers]
"""Key (the subject), value (the event's own bytes) and headers, for the ingress topic."""

ID_DERIVED = (
    "No id was sent; this one is derived from subject, type, time and data, so the same event sent again gets it again."
)
ID_RANDOM = (
    "Neither id nor time was sent; this id is random, so a retry of the event would be stored again. "
    "Send an id, or a time."
)
_SEND_TIME = EventCode.TIME_INVALID.remedy[0].lower() + EventCode.TIME_INVALID.remedy[1:]
_loads = orjson.loads
_escaped_letter = re.compile(rb"\\u00[67]").search  # which hardly any encoder writes
_encode: Callable[[object], bytes] = msgspec.json.Encoder().encode


class Result(Struct, omit_defaults=True):
    """What the answer says of one event; an accepted one may have several, a rejected one has exactly one."""

    index: int
    status: Literal["accepted", "rejected"]
    code: EventCode
    detail: str
    id: str | None = None
    pointer: str | None = None


@dataclass(slots=True)
class Request:
    """What the events of a request have in common, and what is told of them."""

    credential: Credential
    receipt: Receipt
    receipt_header: tuple[str, bytes]
    odd: bool
    """Some event may hold what decoders let through and Postgres does not."""
    escaped: bool
    """Some event may have a `data` whose name is written in escapes."""
    latest: datetime
    """What happens later, by a clock that is right, is too far in the future."""
    results: list[Result]


class Judge:
    """The rules for an event."""

    def __init__(self, settings: Settings, schemas: Schemas) -> None:
        """One a process."""
        self._find_schema = schemas.find
        self._future_max = timedelta(seconds=settings.event_future_max_s)
        self._event_bytes_max = settings.event_bytes_max
        self._depth_max = settings.event_depth_max

    def request(self, credential: Credential, receipt: Receipt, body: bytes) -> Request:
        """Return what the events of a request have in common; `body` holds the bytes of all of them."""
        latest = receipt.received_at + self._future_max
        escaped = b"\\u00" in body and _escaped_letter(body) is not None
        return Request(credential, receipt, (HEADER_RECEIPT, _encode(receipt)), odd(body), escaped, latest, [])

    def record(self, index: int, value: bytes, request: Request) -> Record:  # noqa: PLR0912 - a branch is a rule
        """Take one event through all the rules; what there is to say of an accepted one goes to the results.

        Raises:
            Rejected: it breaks one.
        """
        if len(value) > self._event_bytes_max:
            self.refuse_too_large(value)
        if value.count(b"{") + value.count(b"[") > self._depth_max:
            refuse_too_deep(value, self._depth_max)
        event = decode(value)
        if request.odd:
            refuse_unstorable(value)

        type_ = event.type
        if type_ is None:
            raise Rejected(
                EventCode.ATTRIBUTE_MISSING, "/type", "Name the type of the event, as in device.measurement."
            )
        try:
            schema = self._find_schema(type_, event.dataschema)
        except UnknownVersion as error:
            raise Rejected(EventCode.SCHEMA_UNKNOWN, "/dataschema", f"{error}.") from None

        credential = request.credential
        device, scope, subject = credential.device, credential.scope, event.subject
        if device is not None and subject != device:
            subject = own_subject(subject, device)
        if subject is None:
            raise Rejected(EventCode.SUBJECT_MISSING, "/subject")
        source = event.source
        if subject.startswith(PARTY_PREFIX):
            check_party(subject)
            source = credential.sender if source is None else source
        if device is not None or scope is not None:
            # Of two types it matters which one counts only where a scope may list types.
            if value.count(b'"subject"') > 1 or b"\\" in value or (scope is not None and value.count(b'"type"') > 1):
                refuse_ambiguous(value)
            if scope is not None:
                scope.refuse(type_, subject)

        time = event.time
        clamped = time is not None and self._is_too_far_ahead(time, request)
        data = _checked(event.data, schema, type_, value, request)
        id_ = event.id or (token_hex(16) if time is None else derived_id(subject, type_, time, data))

        headers = [request.receipt_header, (HEADER_CONTENT_HASH, content_hash(type_, time, data))]
        if id_ is not event.id or subject is not event.subject or source is not event.source:
            assigned = Assigned(
                id=None if id_ is event.id else id_,
                subject=None if subject is event.subject else subject,
                source=None if source is event.source else source,
            )
            headers.append((HEADER_ASSIGNED, _encode(assigned)))
        if schema is None:
            request.results.append(_remark(index, id_, EventCode.UNCLASSIFIED_TYPE))
        if time is None:
            request.results.append(_remark(index, id_, EventCode.TIME_ASSUMED))
        if clamped:
            request.results.append(_remark(index, id_, EventCode.TIME_CLAMPED))
        if event.id is None:
            detail = ID_RANDOM if time is None else ID_DERIVED
            request.results.append(Result(index, "accepted", EventCode.ID_ASSIGNED, detail, id_))
        return subject.encode(), value, headers

    def refuse_too_large(self, value: bytes) -> None:
        """Refuse an event, or the data of one, that is larger than allowed.

        Raises:
            Rejected: event_too_large.
        """
        if len(value) > self._event_bytes_max:
            raise Rejected(
                EventCode.EVENT_TOO_LARGE, detail=f"Send at most {self._event_bytes_max} bytes in one event."
            )

    def _is_too_far_ahead(self, text: str, request: Request) -> bool:
        try:
            time = parse_time(text)
        except ValueError as error:
            raise Rejected(EventCode.TIME_INVALID, "/time", f"time {error}; {_SEND_TIME}") from None
        receipt = request.receipt
        if not receipt.clock_offset_ms:
            return time > request.latest
        offset = timedelta(milliseconds=receipt.clock_offset_ms)
        return occurred_at(time, receipt.received_at, offset, self._future_max)[1] is TimeQuality.CLAMPED


def rejection(index: int, rejected: Rejected, value: bytes = b"") -> Result:
    """Return what the answer says of a rejected event: its id too, if it can be read."""
    id_ = None if rejected.code is EventCode.EVENT_TOO_LARGE else id_of(value)
    return Result(index, "rejected", rejected.code, rejected.detail, id_, rejected.pointer)


def _checked(
    raw: Raw | UnsetType, schema: Schema | None, type_: str, value: bytes, request: Request
) -> bytes | memoryview:
    """Return the bytes of `data`, none where there is none, checked against the schema of its type."""
    if raw is UNSET:
        if schema is not None and schema.data_required:
            raise Rejected(EventCode.SCHEMA_VIOLATION, "/data", f"data is missing; {type_} needs it.")
        return b""
    if request.escaped or value.count(b'"data"') > 1:  # perhaps given twice; of the first nothing is known yet
        refuse_unreadable(value)
    data = memoryview(raw)
    try:
        content = _loads(data)
    except orjson.JSONDecodeError as error:
        raise reason(value, error) from None
    if schema is not None and not schema.is_valid(content):
        raise Rejected(EventCode.SCHEMA_VIOLATION, *schema.first_violation(content))
    return data


def _remark(index: int, id_: str, code: EventCode) -> Result:
    return Result(index, "accepted", code, code.remedy, id_)
