"""Cursors: where a page ended, as text that is only good for the list and the filters it came from."""

import base64
import binascii
from collections.abc import Sequence
from hashlib import blake2b
from typing import TypeVar

import msgspec
import orjson

from drm_ingest.errors import Refusal
from drm_ingest.serve.problems import invalid
from drm_ingest.serve.shapes import PageQuery

Position = TypeVar("Position")
Row = TypeVar("Row")


class _Cursor(msgspec.Struct, array_like=True):
    list: str
    position: msgspec.Raw


def start(query: PageQuery, list_: str, shape: type[Position]) -> Position | None:
    """Return where the page before ended, None for the first page; `list_` names whose list it is.

    Raises:
        Refusal: the cursor is of another list or other filters, or nothing we gave out.
    """
    if query.cursor is None:
        return None
    try:
        text = base64.urlsafe_b64decode(query.cursor + "=" * (-len(query.cursor) % 4))
        cursor = msgspec.json.decode(text, type=_Cursor)
        position = msgspec.json.decode(cursor.position, type=shape)
    except (binascii.Error, ValueError):  # msgspec's errors are ValueErrors, and so is text that is not ASCII
        raise foreign() from None
    if cursor.list != _fingerprint(query, list_):
        raise foreign()
    return position


def cut(rows: Sequence[Row], query: PageQuery) -> tuple[Sequence[Row], Row | None]:
    """Return the rows of the page, of one more than its limit, and the last of them if there is a next page."""
    page = rows[: query.limit]
    return page, page[-1] if len(rows) > query.limit else None


def end(query: PageQuery, list_: str, position: object) -> str:
    """Return the cursor for what comes after `position`, a value of the shape that `start` is asked for."""
    cursor = _Cursor(_fingerprint(query, list_), msgspec.Raw(msgspec.json.encode(position)))
    return base64.urlsafe_b64encode(msgspec.json.encode(cursor)).rstrip(b"=").decode()


def _fingerprint(query: PageQuery, list_: str) -> str:
    filters = query.model_dump(mode="json", exclude={"limit", "cursor"}, exclude_none=True)
    return blake2b(list_.encode() + orjson.dumps(filters, option=orjson.OPT_SORT_KEYS), digest_size=6).hexdigest()


def foreign() -> Refusal:
    """Return the refusal of a cursor that is of another list, or nothing we gave out."""
    return invalid("Not a cursor of this list with these filters; start again without one.", parameter="cursor")
