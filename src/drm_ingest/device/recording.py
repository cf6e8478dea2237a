"""Read a recording (CSV or newline-delimited JSON, plain or gzip) as events."""

import contextlib
import csv
import gzip
import json
import re
import zlib
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, TextIO
from zoneinfo import ZoneInfo

from drm_ingest.device.send import Line, Numbered
from drm_ingest.event import ID_CHARACTERS_MAX

_NUMBER = re.compile(r"-?(?:0|[1-9]\d*)(?:\.\d+)?(?:[eE][+-]?\d+)?")
_INTEGERS = range(-(2**63), 2**64)  # what the edge takes
_DURATION = re.compile(r"(?:(?P<days>\d+) days?,? *)?(?P<hours>\d+):(?P<minutes>\d\d):(?P<seconds>\d\d(?:\.\d+)?)")


CSV_FIELD_CHARACTERS_MAX = 131_072
Row = dict[str, Any]


class BadRow(ValueError):
    """A line of the recording cannot be made an event; the message says which line and why."""


@dataclass(frozen=True, slots=True)
class Recording:
    """How the lines of a file become events.

    A line that is a JSON object with a `type` of its own is an event already and is sent as it is.
    An event without an id gets one of the file's name, the line's number and a checksum of the line: the same each
    time, so that sending again is safe, and another one in another file of the same name.
    """

    path: Path
    type: str | None = None
    type_column: str | None = None
    subject: str | None = None
    subject_column: str | None = None
    time_column: str | None = None
    timezone: str = "UTC"
    starts_at: datetime | None = None  # UTC where it has no offset; then the time column tells the time passed since
    id_column: str | None = None
    columns: Mapping[str, str] = field(default_factory=dict)  # column -> name in data; empty: all that are left
    absent: Collection[str] = ()  # what else than an empty cell tells that there is no value, such as nil or -
    units: Mapping[str, str] = field(default_factory=dict)  # name in data -> unit

    def events(self, after_line: int = 0, *, on_bad: Callable[[int, BadRow], None] | None = None) -> Iterator[Numbered]:
        """Yield (line number, event) for each line after `after_line`; `on_bad` is told of lines to pass over.

        Raises:
            BadRow: a line cannot be made an event and there is no `on_bad`, or nothing behind it can be read.
        """
        zone = ZoneInfo(self.timezone)
        with _open(self.path) as file:
            for line, row, text in _rows(self.path, file):
                if line <= after_line:
                    continue
                try:
                    event = self._event(line, row, text, zone)
                except BadRow as bad:
                    if on_bad is None:
                        raise
                    on_bad(line, bad)
                else:
                    yield line, event

    def lines(self) -> int:
        """Count the lines that are not blank, as far as the file can be read."""
        count = 0
        with _open(self.path) as file, contextlib.suppress(BadRow):
            for _ in _rows(self.path, file):
                count += 1
        return count

    def _event(self, line: int, row: Row | BadRow, text: str, zone: ZoneInfo) -> dict[str, Any]:
        if isinstance(row, BadRow):
            raise row
        if isinstance(row.get("type"), str) and self.type_column is None and self.type is None:
            if "id" not in row:
                row = {"id": self._id(line, text), **row}
                text = f'{{"id":{json.dumps(row["id"])},{text[1:]}'
            return Line(row, text.encode())
        self._must_have_columns(line, row)
        id_ = _text(row, self.id_column) or self._id(line, text)
        event: dict[str, Any] = {"id": id_, "type": _text(row, self.type_column) or self.type}
        if event["type"] is None:
            raise BadRow(f"line {line}: no type; say --type, or which column tells it with --type-column")
        if subject := _text(row, self.subject_column) or self.subject:
            event["subject"] = subject
        if self.time_column:
            event["time"] = self._time(line, row[self.time_column], zone)
        taken = {self.id_column, self.type_column, self.subject_column, self.time_column}
        names = self.columns or {name: name for name in row if name and name not in taken}
        absent = (None, "", *self.absent)
        event["data"] = {name: _value(row[column]) for column, name in names.items() if row.get(column) not in absent}
        if self.units:
            event["data"]["units"] = dict(self.units)
        return event

    def _id(self, line: int, text: str) -> str:
        rest = f":{line}:{zlib.crc32(text.encode()):08x}"
        return self.path.name[-(ID_CHARACTERS_MAX - len(rest)) :] + rest

    def _must_have_columns(self, line: int, row: Row) -> None:
        """An object may leave out some of what goes into data; a CSV has one header for all."""
        named = [self.id_column, self.type_column, self.subject_column, self.time_column]
        missing = [column for column in named if column is not None and column not in row]
        absent = [column for column in self.columns if column not in row]
        if not _holds_objects(self.path) or len(absent) == len(self.columns):
            missing += absent
        if missing:
            there = ", ".join(str(column) for column in row if column is not None)
            raise BadRow(f"line {line}: no column {missing[0]!r}; there are {there}")

    def _time(self, line: int, value: Any, zone: ZoneInfo) -> str:
        text = "" if value is None else str(value)
        try:
            if self.starts_at is not None:
                time, zone = self.starts_at + _duration(text), ZoneInfo("UTC")
            else:
                time = datetime.fromisoformat(text)
            time = time if time.tzinfo else time.replace(tzinfo=zone)
            return time.astimezone(UTC).isoformat().replace("+00:00", "Z")
        except (ValueError, OverflowError) as error:
            raise BadRow(f"line {line}: {self.time_column} = {text!r} is not a time: {error}") from None


def _open(path: Path) -> TextIO:
    # A lone surrogate stands for a byte that is not UTF-8: so the line is known when it is found.
    if path.suffix == ".gz":
        return gzip.open(path, "rt", encoding="utf-8-sig", errors="surrogateescape", newline="")
    return path.open(encoding="utf-8-sig", errors="surrogateescape", newline="")


def _text(row: Row, column: str | None) -> str | None:
    value = None if column is None else row[column]
    return None if value in (None, "") else str(value)


def _holds_objects(path: Path) -> bool:
    names = [suffix for suffix in path.suffixes if suffix != ".gz"]
    return bool(names) and names[-1] in {".ndjson", ".jsonl", ".json"}


def _rows(path: Path, file: TextIO) -> Iterator[tuple[int, Row | BadRow, str]]:
    """Yield the number, the fields (or why there are none) and the text of each line that is not blank.

    Raises:
        BadRow: nothing behind a line can be read.
    """
    line = 0
    try:
        for line, row, text in (_objects if _holds_objects(path) else _records)(file):
            yield line, row if _is_utf8(text) else BadRow(f"line {line}: not UTF-8"), text
    except (csv.Error, EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise BadRow(f"after line {line}: {error}") from None


def _is_utf8(text: str) -> bool:
    try:
        text.isascii() or text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _objects(file: TextIO) -> Iterator[tuple[int, Row | BadRow, str]]:
    for line, text in enumerate(file, 1):
        if text := text.strip():
            yield line, _object(line, text), text


def _object(line: int, text: str) -> Row | BadRow:
    try:
        row = json.loads(text)
    except (ValueError, RecursionError) as error:
        return BadRow(f"line {line}: not JSON: {error}")
    return row if isinstance(row, dict) else BadRow(f"line {line}: not a JSON object")


def _records(file: TextIO) -> Iterator[tuple[int, Row | BadRow, str]]:
    csv.field_size_limit(CSV_FIELD_CHARACTERS_MAX)  # is of the whole interpreter
    reader = csv.DictReader(file)
    for row in reader:
        yield reader.line_num, row, "\x1f".join(map(str, row.values()))


def _duration(text: str) -> timedelta:
    """Accept seconds, H:MM:SS and `N days H:MM:SS`."""
    if match := _DURATION.fullmatch(text.strip()):
        parts = {name: float(value) for name, value in match.groupdict().items() if value}
        return timedelta(**parts)
    return timedelta(seconds=float(text))


def _value(value: Any) -> Any:
    """A CSV cell as the number it spells (as JSON writes numbers: 007 is none), else, or if too large, as text."""
    if not isinstance(value, str) or not _NUMBER.fullmatch(value):
        return value
    try:
        number = json.loads(value)
    except ValueError:  # thousands of digits
        return value
    kept = number in _INTEGERS if isinstance(number, int) else abs(number) != float("inf")
    return number if kept else value
