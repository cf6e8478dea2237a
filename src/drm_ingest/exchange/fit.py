"""Whether a mapping fits a file, and what becomes of it, before any line is taken; and what was probably meant."""

import re
from collections.abc import Collection, Iterator, Sequence
from difflib import get_close_matches
from typing import Any

from drm_ingest.errors import json_pointer
from drm_ingest.exchange.values import as_json

SOURCES = ("column", "constant", "template")
LINE = "#line"
"""The column that no file has: the number of the line."""
in_braces = re.compile(r"\{([^{}]*)\}")
_TOLD_CHARACTERS_MAX = 200


class _Read(str):
    __slots__ = ()


READ = _Read("read")
"""Stands for what a column holds, of which nothing is known yet."""


def known_of(told: Any) -> Any:
    """Return the fields that a mapping makes of each line, as far as they are known: constants, and else READ."""
    if isinstance(told, list):
        return [known_of(part) for part in told]
    if not isinstance(told, dict) or ("constant" not in told and any(source in told for source in SOURCES)):
        return READ
    return as_json(told["constant"]) if "constant" in told else {name: known_of(part) for name, part in told.items()}


def columns_of(fields: Any) -> dict[str, str]:
    """Return the columns that a mapping's fields are read from, each with the pointer of the first of these fields."""
    columns: dict[str, str] = {}
    for column, pointer in _read_from(fields, ()):
        columns.setdefault(column, pointer)
    return columns


def _read_from(told: Any, steps: tuple[object, ...]) -> Iterator[tuple[str, str]]:
    where = json_pointer(*steps)
    if isinstance(told, str):
        yield told, where
    elif isinstance(told, dict) and "constant" in told:
        return
    elif isinstance(told, dict) and isinstance(told.get("column"), str):
        yield told["column"], where
    elif isinstance(told, dict) and isinstance(told.get("template"), str):
        yield from ((name, where) for name in in_braces.findall(told["template"]))
    elif isinstance(told, dict):
        for name, part in told.items():
            yield from _read_from(part, (*steps, name))
    elif isinstance(told, list):
        for number, part in enumerate(told):
            yield from _read_from(part, (*steps, number))


def misfit(columns: dict[str, str], header: Collection[str]) -> str | None:
    """Return what is wrong where a file, all lines of which have the same columns, has not those of the mapping."""
    missing = [(name, pointer) for name, pointer in columns.items() if name not in header and name != LINE]
    return in_short([f"{pointer}: {no_column(name, header)}{_source(pointer)}" for name, pointer in missing])


def in_short(wrong: Sequence[str]) -> str | None:
    """Return the first of what is wrong, if anything is."""
    return " · ".join(wrong[:3]) + (f" · and {len(wrong) - 3} more" if len(wrong) > 3 else "") if wrong else None


def no_source(name: str) -> str:
    """Say that a field is told to be read from something that there is not."""
    return f"A field is read from a column, a constant or a template, and not from a {name!r}{meant(name, SOURCES)}."


def _source(pointer: str) -> str:
    """Of a table that is told by a word which is nearly a source, so that its value is taken for a column."""
    name = pointer.rpartition("/")[2]
    return f" {no_source(name)}" if meant(name, SOURCES) else ""


def no_column(name: str, there: Collection[object]) -> str:
    """Say that a column is not there, and which is."""
    names = [str(column) for column in there]
    return f"There is no column {name!r}{meant(name, names)}; there are {listed(names)}."


def listed(names: Collection[str]) -> str:
    told = ", ".join(names)
    return told if len(told) <= _TOLD_CHARACTERS_MAX else f"{told[:_TOLD_CHARACTERS_MAX]}…"


def meant(name: str, names: Collection[str]) -> str:
    """Return `, did you mean X?` where a name is like one that there is."""
    folded = {each.casefold().strip(): each for each in names}
    found = get_close_matches(name.casefold().strip(), folded, n=1, cutoff=0.7)
    return f" (did you mean {folded[found[0]]!r}?)" if found else ""
