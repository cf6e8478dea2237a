"""How `POST /v1/events` is described: every way to send, every answer, with examples that can be sent as they stand."""

import json
from typing import Any

from drm_ingest.errors import PROBLEM_TYPE, PROBLEMS, EventCode
from drm_ingest.settings import Settings

DESCRIPTION = """
Takes events from devices and apps and answers only when they are durable.

**200**: each event is durable, or refused for a reason that no retry changes (see `results`).
**503**, or no answer: send all of it again; a repeated event is stored once.
Anything else: nothing of the request is kept, and the same request will be refused again.

The same path takes WebSockets; their messages are described in [/asyncapi.json](/asyncapi.json).
"""
TAGS = [
    {"name": "events", "description": "Sending events."},
    {"name": "health", "description": "For those who run it."},
]

REMEDIES = {
    "not_found": "POST events to /v1/events; /docs describes what else is here. Records are read from `serve`.",
    "method_not_allowed": "POST events to /v1/events. Events are read from `serve`.",
}
"""What to do, for refusals that no step of ours raises."""

_REQUEST_ID = "5f0c7be3a1-2a"
_EVENT: dict[str, Any] = {
    "specversion": "1.0",
    "id": "meter-7-000042",
    "type": "device.measurement",
    "source": "/gateways/12",
    "subject": "meter-7",
    "time": "2026-11-22T10:00:00Z",
    "data": {"temperature": 21.5, "humidity": 48},
}
_ANSWER = {"request_id": _REQUEST_ID, "accepted": 2, "results": []}
_REJECTED = {
    "index": 1,
    "id": "meter-7-000043",
    "status": "rejected",
    "code": EventCode.SCHEMA_VIOLATION,
    "pointer": "/data/temperature",
    "detail": "must be a number, not a string",
}
_ASSIGNED = {"index": 0, "id": "0b9e…", "status": "accepted", "code": EventCode.ID_ASSIGNED}

_CODES_OF_EVENTS = (
    "malformed_json", "malformed_encoding", "malformed_request", "unauthenticated", "forbidden", "method_not_allowed",
    "request_timeout", "body_too_large", "decompressed_too_large", "too_many_events", "unsupported_media_type",
    "unsupported_encoding", "all_rejected", "rate_limited", "headers_too_large", "internal_error", "not_acknowledged",
    "overloaded", "not_ready",
)  # fmt: skip

_RESULT = {
    "type": "object",
    "required": ["index", "id", "status", "code"],
    "properties": {
        "index": {"type": "integer", "description": "Its place in the request, from 0."},
        "id": {"type": ["string", "null"], "description": "As sent, or as assigned."},
        "status": {"enum": ["accepted", "rejected"]},
        "code": {
            "enum": [code.value for code in EventCode],
            "description": "\n".join(f"- `{code.value}`: {code.remedy}" for code in EventCode),
        },
        "pointer": {"type": "string", "description": "JSON pointer to what is wrong, from the event's root."},
        "detail": {"type": "string"},
    },
}
_ANSWER_SCHEMA = {
    "type": "object",
    "required": ["request_id", "accepted", "results"],
    "properties": {
        "request_id": {"type": "string"},
        "accepted": {"type": "integer", "description": "Events that are durable now, repeated ones included."},
        "results": {"type": "array", "items": _RESULT, "description": "The events with something to say."},
    },
}
_PROBLEM_SCHEMA = {
    "type": "object",
    "required": ["type", "title", "status", "code", "detail", "request_id"],
    "properties": {
        "type": {"type": "string", "format": "uri"},
        "title": {"type": "string"},
        "status": {"type": "integer"},
        "code": {"type": "string", "description": "Stable; program against this one."},
        "detail": {"type": "string", "description": "What to do."},
        "request_id": {"type": "string"},
        "limit": {"type": "integer", "description": "The limit that was exceeded, where it is one."},
    },
    "additionalProperties": True,
}


def post_events(settings: Settings) -> dict[str, Any]:
    """Return the arguments of the route's decorator that describe it."""
    return {
        "summary": "Send events",
        "description": (
            "One event or many, as CloudEvents 1.0 or as plain JSON; at most "
            f"{settings.request_body_bytes_max} bytes as sent, {settings.request_decompressed_bytes_max} decompressed, "
            f"{settings.request_events_max} events, {settings.event_bytes_max} bytes an event. "
            "A `Date` header states when the request was sent; where it is off by more than "
            f"{settings.clock_skew_tolerated_s:g} s all times in the request are corrected by it."
        ),
        "responses": _responses(settings),
        "openapi_extra": {
            "security": [{"key": []}, {"key_as_user_name": []}],
            "parameters": _parameters(),
            "requestBody": {"required": True, "content": _bodies()},
        },
    }


SECURITY_SCHEMES = {
    "key": {"type": "http", "scheme": "bearer", "description": "A sender's key."},
    "key_as_user_name": {"type": "http", "scheme": "basic", "description": "The key as user name, no password."},
}


def _parameters() -> list[dict[str, Any]]:
    def header(name: str, text: str, *values: str) -> dict[str, Any]:
        schema: dict[str, Any] = {"type": "string"}
        if values:
            schema["enum"] = list(values)
        return {"name": name, "in": "header", "required": False, "description": text, "schema": schema}

    return [
        header("Content-Encoding", "The body is compressed.", "gzip", "zstd", "identity"),
        header("X-Request-Id", "Yours to choose, 1 to 64 of A-Z a-z 0-9 . _ : / + = -; the answer repeats it."),
        header("Date", "When the request was sent, by the sender's clock (RFC 9110, 5.6.7)."),
        header("ce-type", "Binary mode: the attributes in `ce-` headers, `data` alone in the body."),
    ]


def _bodies() -> dict[str, Any]:
    second = {**_EVENT, "id": "meter-7-000043"}
    plain = {name: _EVENT[name] for name in ("type", "subject", "data")}
    event: dict[str, Any] = {"type": "object", "required": ["type"], "properties": {
        name: {"type": "string"} for name in _EVENT if name != "data"
    } | {"data": {}}}  # fmt: skip
    events = {"type": "array", "items": event}
    return {
        "application/cloudevents+json": {"schema": event, "examples": {"structured": {"value": _EVENT}}},
        "application/cloudevents-batch+json": {"schema": events, "examples": {"batch": {"value": [_EVENT, second]}}},
        "application/json": {
            "schema": {"anyOf": [events, event, {}]},
            "examples": {
                "array": {"summary": "a plain array of events", "value": [plain, plain]},
                "binary mode": {"summary": "data alone, the attributes in ce- headers", "value": _EVENT["data"]},
            },
        },
        "application/x-ndjson": {
            "schema": {"type": "string"},
            "examples": {"lines": {"value": "\n".join(json.dumps(each) for each in (_EVENT, second))}},
        },
    }


def _responses(settings: Settings) -> dict[int | str, dict[str, Any]]:
    request_id = {"x-request-id": {"schema": {"type": "string"}}}
    retry_after = {"retry-after": {"schema": {"type": "integer"}, "description": "Seconds."}}
    found: dict[int | str, dict[str, Any]] = {
        200: {
            "description": "Each event is durable, or refused for a reason that no retry changes.",
            "headers": request_id,
            "content": {
                "application/json": {
                    "schema": _ANSWER_SCHEMA,
                    "examples": {
                        "all accepted": {"value": _ANSWER},
                        "one rejected": {"value": {**_ANSWER, "accepted": 1, "results": [_REJECTED]}},
                        "an id assigned": {"value": {**_ANSWER, "accepted": 1, "results": [_ASSIGNED]}},
                    },
                }
            },
        }
    }
    for code in _CODES_OF_EVENTS:
        problem = PROBLEMS[code]
        example: dict[str, Any] = {
            "type": PROBLEM_TYPE + code,
            "title": problem.title,
            "status": problem.status,
            "code": code,
            "detail": "What to do.",
            "request_id": _REQUEST_ID,
        }
        if code == "all_rejected":
            example |= {"accepted": 0, "results": [_REJECTED]}
        response = found.setdefault(
            problem.status,
            {
                "description": "",
                "headers": request_id | (retry_after if problem.retry else {}),
                "content": {"application/problem+json": {"schema": _PROBLEM_SCHEMA, "examples": {}}},
            },
        )
        response["description"] += f"- `{code}`: {problem.title}{' Send it again.' if problem.retry else ''}\n"
        response["content"]["application/problem+json"]["examples"][code] = {"value": example}
    return found
