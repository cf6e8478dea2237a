"""The shapes of what the edge takes and answers, as JSON Schema 2020-12: openapi.py and asyncapi.py share them."""

from typing import Any

from drm_ingest.edge.check import LENGTHS
from drm_ingest.edge.quotas import QUOTA_NAMES
from drm_ingest.errors import (
    DEAD_LETTER_CODES,
    DETAIL_CHARACTERS_MAX,
    POINTER_CHARACTERS_MAX,
    PROBLEM_TYPE,
    EventCode,
)
from drm_ingest.settings import Settings

EDGE_CODES = [code for code in EventCode if code not in DEAD_LETTER_CODES]
"""What is told of an event in an answer."""
PROBLEM_CODES = (
    "malformed_json", "malformed_encoding", "malformed_request", "unauthenticated", "token_expired",
    "clock_skew", "forbidden", "not_found",
    "method_not_allowed", "request_timeout", "body_too_large", "decompressed_too_large", "too_many_events",
    "unsupported_media_type", "unsupported_encoding", "all_rejected", "rate_limited", "headers_too_large",
    "internal_error", "not_acknowledged", "overloaded", "not_ready",
)  # fmt: skip
"""With which whole requests are refused."""

_MEANINGS = {
    "type": "What it is, as in device.measurement; picks the schema of `data`, and the topic.",
    "id": "Given where absent; see `results`.",
    "subject": "The device it is about, or `party:<id>`, `party:<namespace>:<ref>`; absent: the device of the key.",
    "source": "Who says so.",
    "time": "When it happened by the sender's clock, RFC 3339 with an offset; absent: the receipt.",
    "dataschema": "The version of the schema, MAJOR.MINOR; absent: the newest minor of major 1.",
    "sequence": "As in the CloudEvents extension.",
    "traceparent": "As in the CloudEvents extension.",
}


def schemas(settings: Settings) -> dict[str, Any]:
    """Return `components/schemas` by name; they refer to each other there."""
    return {
        "Event": _event(),
        "Events": {"type": "array", "items": _ref("Event"), "maxItems": settings.request_events_max},
        "Result": _RESULT,
        "Results": {
            "type": "array",
            "items": _ref("Result"),
            "description": "The events with something to say: one line for each rejected one, one or more for an "
            "accepted one with remarks.",
        },
        "Answer": {
            "type": "object",
            "required": ["request_id", "accepted", "results"],
            "properties": {
                "request_id": {"type": "string"},
                "accepted": _ACCEPTED,
                "results": _ref("Results"),
            },
            "additionalProperties": False,
        },
        "Problem": _problem(),
        "AllRejected": _problem(
            code={"const": "all_rejected"}, status={"const": 422}, accepted={"const": 0}, results=_ref("Results")
        ),
    }


def _ref(name: str) -> dict[str, str]:
    return {"$ref": f"#/components/schemas/{name}"}


_ACCEPTED = {"type": "integer", "minimum": 0, "description": "Events that are durable now, repeated ones included."}


def _event() -> dict[str, Any]:
    attributes: dict[str, Any] = {"specversion": {"const": "1.0"}}
    for name, lengths in LENGTHS.items():
        attributes[name] = {"type": "string", "minLength": lengths[0], "maxLength": lengths[-1]}
        attributes[name]["description"] = _MEANINGS[name]
    attributes["time"] = {"type": "string", "format": "date-time", "description": _MEANINGS["time"]}
    return {
        "type": "object",
        "required": ["type"],
        "properties": attributes
        | {
            "datacontenttype": {"type": "string", "description": "JSON, or absent."},
            "data": {"description": "JSON, by the schema of the type."},
        },
        "additionalProperties": {
            "type": ["string", "boolean", "integer"],
            "description": "An extension attribute, named in lower-case letters and digits.",
        },
    }


_RESULT: dict[str, Any] = {
    "type": "object",
    "required": ["index", "status", "code", "detail"],
    "properties": {
        "index": {"type": "integer", "minimum": 0, "description": "Its place in the request, from 0."},
        "id": {"type": "string", "description": "As sent, or as assigned; absent where none could be read."},
        "status": {"enum": ["accepted", "rejected"]},
        "code": {
            "enum": [code.value for code in EDGE_CODES],
            "description": "\n".join(f"- `{code.value}`: {code.remedy}" for code in EDGE_CODES),
        },
        "pointer": {
            "type": "string",
            "maxLength": POINTER_CHARACTERS_MAX,
            "description": "JSON pointer to what is wrong, from the event's root.",
        },
        "detail": {"type": "string", "maxLength": DETAIL_CHARACTERS_MAX, "description": "What to do, for people."},
    },
    "additionalProperties": False,
}


def _problem(**more: Any) -> dict[str, Any]:
    required = {
        "type": {"type": "string", "format": "uri", "pattern": f"^{PROBLEM_TYPE}"},
        "title": {"type": "string"},
        "status": {"type": "integer"},
        "code": {"enum": list(PROBLEM_CODES), "description": "Stable; program against this one."},
        "detail": {"type": "string", "description": "What to do, for people."},
        "request_id": {"type": "string"},
    } | more
    return {
        "type": "object",
        "required": list(required),
        "properties": {
            "limit": {"type": "number", "description": "The limit that was exceeded, where it is one."},
            "quota": {"enum": list(QUOTA_NAMES), "description": "With rate_limited: which quota is used up."},
            "subject": {"type": "string", "description": "With the quota of a device: whose it is."},
            "position": {"type": "integer", "description": "The byte at which the body is no JSON, where it is not."},
            "server_time": {
                "type": "string",
                "format": "date-time",
                "description": "Our time, for a 401 by the clock.",
            },
            "missing_scopes": {
                "type": "array",
                "items": {"enum": ["devices", "identities", "parties", "types"]},
                "description": "What the scope of the credential would have to allow, for a 403.",
            },
            "accepted": {"const": 0, "description": "With `results`."},
            "results": _ref("Results") | {"description": "With a 403: the events that are out of scope."},
        }
        | required,
        "additionalProperties": False,
    }
