"""Reading a file line by line: CSV, newline-delimited JSON, or Parquet.

Unreadable   nothing behind a line can be read, or it is no file that we read
"""

import codecs
import csv
import gzip
import json
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, cast

import orjson

Row = Mapping[str, Any]

FORMATS = "CSV (.csv), NDJSON (.ndjson, .jsonl, .json), both also packed (.gz), and Parquet (.parquet)"
DELIMITERS = (",", ";", "\t", "|")
CSV_FIELD_CHARACTERS_MAX = 1_000_000
_UNREADABLE = (csv.Error, EOFError, gzip.BadGzipFile, zlib.error)
PARQUET_ROWS = 10_000
"""Read at once; a row group may be larger than memory."""


class Unreadable(Exception):
    """Nothing behind a line can be read, or it is no file that we read; says why, and what to do."""


@dataclass(frozen=True, slots=True)
class Line:
    """One line that is not blank: its number, its fields, and itself.

    Of a CSV the number is that of its last line in the file; of a Parquet file that of the row, from 1.
    """

    number: int
    row: Row | None
    original: str
    wrong: str | None = None
    """Why there is no row."""


class File:
    """A file that is being read, and how far that is, of `total` (bytes as stored, or rows)."""

    def __init__(self, path: Path, delimiter: str = ",") -> None:
        """The ending of its name tells what it is: .csv, .ndjson, .jsonl, .json, each also .gz; .parquet."""
        self.path = path
        self._delimiter = delimiter
        name, packed = path.name.lower().removesuffix(".gz"), path.suffix.lower() == ".gz"
        self._ending = Path(name).suffix
        if self._ending not in _READERS:
            to_do = f"rename it, as in {name}.csv.gz" if packed else "save it as one of these"
            raise Unreadable(f"{path.name}: the ending of its name tells what it is; read are {FORMATS}; {to_do}")
        if packed and self._ending == ".parquet":
            raise Unreadable(f"{path.name}: Parquet is compressed in itself, and not read from .gz; gunzip it first")
        self.total = path.stat().st_size
        self.position = 0

    def header(self) -> list[str] | None:
        """Return the columns that all lines have; None: each has its own, or an empty file none.

        Raises:
            Unreadable
        """
        if self._ending == ".parquet":
            with self._parquet_file() as file:
                return list(file.schema_arrow.names)
        try:
            if self._ending == ".csv":
                csv.field_size_limit(CSV_FIELD_CHARACTERS_MAX)
                return next(csv.reader(self._texts(), delimiter=self._delimiter), None)
            first = next(filter(None, map(str.strip, self._texts())), "")
        except _UNREADABLE as error:
            raise Unreadable(f"The first line of {self.path.name} cannot be read: {error}") from None
        if first.startswith("[") or first == "{":
            parts = "'.[]'" if first.startswith("[") else "."
            raise Unreadable(
                f"{self.path.name} is an array or has objects of several lines, and read is an object on each line "
                f"(NDJSON); jq -c {parts} makes that of it"
            )
        return None

    def first_names(self) -> list[str]:
        """Return the names on the first line that is an object."""
        return list(next((line.row for line in self.lines() if line.row), ()))

    def likely_delimiter(self) -> str | None:
        """Return what separates more columns in the header of a CSV than its delimiter, if anything does."""
        first = next(self._texts(), "") if self._ending == ".csv" else ""
        counts = {each: len(next(csv.reader([first], delimiter=each), ())) for each in (self._delimiter, *DELIMITERS)}
        likely = max(counts, key=lambda each: counts[each])
        return None if likely == self._delimiter else likely

    def lines(self, after: int = 0) -> Iterator[Line]:
        """Yield the lines after one, which are those after it the last time too.

        Raises:
            Unreadable
        """
        last = 0
        try:
            for line in _READERS[self._ending](self):
                last = line.number
                if last > after:
                    yield line
        except _UNREADABLE as error:
            raise Unreadable(f"{self.path.name} cannot be read after line {last}: {error}") from None

    def _texts(self) -> Iterator[str]:
        """Yield its lines as text; a byte that is not UTF-8 becomes a lone surrogate, which is found afterwards."""
        decode = codecs.getdecoder("utf-8")
        with self._opened() as (stored, file):
            for number, raw in enumerate(file):
                if number % 1000 == 0:
                    self.position = stored.tell()
                yield decode(raw.removeprefix(codecs.BOM_UTF8) if number == 0 else raw, "surrogateescape")[0]
        self.position = self.total

    @contextmanager
    def _opened(self) -> Iterator[tuple[BinaryIO, BinaryIO]]:
        with self.path.open("rb") as stored:
            packed = stored.read(2) == b"\x1f\x8b" or self.path.suffix.lower() == ".gz"  # whatever it is called
            stored.seek(0)
            if not packed:
                yield stored, stored
                return
            with gzip.open(stored) as file:
                yield stored, cast("BinaryIO", file)

    def _csv(self) -> Iterator[Line]:
        csv.field_size_limit(CSV_FIELD_CHARACTERS_MAX)
        taken: list[str] = []

        def texts() -> Iterator[str]:
            for text in self._texts():
                taken.append(text)
                yield text

        reader = csv.reader(texts(), delimiter=self._delimiter)
        header = next(reader, [])
        if len(set(header)) < len(header):
            twice = sorted({name for name in header if header.count(name) > 1})
            raise Unreadable(f"{self.path.name}: the header names {', '.join(twice)} twice; rename one of them")
        taken.clear()
        for cells in reader:
            original = "".join(taken).rstrip("\r\n")
            taken.clear()
            if not cells:
                continue
            wrong = _not_text(original)
            if not wrong and len(cells) != len(header):
                wrong = f"It has {len(cells)} cells, and the header names {len(header)}."
            row = None if wrong else dict(zip(header, cells, strict=True))
            yield Line(reader.line_num, row, original, wrong)

    def _ndjson(self) -> Iterator[Line]:
        for number, text in enumerate(self._texts(), 1):
            original = text.strip()
            if not original:
                continue
            row, wrong = None, _not_text(original)
            if not wrong:
                try:
                    row = json.loads(original)
                except (ValueError, RecursionError) as error:
                    wrong = f"It is not JSON: {error}."
                else:
                    if not isinstance(row, dict):
                        row, wrong = None, "It is not a JSON object."
            yield Line(number, row, original, wrong)

    def _parquet(self) -> Iterator[Line]:
        self.position = 0
        with self._parquet_file() as file:
            self.total = file.metadata.num_rows
            for batch in file.iter_batches(batch_size=PARQUET_ROWS):
                for row in batch.to_pylist():
                    self.position += 1
                    yield Line(self.position, row, orjson.dumps(row, default=str).decode())

    @contextmanager
    def _parquet_file(self) -> Iterator[Any]:
        try:
            import pyarrow as pa  # noqa: PLC0415  # an extra; CSV and NDJSON need none of it
            import pyarrow.parquet as pq  # noqa: PLC0415
        except ModuleNotFoundError:
            raise Unreadable(
                "pyarrow is not installed, which reads Parquet: pip install 'drm-ingest[parquet]'"
            ) from None
        try:
            with pq.ParquetFile(self.path) as file:
                yield file
        except (pa.ArrowException, OSError) as error:
            raise Unreadable(f"{self.path.name} cannot be read after row {self.position}: {error}") from None


_READERS = {
    ".csv": File._csv,
    ".ndjson": File._ndjson,
    ".jsonl": File._ndjson,
    ".json": File._ndjson,
    ".parquet": File._parquet,
}


def _not_text(text: str) -> str | None:
    if "\0" in text:
        return "It holds NUL characters."
    try:
        if not text.isascii():
            text.encode()
    except UnicodeEncodeError:
        return "It is not UTF-8."
    return None
