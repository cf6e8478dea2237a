"""Kinds of bad requests. Were its fault not noticed, each would store an event of a subject of its own."""

import gzip
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

UNTYPED = "acme.untyped"
DEEP = b"[" * 10_000 + b"]" * 10_000
BOMB_BYTES = 100_000_000


def an_event(
    subject: str, data: bytes = b'{"temperature": 21.5}', type_: str = "device.measurement", id_: str = "bad"
) -> bytes:
    time = datetime.now(UTC).isoformat()
    head = {"specversion": "1.0", "id": id_, "type": type_, "subject": subject, "time": time}
    return json.dumps(head).encode()[:-1] + b', "data": %b}' % data


def of(data: bytes) -> Callable[[str], bytes]:
    """Return what makes a request of one event with that data, of a type that takes any."""
    return lambda subject: b"[%b]" % an_event(subject, data, UNTYPED)


def padded(size: int) -> Callable[[str], bytes]:
    """Return what makes a request of one good event and as many blanks as it takes to be too large."""
    return lambda subject: b"[%b%b]" % (an_event(subject), b" " * size)


@dataclass(frozen=True)
class Bad:
    """One kind of bad request: its answer's code (None: 200), what makes it, and the code of its only event."""

    code: str | None
    body: Callable[[str], bytes]
    headers: dict[str, str] = field(default_factory=dict)
    event: str | None = None


REQUESTS = {
    "an empty body": Bad("malformed_json", lambda _: b""),
    "JSON cut short": Bad("malformed_json", lambda subject: b"[%b]" % an_event(subject)[:-1]),
    "an array without its end": Bad("malformed_json", lambda subject: b"[%b, " % an_event(subject)),
    "what is not JSON": Bad("malformed_json", lambda subject: an_event(subject) + b" and more"),
    "UTF-16": Bad("malformed_json", lambda subject: an_event(subject).decode().encode("utf-16")),
    "depth 10,000": Bad("malformed_json", of(DEEP)),
    "depth 10,000 on a line": Bad(
        "all_rejected",
        lambda subject: an_event(subject, DEEP, UNTYPED),
        {"content-type": "application/x-ndjson"},
        "too_deep",
    ),
    "depth 100": Bad("all_rejected", of(b"[" * 100 + b"]" * 100), event="too_deep"),
    "invalid UTF-8": Bad("all_rejected", of(b'"\xff"'), event="text_not_storable"),
    "invalid UTF-8 in the subject": Bad(
        "all_rejected",
        lambda subject: b"[%b]" % an_event(subject).replace(subject.encode(), subject.encode() + b"\xc3"),
        event="text_not_storable",
    ),
    "NUL": Bad("all_rejected", of(b'"\\u0000"'), event="text_not_storable"),
    "a bare NUL": Bad("malformed_json", of(b'"\0"')),
    "a lone surrogate": Bad("all_rejected", of(b'"\\ud800"'), event="text_not_storable"),
    "1e400": Bad("all_rejected", of(b"1e400"), event="number_out_of_range"),
    "2^64": Bad("all_rejected", of(b"18446744073709551616"), event="number_out_of_range"),
    "a number of 200,000 digits": Bad("all_rejected", of(b"9" * 200_000), event="number_out_of_range"),
    "NaN": Bad("malformed_json", of(b"NaN")),
    "numbers for events": Bad("all_rejected", lambda _: b"[1]", event="not_an_object"),
    "data against its schema": Bad(
        "all_rejected", lambda subject: b"[%b]" % an_event(subject, b'{"temperature": "warm"}'), {}, "schema_violation"
    ),
    "an event of 300 KB": Bad("all_rejected", of(b'"%b"' % (b"x" * 300_000)), event="event_too_large"),
    "10,001 events": Bad(
        "too_many_events", lambda subject: b"[%b%b]" % (an_event(subject), b"," + b",".join([b"0"] * 10_000))
    ),
    "a gzip bomb": Bad(
        "decompressed_too_large",
        lambda subject: gzip.compress(padded(BOMB_BYTES)(subject)),
        {"content-encoding": "gzip"},
    ),
    "a zstd bomb": Bad(
        "decompressed_too_large",
        lambda subject: zstd.compress(padded(BOMB_BYTES)(subject)),
        {"content-encoding": "zstd"},
    ),
    "gzip cut short": Bad(
        "malformed_encoding",
        lambda subject: gzip.compress(padded(0)(subject))[:-9],
        {"content-encoding": "gzip"},
    ),
    "what is not zstd": Bad("malformed_encoding", padded(0), {"content-encoding": "zstd"}),
    "an unknown encoding": Bad("unsupported_encoding", padded(0), {"content-encoding": "br"}),
    "a wrong content type": Bad("unsupported_media_type", padded(0), {"content-type": "text/plain"}),
    "no content type": Bad("unsupported_media_type", padded(0), {"content-type": ""}),
    "no key": Bad("unauthenticated", padded(0), {"authorization": ""}),
    "a wrong key": Bad("unauthenticated", padded(0), {"authorization": "Bearer drm_wrong"}),
    "a key of nonsense": Bad("unauthenticated", padded(0), {"authorization": "Basic \xff\xfe:"}),
    "a body of 50 MB": Bad("body_too_large", padded(50_000_000)),
    "50 MB in chunks": Bad("body_too_large", padded(50_000_000), {"transfer-encoding": "chunked"}),
    "an unknown type": Bad(None, lambda subject: b"[%b]" % an_event(subject, type_=UNTYPED), {}, "unclassified_type"),
}


def message(events: bytes) -> bytes:
    return b'{"seq": 7, "events": %b}' % events


MESSAGES: dict[str, tuple[int, Callable[[str], bytes]]] = {
    "JSON cut short": (1007, lambda subject: message(b"[%b" % an_event(subject))),
    "invalid UTF-8": (1007, lambda subject: message(of(b'"\xff"')(subject))),
    "depth 10,000": (1007, lambda subject: message(of(DEEP)(subject))),
    "a message of another kind": (1003, lambda subject: b'{"events": [%b]}' % an_event(subject)),
    "an array in place of a message": (1003, lambda subject: b"[%b]" % an_event(subject)),
    "a sequence number of 2^64": (
        1003,
        lambda subject: b'{"seq": 18446744073709551616, "events": [%b]}' % an_event(subject),
    ),
    "a message of 50 MB": (1009, lambda subject: message(padded(50_000_000)(subject))),
}
