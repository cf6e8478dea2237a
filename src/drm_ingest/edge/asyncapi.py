"""The messages of the WebSocket `/v1/events`, in the field's own form (AsyncAPI 3.0)."""

from typing import Any

from drm_ingest.edge.message import CLOUDEVENTS, SEQ_MAX
from drm_ingest.edge.openapi import SECURITY_SCHEMES
from drm_ingest.edge.quotas import QUOTA_NAMES
from drm_ingest.edge.shapes import PROBLEM_CODES, schemas
from drm_ingest.edge.split import too_many_events
from drm_ingest.settings import Settings

_SEQ = {"type": "integer", "minimum": 0, "maximum": SEQ_MAX, "description": "The client's own number for the message."}
_EVENT = {"type": "device.status", "subject": "meter-7", "id": "1", "data": {"state": "online"}}

_QUOTA = {
    "code": {"const": "rate_limited"},
    "detail": {"type": "string"},
    "quota": {"enum": list(QUOTA_NAMES)},
    "limit": {"type": "number"},
    "subject": {"type": "string", "description": "With the quota of a device: whose it is."},
}


def document(settings: Settings, host: str, *, secure: bool) -> dict[str, Any]:
    """Return the AsyncAPI document; the limits in it are those of the settings, `host` is where it was asked for."""
    too_many = too_many_events(settings.websocket_message_events_max)
    sent = {
        "hello": _message(
            "First and once: who, where no header can be set (browsers), and when by the sender's clock.",
            {
                "hello": {
                    "type": "object",
                    "properties": {
                        "key": {"type": "string", "description": "A sender's key; not needed with Authorization."},
                        "sent_at": {
                            "type": "string",
                            "format": "date-time",
                            "description": f"Off by more than {settings.clock_skew_tolerated_s:g} s: all times of the "
                            "connection are corrected by it.",
                        },
                    },
                }
            },
            {"hello": {"key": "<key>", "sent_at": "2026-11-22T10:00:00Z"}},
        ),
        "events": _message(
            f"At most {settings.websocket_message_bytes_max} bytes; send the next without waiting, within the window.",
            {"seq": _SEQ, "events": _ref("Events")},
            {"seq": 7, "events": [_EVENT]},
        ),
        "event": {
            "summary": f"With the subprotocol {CLOUDEVENTS}: one event a message.",
            "payload": _ref("Event"),
            "examples": [{"payload": _EVENT}],
        },
    }
    single_id = {"type": ["string", "null"], "description": f"With {CLOUDEVENTS}: the event's id, null without one."}
    id_or_seq = {"oneOf": [_SEQ, single_id]}
    number = {
        "message": {
            "type": "integer",
            "minimum": 1,
            "description": f"With {CLOUDEVENTS}: which message of the connection, from 1, a hello left out.",
        }
    }
    received = {
        "window": _message(
            "How many messages may be unacknowledged; more: closed with 1008.",
            {"window": {"type": "integer"}},
            {"window": settings.websocket_window_messages},
        ),
        "ack": _message(
            "Each event of the message is durable, or refused for a reason that no retry changes (as a 200 or 422).",
            {"ack": id_or_seq, "accepted": {"type": "integer", "minimum": 0}, "results": _ref("Results")},
            {"ack": 7, "accepted": 1, "results": []},
            number,
        ),
        "retry": _message(
            "The fate of at least one event is unknown (as a 503), or, with a code, a quota is used up and nothing was "
            "kept (as a 429): send the message again after that time.",
            {"retry": id_or_seq, "after_ms": {"type": "integer"}},
            {"retry": 7, "after_ms": 1000 * settings.retry_after_s},
            number | _QUOTA,
        ),
        "refused": _message(
            "Nothing of the message was kept, and no retry helps; codes as over HTTP.",
            {
                "refused": id_or_seq,
                "code": {"enum": list(PROBLEM_CODES)},
                "detail": {"type": "string"},
                "request_id": {"type": "string"},
            },
            {"refused": 7, "code": "too_many_events", "detail": too_many.detail, "request_id": "5f0c7be3a1-2a"},
            number,
        ),
        "goaway": _message(
            "The server restarts: it takes no more messages, acknowledges those it took, and closes with 1012. "
            "Connect again after that time and send what was not acknowledged.",
            {
                "goaway": {
                    "type": "object",
                    "required": ["reconnect_after_ms"],
                    "properties": {"reconnect_after_ms": {"type": "integer"}},
                }
            },
            {"goaway": {"reconnect_after_ms": 700}},
        ),
    }
    return {
        "asyncapi": "3.0.0",
        "info": {
            "title": "drm-ingest: events over a WebSocket",
            "version": "1",
            "description": "Close codes: 1003 not a message of this protocol; 1007 not JSON, or not UTF-8; "
            "1008 no valid key in a hello, no hello in time, more than the window, too many frames or pings, no pong; "
            "1009 message too large; "
            "1012 restarting; 1013 try later.",
        },
        "servers": {
            "edge": {
                "host": host,
                "protocol": "wss" if secure else "ws",
                "description": "The key goes into Authorization (a wrong one there: the upgrade is answered 401), or, "
                "where no header can be set, into a hello.",
                "security": [{"$ref": f"#/components/securitySchemes/{name}"} for name in SECURITY_SCHEMES],
            }
        },
        "channels": {
            "events": {
                "address": "/v1/events",
                "messages": sent | received,
                "bindings": {"ws": {"method": "GET", "bindingVersion": "0.1.0"}},
            }
        },
        "operations": {
            "send": _operation("receive", sent),  # from the server's side
            "answer": _operation("send", received),
        },
        "components": {"schemas": schemas(settings), "securitySchemes": SECURITY_SCHEMES},
    }


def _message(
    summary: str, properties: dict[str, Any], example: dict[str, Any], optional: dict[str, Any] | None = None
) -> dict[str, Any]:
    payload = {"type": "object", "required": list(properties), "properties": properties | (optional or {})}
    return {"summary": summary, "payload": payload, "examples": [{"payload": example}]}


def _ref(name: str) -> dict[str, str]:
    return {"$ref": f"#/components/schemas/{name}"}


def _operation(action: str, messages: dict[str, Any]) -> dict[str, Any]:
    return {
        "action": action,
        "channel": {"$ref": "#/channels/events"},
        "messages": [{"$ref": f"#/channels/events/messages/{name}"} for name in messages],
    }
