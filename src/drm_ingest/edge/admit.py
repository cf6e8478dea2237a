"""Admit events: from the bytes of a request to records for Kafka and a result for each event. No I/O, no waiting.

media type → decompress → split into events, or make one of headers and body → judge each
"""

from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, field

import msgspec
from msgspec import Raw

from drm_ingest.edge.binary import structured
from drm_ingest.edge.credentials import Credential
from drm_ingest.edge.decompress import COMPRESSED, decompress, decompressing, undeclared
from drm_ingest.edge.judge import Judge, Record, Request, Result, rejection
from drm_ingest.edge.scope import OutOfScope
from drm_ingest.edge.split import WHITE, Media, media_of, refuse_too_many, split
from drm_ingest.errors import Refusal, Rejected
from drm_ingest.event import HEADER_CONTENT_HASH, HEADER_RECEIPT, Receipt
from drm_ingest.schema import Schemas
from drm_ingest.settings import Settings

ALL_REJECTED = "Correct the events as results tell."
ALL_FORBIDDEN = "The scope of this credential allows none of the events; it would need more of: {}."
SLICE_BYTES = 128 * 1024
"""What is judged in one go of a long body: 1 ms, and 15 of what must be looked at number by number."""
_SLICE_BYTES_PER_EVENT = 512  # what an event costs however small it is
_HASH_BYTES = 16
_encode: Callable[[object], bytes] = msgspec.json.Encoder().encode


@dataclass(slots=True)
class Admitted:
    """What became of a request; `received` = the records + the rejected events."""

    received: int
    records: list[Record] = field(default_factory=list)
    results: list[Result] = field(default_factory=list)
    record_bytes: int = 0
    """Keys, values and headers of the records: what the writer needs room for."""
    accepted: int = 0
    """How many records there are, or were: whoever has written them lets go of them."""
    out_of_scope: list[str] = field(default_factory=list)
    """For each event that the credential may not send, the part of its scope that would have to allow it."""
    body_bytes: int = 0
    """What the events were in, decompressed: what a quota counts."""

    @property
    def rejected(self) -> int:
        """How many events were refused."""
        return self.received - self.accepted

    @property
    def all_rejected(self) -> bool:
        """Whether nothing is left to write although something was sent: answered 422."""
        return bool(self.received) and not self.accepted

    @property
    def all_forbidden(self) -> bool:
        """Whether the credential may send nothing of it: answered 403."""
        return bool(self.out_of_scope) and len(self.out_of_scope) == self.received

    @property
    def forbidden(self) -> Refusal:
        """The problem of that."""
        missing = sorted(set(self.out_of_scope))
        details = {result.detail for result in self.results}
        detail = details.pop() if len(details) == 1 else ALL_FORBIDDEN.format(", ".join(missing))
        return Refusal("forbidden", detail, missing_scopes=missing)

    def answer(self, request_id: str) -> bytes:
        """Return the JSON of the answer: for a 200; or, all rejected, for the 422 or 403 (a problem, with results)."""
        if not self.results:
            return b'{"request_id":%b,"accepted":%d,"results":[]}' % (_encode(request_id), self.accepted)
        answer = {"request_id": request_id, "accepted": self.accepted, "results": self.results}
        if self.all_rejected:
            refusal = self.forbidden if self.all_forbidden else Refusal("all_rejected", ALL_REJECTED)
            answer = refusal.body(request_id) | answer
        return _encode(answer)


class Admit:
    """The rules of the edge. It counts nothing: a quota may yet refuse all of it."""

    def __init__(self, settings: Settings, schemas: Schemas) -> None:
        """One a process."""
        self._settings = settings
        self._judge = Judge(settings, schemas)

    def body(
        self,
        *,
        content_type: bytes,
        content_encoding: bytes,
        ce_headers: Mapping[str, str] | None,
        body: bytes,
        credential: Credential,
        receipt: Receipt,
    ) -> Admitted:
        """Admit the body of an HTTP request.

        `content_type` and `content_encoding` are the header values, empty where absent; `ce_headers` the `ce-*` headers
        by lower-case name without the `ce-`, values as sent (decoded as Latin-1), None or empty where there are none.

        Raises:
            Refusal: the whole request is refused, and no event of it was received.
        """
        media = _media_of(content_type, ce_headers, credential)
        if content_encoding:
            body = decompress(content_encoding, body, self._settings)
        elif body.startswith(COMPRESSED):
            raise undeclared(body)
        if media is Media.DATA and ce_headers:
            return self._binary(ce_headers, content_type, body, credential, receipt)
        return self._admit(split(body, media, self._settings.request_events_max), body, credential, receipt)

    def in_slices(
        self,
        *,
        content_type: bytes,
        content_encoding: bytes,
        ce_headers: Mapping[str, str] | None,
        body: bytes,
        credential: Credential,
        receipt: Receipt,
    ) -> Generator[None, None, Admitted]:
        """Do what `body` does; yield after each slice of the work, so that others are served between them.

        Raises:
            Refusal: as `body`.
        """
        media = _media_of(content_type, ce_headers, credential)
        if content_encoding:
            body = yield from decompressing(content_encoding, body, self._settings)
            yield
        elif body.startswith(COMPRESSED):
            raise undeclared(body)
        if media is Media.DATA and ce_headers:
            return self._binary(ce_headers, content_type, body, credential, receipt)
        values = split(body, media, self._settings.request_events_max)
        yield
        slices = self._slices(values, body, credential, receipt)
        del body  # the events have copies of it
        return (yield from slices)

    def events_in_slices(
        self, events: Sequence[bytes | Raw | memoryview], credential: Credential, receipt: Receipt
    ) -> Generator[None, None, Admitted]:
        """Do what `events` does; yield after each slice of the work.

        Raises:
            Refusal: as `events`.
        """
        refuse_readers(credential)
        refuse_too_many(len(events), self._settings.websocket_message_events_max)
        values = [bytes(event).strip(WHITE) for event in events]
        return (yield from self._slices(values, b"\n".join(values), credential, receipt))

    def _slices(
        self, values: list[bytes], body: bytes, credential: Credential, receipt: Receipt
    ) -> Generator[None, None, Admitted]:
        request = self._judge.request(credential, receipt, body)
        admitted = Admitted(len(values), results=request.results, body_bytes=len(body))
        del body
        yield
        start, cost = 0, 0
        for end, value in enumerate(values, 1):
            cost += len(value) + _SLICE_BYTES_PER_EVENT
            if cost >= SLICE_BYTES or end == len(values):
                self._judge_some(values, start, end, request, admitted)
                start, cost = end, 0
                yield
        return admitted

    def events(self, events: Sequence[bytes | Raw | memoryview], credential: Credential, receipt: Receipt) -> Admitted:
        """Admit the events of a WebSocket message.

        Raises:
            Refusal: there are too many, or the credential may not send.
        """
        refuse_readers(credential)
        refuse_too_many(len(events), self._settings.websocket_message_events_max)
        values = [bytes(event).strip(WHITE) for event in events]
        return self._admit(values, b"\n".join(values), credential, receipt)

    def _binary(
        self, headers: Mapping[str, str], content_type: bytes, body: bytes, credential: Credential, receipt: Receipt
    ) -> Admitted:
        try:
            self._judge.refuse_too_large(body)
            value = structured(headers, content_type, body)
        except Rejected as rejected:
            return Admitted(1, results=[rejection(0, rejected)], body_bytes=len(body))
        return self._admit([value], value, credential, receipt)

    def _admit(self, values: list[bytes], body: bytes, credential: Credential, receipt: Receipt) -> Admitted:
        """Judge each event; `body` holds the bytes of all of them."""
        request = self._judge.request(credential, receipt, body)
        admitted = Admitted(len(values), results=request.results, body_bytes=len(body))
        self._judge_some(values, 0, len(values), request, admitted)
        return admitted

    def _judge_some(self, values: list[bytes], start: int, end: int, request: Request, admitted: Admitted) -> None:
        """Judge some of the events."""
        judge, records = self._judge.record, admitted.records
        usual_bytes = len(HEADER_RECEIPT) + len(request.receipt_header[1]) + len(HEADER_CONTENT_HASH) + _HASH_BYTES
        record_bytes = 0
        for index in range(start, end):
            value = values[index]
            try:
                record = judge(index, value, request)
            except Rejected as rejected:
                request.results.append(rejection(index, rejected, value))
                if isinstance(rejected, OutOfScope):
                    admitted.out_of_scope.append(rejected.scope)
                continue
            records.append(record)
            key, _, headers = record
            record_bytes += len(key) + len(value) + usual_bytes
            if len(headers) > 2:
                for name, header in headers[2:]:
                    record_bytes += len(name) + len(header)
        admitted.record_bytes += record_bytes
        admitted.accepted = len(records)


def _media_of(content_type: bytes, ce_headers: Mapping[str, str] | None, credential: Credential) -> Media:
    if credential.role == "reader":
        refuse_readers(credential)
    return media_of(content_type, binary=bool(ce_headers))


def refuse_readers(credential: Credential) -> None:
    if credential.role == "reader":
        raise Refusal("forbidden", "This key may only read; send with the key of a sender.")
