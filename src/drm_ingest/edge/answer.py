"""What a sender is told, and the bytes of HTTP/1.1 that say it."""

from http import HTTPStatus

import orjson

from drm_ingest.edge.admit import Admitted
from drm_ingest.errors import PROBLEM_MEDIA_TYPE, Refusal

JSON = b"application/json"
PROBLEM = PROBLEM_MEDIA_TYPE.encode()


class Answer:
    """The answer to one request, whoever carries it: the door, the ordinary route, a WebSocket.

    Either `admitted` is there (200, or 422 or 403 when every event was rejected) or `refusal`.
    """

    __slots__ = ("admitted", "refusal", "request_id", "status")

    def __init__(self, status: int, request_id: str, admitted: Admitted | None, refusal: Refusal | None) -> None:
        self.status = status
        self.request_id = request_id
        self.admitted = admitted
        self.refusal = refusal

    def body(self) -> bytes:
        """Return the JSON: the results of the events, or a problem document (RFC 9457)."""
        if self.admitted is not None:
            return self.admitted.answer(self.request_id)
        return orjson.dumps(self.refusal.body(self.request_id) if self.refusal else {})

    def headers(self, body: bytes) -> list[tuple[bytes, bytes]]:
        """Return the headers that belong to the answer itself; the carrier adds those of the connection."""
        found = [
            (b"content-type", JSON if self.status == 200 else PROBLEM),
            (b"content-length", b"%d" % len(body)),
            (b"x-request-id", self.request_id.encode()),
        ]
        if self.status == 401:
            found.append((b"www-authenticate", b'Bearer realm="drm-ingest"'))
        if self.refusal is not None and self.refusal.retry_after_s is not None:
            found.append((b"retry-after", b"%d" % self.refusal.retry_after_s))
        if self.refusal is not None:
            found += self.refusal.headers
        return found


_OK = (
    b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n"
    b"%bx-request-id: %b\r\ncontent-length: %d\r\n\r\n%b"
)  # fmt: skip
_STATUS_LINES = {status.value: b"HTTP/1.1 %d %b\r\n" % (status.value, status.phrase.encode()) for status in HTTPStatus}


def encode(answer: Answer, connection_headers: bytes) -> bytes:
    """Return the whole response; `connection_headers` are complete lines, with their line ends."""
    body = answer.body()
    if answer.status == 200:  # the one that costs
        return _OK % (connection_headers, answer.request_id.encode(), len(body), body)
    lines = b"".join(b"%b: %b\r\n" % header for header in answer.headers(body))
    return _STATUS_LINES[answer.status] + connection_headers + lines + b"\r\n" + body
