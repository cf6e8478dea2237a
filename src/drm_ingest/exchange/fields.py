"""What is wrong with a field of a line, in words."""

from typing import cast

from pydantic import ValidationError

from drm_ingest.errors import Refusal, json_pointer
from drm_ingest.exchange.refused import LineCode, Refused


def invalid_field(error: ValidationError) -> Refused:
    """Return the refusal of the first field that the door's own rules refuse."""
    first = error.errors(include_url=False, include_input=False)[0]
    more = f" (and {error.error_count() - 1} more)" if error.error_count() > 1 else ""
    return Refused(LineCode.FIELD_INVALID, f"{first['msg']}{more}", json_pointer(*first["loc"]))


def refusal_of(refusal: Refusal, code: LineCode) -> Refused:
    """Return the refusal of a field that the door refuses."""
    violations = cast("list[dict[str, str]]", refusal.members.get("violations", []))
    found = violations[0] if violations else {"detail": refusal.detail}
    return Refused(code, found["detail"], found.get("pointer"))
