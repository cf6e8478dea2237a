"""Take a request: who sends, is it within the limits, what does it hold; then write it, and answer.

The same steps for the door, the ordinary route and a WebSocket message; they differ only in how bytes come and go.
"""

import re
import secrets
from collections.abc import Callable, Generator, Mapping, Sequence
from datetime import UTC, datetime
from time import perf_counter
from typing import TypedDict

import structlog
from msgspec import Raw

from drm_ingest.edge.admit import SLICE_BYTES, Admit, Admitted, refuse_readers
from drm_ingest.edge.answer import Answer
from drm_ingest.edge.clock import Clock, stated_time
from drm_ingest.edge.credentials import Credential
from drm_ingest.edge.identify import Identify
from drm_ingest.edge.limits import Limits
from drm_ingest.edge.quota import Quota
from drm_ingest.edge.quotas import Quotas
from drm_ingest.edge.tell import Tell
from drm_ingest.edge.turns import Turns, Work
from drm_ingest.edge.write import Reply, Write
from drm_ingest.errors import Refusal
from drm_ingest.event import Receipt
from drm_ingest.logs import REQUEST_ID
from drm_ingest.settings import Settings

Headers = Mapping[bytes, bytes]
"""Names in lower case."""

_is_request_id = re.compile(REQUEST_ID.encode()).fullmatch
_USER_AGENT_CHARACTERS_MAX = 300
_RESULTS_FEW, _RESULT_BYTES = 100, 500  # with what Python needs for each
_CORS_LINES = (
    b"access-control-allow-origin: %b\r\nvary: origin\r\naccess-control-expose-headers: retry-after, x-request-id\r\n"
)

log = structlog.get_logger(__name__)


class _Request(TypedDict):
    """What `Admit` wants to know of a request."""

    content_type: bytes
    content_encoding: bytes
    ce_headers: dict[str, str] | None
    body: bytes
    credential: Credential
    receipt: Receipt


class Take:
    """The steps of the edge for one transport, with their parts."""

    def __init__(
        self,
        settings: Settings,
        limits: Limits,
        identify: Identify,
        quotas: Quotas,
        admit: Admit,
        write: Write,
        tell: Tell,
    ) -> None:
        self.settings = settings
        self.tell = tell
        self.limits = limits
        self.identify = identify
        self._find = identify.credentials.find
        self._quotas = quotas
        self._admit = admit
        self.write = write
        self._turns = Turns()
        self._clock = Clock(settings)
        self._cors_origins = frozenset(settings.edge_cors_origins.encode().replace(b",", b" ").split())
        self._requests_started = 0
        self._request_prefix = secrets.token_hex(5)

    # -- by the headers alone

    def request_id(self, headers: Headers) -> str:
        """Return the sender's own `x-request-id` when it is a sane one, else one of ours."""
        theirs = headers.get(b"x-request-id")
        if theirs is not None and _is_request_id(theirs):
            return theirs.decode()
        self._requests_started += 1
        return f"{self._request_prefix}-{self._requests_started:x}"

    def enter(self, headers: Headers, client: Callable[[], str | None], *, spends_at_once: bool = False) -> Credential:
        """Decide before a byte of the body is looked at; `client` tells the address it comes from.

        `spends_at_once`: it is so little, and all there, that what is left of a quota is looked at only by `body`.

        Raises:
            Refusal: unauthenticated, token_expired, clock_skew, forbidden, not_ready, rate_limited, body_too_large,
                overloaded.
        """
        authorization = headers.get(b"authorization")
        credential = self._find(authorization)
        if credential is None:
            credential = self.identify.identify(authorization, stated_time(headers.get(b"date")), client())
        if credential.role == "reader":
            refuse_readers(credential)
        if credential.quota is not None and not spends_at_once:
            self._quotas.refuse_if_spent(credential)
        self.hold(int(headers.get(b"content-length", 0)))  # a chunked one may be there already, and held by nobody
        return credential

    def hold(self, length: int, counted: int = 0) -> None:
        """Make sure that a body of this many bytes is allowed, and that there is room for it now.

        `counted` of them are in `limits.body_bytes` already.

        Raises:
            Refusal: body_too_large, overloaded.
        """
        if length > self.settings.request_body_bytes_max:
            raise self.body_too_large()
        if self.limits.body_bytes - counted + length > self.limits.body_bytes_max:
            raise self.overloaded("Too many bodies are arriving at once")
        self.write.refuse_if_behind(length)

    def clock_offset_ms(self, headers: Headers) -> int:
        """Return how far the sender's clock is off by its `Date`; ask when the headers are there, not the body."""
        date = headers.get(b"date")
        return 0 if date is None else self._clock.offset_of_date(date, datetime.now(UTC))

    def clock_offset_ms_of(self, sent_at: datetime) -> int:
        """Return how far the sender's clock is off by the `sent_at` of a hello."""
        return self._clock.offset(sent_at, datetime.now(UTC))

    def cors_lines(self, headers: Headers) -> bytes:
        """Return the header lines that let a browser's script read the answer, where its origin is allowed."""
        if not self._cors_origins or (origin := headers.get(b"origin")) is None:
            return b""
        allowed = origin in self._cors_origins or b"*" in self._cors_origins
        return _CORS_LINES % origin if allowed else b""

    # -- with the body

    def body(
        self,
        headers: Headers,
        body: bytes,
        credential: Credential,
        clock_offset_ms: int,
        request_id: str,
        reply: Reply,
        *,
        waited: bool = True,
    ) -> bool:
        """Take the events of one HTTP request; `reply` gets the answer. Raises nothing.

        `waited`: time has passed since `enter`, in which the credential may have ended.
        Returns True when it is long, and other work comes first: what is taken meanwhile may be stored before it.
        """
        started = perf_counter()
        content_type, content_encoding = headers.get(b"content-type", b""), headers.get(b"content-encoding")
        ce_headers = _ce_headers(headers) if b"ce-type" in headers or b"ce-specversion" in headers else None
        receipt = self._receipt(headers, credential, clock_offset_ms, request_id)
        if content_encoding is not None or len(body) > SLICE_BYTES:
            self.limits.body_bytes += len(body)
            request = _Request(
                content_type=content_type,
                content_encoding=content_encoding or b"",
                ce_headers=ce_headers,
                body=body,
                credential=credential,
                receipt=receipt,
            )
            self._turns.add(self._body_in_slices(request, request_id, started, reply))
            return True
        try:
            if waited:
                self.identify.refuse_if_ended(credential)
            admitted = self._admit.body(
                content_type=content_type,
                content_encoding=b"",
                ce_headers=ce_headers,
                body=body,
                credential=credential,
                receipt=receipt,
            )
            quota = credential.quota
            if quota is not None and self.write.writer.room_for(admitted.record_bytes):  # `_spend` without the call
                self._quotas.spend(quota, admitted, credential.bucket)
        except Refusal as refusal:
            reply(self.refuse(refusal, request_id))
        except Exception as error:  # the sender gets an answer, whatever is broken here
            reply(self.broke(error, request_id))
        else:
            self._write(admitted, request_id, started, reply)
        return False

    def _body_in_slices(self, request: "_Request", request_id: str, started: float, reply: Reply) -> Work:
        """Take the events of a body that is long, or may be."""
        body_bytes, credential = len(request["body"]), request["credential"]
        work = self._admit.in_slices(**request)
        request.clear()  # type: ignore[attr-defined]  # a decompressed body and a compressed one are enough
        return self._in_slices(work, body_bytes, credential, request_id, started, reply)

    def _in_slices(
        self,
        work: Generator[None, None, Admitted],
        held_bytes: int,
        credential: Credential,
        request_id: str,
        started: float,
        reply: Reply,
    ) -> Work:
        try:
            self._refuse_if_too_late(credential, started)
            admitted = yield from work
            if credential.quota is not None:
                self._spend(credential.quota, admitted, credential.bucket)
        except Refusal as refusal:
            reply(self.refuse(refusal, request_id))
        except Exception as error:  # the sender gets an answer, whatever is broken here
            reply(self.broke(error, request_id))
        else:
            self._write(admitted, request_id, started, reply)
        finally:
            self.limits.body_bytes -= held_bytes

    def events(
        self,
        headers: Headers,
        events: Sequence[bytes | Raw],
        message_bytes: int,
        credential: Credential,
        clock_offset_ms: int,
        request_id: str,
        reply: Reply,
    ) -> bool:
        """Take the events of one WebSocket message; `headers` are those of the upgrade. Raises nothing.

        Returns True when it is long, as `body` does.
        """
        started = perf_counter()
        try:
            if self.limits.full():  # results may be larger than what they are about, and wait for Kafka
                raise self.overloaded("Too much waits to be judged or answered")
            receipt = self._receipt(headers, credential, clock_offset_ms, request_id)
            quota = credential.quota
            if quota is not None:
                self._quotas.refuse_if_spent(credential)
            if message_bytes > SLICE_BYTES:
                work = self._admit.events_in_slices(events, credential, receipt)
                self.limits.body_bytes += message_bytes
                self._turns.add(self._in_slices(work, message_bytes, credential, request_id, started, reply))
                return True
            admitted = self._admit.events(events, credential, receipt)
            if quota is not None:
                self._spend(quota, admitted, credential.bucket)
        except Refusal as refusal:
            reply(self.refuse(refusal, request_id))
        except Exception as error:  # the sender gets an answer, whatever is broken here
            reply(self.broke(error, request_id))
        else:
            self._write(admitted, request_id, started, reply)
        return False

    def _refuse_if_too_late(self, credential: Credential, started: float) -> None:
        """Refuse a body whose turn has come, before it costs anything, for what has changed while it waited.

        Raises:
            Refusal: unauthenticated, rate_limited, overloaded.
        """
        self.identify.refuse_if_ended(credential)
        if credential.quota is not None:
            self._quotas.refuse_if_spent(credential)
        if perf_counter() - started > self.settings.produce_deadline_s:
            raise self.overloaded("Too many long bodies came before this one")

    def _spend(self, quota: Quota, admitted: Admitted, bucket: bytes) -> None:
        if self.write.writer.room_for(admitted.record_bytes):  # else it is answered 503, and costs nothing
            self._quotas.spend(quota, admitted, bucket)

    def _write(self, admitted: Admitted, request_id: str, started: float, reply: Reply) -> None:
        if len(admitted.results) > _RESULTS_FEW:  # they wait for Kafka too
            reply = self.limits.holding(len(admitted.results) * _RESULT_BYTES, reply)
        self.write.write(admitted, request_id, started, reply)

    # -- or not at all

    def refuse(self, refusal: Refusal, request_id: str) -> Answer:
        """Count a refusal of a whole request and return its answer."""
        return self.write.refuse(refusal, request_id)

    def broke(self, error: Exception, request_id: str) -> Answer:
        """Log what should not have happened and return a 500 for it."""
        log.error("a request failed", request_id=request_id, exc_info=error)
        return self.refuse(self.broken(request_id), request_id)

    def broken(self, request_id: str) -> Refusal:
        """Return a 500."""
        return Refusal("internal_error", f"Report request {request_id}; a retry may help.")

    def malformed_request(self, error: Exception) -> Refusal:
        """Return a 400 for what is not HTTP."""
        return Refusal("malformed_request", f"Send valid HTTP/1.1: {error}.")

    def body_too_large(self) -> Refusal:
        """Return a 413 that names the limit."""
        most = self.settings.request_body_bytes_max
        return Refusal("body_too_large", f"Send at most {most} bytes in one request; split it.", limit=most)

    def headers_too_large(self) -> Refusal:
        """Return a 431 that names the limit."""
        most = self.settings.request_header_bytes_max
        return Refusal("headers_too_large", f"Send at most {most} bytes of headers.", limit=most)

    def too_slow(self, what: str, seconds: float) -> Refusal:
        """Return a 408 that names the limit."""
        return Refusal("request_timeout", f"Send the {what} of a request within {seconds:g} s.")

    def overloaded(self, why: str) -> Refusal:
        """Return a 503 for what was not kept."""
        return self.write.overloaded(why)

    def _receipt(self, headers: Headers, credential: Credential, clock_offset_ms: int, request_id: str) -> Receipt:
        agent = headers.get(b"user-agent")
        agent_text = agent.decode("latin-1")[:_USER_AGENT_CHARACTERS_MAX] if agent else None
        return Receipt(datetime.now(UTC), request_id, credential.sender, clock_offset_ms, agent_text)


def _ce_headers(headers: Headers) -> dict[str, str]:
    return {
        name[3:].decode("latin-1"): value.decode("latin-1")
        for name, value in headers.items()
        if name.startswith(b"ce-")
    }
