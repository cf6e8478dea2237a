"""What is wrong with a field or a parameter, as pydantic finds it, in words for the person who sent it."""

from collections.abc import Sequence
from typing import Any

from drm_ingest.errors import Refusal, json_pointer

VIOLATIONS_MAX = 20

NOTHING_OF_THIS_NAME = "There is nothing of this name here; /docs lists what there is."
_TIME = "Must be a time in RFC 3339 with an offset, as in 2026-11-22T10:00:00Z."
_TEXT = 'Must be a string: "4711" and not 4711.'
_WHOLE = "Must be a whole number."
_NUMBER = "Must be a number."
_OBJECT = "Must be a JSON object."
_ID = "Must be an id, as in 01a202fd-12a9-75d6-a27e-21b5246620a3."
_SHORT, _LONG = "Must have at least {min_length} {parts}.", "Must have at most {max_length} {parts}."

EXPECTED = {
    "missing": "Must be given.",
    "extra_forbidden": NOTHING_OF_THIS_NAME,
    "string_type": "Must be a string.",
    "string_unicode": "Must be a string in UTF-8.",
    "string_too_short": _SHORT, "too_short": _SHORT, "string_too_long": _LONG, "too_long": _LONG,
    "string_pattern_mismatch": "Must match {pattern}.",
    "literal_error": "Must be {expected}.",
    "bool_type": "Must be true or false.", "bool_parsing": "Must be true or false.",
    "int_type": _WHOLE, "int_parsing": _WHOLE, "int_parsing_size": _WHOLE, "int_from_float": _WHOLE,
    "float_type": _NUMBER, "float_parsing": _NUMBER, "finite_number": _NUMBER,
    "greater_than_equal": "Must be at least {ge}.", "less_than_equal": "Must be at most {le}.",
    "datetime_type": _TIME, "datetime_parsing": _TIME, "datetime_from_date_parsing": _TIME, "timezone_aware": _TIME,
    "datetime_object_invalid": _TIME,
    "uuid_type": _ID, "uuid_parsing": _ID,
    "list_type": "Must be a JSON array.", "dict_type": _OBJECT, "model_type": _OBJECT, "model_attributes_type": _OBJECT,
    "union_tag_not_found": "Must be a string or a JSON object.",
    "value_error": "{error}",
}  # fmt: skip
"""What to say by the kind of error (https://docs.pydantic.dev/latest/errors/validation_errors/), of its context."""

_TIMES = {kind for kind, said in EXPECTED.items() if said == _TIME}


def refusal_for(errors: Sequence[Any], body: object) -> Refusal:
    """Say where and what is wrong, without repeating what was sent."""
    if any(error["type"] == "json_invalid" for error in errors):
        return Refusal("malformed_json", "The body cannot be read as JSON.")
    violations = [_violation(error, body) for error in errors[:VIOLATIONS_MAX]]
    first = violations[0]
    place = first.get("pointer") or first.get("parameter") or "the body"
    more = f" (and {len(errors) - 1} more, see violations)" if len(errors) > 1 else ""
    return Refusal("invalid_parameters", f"{place}: {first['detail']}{more}", violations=violations)


def _violation(error: Any, body: object) -> dict[str, str]:
    where, *path = error["loc"]
    if where == "body":
        return {"pointer": _pointer(error, body), "detail": _detail(error) if path else _OBJECT}
    # What is not escaped arrives as a space, and that is how a time with an offset most often goes wrong.
    plus = " In a URL + is written %2B." if error["type"] in _TIMES and " " in str(error["input"]) else ""
    return {"parameter": ".".join(str(part) for part in path) or str(where), "detail": _detail(error) + plus}


def _detail(error: Any) -> str:
    kind, context = error["type"], error.get("ctx", {})
    if kind == "string_type" and isinstance(error["input"], int | float) and not isinstance(error["input"], bool):
        return _TEXT
    if context.get("min_length") == 1:
        return "Must not be empty."
    # Text that a validator of ours has seen has no kind of its own to pydantic any more, only a length.
    parts = "entries" if context.get("field_type") in ("List", "Dictionary") else "characters"
    said = EXPECTED[kind].format(**context, parts=parts) if kind in EXPECTED else str(error["msg"])
    return said[:1].upper() + said[1:]


def _pointer(error: Any, body: object) -> str:
    """Return where in the body it is: pydantic also says which of its validators stumbled."""
    steps: list[str | int] = []
    for step in error["loc"][1:]:
        match body:
            case dict() if step in body or error["type"] == "missing":
                body = body.get(step)
            case list() if isinstance(step, int):
                body = body[step]
            case _:
                continue
        steps.append(step)
    return json_pointer(*steps)
