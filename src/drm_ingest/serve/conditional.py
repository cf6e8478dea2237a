"""Answers that a client may keep: with an ETag, and 304 where it names what the client has already."""

from collections.abc import Collection
from hashlib import blake2b
from typing import Annotated, Any

from fastapi import Header, Response
from pydantic import BaseModel

IfNoneMatch = Annotated[str | None, Header(description="ETag of what is there already; 304 where it still holds")]

NOT_MODIFIED: dict[int | str, dict[str, Any]] = {304: {"description": "It is still as that ETag names it."}}


def answer(content: BaseModel, if_none_match: str | None, *, but: Collection[str] = ()) -> Response:
    """Return the content, or 304 where it is known.

    The ETag is of everything in it `but` these fields; then it is weak (RFC 9110, 8.8.1): what differs does not matter.
    """
    named = content.model_dump_json(exclude=set(but)).encode()
    # What is large is written once: the rest follows it, before the last brace.
    body = named[:-1] + b"," + content.model_dump_json(include=set(but)).encode()[1:] if but else named
    tag = f'{"W/" if but else ""}"{blake2b(named, digest_size=12).hexdigest()}"'
    # Anybody's cache but the client's own would show one person's record to another.
    headers = {"etag": tag, "cache-control": "private, no-cache"}
    if names(if_none_match, tag):
        return Response(status_code=304, headers=headers)
    return Response(body, headers=headers, media_type="application/json")


def names(if_none_match: str | None, tag: str) -> bool:
    """Return whether If-None-Match names a tag; it is compared weakly (RFC 9110, 13.1.2)."""
    if if_none_match is None:
        return False
    tags = {named.strip().removeprefix("W/") for named in if_none_match.split(",")}
    return "*" in tags or tag.removeprefix("W/") in tags
