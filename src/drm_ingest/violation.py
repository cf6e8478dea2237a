"""What a sender is told about data that does not fit its schema: where, and one sentence on what to change.

Both are bounded and repeat nothing of what was sent but names.
"""

from collections.abc import Mapping
from typing import Any

import jsonschema_rs

from drm_ingest.errors import DETAIL_CHARACTERS_MAX, POINTER_CHARACTERS_MAX, json_pointer

NAME_CHARACTERS_MAX = 60

_WORDS = {
    "object": "an object",
    "array": "an array",
    "string": "a string",
    "number": "a number",
    "integer": "a whole number",
    "boolean": "true or false",
    "null": "null",
}
_SENT = {
    dict: "an object",
    list: "an array",
    str: "a string",
    float: "a decimal number",
    int: "a number",
    bool: "true or false",
}
_RULES = {
    "minimum": "must be at least {}",
    "maximum": "must be at most {}",
    "exclusiveMinimum": "must be more than {}",
    "exclusiveMaximum": "must be less than {}",
    "multipleOf": "must be a multiple of {}",
    "minLength": "must have {} characters or more",
    "maxLength": "must have {} characters or fewer",
    "minItems": "must have {} items or more",
    "maxItems": "must have {} items or fewer",
    "minProperties": "must have {} members or more",
    "maxProperties": "must have {} members or fewer",
    "const": "must be {}",
    "enum": "must be one of {}",
    "format": "must be a valid {}",
    "pattern": "does not have the form it needs",
    "not": "has a form that is not allowed",
    "uniqueItems": "must not have the same item twice",
    "propertyNames": "has a member whose name is not allowed",
}


def violation(error: jsonschema_rs.ValidationError, document: Mapping[str, Any]) -> tuple[str, str]:
    """Return the JSON pointer (RFC 6901, from the root of the event) and the sentence.

    What is missing is pointed at where it ought to be. The sentence goes on with what the schema itself says of that
    place: its nearest `description`, the root's left aside, and its `x-unit`.
    """
    kind, path = error.kind, list(error.instance_path)
    where: list[str | int] = list(error.schema_path[:-1])
    match kind.name:
        case "required":
            path.append(kind.value)
            where += ["properties", kind.value]
            rule = "is missing"
        case "additionalProperties" | "unevaluatedProperties":
            path.append(kind.value[0])
            rule = "is not known here: remove it or correct its name"
        case "type":
            wanted = " or ".join(word for name, word in _WORDS.items() if name in kind.value)
            rule = f"must be {wanted}, not {_SENT.get(type(error.instance), 'null')}"
        case "minLength" | "minItems" | "minProperties" if kind.value == 1:
            rule = "must not be empty"
        case name:
            limits = kind.value if isinstance(kind.value, list) else [kind.value]
            rule = _RULES.get(name, "does not fit").format(", ".join(str(limit) for limit in limits))
    about, unit = _said_of(document, where)
    subject = shortened(str(path[-1]), NAME_CHARACTERS_MAX) if path else "data"
    detail = f"{subject} {rule}." + (f" {about}" if about else "") + (f" Unit: {unit}." if unit else "")
    return _pointer(path), shortened(detail, DETAIL_CHARACTERS_MAX)


def _said_of(document: Mapping[str, Any], where: list[str | int]) -> tuple[str | None, str | None]:
    """The description nearest to the rule that failed, and the unit of what it is about."""
    about = unit = None
    part: Any = document
    for step in where:
        try:
            part = part[step]
        except (KeyError, IndexError, TypeError):  # a rule that names a member it says nothing else about
            break
        if isinstance(part, dict):
            about = described if isinstance(described := part.get("description"), str) else about
            unit = code if isinstance(code := part.get("x-unit"), str) else None
    return about, unit


def _pointer(path: list[str | int]) -> str:
    """Too long a pointer ends at a whole step, and so names what is around."""
    pointer = "/data"
    for step in path:
        longer = pointer + json_pointer(step)
        if len(longer) > POINTER_CHARACTERS_MAX:
            break
        pointer = longer
    return pointer


def shortened(text: str, characters_max: int) -> str:
    """Cut what is too long, and show that something is missing."""
    return text if len(text) <= characters_max else text[: characters_max - 1] + "…"
