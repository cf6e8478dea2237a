"""Decode one event: its envelope, with `data` left as bytes. Quick for one that is in order, careful for any other.

The quick way has the rules in its types: which attributes there are and how long each may be. What it refuses is read
again with care: it has extension attributes, or something is wrong and the sender is told what.
"""

from collections.abc import Callable
from typing import Annotated, Literal

import msgspec
import orjson
from msgspec import UNSET, Meta, UnsetType

from drm_ingest.edge.check import OTHER_CHARACTERS_MAX, check_attributes
from drm_ingest.errors import EventCode, Rejected
from drm_ingest.event import (
    ID_CHARACTERS_MAX,
    SOURCE_CHARACTERS_MAX,
    SUBJECT_CHARACTERS_MAX,
    TYPE_CHARACTERS_MAX,
    Envelope,
)
from drm_ingest.examine import reason

_Other = Annotated[str, Meta(min_length=1, max_length=OTHER_CHARACTERS_MAX)]


class _Known(Envelope, forbid_unknown_fields=True):
    """An event in order, without other extensions than the usual ones; the same rules as in `check`."""

    type: Annotated[str, Meta(min_length=1, max_length=TYPE_CHARACTERS_MAX)] | None = None
    id: Annotated[str, Meta(min_length=1, max_length=ID_CHARACTERS_MAX)] | None = None
    subject: Annotated[str, Meta(min_length=1, max_length=SUBJECT_CHARACTERS_MAX)] | None = None
    source: Annotated[str, Meta(max_length=SOURCE_CHARACTERS_MAX)] | None = None
    specversion: Literal["1.0"] = "1.0"
    datacontenttype: Literal["application/json"] | None = None
    dataschema: _Other | None = None
    sequence: _Other | None = None
    traceparent: _Other | None = None
    data_base64: UnsetType = UNSET
    # Extensions that come with many events; nothing is done with them here.
    tracestate: str | None = None
    partitionkey: str | None = None
    sequencetype: str | None = None


_known: Callable[[bytes], Envelope] = msgspec.json.Decoder(_Known).decode
_any: Callable[[bytes], Envelope] = msgspec.json.Decoder(Envelope).decode


def decode(value: bytes) -> Envelope:
    """Return the envelope of an event, nested no deeper than allowed. Of an attribute given twice the last counts.

    `data` is bytes still: JSON, but for what is inside its strings and how large its numbers are.

    Raises:
        Rejected: not_an_object, malformed_event, text_not_storable, number_out_of_range,
            attribute_invalid, attribute_reserved.
    """
    try:
        return _known(value)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return _decode_carefully(value)


def _decode_carefully(value: bytes) -> Envelope:
    try:
        attributes = orjson.loads(value)
    except orjson.JSONDecodeError as error:
        raise reason(value, error) from None
    if not isinstance(attributes, dict):
        raise Rejected(EventCode.NOT_AN_OBJECT)
    check_attributes(attributes)
    try:
        return _any(value)
    except msgspec.ValidationError as error:  # orjson has seen the last of two, msgspec minds the first too
        detail = f"An attribute is given twice, once wrongly: {error}."
        raise Rejected(EventCode.ATTRIBUTE_INVALID, detail=detail) from None
