"""`drm-ingest import`: the progress bar around taking a file, and what is told at its end."""

import asyncio
import gc
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, Literal

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

from drm_ingest.device.send import GaveUp, Sender
from drm_ingest.exchange import checkpoint
from drm_ingest.exchange.devices import Devices
from drm_ingest.exchange.events import LINES, only_judged, take_events, through_the_edge
from drm_ingest.exchange.fit import misfit
from drm_ingest.exchange.lines import File, Unreadable
from drm_ingest.exchange.mapping import BadMapping, Columns
from drm_ingest.exchange.pace import Pace, lags_of
from drm_ingest.exchange.parties import Parties
from drm_ingest.exchange.refused import ErrorFile, Refused, ShareMax, Stopped
from drm_ingest.exchange.relationships import Relationships
from drm_ingest.exchange.taking import Context, Desk, Taker, take
from drm_ingest.postgres.pool import PASSING, connect
from drm_ingest.settings import Settings

What = Literal["parties", "devices", "relationships"]
Tell = Callable[[str], None]

INTERRUPTED = 130  # as a shell says of a command ended by Ctrl-C
REFUSED_TOLD = 5
OBJECTS_A_COLLECTION = 200_000
"""Thousands of lines are in memory at a time, and hardly anything of them in circles: looking for those as often as
Python does by itself takes a third of the time."""

_TAKERS: dict[What, Callable[[Context], Taker[Any]]] = {
    "parties": Parties,
    "devices": Devices,
    "relationships": Relationships,
}


@dataclass(frozen=True, slots=True)
class Import:
    """What to import, and how."""

    what: str
    path: Path
    mapping: Path | None
    errors: Path | None
    asserted_by: str | None
    dry_run: bool
    restart: bool
    refused_share_max: float
    refused_lines_min: int


@dataclass(frozen=True, slots=True)
class Lane:
    """Where events go, and how much of the way is theirs."""

    url: str
    key: str
    share: float
    lag_max_events: int
    patience_s: float


def run_import(settings: Settings, wanted: Import, lane: Lane | None = None) -> int:
    """Import it, telling a person how far it is; return the exit code: 0 only if no line was refused.

    Events go into a lane, everything else into Postgres.
    """
    gc.set_threshold(OBJECTS_A_COLLECTION)
    console = Console(stderr=True, highlight=False, soft_wrap=True)
    tell = partial(console.print, markup=False)
    told = checkpoint.Progress()
    problem, code = "", 0
    try:
        to = lane.url if lane is not None else settings.postgres_dsn.get_secret_value().rpartition("@")[2]
        desk, told = opened(wanted, to, tell)
        columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
        with Progress(*columns, TextColumn("{task.fields[lines]:,} lines"), console=console) as bars:
            bar = bars.add_task(wanted.path.name, total=desk.file.total, lines=told.read)

            def on_progress() -> None:
                bars.update(bar, total=desk.file.total, completed=desk.file.position, lines=told.read)

            if lane is None:
                asyncio.run(_taken(settings, wanted, desk, told, on_progress))
            else:
                _sent(settings, wanted, lane, desk, told, on_progress, tell)
        if desk.checkpoint is not None:
            desk.checkpoint.remove()
    except (BadMapping, Unreadable, Stopped, OSError) as error:
        problem, code = str(error), 1
    except KeyboardInterrupt:
        problem, code = "interrupted", INTERRUPTED
    would = " (nothing was changed: a dry run)" if wanted.dry_run else ""
    taken = f"made {told.made:,} · changed {told.changed:,} · the same {told.same:,}"
    taken = taken if lane is None else f"accepted {told.made:,}"
    tell(f"{taken} · refused {told.refused:,}{would}")
    for refused, count in told.codes.items():
        tell(f"  {count:,} {refused}")
    if told.refused and not wanted.dry_run:
        tell(f"Each of them, with its reason, is in {errors_path(wanted)}; mend them in the file, and import it again.")
    if problem:
        console.print(f"stopped: {problem}", style="red", markup=False)
        if told.line and not wanted.dry_run:
            tell(f"The same command goes on after line {told.line}.")
    return code or (1 if told.refused else 0)


def errors_path(wanted: Import) -> Path:
    """Where what is refused is kept: beside the file, unless another place is named."""
    return wanted.errors or wanted.path.with_name(wanted.path.name + ".errors.ndjson")


def opened(wanted: Import, to: str, tell: Tell) -> tuple[Desk, checkpoint.Progress]:
    """Open the file and its mapping, and see where an earlier run stopped.

    Raises:
        BadMapping, Unreadable, Stopped, OSError
    """
    columns = Columns.load(wanted.mapping)
    file = File(wanted.path)
    if (header := file.header()) is not None and (wrong := misfit(columns.named, header)):
        raise BadMapping(f"{wanted.mapping} does not fit {wanted.path.name}: {wrong}")
    note = None if wanted.dry_run else checkpoint.Checkpoint(wanted.path, wanted.what, columns.text, to)
    progress = checkpoint.Progress() if note is None or wanted.restart else note.load()
    if progress.line:
        tell(f"Going on after line {progress.line}; --restart looks at all of it again.")
    shown = 0

    def on_refused(line: int, why: Refused) -> None:
        nonlocal shown
        shown += 1
        if shown <= REFUSED_TOLD:
            tell(f"line {line}: {why.code}: {why.pointer or ''} {why.reason}")

    share_max = ShareMax(wanted.refused_share_max, wanted.refused_lines_min)
    errors = None if wanted.dry_run else ErrorFile(errors_path(wanted), progress.errors_bytes)
    return Desk(file, columns, share_max, errors, note, on_refused), progress


def _sent(
    settings: Settings,
    wanted: Import,
    lane: Lane,
    desk: Desk,
    progress: checkpoint.Progress,
    on_progress: Callable[[], None],
    tell: Tell,
) -> None:
    if wanted.dry_run:
        take_events(desk, only_judged(settings), progress, on_progress)
        return
    lags = lags_of(settings) if lane.lag_max_events else None
    pace = Pace(lags, lane.lag_max_events, lane.share, tell)
    try:
        sender = Sender(lane.url, lane.key, batch_events=LINES, patience_s=lane.patience_s, tell=tell)
    except GaveUp as error:
        raise Stopped(str(error)) from None
    with sender:
        take_events(desk, through_the_edge(sender, pace), progress, on_progress)


async def _taken(
    settings: Settings, wanted: Import, desk: Desk, progress: checkpoint.Progress, on_progress: Callable[[], None]
) -> None:
    written_at = datetime.fromtimestamp(wanted.path.stat().st_mtime, UTC)
    asserted_by = wanted.asserted_by or f"import of {wanted.path.name}"[:300]
    taker = _TAKERS[wanted.what](Context(settings, asserted_by, written_at, wanted.dry_run))  # type: ignore[index]
    try:
        db = await connect(settings, "drm import")
    except PASSING as error:
        raise Stopped(f"Postgres cannot be reached: {error}; check DRM_POSTGRES_DSN") from None
    try:
        await take(db, taker, desk, progress, on_progress)
    finally:
        db.terminate() if db.is_in_transaction() else await db.close()
