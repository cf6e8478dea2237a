"""The fields and lists that the rooms of the API share."""

import re
from datetime import UTC, datetime
from typing import Annotated, Any, Generic, TypeVar

import orjson
from pydantic import AfterValidator, AwareDatetime, BaseModel, BeforeValidator, ConfigDict, Field, StringConstraints
from pydantic_core import PydanticCustomError
from starlette.convertors import PathConvertor, register_url_convertor

from drm_ingest.event import SUBJECT_CHARACTERS_MAX, TYPE_CHARACTERS_MAX

ITEMS_MAX = 1000
CURSOR_CHARACTERS_MAX = 2000

_begins_with_date = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}").match


def _storable(text: str) -> str:
    if "\0" in text:
        raise ValueError("Must not contain NUL.")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError("Must not contain lone surrogates.") from None
    return text


def _written_out(value: Any) -> Any:
    # A number would be taken for seconds or milliseconds since 1970, and 20260301 for a day of that year.
    if isinstance(value, int | float) or (isinstance(value, str) and not _begins_with_date(value)):
        raise PydanticCustomError("datetime_parsing", "no time")
    return value


def _in_utc(time: datetime) -> datetime:
    # Postgres and Python stop at different ends of the calendar; year 9999 is its infinity in asyncpg.
    try:
        time = time.astimezone(UTC)
    except OverflowError:
        time = datetime.max.replace(tzinfo=UTC)
    if not 1 < time.year < 9999:
        raise ValueError("Must lie in the years 2 to 9998.")
    return time


def told(time: datetime) -> str:
    """Return a time as it is told in a sentence: exactly, for whoever asks again goes by it."""
    return time.astimezone(UTC).isoformat().replace("+00:00", "Z")


def during(starts: datetime | None, ends: datetime | None) -> str:
    return f"{f'from {told(starts)}' if starts else 'since ever'} {f'to {told(ends)}' if ends else 'on'}"


def _ahead(time: datetime) -> datetime:
    if time <= (now := datetime.now(UTC)):
        raise ValueError(f"Must lie ahead: here it is {now:%Y-%m-%dT%H:%M:%SZ}. Leave it out for a key without an end.")
    return time


def decoded(value: Any) -> Any:
    """Return what is in a jsonb column: asyncpg hands out its text."""
    return orjson.loads(value) if isinstance(value, str) else value


class _RestOfPath(PathConvertor):
    """What is left of a path, with slashes and line breaks: a subject may have both, and `path` ends at the latter."""

    regex = r"[\s\S]*"


register_url_convertor("rest", _RestOfPath())

Text = Annotated[str, AfterValidator(_storable)]
Name = Annotated[Text, StringConstraints(min_length=1, max_length=300)]
Subject = Annotated[
    Text,
    StringConstraints(min_length=1, max_length=SUBJECT_CHARACTERS_MAX),
    Field(description="a device's id; or party:<id> or party:<namespace>:<ref>"),
]
PartyName = Annotated[
    Text, StringConstraints(min_length=1, max_length=200), Field(description="its id, or a reference such as crm:778")
]
EventType = Annotated[Text, StringConstraints(min_length=1, max_length=TYPE_CHARACTERS_MAX)]
Time = Annotated[
    AwareDatetime,
    BeforeValidator(_written_out),
    AfterValidator(_in_utc),
    Field(description="RFC 3339 with an offset; answered in UTC"),
]
StoredTime = Annotated[AwareDatetime, Field(description="RFC 3339, in UTC")]
"""In answers: what is stored is told, wherever in the calendar it lies."""
Expiry = Annotated[Time, AfterValidator(_ahead)]
"""A key that has ended before it is made is somebody's mistake about a date or an offset."""
from_json = BeforeValidator(decoded)


class Request(BaseModel):
    """What is sent: a misspelt field is refused rather than ignored."""

    model_config = ConfigDict(extra="forbid")


class PageQuery(Request):
    """Of every list."""

    limit: int = Field(100, ge=1, le=ITEMS_MAX, description="items on a page")
    cursor: str | None = Field(
        None, max_length=CURSOR_CHARACTERS_MAX, description="`next` of the page before; with the same filters"
    )


Item = TypeVar("Item", bound=BaseModel)


class Page(BaseModel, Generic[Item]):
    """Part of a list."""

    items: list[Item]
    next: str | None = Field(description="send it as `cursor` for the next page; null: this was the last")
