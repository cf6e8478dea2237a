"""What is wrong with a field of a line, in words."""

from typing import Any, cast

from pydantic import ValidationError

from drm_ingest.errors import Refusal
from drm_ingest.exchange.refused import LineCode, Refused
from drm_ingest.serve.violations import refusal_for


def invalid_field(error: ValidationError, fields: Any) -> Refused:
    """Return the refusal of the first of the fields that the door's own rules refuse, in the door's words."""
    found = [{**each, "loc": ("body", *each["loc"])} for each in error.errors(include_url=False)]
    return refusal_of(refusal_for(found, fields), LineCode.FIELD_INVALID)


def refusal_of(refusal: Refusal, code: LineCode) -> Refused:
    """Return the refusal of a field that the door refuses."""
    violations = cast("list[dict[str, str]]", refusal.members.get("violations", []))
    found = violations[0] if violations else {"detail": refusal.detail}
    more = f" (and {len(violations) - 1} more)" if len(violations) > 1 else ""
    return Refused(code, found["detail"] + more, found.get("pointer"))
