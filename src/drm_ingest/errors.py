"""Every error a sender or a reader of the API can meet: its code, its status, whether a retry helps, what to do.

    Refusal            a whole request is refused (problem+json, RFC 9457); nothing of it is stored,
     └─ status 503     except where its fate is unknown: then sending all of it again is safe
    Rejected           one event among others is refused; no retry changes that
     └─ EventCode      why; or the remark with which an event is accepted

Codes are stable: senders program against them.
"""

from dataclasses import dataclass
from enum import StrEnum
from typing import Self


class EventCode(StrEnum):
    """Per-event codes in `results`; the second part of each value is what to do."""

    remedy: str

    def __new__(cls, code: str, remedy: str) -> Self:
        """Attach the remedy to the code."""
        member = str.__new__(cls, code)
        member._value_ = code
        member.remedy = remedy
        return member

    # accepted, with something to say
    UNCLASSIFIED_TYPE = "unclassified_type", "No schema for this type yet; the event is kept in the unclassified topic."
    TIME_ASSUMED = "time_assumed", "The event had no time; its receipt was taken. Send time (RFC 3339)."
    TIME_CLAMPED = "time_clamped", "The time was too far in the future; it was set to the receipt. Check the clock."
    ID_ASSIGNED = "id_assigned", "The event had no id; this one was given. detail says whether a retry is recognised."

    # rejected
    NOT_AN_OBJECT = "not_an_object", "Each event must be a JSON object."
    MALFORMED_EVENT = "malformed_event", "The event is not valid JSON in UTF-8."
    ATTRIBUTE_MISSING = "attribute_missing", "Add the attribute named by pointer."
    ATTRIBUTE_INVALID = "attribute_invalid", "Correct the attribute named by pointer."
    ATTRIBUTE_RESERVED = "attribute_reserved", "This attribute is set by drm-ingest; rename yours."
    SUBJECT_MISSING = "subject_missing", "Name the device in subject; this credential is not bound to one."
    SUBJECT_FORBIDDEN = "subject_forbidden", "This credential may not write for that subject."
    TYPE_FORBIDDEN = "type_forbidden", "This credential may not send that type; see its scope."
    TIME_INVALID = "time_invalid", "Send time as RFC 3339 with an offset, as in 2026-11-22T10:00:00Z."
    SCHEMA_UNKNOWN = "schema_unknown", "Name a version of the schema that exists, as MAJOR.MINOR."
    SCHEMA_VIOLATION = "schema_violation", "Correct data at pointer to fit the schema."
    TEXT_NOT_STORABLE = "text_not_storable", "Remove NUL characters, lone surrogates and invalid UTF-8."
    NUMBER_OUT_OF_RANGE = "number_out_of_range", "Integers from -2^63 to 2^64-1 and finite 64-bit floats are kept."
    TOO_DEEP = "too_deep", "Nest less deeply."
    EVENT_TOO_LARGE = "event_too_large", "Send less in one event."

    # after a 200: dead letters
    ID_CONFLICT = "id_conflict", "Another event with the same subject, source and id came first. Use a new id."
    ROW_REFUSED = "row_refused", "Postgres refused the row; see detail. It is kept in the dead letters."
    UNREADABLE = "unreadable", "The record in the topic is not an event."


DEAD_LETTER_CODES = frozenset({EventCode.ID_CONFLICT, EventCode.ROW_REFUSED, EventCode.UNREADABLE})
"""What no answer to a sender says: found out later."""
POINTER_CHARACTERS_MAX = 300
DETAIL_CHARACTERS_MAX = 300


def json_pointer(*steps: object) -> str:
    """Return the JSON pointer (RFC 6901) that leads through these names and indexes."""
    return "".join("/" + str(step).replace("~", "~0").replace("/", "~1") for step in steps)


class Rejected(Exception):
    """One event is refused; no retry changes that."""

    def __init__(self, code: EventCode, pointer: str | None = None, detail: str | None = None) -> None:
        """`pointer` is a JSON pointer from the root of the event; without `detail` the code's own remedy is told."""
        super().__init__(code)
        self.code = code
        self.pointer = pointer[:POINTER_CHARACTERS_MAX] if pointer is not None else None
        self.detail = (detail or code.remedy)[:DETAIL_CHARACTERS_MAX]


@dataclass(frozen=True, slots=True)
class Problem:
    """One kind of refusal of a whole request."""

    code: str
    status: int
    title: str
    retry: bool = False


def _table(*problems: Problem) -> dict[str, Problem]:
    return {problem.code: problem for problem in problems}


PROBLEMS = _table(
    Problem("malformed_json", 400, "The body is not JSON that can be read."),
    Problem("malformed_encoding", 400, "The body does not decompress."),
    Problem("malformed_request", 400, "The request is not valid HTTP, or a header or parameter cannot be read."),
    Problem("unauthenticated", 401, "No valid credential."),
    Problem("token_expired", 401, "The token has expired."),
    Problem("clock_skew", 401, "The clock that the token was made by is wrong."),
    Problem("forbidden", 403, "The credential does not allow this."),
    Problem("claim_code_wrong", 403, "The code is not that of the device."),
    Problem("claim_code_dead", 403, "No code of the device is in force."),
    Problem("not_found", 404, "There is nothing here."),
    Problem("method_not_allowed", 405, "This path does not take that method."),
    Problem("request_timeout", 408, "The request arrived too slowly."),
    Problem("conflict", 409, "It contradicts something already there."),
    Problem("precondition_failed", 412, "It is not the version that If-Match names."),
    Problem("body_too_large", 413, "The body is larger than allowed."),
    Problem("decompressed_too_large", 413, "The body is larger than allowed once decompressed."),
    Problem("too_many_events", 413, "The request has more events than allowed."),
    Problem("unsupported_media_type", 415, "This content type is not taken."),
    Problem("unsupported_encoding", 415, "This content encoding is not taken."),
    Problem("invalid_parameters", 422, "A parameter or field is missing or wrong."),
    Problem("all_rejected", 422, "Every event was refused; see results."),
    Problem("rate_limited", 429, "A quota is used up.", retry=True),
    Problem("headers_too_large", 431, "The request's headers are larger than allowed."),
    Problem("internal_error", 500, "Something is broken here; it is logged under the request id."),
    Problem("not_acknowledged", 503, "Kafka did not acknowledge in time; send all of it again.", retry=True),
    Problem("overloaded", 503, "Too much is in flight; nothing of this was kept.", retry=True),
    Problem("not_ready", 503, "The service cannot do its work now; detail says why.", retry=True),
    Problem("took_too_long", 503, "It could not be put together in time; ask for less, or later.", retry=True),
    Problem("store_unavailable", 503, "Postgres cannot be reached now.", retry=True),
)

PROBLEM_TYPE = "https://drm-ingest.dev/problems/"
PROBLEM_MEDIA_TYPE = "application/problem+json"


class Refusal(Exception):
    """A whole request is refused; `detail` tells the sender what to do."""

    def __init__(self, code: str, detail: str, *, retry_after_s: int | None = None, **members: object) -> None:
        """`members` are further members of the problem document, such as `limit`."""
        super().__init__(f"{code}: {detail}")
        self.problem = PROBLEMS[code]
        self.detail = detail
        self.retry_after_s = retry_after_s
        self.members = members
        self.headers: list[tuple[bytes, bytes]] = []
        """Of the answer, besides Retry-After; names in lower case."""

    def with_headers(self, *headers: tuple[bytes, bytes]) -> Self:
        """Return itself with these headers for its answer."""
        self.headers += headers
        return self

    def untraced(self) -> Self:
        """Return itself without where it was raised: whoever keeps it would keep those frames, and bodies with them."""
        self.__traceback__ = self.__context__ = None
        return self

    def body(self, request_id: str) -> dict[str, object]:
        """Return the problem document (RFC 9457)."""
        return {
            "type": PROBLEM_TYPE + self.problem.code,
            "title": self.problem.title,
            "status": self.problem.status,
            "code": self.problem.code,
            "detail": self.detail,
            "request_id": request_id,
            **self.members,
        }
