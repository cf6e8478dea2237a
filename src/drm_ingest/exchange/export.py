"""`drm-ingest export`: everything there is as Parquet, a month of events after the other, then whom they belong to.

Each month is one snapshot, and the parties, relations and devices together are another, the last: whatever an exported
event was recorded with is there. One for everything would keep Postgres from clearing away what changes meanwhile, and
an export that was interrupted could not go on.
"""

import asyncio
import hashlib
from collections.abc import Awaitable, Callable, Mapping, Sequence
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import asyncpg
import orjson
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from drm_ingest.exchange import parquet
from drm_ingest.postgres.bulk import unload
from drm_ingest.postgres.pool import PASSING, connect
from drm_ingest.postgres.trouble import in_words
from drm_ingest.settings import Settings
from drm_ingest.terminal import UP_ELSEWHERE, counted

WHAT = ("events", "parties", "relationships", "devices")
INTERRUPTED = 130
OnRows = Callable[[int], None]
_TABLES = {
    "parties": (unload.PARTIES, parquet.PARTIES),
    "relationships": (unload.RELATIONSHIPS, parquet.RELATIONSHIPS),
    "devices": (unload.DEVICES, parquet.DEVICES),
}


class Noted:
    """Which parts of an export are done, in its folder; one that was interrupted goes on behind them."""

    def __init__(self, folder: Path, database: str) -> None:
        self._path = folder / "_export.json"
        self._of = hashlib.sha256(database.encode()).hexdigest()[:16]
        self.done: dict[str, Mapping[str, int]] = {}
        self.began_at = datetime.now(UTC).isoformat()
        try:
            note = orjson.loads(self._path.read_bytes())
            if not note["complete"] and (note["format"], note["of"]) == (parquet.FORMAT, self._of):
                self.done, self.began_at = note["parts"], note["began_at"]
        except (OSError, ValueError, LookupError, TypeError):
            pass

    def note(self, part: str, rows: Mapping[str, int], *, complete: bool = False) -> None:
        """Note what a part has, by file."""
        if part:
            self.done[part] = rows
        fresh = self._path.with_name("._export.json.new")
        said = {"format": parquet.FORMAT, "of": self._of, "began_at": self.began_at, "complete": complete,
                "parts": self.done}  # fmt: skip
        fresh.write_bytes(orjson.dumps(said, option=orjson.OPT_INDENT_2))
        fresh.replace(self._path)


def run_export(
    settings: Settings, folder: Path, what: Sequence[str], since: datetime | None, until: datetime | None
) -> int:
    """Export, telling a person how far it is; return the exit code."""
    console = Console(stderr=True, highlight=False, soft_wrap=True)
    folder.mkdir(parents=True, exist_ok=True)
    noted = Noted(folder, settings.postgres_dsn.get_secret_value().rpartition("@")[2])
    if noted.done:
        console.print(
            f"Going on behind {counted(len(noted.done), 'part')} of the export that began at {noted.began_at}."
        )
    columns = (TextColumn("{task.description:<14}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    try:
        with Progress(*columns, TextColumn("{task.fields[told]}"), console=console) as bars:
            bar = bars.add_task("export", total=None, rows=0, told="")

            def tell(part: str, parts: int, done: int, rows: int) -> None:
                bars.update(bar, description=part, total=parts, completed=done)
                bars.advance(bar, 0)
                rows += bars.tasks[0].fields["rows"]
                bars.update(bar, rows=rows, told=counted(rows, "row"))

            asyncio.run(_export(settings, folder, what, (since, until), noted, tell))
    except PASSING as error:
        elsewhere = "" if "postgres_dsn" in settings.model_fields_set else f" · {UP_ELSEWHERE}"
        behind = " · the same command goes on behind what is done" if noted.done else ""
        console.print(f"stopped: {in_words(error)}{elsewhere}{behind}", style="red", markup=False)
        return 1
    except KeyboardInterrupt:
        console.print("interrupted; the same command goes on behind what is done", style="red", markup=False)
        return INTERRUPTED
    rows = sum(sum(files.values()) for files in noted.done.values())
    files = sum(len(files) for files in noted.done.values())
    console.print(f"{counted(rows, 'row')} in {counted(files, 'file')} in {folder}", markup=False)
    return 0


async def _export(
    settings: Settings,
    folder: Path,
    what: Sequence[str],
    between: tuple[datetime | None, datetime | None],
    noted: Noted,
    tell: Callable[[str, int, int, int], None],
) -> None:
    db = await connect(settings, "drm export")
    try:
        months = [month for month in await unload.months(db) if _within(month, between)] if "events" in what else []
        tables = [table for table in _TABLES if table in what]
        parts: dict[str, Callable[[OnRows], Awaitable[Mapping[str, int]]]] = {
            f"events {month[0]:%Y-%m}": partial(_month, db, folder, month) for month in months
        }
        if tables:
            parts[", ".join(tables)] = partial(_tables, db, folder, tables)
        for number, (part, write) in enumerate(parts.items()):
            tell(part, len(parts), number, 0)
            if part not in noted.done:
                noted.note(part, await write(partial(tell, part, len(parts), number)))
        tell("done", len(parts), len(parts), 0)
        noted.note("", {}, complete=True)
    finally:
        db.terminate() if db.is_in_transaction() else await db.close()


def _within(month: tuple[datetime, datetime], between: tuple[datetime | None, datetime | None]) -> bool:
    since, until = between
    return (since is None or month[1] > since) and (until is None or month[0] < until)


async def _month(
    db: asyncpg.Connection, folder: Path, month: tuple[datetime, datetime], on_rows: OnRows
) -> Mapping[str, int]:
    async with unload.snapshot(db):
        with parquet.Partitioned(folder / "events", f"{month[0]:%Y-%m}") as files:
            async for rows in unload.rows(db, unload.EVENTS, *month):
                files.add(rows)
                on_rows(len(rows))
    return {f"events/{name}": count for name, count in files.rows.items()}


async def _tables(db: asyncpg.Connection, folder: Path, tables: Sequence[str], on_rows: OnRows) -> Mapping[str, int]:
    async with unload.snapshot(db):
        with parquet.Together(folder) as files:
            for table in tables:
                query, schema = _TABLES[table]
                written = files.another(table, schema)
                async for rows in unload.rows(db, query):
                    written.add(rows)
                    on_rows(len(rows))
    return files.rows
