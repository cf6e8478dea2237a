"""Split a body into events by its media type. Each comes out as its own bytes, without the white space around it."""

import re
from collections.abc import Callable
from enum import Enum
from functools import lru_cache
from itertools import count

import msgspec
from msgspec import Raw, Struct

from drm_ingest.errors import Refusal

WHITE = b" \t\r\n"
_BEGINNINGS = frozenset({b"[", b"{"})
_CHARSETS = frozenset({"utf-8", "utf8", "us-ascii"})
# CloudEvents in a format other than JSON are no data.
_json_suffix = re.compile(r"(?!application/cloudevents)[a-z0-9!#$&^_.-]+/[a-z0-9!#$&^_.+-]+\+json").fullmatch
_between = re.compile(rb"[ \t\r\n,]*").match
_BYTE = re.compile(r"\(byte (\d+)\)$")
# An array with fewer commas has few enough elements to take apart first and count then.
_COMMAS_PER_EVENT = 64

_one: Callable[[bytes], Raw] = msgspec.json.Decoder(Raw).decode
_many: Callable[[bytes], list[Raw]] = msgspec.json.Decoder(list[Raw]).decode


class Media(Enum):
    """What a content type says of the body."""

    EVENT = "one event"
    BATCH = "an array of events"
    EITHER = "an array of events, or one event"
    LINES = "an event a line"
    DATA = "the data of one event, whose attributes are in ce-* headers"


MEDIA = {
    "application/cloudevents+json": Media.EVENT,
    "application/cloudevents-batch+json": Media.BATCH,
    "application/json": Media.EITHER,
    "application/x-ndjson": Media.LINES,
    "application/jsonl": Media.LINES,
    "application/ndjson": Media.LINES,
    "text/json": Media.EITHER,
}
"""What is taken, by content type."""
_TAKEN = ", ".join(list(MEDIA)[:5])


@lru_cache(maxsize=1000)
def media_of(content_type: bytes, *, binary: bool) -> Media:
    """Return what a body of that content type holds; `binary`: there are `ce-*` headers.

    Raises:
        Refusal: unsupported_media_type.
    """
    essence, *parameters = content_type.decode("latin-1").lower().split(";")
    for parameter in parameters:
        name, _, value = parameter.partition("=")
        if name.strip() == "charset" and value.strip().strip('"') not in _CHARSETS:
            raise Refusal("unsupported_media_type", "Send JSON in UTF-8; no other character set is taken.")
    essence = essence.strip()
    media = MEDIA.get(essence)
    if not binary or media in {Media.EVENT, Media.BATCH}:
        if media is None:
            raise Refusal("unsupported_media_type", f"Set Content-Type to one of these: {_TAKEN}.")
        return media
    if not essence or media is Media.EITHER or _json_suffix(essence):
        return Media.DATA
    raise Refusal("unsupported_media_type", "Data is JSON: with ce-* headers, set Content-Type to application/json.")


def split(body: bytes, media: Media, events_max: int) -> list[bytes]:
    """Return the bytes of each event; no more is known of them than that.

    Raises:
        Refusal: malformed_json, too_many_events.
    """
    if media is Media.LINES:
        return _lines(body, events_max)
    begin = body[:1] if body[:1] in _BEGINNINGS else body.lstrip(WHITE)[:1]
    if not begin:
        raise Refusal("malformed_json", "The body is empty; send events as JSON.", position=len(body))
    if media is Media.BATCH or (media is Media.EITHER and begin == b"["):
        return _elements(body, events_max)
    return [_whole(body)]


def refuse_too_many(events: int, events_max: int) -> None:
    """Check the number of events in a request.

    Raises:
        Refusal: too_many_events.
    """
    if events > events_max:
        raise too_many_events(events_max)


def too_many_events(most: int) -> Refusal:
    """Return a 413 that names the limit."""
    return Refusal("too_many_events", f"Send at most {most} events in one request; split it.", limit=most)


def _whole(body: bytes) -> bytes:
    try:
        _one(body)
    except (msgspec.DecodeError, RecursionError) as error:
        try:
            _one(_changed(body, error))
        except (msgspec.DecodeError, RecursionError):
            raise _malformed(body, error) from None
    return body.strip(WHITE)


def _elements(body: bytes, events_max: int) -> list[bytes]:
    try:
        return [bytes(element) for element in _slices(body, events_max)]
    except (msgspec.DecodeError, RecursionError) as error:
        try:
            slices = _slices(_changed(body, error), events_max)
        except (msgspec.DecodeError, RecursionError):
            raise _malformed(body, error) from None
    # A lone surrogate is the fault of one event, not of the whole body: cut where the harmless one was cut.
    elements, at = [], body.index(b"[") + 1
    for slice_ in slices:
        between = _between(body, at)
        at = between.end() if between else at
        elements.append(body[at : at + len(memoryview(slice_))])
        at += len(elements[-1])
    return elements


def _slices(body: bytes, events_max: int) -> list[Raw]:
    commas_max = events_max * _COMMAS_PER_EVENT
    if len(body) > commas_max and body.count(b",") > commas_max:
        _count_objects(body, events_max)
    slices = _many(body)
    refuse_too_many(len(slices), events_max)
    return slices


def _without_surrogates(body: bytes) -> bytes:
    """Return the same with another character for each surrogate, byte for byte as long; itself where there is none."""
    return body.replace(rb"\ud", rb"\u0").replace(rb"\uD", rb"\u0")


def _changed(body: bytes, error: Exception) -> bytes:
    """Return the body without its surrogates; raises `error` again where it has none."""
    spoilt = _without_surrogates(body)
    if spoilt == body:
        raise error
    return spoilt


def _count_objects(body: bytes, events_max: int) -> None:
    """Count the elements of a large array without keeping them: millions of `{}` fit into one body."""
    seen = count(1)

    class Element(Struct):
        def __post_init__(self) -> None:
            refuse_too_many(next(seen), events_max)

    msgspec.json.decode(body, type=list[Element])


def _lines(body: bytes, events_max: int) -> list[bytes]:
    if body.count(b"\n") > 2 * events_max:  # blank lines too: each costs memory once split
        refuse_too_many(body.count(b"\n"), events_max)
    lines = [line for part in body.split(b"\n") if (line := part.strip(WHITE))]
    refuse_too_many(len(lines), events_max)
    return lines


def _malformed(body: bytes, error: Exception) -> Refusal:
    if isinstance(error, msgspec.ValidationError):
        detail = "Send an array of events, each an object; one event alone goes as application/cloudevents+json."
        return Refusal("malformed_json", detail)
    if isinstance(error, RecursionError):
        return Refusal("malformed_json", "The body is nested too deeply to be read; nest less deeply.")
    at = _BYTE.search(str(error))
    position = int(at[1]) if at else len(body)
    reason = str(error).removeprefix("JSON is malformed: ") if at else f"it ends too early (byte {position})"
    return Refusal("malformed_json", f"The body is not JSON: {reason}.", position=position)
