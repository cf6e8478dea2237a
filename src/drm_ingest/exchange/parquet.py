"""Rows into Parquet files, each whole or not there."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import orjson
import pyarrow as pa
import pyarrow.parquet as pq

from drm_ingest.settings import KiB, MiB

FORMAT = 1
"""Of the export: another number once columns are renamed, or mean something else."""
ROWS_A_GROUP = 50_000
BYTES_A_GROUP = 32 * MiB
BYTES_WAITING_MAX = 64 * MiB
"""In memory, of all files together, before they are compressed."""
TABLE_BYTES = 8 * KiB
"""What a table takes beside its values: rows of a rare type come one by one, and wait in as many tables."""
OPEN_MAX = 64
"""Files that are written at once, one of each type; of more types the one written to longest ago is closed, and what
comes of it later has a file of its own."""

_TIME = pa.timestamp("us", tz="UTC")
_TEXT = pa.string()
# Not `type`: it is in the path, and what reads Hive partitions (pandas, for one) refuses it in both places.
EVENTS = pa.schema(
    [
        *((name, _TEXT) for name in ("subject", "source", "id")),
        ("occurred_at", _TIME),
        ("occurred_at_raw", _TEXT),
        ("received_at", _TIME),
        ("recorded_at", _TIME),
        *((name, _TEXT) for name in ("time_quality", "sequence", "sender", "dataschema", "data")),
    ]
)
PARTIES = pa.schema(
    [("id", _TEXT), ("kind", _TEXT), ("name", _TEXT), ("created_at", _TIME),
     ("refs", _TEXT), ("attributes", _TEXT), ("linked", _TEXT)]
)  # fmt: skip
RELATIONSHIPS = pa.schema(
    [("id", _TEXT), ("version", pa.int32()),
     *((name, _TEXT) for name in ("subject", "subject_kind", "role", "party", "party_kind", "batch")),
     *((name, _TIME) for name in ("valid_from", "valid_to", "recorded_at", "superseded_at")),
     ("asserted_by", _TEXT), ("reason", _TEXT)]
)  # fmt: skip
DEVICES = pa.schema(
    [("subject", _TEXT), ("model", _TEXT), ("firmware", _TEXT), ("registered_at", _TIME), ("registered_by", _TEXT)]
)

Rows = Sequence[Mapping[str, Any]]


class Written:
    """One file: its rows in groups of a bounded size, its metadata at the end, its name only once it is whole."""

    def __init__(self, path: Path, schema: pa.Schema, metadata: Mapping[str, object]) -> None:
        """`metadata` is put into the file as `drm.…`, JSON where it is no text."""
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path = path
        self._unfinished = path.with_name(f".{path.name}.unfinished")
        self._schema, self._metadata = schema, metadata
        self._writer = pq.ParquetWriter(self._unfinished, schema, compression="zstd")
        self._waiting: list[pa.Table] = []
        self._versions: set[str] = set()
        self.rows = self._rows_written = self.waiting_bytes = 0

    def add(self, rows: Rows) -> None:
        # As columns they take a tenth of the memory.
        some = pa.table({name: [row[name] for row in rows] for name in self._schema.names}, schema=self._schema)
        self._waiting.append(some)
        self.waiting_bytes += some.nbytes + TABLE_BYTES
        self.rows += len(rows)
        self._versions.update(row["dataschema"] for row in rows if row.get("dataschema"))
        if self.rows - self._rows_written >= ROWS_A_GROUP or self.waiting_bytes >= BYTES_A_GROUP:
            self.flush()

    def finish(self) -> None:
        """Make it whole, and give it its name."""
        self.close()
        self.name()

    def close(self) -> None:
        self.flush()
        said = {"drm.format": str(FORMAT), **self._metadata, "drm.rows": str(self.rows)}
        if "dataschema" in self._schema.names:
            said["drm.schema-versions"] = sorted(self._versions)
        self._writer.add_key_value_metadata(
            {name: value if isinstance(value, str) else orjson.dumps(value).decode() for name, value in said.items()}
        )
        self._writer.close()

    def name(self) -> None:
        self._unfinished.replace(self.path)

    def abandon(self) -> None:
        self._writer.close()
        self._unfinished.unlink(missing_ok=True)

    def flush(self) -> None:
        if self._waiting:
            group = pa.concat_tables(self._waiting)
            self._writer.write_table(group, row_group_size=group.num_rows)
            self._waiting, self._rows_written, self.waiting_bytes = [], self.rows, 0


class Together:
    """Files of tables that are not partitioned; none of them has its name before all of them are whole."""

    def __init__(self, folder: Path) -> None:
        """Each table has a folder of its own in `folder`."""
        self._folder = folder
        self._written: list[Written] = []

    def __enter__(self) -> Self:
        """Files get their names at the exit."""
        return self

    def __exit__(self, failed: type[BaseException] | None, _why: BaseException | None, _: TracebackType | None) -> None:
        """Finish all files, or leave nothing of them."""
        if failed is not None:
            for written in self._written:
                written.abandon()
            return
        for written in self._written:
            written.close()
        for written in self._written:
            written.name()

    def another(self, table: str, schema: pa.Schema) -> Written:
        self._written.append(Written(self._folder / table / "part-0.parquet", schema, {"drm.table": table}))
        return self._written[-1]

    @property
    def rows(self) -> Mapping[str, int]:
        """How many there are, by file."""
        return {str(written.path.relative_to(self._folder)): written.rows for written in self._written}


class Partitioned:
    """Events of a month, a file for each type: `type=…/month=…/part-0.parquet`, as Hive has it.

    Files of an earlier export that this one has not are removed at the end, or their rows would be there twice. Of a
    month whose events retention has dropped the earlier export is kept: nothing else has them.
    """

    def __init__(self, folder: Path, month: str) -> None:
        self._folder, self._month = folder, month
        self._open: dict[str, Written] = {}
        self._finished: list[Written] = []

    def __enter__(self) -> Self:
        """Files get their names at the exit."""
        return self

    def __exit__(self, failed: type[BaseException] | None, _why: BaseException | None, _: TracebackType | None) -> None:
        """Finish all files, or leave nothing of those that are not whole."""
        for written in self._open.values():
            if failed is None:
                self._finish(written)
            else:
                written.abandon()
        if failed is None and self._finished:
            whole = {written.path for written in self._finished}
            for path in self._folder.glob(f"type=*/month={self._month}/*.parquet"):
                if path not in whole:
                    path.unlink()

    def add(self, rows: Rows) -> None:
        """Put rows into the files of their types."""
        of_type: dict[str, list[Mapping[str, Any]]] = {}
        for row in rows:
            of_type.setdefault(row["type"], []).append(row)
        for type_, some in of_type.items():
            written = self._open.pop(type_, None) or self._another(type_)
            self._open[type_] = written  # the last one written to is the last
            written.add(some)
        while sum(written.waiting_bytes for written in self._open.values()) > BYTES_WAITING_MAX:
            max(self._open.values(), key=lambda written: written.waiting_bytes).flush()

    @property
    def rows(self) -> Mapping[str, int]:
        """How many there are, by file."""
        return {str(written.path.relative_to(self._folder)): written.rows for written in self._finished}

    def _another(self, type_: str) -> Written:
        if len(self._open) >= OPEN_MAX:
            longest_ago = next(iter(self._open))
            self._finish(self._open.pop(longest_ago))
        folder = self._folder / f"type={_escaped(type_)}" / f"month={self._month}"
        number = sum(written.path.parent == folder for written in self._finished)
        metadata = {"drm.table": "event", "drm.type": type_, "drm.month": self._month}
        return Written(folder / f"part-{number}.parquet", EVENTS, metadata)

    def _finish(self, written: Written) -> None:
        written.finish()
        self._finished.append(written)


def _escaped(type_: str) -> str:
    """Return a type as the name of a folder; what reads Hive partitions undoes it."""
    safe = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-")
    name = "".join(
        letter if letter in safe else "".join(f"%{byte:02X}" for byte in letter.encode()) for letter in type_
    )
    return name if name.strip(".") else name.replace(".", "%2E")


def metadata_of(path: Path) -> dict[str, str]:
    """Return what a file says of itself."""
    said: Iterable[tuple[bytes, bytes]] = (pq.read_metadata(path).metadata or {}).items()
    return {name.decode(): value.decode() for name, value in said if name.startswith(b"drm.")}
