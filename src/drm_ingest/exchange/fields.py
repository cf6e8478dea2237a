"""What is wrong with a field in words: of a line; or of all of them, as far as that is known beforehand."""

from collections.abc import Iterator, Mapping
from typing import Any, cast

from pydantic import BaseModel, ValidationError

from drm_ingest.errors import Refusal
from drm_ingest.exchange.fit import READ, meant, no_source
from drm_ingest.exchange.refused import LineCode, Refused
from drm_ingest.serve.violations import refusal_for

Wrong = Iterator[tuple[str, str]]
"""Pointers to fields, each with what is wrong there."""


def invalid_field(error: ValidationError, fields: Any) -> Refused:
    """Return the refusal of the first of the fields that the door's own rules refuse, in the door's words."""
    return refusal_of(_refusal(error.errors(include_url=False), fields), LineCode.FIELD_INVALID)


def refusal_of(refusal: Refusal, code: LineCode) -> Refused:
    """Return the refusal of a field that the door refuses."""
    violations = cast("list[dict[str, str]]", refusal.members.get("violations", []))
    found = violations[0] if violations else {"detail": refusal.detail}
    more = f" (and {len(violations) - 1} more)" if len(violations) > 1 else ""
    return Refused(code, found["detail"] + more, found.get("pointer"))


def wrong_in_all(model: type[BaseModel], known: Mapping[str, Any]) -> Wrong:
    """Tell what the door's own rules refuse in every line, whatever its columns hold."""
    try:
        model.model_validate(known)
    except ValidationError as error:
        # A name that is wrong is mostly that of the field that is missing.
        for each in sorted(error.errors(include_url=False), key=lambda each: each["type"] == "missing"):
            where = refusal_of(_refusal([each], known), LineCode.FIELD_INVALID)
            pointer, name, value = where.pointer or "", str(each["loc"][-1]), each["input"]
            if each["type"] == "extra_forbidden":
                yield pointer, no_field(name, model.model_fields)
            elif each["type"] != "missing" and isinstance(value, dict):
                yield pointer, no_source(next(iter(value), "table"))
            elif value is not READ:
                yield pointer, where.reason


def no_field(name: str, fields: Mapping[str, Any]) -> str:
    """Say that there is no such field, and which was probably meant."""
    return f"There is no such field{meant(name, fields)}."


def _refusal(errors: Any, fields: Any) -> Refusal:
    return refusal_for([{**each, "loc": ("body", *each["loc"])} for each in errors], fields)
