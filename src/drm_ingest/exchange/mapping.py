"""The mapping: which columns of a file become which fields, and how.

    BadMapping   the mapping itself is wrong: nothing was read
    Unmappable   a line has no value for a field that it can be

A mapping is TOML. Under `[fields]` each field is told where it comes from:

    "Order Date"                                     the column of that name
    {constant = "customer"}                          the same in each line
    {template = "party:shop:{Customer ID}"}          put together of columns
    {column = "Sales", type = "integer", scale = 100}
    {template = "orders-2026:{#line}"}               #line is the number of the line

Fields nest as they do in JSON, by dots, tables and lists. Without a mapping each column is the field of its name.
"""

import json
import tomllib
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from datetime import datetime, time
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

from drm_ingest.errors import json_pointer
from drm_ingest.exchange.fit import LINE, READ, SOURCES, columns_of, in_braces, known_of, meant, no_column
from drm_ingest.exchange.values import as_json, boolean, integer, number, time_of

TYPES = ("text", "integer", "number", "boolean", "time", "json")

_ABSENT = object()
Read = Callable[[Mapping[str, Any]], Any]


class BadMapping(Exception):
    """The mapping itself is wrong; says where and what to do."""


class Unmappable(Exception):
    """A column does not hold what its field is; `pointer` is the field's."""

    def __init__(self, pointer: str, reason: str) -> None:
        super().__init__(reason)
        self.pointer, self.reason = pointer, reason


@dataclass(frozen=True, slots=True)
class Times:
    """How times are written, where a field says nothing else: `strptime`'s format (None: ISO 8601), and the zone."""

    format: str | None = None
    zone: str = "UTC"


class Columns:
    """Makes fields of the columns of a line."""

    def __init__(self, read: Read, text: str, told: Mapping[str, Any] | None = None) -> None:
        """`told` is how its fields are told; None: as the columns are."""
        self.fields = read
        self._told = told
        self.named = columns_of(told) if told else {}
        """The columns it reads, each with the pointer of a field."""
        self.text = text
        """What it was made of: another text is another import."""
        self.wants_line = LINE in text

    def known(self, header: Collection[str]) -> Any:
        """Return what is known of the fields of each line beforehand: constants, and READ for what a column holds.

        Raises:
            Unmappable
        """
        if self._told is None:
            return self.fields(dict.fromkeys(filter(None, header), READ))
        return {name: known_of(part) for name, part in self._told.items()}

    @classmethod
    def load(cls, path: Path | None) -> "Columns":
        """Read a mapping, or that of a file whose columns have the names of the fields.

        Raises:
            BadMapping
        """
        if path is None:
            return cls(_as_they_are, "")
        try:
            text = path.read_text()
            document = tomllib.loads(text)
        except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
            raise BadMapping(f"{path}: {error}") from None
        if unknown := document.keys() - {"fields", "times", "absent"}:
            wrong = ", ".join(name + meant(name, ("fields", "times", "absent")) for name in sorted(unknown))
            raise BadMapping(f"{path}: {wrong} is unknown; there are fields, times and absent")
        try:
            times = Times(**document.get("times", {}))
        except TypeError:
            raise BadMapping(f"{path}: [times] has format and zone, and nothing else") from None
        absent = frozenset(document.get("absent", ())) | {""}
        fields = document.get("fields")
        if not isinstance(fields, dict) or not fields:
            raise BadMapping(f"{path}: [fields] says which field comes from which column; it is missing")
        return cls(_reader(fields, (), times, absent), text, fields)


def _reader(told: Any, steps: tuple[object, ...], times: Times, absent: frozenset[Any]) -> Read:
    """Return what reads a field, or all in it; a field whose column is empty is absent, and so is what has none."""
    where = json_pointer(*steps)
    if isinstance(told, str):
        return _value({"column": told}, where, times, absent)
    if isinstance(told, dict) and steps and any(source in told for source in SOURCES):
        return _value(told, where, times, absent)
    if isinstance(told, dict):
        parts = {name: _reader(part, (*steps, name), times, absent) for name, part in told.items()}

        def table(row: Mapping[str, Any]) -> Any:
            found = {name: value for name, part in parts.items() if (value := part(row)) is not _ABSENT}
            return found if found or not steps else _ABSENT

        return table
    if isinstance(told, list):
        items = [_reader(part, (*steps, number), times, absent) for number, part in enumerate(told)]

        def list_(row: Mapping[str, Any]) -> Any:
            found = [value for item in items if (value := item(row)) is not _ABSENT]
            return found or _ABSENT

        return list_
    raise BadMapping(f"{where} is {told!r}: name a column in quotes; what is the same in each line is a constant")


def _value(told: Mapping[str, Any], where: str, times: Times, absent: frozenset[Any]) -> Read:
    known = {*SOURCES, "type", "format", "zone", "scale", "values"}
    if unknown := told.keys() - known:
        wrong = ", ".join(name + meant(name, known) for name in sorted(unknown))
        raise BadMapping(f"{where}: {wrong} is unknown; there are {', '.join(sorted(known))}")
    if sum(source in told for source in SOURCES) > 1:
        raise BadMapping(f"{where}: name one of {', '.join(SOURCES)}")
    if "constant" in told:
        constant = as_json(told["constant"])
        return lambda _row: constant
    from_row = (
        _template(told["template"], where, absent) if "template" in told else _column(told["column"], where, absent)
    )
    values = told.get("values")
    convert = _converter(told, where, times)

    def value(row: Mapping[str, Any]) -> Any:
        found = from_row(row)
        if found is _ABSENT:
            return _ABSENT
        if values is not None:
            if str(found) not in values:
                raise Unmappable(where, f"{found!r} is none of the values that the mapping names.")
            return values[str(found)]
        try:
            return convert(found)
        except (ValueError, ArithmeticError, OverflowError) as error:
            raise Unmappable(where, f"{str(found)[:100]!r}: {error}") from None

    return value


def _column(name: Any, where: str, absent: frozenset[Any]) -> Read:
    if not isinstance(name, str):
        raise BadMapping(f"{where}: a column has a name, in quotes")

    def read(row: Mapping[str, Any]) -> Any:
        if name not in row:
            raise Unmappable(where, no_column(name, row))
        value = row[name]
        return _ABSENT if value is None or _stands_for_none(value, absent) else value

    return read


def _stands_for_none(value: Any, absent: frozenset[Any]) -> bool:
    """Return whether a value is said to, however it is written: a time at midnight as a day too."""
    if str(value).strip() in absent:
        return True
    if not isinstance(value, datetime):
        return False
    return value.isoformat() in absent or (value.time() == time.min and value.date().isoformat() in absent)


def _template(template: Any, where: str, absent: frozenset[Any]) -> Read:
    if not isinstance(template, str) or not in_braces.search(template):
        raise BadMapping(f"{where}: a template names columns in braces, as in party:crm:{{Customer}}")
    columns = {name: _column(name, where, absent) for name in in_braces.findall(template)}

    def read(row: Mapping[str, Any]) -> Any:
        values = {name: column(row) for name, column in columns.items()}
        if _ABSENT in values.values():
            return _ABSENT
        return in_braces.sub(lambda found: str(values[found[1]]).strip(), template)

    return read


def _converter(told: Mapping[str, Any], where: str, times: Times) -> Callable[[Any], Any]:
    type_ = told.get("type", "time" if {"format", "zone"} & told.keys() else None)
    if type_ not in (None, *TYPES):
        raise BadMapping(f"{where}: there is no type {type_!r}{meant(str(type_), TYPES)}; there are {', '.join(TYPES)}")
    if type_ == "time":
        try:
            zone = ZoneInfo(told.get("zone", times.zone))
        except (LookupError, ValueError, OSError):
            raise BadMapping(f"{where}: there is no such time zone; name one as in Europe/Vienna") from None
        format_ = told.get("format", times.format)
        return lambda value: time_of(value, format_, zone)
    if type_ in ("integer", "number"):
        try:
            scale = Decimal(str(told.get("scale", 1)))
        except InvalidOperation:
            raise BadMapping(f"{where}: scale is a number, by which the column is multiplied") from None
        return integer(scale) if type_ == "integer" else number(scale)
    if type_ == "boolean":
        return boolean
    if type_ == "json":
        return lambda value: json.loads(value) if isinstance(value, str) else as_json(value)
    if type_ == "text":
        return lambda value: str(as_json(value)).strip()
    return lambda value: value.strip() if isinstance(value, str) else as_json(value)


def _as_they_are(row: Mapping[str, Any]) -> Any:
    """Return the columns as fields; one named `refs.crm` is `crm` in `refs`."""
    fields: dict[str, Any] = {}
    for name, value in row.items():
        if value is None or value == "":
            continue
        if isinstance(name, str) and "." not in name:
            fields[name] = as_json(value)
            continue
        *path, last = name.split(".") if isinstance(name, str) else [name]
        inside = fields
        for step in path:
            inside = inside.setdefault(step, {})
            if not isinstance(inside, dict):
                raise Unmappable(json_pointer(*path), "It is a value and holds values too.")
        inside[last] = as_json(value)
    return fields
