"""CloudEvents' binary mode: attributes in `ce-*` headers, `data` in the body; made into the structured form here."""

import re
from collections.abc import Mapping
from urllib.parse import unquote_to_bytes

import orjson

from drm_ingest.edge.check import check_extension, invalid
from drm_ingest.edge.split import WHITE
from drm_ingest.errors import EventCode, Refusal, Rejected
from drm_ingest.examine import reason

_quoted = re.compile(r'"((?:[^"\\]|\\.)*)"').fullmatch
_escapes = re.compile(r"\\(.)").sub
_IN_CONTENT_TYPE = "datacontenttype"


def structured(headers: Mapping[str, str], content_type: bytes, body: bytes) -> bytes:
    """Return the event in its structured form, with the bytes of `data` as they are; an empty body is no `data`.

    `headers` are the `ce-*` headers by lower-case name without the `ce-`; the body is no larger than an event may be.

    Raises:
        Refusal: malformed_json.
        Rejected: attribute_invalid, attribute_reserved, text_not_storable, number_out_of_range, too_deep.
    """
    attributes = {"specversion": "1.0"} | {name: _text(name, value) for name, value in headers.items()}
    if content_type and content_type != b"application/json":
        attributes[_IN_CONTENT_TYPE] = content_type.decode("latin-1")
    head = orjson.dumps(attributes)[:-1]
    body = body.strip(WHITE)
    if not body:
        return head + b"}"
    try:
        orjson.loads(body)  # to its last byte: what followed a value could else pass for attributes
    except orjson.JSONDecodeError as error:
        rejected = reason(body, error)
        if rejected.code is EventCode.MALFORMED_EVENT:
            raise Refusal("malformed_json", f"The body is not JSON: {error}.", position=error.pos) from None
        raise rejected from None
    return b'%b,"data":%b}' % (head, body)


def _text(name: str, value: str) -> str:
    """Return an attribute's text: unquoted, then percent-decoded once (CloudEvents' HTTP binding, 3.1.3.2)."""
    if name in {"data", _IN_CONTENT_TYPE}:
        where = "the body" if name == "data" else "Content-Type"
        raise invalid(name, f"With ce-* headers, {name} is {where}.")
    check_extension(name, "")
    if quoted := _quoted(value):
        value = _escapes(r"\1", quoted[1])
    try:
        return unquote_to_bytes(value.encode("latin-1")).decode()
    except UnicodeError:
        raise Rejected(EventCode.TEXT_NOT_STORABLE, f"/{name}", f"ce-{name} is not UTF-8.") from None
