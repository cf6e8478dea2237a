"""Read a recording (CSV or newline-delimited JSON, plain or gzip) as events."""

import csv
import gzip
import json
import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, TextIO
from zoneinfo import ZoneInfo

_NUMBER = re.compile(r"-?(?:0|[1-9]\d*)(?:\.\d+)?(?:[eE][+-]?\d+)?")
_DURATION = re.compile(r"(?:(?P<days>\d+) days?,? *)?(?P<hours>\d+):(?P<minutes>\d\d):(?P<seconds>\d\d(?:\.\d+)?)")


class BadRow(ValueError):
    """A line of the recording cannot be made an event; the message says which line and why."""


@dataclass(frozen=True, slots=True)
class Recording:
    """How the lines of a file become events.

    A line that is a JSON object with a `type` of its own is an event already and is sent as it is.
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
    id_prefix: str | None = None  # default: the file's name; ids are `<prefix>:<line>`, so sending again is safe
    columns: Mapping[str, str] = field(default_factory=dict)  # column -> name in data; empty: all that are left
    absent: Collection[str] = ()  # what else than an empty cell tells that there is no value, such as nil or -
    units: Mapping[str, str] = field(default_factory=dict)  # name in data -> unit

    def events(self, after_line: int = 0) -> Iterator[tuple[int, dict[str, Any]]]:
        """Yield (line number, event) for each line after `after_line`.

        Raises:
            BadRow: a line cannot be made an event.
        """
        zone = ZoneInfo(self.timezone)
        with _open(self.path) as file:
            for line, row in _rows(self.path, file):
                if line > after_line:
                    yield line, self._event(line, row, zone)

    def lines(self) -> int:
        """Count the lines that hold events."""
        with _open(self.path) as file:
            return sum(1 for _ in _rows(self.path, file))

    def _event(self, line: int, row: dict[str, Any], zone: ZoneInfo) -> dict[str, Any]:
        if isinstance(row.get("type"), str) and self.type_column is None and self.type is None:
            return row if "id" in row else {"id": f"{self.id_prefix or self.path.name}:{line}", **row}
        row = dict(row)
        event: dict[str, Any] = {
            "id": self._take(line, row, self.id_column) or f"{self.id_prefix or self.path.name}:{line}",
            "type": self._take(line, row, self.type_column) or self.type,
        }
        if subject := self._take(line, row, self.subject_column) or self.subject:
            event["subject"] = subject
        if self.time_column:
            event["time"] = self._time(line, row.pop(self.time_column, None), zone)
        names = self.columns or {name: name for name in row if name}
        absent = (None, "", *self.absent)
        event["data"] = {name: _value(row[column]) for column, name in names.items() if row.get(column) not in absent}
        if self.units:
            event["data"]["units"] = dict(self.units)
        return event

    @staticmethod
    def _take(line: int, row: dict[str, Any], column: str | None) -> str | None:
        if column is None:
            return None
        if column not in row:
            raise BadRow(f"line {line}: no column {column!r}; there are {', '.join(map(str, row))}")
        return str(row.pop(column))

    def _time(self, line: int, value: Any, zone: ZoneInfo) -> str:
        text = "" if value is None else str(value)
        try:
            if self.starts_at is not None:
                time, zone = self.starts_at + _duration(text), ZoneInfo("UTC")
            else:
                time = datetime.fromisoformat(text)
            time = time if time.tzinfo else time.replace(tzinfo=zone)
        except ValueError as error:
            raise BadRow(f"line {line}: {self.time_column} = {text!r} is not a time: {error}") from None
        return time.astimezone(UTC).isoformat().replace("+00:00", "Z")


def _open(path: Path) -> TextIO:
    if path.suffix == ".gz":
        return gzip.open(path, "rt", encoding="utf-8", newline="")
    return path.open(encoding="utf-8", newline="")


def _rows(path: Path, file: TextIO) -> Iterator[tuple[int, dict[str, Any]]]:
    names = [suffix for suffix in path.suffixes if suffix != ".gz"]
    if names and names[-1] in {".ndjson", ".jsonl", ".json"}:
        for line, text in enumerate(file, 1):
            if text.strip():
                try:
                    row = json.loads(text)
                except ValueError as error:
                    raise BadRow(f"line {line}: not JSON: {error}") from None
                if not isinstance(row, dict):
                    raise BadRow(f"line {line}: not a JSON object")
                yield line, row
        return
    reader = csv.DictReader(file)
    for row in reader:
        yield reader.line_num, row


def _duration(text: str) -> timedelta:
    """Accept seconds, H:MM:SS and `N days H:MM:SS`."""
    if match := _DURATION.fullmatch(text.strip()):
        parts = {name: float(value) for name, value in match.groupdict().items() if value}
        return timedelta(**parts)
    return timedelta(seconds=float(text))


def _value(value: Any) -> Any:
    """A CSV cell as the number it spells (as JSON writes numbers: 007 is none), else as text."""
    if not isinstance(value, str) or not _NUMBER.fullmatch(value):
        return value
    number = json.loads(value)
    return number if abs(number) != float("inf") else value
