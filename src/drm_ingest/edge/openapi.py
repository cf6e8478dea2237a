"""How `POST /v1/events` is described: every way to send, every answer, with examples that can be sent as they stand."""

import json
from typing import Any

from drm_ingest.edge.admit import ALL_REJECTED
from drm_ingest.edge.judge import ID_DERIVED
from drm_ingest.edge.refusals import refusals
from drm_ingest.edge.shapes import PROBLEM_CODES
from drm_ingest.edge.split import MEDIA, Media
from drm_ingest.edge.take import Take
from drm_ingest.errors import PROBLEM_MEDIA_TYPE, PROBLEMS, EventCode, Refusal

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
    "detail": "temperature must be a number, not a string. "
    "Temperature of what the device senses: a room, a liquid, a machine. Unit: Cel.",
}
_ASSIGNED = {
    "index": 0,
    "id": "0b9e6d5f6d3f4a5e8a0e3c9c5b0e7f1d",
    "status": "accepted",
    "code": EventCode.ID_ASSIGNED,
    "detail": ID_DERIVED,
}


def post_events(take: Take) -> dict[str, Any]:
    """Return the arguments of the route's decorator that describe it."""
    settings = take.settings
    return {
        "summary": "Send events",
        "description": (
            "One event or many, as CloudEvents 1.0 or as plain JSON; at most "
            f"{settings.request_body_bytes_max} bytes as sent, {settings.request_decompressed_bytes_max} decompressed, "
            f"{settings.request_events_max} events, {settings.event_bytes_max} bytes an event. "
            "A `Date` header states when the request was sent; where it is off by more than "
            f"{settings.clock_skew_tolerated_s:g} s all times in the request are corrected by it."
        ),
        "responses": _responses(take),
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
    event, events = ({"$ref": f"#/components/schemas/{name}"} for name in ("Event", "Events"))
    by_media: dict[Media, dict[str, Any]] = {
        Media.EVENT: {"schema": event, "examples": {"structured": {"value": _EVENT}}},
        Media.BATCH: {"schema": events, "examples": {"batch": {"value": [_EVENT, second]}}},
        Media.EITHER: {
            "schema": {"anyOf": [events, event, {}]},
            "examples": {
                "array": {"summary": "a plain array of events", "value": [plain, plain]},
                "binary mode": {"summary": "data alone, the attributes in ce- headers", "value": _EVENT["data"]},
            },
        },
        Media.LINES: {
            "schema": {"type": "string", "description": "An event a line."},
            "examples": {"lines": {"value": "\n".join(json.dumps(each) for each in (_EVENT, second))}},
        },
    }
    return {content_type: by_media[media] for content_type, media in MEDIA.items()}


def _responses(take: Take) -> dict[int | str, dict[str, Any]]:
    request_id = {"x-request-id": {"schema": {"type": "string"}}}
    retry_after = {"retry-after": {"schema": {"type": "integer"}, "description": "Seconds."}}
    found: dict[int | str, dict[str, Any]] = {
        200: {
            "description": "Each event is durable, or refused for a reason that no retry changes.",
            "headers": request_id,
            "content": {
                "application/json": {
                    "schema": {"$ref": "#/components/schemas/Answer"},
                    "examples": {
                        "all accepted": {"value": _ANSWER},
                        "one rejected": {"value": {**_ANSWER, "accepted": 1, "results": [_REJECTED]}},
                        "an id assigned": {"value": {**_ANSWER, "accepted": 1, "results": [_ASSIGNED]}},
                    },
                }
            },
        }
    }
    real = refusals(take, _REQUEST_ID)
    for code in PROBLEM_CODES:
        if code == "not_found":
            continue  # another path
        problem = PROBLEMS[code]
        if code == "all_rejected":
            example = {**Refusal(code, ALL_REJECTED).body(_REQUEST_ID), "accepted": 0, "results": [_REJECTED]}
        else:
            example = real[code].body(_REQUEST_ID)
        response = found.setdefault(
            problem.status,
            {
                "description": "",
                "headers": request_id | (retry_after if problem.retry else {}),
                "content": {
                    PROBLEM_MEDIA_TYPE: {
                        "schema": {"$ref": f"#/components/schemas/{_SHAPES.get(code, 'Problem')}"},
                        "examples": {},
                    }
                },
            },
        )
        note = " There are no quotas yet." if code == "rate_limited" else ""
        again = " Send it again." if problem.retry else ""
        response["description"] += f"- `{code}`: {problem.title}{note}{again}\n"
        response["content"][PROBLEM_MEDIA_TYPE]["examples"][code] = {"value": example}
    return found


_SHAPES = {"all_rejected": "AllRejected"}
