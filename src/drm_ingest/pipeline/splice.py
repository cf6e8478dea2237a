"""Add attributes to an event without touching what its sender wrote: new members go in before the last brace."""

from collections.abc import Container

import msgspec

_CLOSING_BRACE = ord("}")


def fragment(**attributes: object) -> bytes:
    """Return attributes as they stand inside of a JSON object, after a comma; those that are None are left out."""
    present = {name: value for name, value in attributes.items() if value is not None}
    return b"," + msgspec.json.encode(present)[1:-1] if present else b""


def splice(event: bytes, fragments: tuple[bytes, ...]) -> bytes:
    """Return the event with the fragments before its last brace.

    `event` is a JSON object with at least one member, in valid JSON: white space may follow the brace, nothing else.
    """
    end = -1 if event[-1] == _CLOSING_BRACE else event.rindex(b"}")
    return b"".join((event[:end], *fragments, b"}"))


def without(event: bytes, names: Container[str]) -> bytes:
    """Return the event without some of its members: an explicit null would else be there beside the value assigned.

    Of a member given twice the last stays. The bytes of the values that stay are as they were; white space around them
    goes.
    """
    members = msgspec.json.decode(event, type=dict[str, msgspec.Raw])
    return msgspec.json.encode({name: value for name, value in members.items() if name not in names})
