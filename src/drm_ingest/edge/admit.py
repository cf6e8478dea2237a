"""Admit events: from the bytes of a request to records for Kafka and a result for each event. No I/O, no waiting."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from msgspec import Raw, Struct

from drm_ingest.edge.credentials import Credential
from drm_ingest.errors import EventCode
from drm_ingest.event import Receipt
from drm_ingest.metrics import Metrics
from drm_ingest.schema import Schemas
from drm_ingest.settings import Settings

Record = tuple[bytes, bytes, list[tuple[str, bytes]]]
"""Key (the subject), value (the event's own bytes) and headers, for the ingress topic."""


class Result(Struct, omit_defaults=True):
    """What the answer says of one event; an accepted event may have several, a rejected one has exactly one."""

    index: int
    id: str | None
    status: str
    code: EventCode
    pointer: str | None = None
    detail: str | None = None


@dataclass(slots=True)
class Admitted:
    """What became of a request; `received` = the records + the rejected events."""

    received: int
    records: list[Record] = field(default_factory=list)
    results: list[Result] = field(default_factory=list)
    record_bytes: int = 0
    """Keys, values and headers of the records: what the writer needs room for."""

    @property
    def all_rejected(self) -> bool:
        """Whether nothing is left to write although something was sent: answered 422."""
        return bool(self.received) and not self.records

    def answer(self, request_id: str) -> bytes:
        """Return the JSON of the answer: for a 200, or, all rejected, for the 422 (problem+json, with the results)."""
        raise NotImplementedError


class Admit:
    """The rules of the edge.

    Counts events as received, the refused ones as rejected, every code; what it lets through is in flight from here
    on, and whoever writes the records counts it out of `in_flight` and into its outcome.
    """

    def __init__(self, settings: Settings, schemas: Schemas, metrics: Metrics) -> None:
        """One a process."""

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
        raise NotImplementedError

    def events(self, events: Sequence[bytes | Raw | memoryview], credential: Credential, receipt: Receipt) -> Admitted:
        """Admit events that arrived one by one or were cut apart already.

        Raises:
            Refusal: there are too many, or the credential may not send.
        """
        raise NotImplementedError
