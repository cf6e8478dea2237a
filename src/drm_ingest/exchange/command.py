"""`drm-ingest import`: the progress bar around taking a file, and what is told at its end."""

import asyncio
import gc
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from typing import Any, Literal

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

from drm_ingest.device.send import GaveUp, Sender
from drm_ingest.exchange import checkpoint
from drm_ingest.exchange.devices import Devices
from drm_ingest.exchange.events import LINES, only_judged, take_events, through_the_edge
from drm_ingest.exchange.lines import Unreadable
from drm_ingest.exchange.mapping import BadMapping
from drm_ingest.exchange.opening import Import, Tell, errors_path, opened
from drm_ingest.exchange.pace import Pace, lags_of
from drm_ingest.exchange.parties import Parties
from drm_ingest.exchange.refused import Stopped
from drm_ingest.exchange.relationships import Relationships
from drm_ingest.exchange.taking import Context, Desk, Taker, take
from drm_ingest.postgres.pool import PASSING, connect
from drm_ingest.postgres.trouble import in_words
from drm_ingest.settings import Settings
from drm_ingest.terminal import UP_ELSEWHERE, counted

What = Literal["parties", "devices", "relationships"]

INTERRUPTED = 130  # as a shell says of a command ended by Ctrl-C
OBJECTS_A_COLLECTION = 200_000
"""Thousands of lines are in memory at a time, and hardly anything of them in circles: looking for those as often as
Python does by itself takes a third of the time."""

_TAKERS: dict[What, Callable[[Context], Taker[Any]]] = {
    "parties": Parties,
    "devices": Devices,
    "relationships": Relationships,
}


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
        with Progress(*columns, TextColumn("{task.fields[lines]}"), console=console) as bars:
            bar = bars.add_task(wanted.path.name, total=desk.file.total, lines=counted(told.read, "line"))

            def on_progress() -> None:
                bars.update(bar, total=desk.file.total, completed=desk.file.position, lines=counted(told.read, "line"))

            if lane is None:
                asyncio.run(_taken(settings, wanted, desk, told, on_progress))
            else:
                _sent(settings, wanted, lane, desk, told, on_progress, tell)
        if desk.checkpoint is not None and desk.errors is not None:
            desk.errors.add(())  # of a file without a line too
            desk.checkpoint.remove()
    except (BadMapping, Unreadable, Stopped, OSError) as error:
        problem, code = str(error), 1
    except KeyboardInterrupt:
        problem, code = "interrupted", INTERRUPTED
    would = " (nothing was changed: a dry run)" if wanted.dry_run else ""
    taken = f"made {told.made:,} · changed {told.changed:,} · the same {told.same:,}"
    taken = taken if lane is None else f"accepted {told.made:,}"
    if told.read or not problem:
        tell(f"{taken} · refused {told.refused:,}{would}")
    if lane is not None and told.made and not wanted.dry_run:
        tell("Of those accepted, what was there before stays as it is, stored once.")
    for refused, count in told.codes.items():
        tell(f"  {count:,} {refused}")
    if told.refused and not wanted.dry_run:
        tell(f"Each of them, with its reason, is in {errors_path(wanted)}; mend them in the file, and import it again.")
    if problem:
        console.print(f"stopped: {problem}", style="red", markup=False)
        if told.line and not wanted.dry_run:
            tell(f"The same command goes on after line {told.line}.")
    return code or (1 if told.refused else 0)


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
        elsewhere = "" if "postgres_dsn" in settings.model_fields_set else f" · {UP_ELSEWHERE}"
        raise Stopped(f"{in_words(error)}{elsewhere}") from None
    try:
        await take(db, taker, desk, progress, on_progress)
    finally:
        db.terminate() if db.is_in_transaction() else await db.close()
