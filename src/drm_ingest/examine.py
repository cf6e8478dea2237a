"""Examine an event that looks odd or that a decoder refused: can it be stored, and if not, why? Slow and exact.

Python's own JSON decoder does it, because it can be asked about every number and keeps a lone surrogate to be found.
"""

import json
import math
import re
from itertools import accumulate

import orjson

from drm_ingest.errors import EventCode, Rejected
from drm_ingest.event import ID_CHARACTERS_MAX

_INTEGERS = range(-(2**63), 2**64)
_NUMBER_CHARACTERS_MAX = 1100  # a double written out in full takes 1,077; Postgres refuses 16,384 after the point

# Nineteen digits in a row may overflow, exponents of three digits may be too much; in strings they are no numbers.
_CLASSES = {**dict.fromkeys(b"0123456789.", "0"), **dict.fromkeys(b"eE", "e"), **dict.fromkeys(b"+-", "-")}
_CLASS = "".join(_CLASSES.get(byte, " ") for byte in range(256)).encode()
_LONG, _SIGNED, _UNSIGNED = b"0" * 19, b"0e-000", b"0e00000"  # e123 is in many a hexadecimal id; 1e400 orjson refuses
_odd_numbers = re.compile(
    rb"[:,\[\s](?:"
    rb"(-?\d{19,20})(?=[\s,\]}])"  # an integer that may be too large
    rb"|(-?(?=[\d.]{19})\d{1,20}\.\d{1,20})(?=[\s,\]}])"  # a double with all its digits: many, and nothing wrong
    rb"|-?[\d.]{19}|-?[\d.]+[eE](?:[+-]\d{3}|\d{5}))"
).finditer
# One without an end goes to the end of the text: or each of its escaped quotes would be tried as the begin of another.
_strings = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+(?:"|\\?\Z)', re.DOTALL).sub
_STEPS, _NO_BRACKETS = bytes.maketrans(b"[{]}", b"\1\1\xff\xff"), bytes(set(range(256)) - set(b"[]{}"))
_INNERMOST = b"\1\xff"  # signed bytes: one level down, one up
_SHALLOW = 3
_BRACKETS_AT_ONCE = 4096
_nul = re.compile(rb"(?<!\\)(?:\\\\)*\\u0000").search


def odd(text: bytes) -> bool:
    """Whether an event in these bytes needs `refuse_unstorable`: quick, and wrong only in saying yes too often."""
    if b"\\" in text and b"\\u0000" in text:
        return True
    classes = text.translate(_CLASS)
    return _LONG in classes or _SIGNED in classes or _UNSIGNED in classes


def far_off(text: bytes) -> bool:
    """Whether a number like 1e400 may be in these bytes, which of all decoders only orjson refuses."""
    return b"0e000" in text.translate(_CLASS)


def refuse_unstorable(value: bytes) -> None:
    """Refuse what decoders let through and Postgres or some reader does not: NUL, numbers out of range.

    Raises:
        Rejected: text_not_storable, number_out_of_range.
    """
    if not odd(value):
        return
    if b"\\u0000" in value and _nul(value):
        raise Rejected(EventCode.TEXT_NOT_STORABLE)
    for number in _odd_numbers(value):
        if number[2] is not None:
            continue
        if number[1] is None or int(number[1]) not in _INTEGERS:
            if rejected := examine(value):
                raise rejected
            return


def refuse_unreadable(value: bytes) -> None:
    """Refuse what a strict reader of the whole event would not take.

    Raises:
        Rejected: malformed_event, text_not_storable, number_out_of_range.
    """
    try:
        orjson.loads(value)
    except orjson.JSONDecodeError as error:
        raise reason(value, error) from None


def refuse_too_deep(value: bytes, depth_max: int) -> None:
    """Count the levels of JSON, the event itself being the first.

    Raises:
        Rejected: too_deep, or why the event cannot be read at all.
    """
    brackets = _strings(b"", value).translate(_STEPS, _NO_BRACKETS)
    shallow = min(_SHALLOW, depth_max)
    for _ in range(shallow):
        brackets = brackets.replace(_INNERMOST, b"")  # the innermost level of all there is: few brackets outlive that
    deepest = depth = 0
    for at in range(0, len(brackets), _BRACKETS_AT_ONCE):
        depths = [*accumulate(memoryview(brackets)[at : at + _BRACKETS_AT_ONCE].cast("b"), initial=depth)]
        deepest, depth = max(deepest, *depths), depths[-1]
        if deepest + shallow > depth_max:
            break
    else:
        return
    refuse_unreadable(value)
    raise Rejected(EventCode.TOO_DEEP, detail=f"Nest at most {depth_max} levels, the event itself included.")


def reason(value: bytes, error: orjson.JSONDecodeError) -> Rejected:
    """Return why orjson refused these bytes."""
    return examine(value) or Rejected(EventCode.MALFORMED_EVENT, detail=f"The event is not JSON: {error}.")


def examine(value: bytes) -> Rejected | None:
    """Return what is wrong with these bytes; None where nothing is."""
    try:
        # What cannot be encoded again has a lone surrogate.
        json.dumps(_decoder.decode(value.decode()), ensure_ascii=False).encode()
    except UnicodeDecodeError as error:
        return Rejected(EventCode.TEXT_NOT_STORABLE, detail=f"Send UTF-8; byte {error.start} of the event is not.")
    except UnicodeEncodeError:
        return Rejected(EventCode.TEXT_NOT_STORABLE, detail="Remove the lone surrogates (\\ud800 to \\udfff).")
    except RecursionError:
        return Rejected(EventCode.TOO_DEEP)
    except json.JSONDecodeError as error:
        return Rejected(EventCode.MALFORMED_EVENT, detail=f"The event is not JSON: {error}.")
    except Rejected as rejected:
        return rejected
    return None


def id_of(value: bytes) -> str | None:
    """Return the id of an event that was refused, if it can be read."""
    try:
        event = orjson.loads(value)
    except orjson.JSONDecodeError:
        return None
    id_ = event.get("id") if isinstance(event, dict) else None
    return id_ if isinstance(id_, str) and len(id_) <= ID_CHARACTERS_MAX else None


def _integer(token: str) -> int:
    if len(token) > 20 or int(token) not in _INTEGERS:
        raise _out_of_range(token)
    return int(token)


def _float(token: str) -> float:
    number = float(token)
    digits, _, exponent = token.lower().partition("e")
    vanished = number == 0 and digits.strip("-0.")
    exponent_digits_max = 3 if exponent.startswith("-") else 4  # 0e9999 is infinite to nobody, and no digits to store
    far_off = len(exponent.lstrip("+-0")) > exponent_digits_max
    if math.isinf(number) or vanished or len(token) > _NUMBER_CHARACTERS_MAX or far_off:
        raise _out_of_range(token)
    return number


def _out_of_range(token: str) -> Rejected:
    code = EventCode.NUMBER_OUT_OF_RANGE
    return Rejected(code, detail=f"{token if len(token) <= 40 else token[:40] + '…'} is not kept. {code.remedy}")


def _not_json(token: str) -> float:
    raise Rejected(EventCode.MALFORMED_EVENT, detail=f"{token} is not JSON.")


_decoder = json.JSONDecoder(parse_int=_integer, parse_float=_float, parse_constant=_not_json)
