"""Whether a mapping fits a file, before any line is taken; and what was probably meant where a name is wrong."""

import re
from collections.abc import Collection, Iterator
from difflib import get_close_matches
from typing import Any

from drm_ingest.errors import json_pointer

LINE = "#line"
"""The column that no file has: the number of the line."""
in_braces = re.compile(r"\{([^{}]*)\}")
_TOLD_CHARACTERS_MAX = 200


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
    wrong = [
        f"{pointer}: {no_column(column, header)}"
        for column, pointer in columns.items()
        if column not in header and column != LINE
    ]
    return " · ".join(wrong[:3]) + (f" · and {len(wrong) - 3} more" if len(wrong) > 3 else "") if wrong else None


def no_column(name: str, there: Collection[object]) -> str:
    """Say that a column is not there, and which is."""
    names = [str(column) for column in there]
    return f"There is no column {name!r}{meant(name, names)}; there are {', '.join(names)[:_TOLD_CHARACTERS_MAX]}."


def meant(name: str, names: Collection[str]) -> str:
    """Return `, did you mean X?` where a name is like one that there is."""
    folded = {each.casefold().strip(): each for each in names}
    found = get_close_matches(name.casefold().strip(), folded, n=1, cutoff=0.7)
    return f" (did you mean {folded[found[0]]!r}?)" if found else ""
