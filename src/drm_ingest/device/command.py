"""`drm-ingest send`: the progress bar around sending a recording."""

import hashlib
from dataclasses import replace
from functools import partial
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from drm_ingest.device.recording import BadRow, Recording
from drm_ingest.device.send import GaveUp, Sender, Sent

INTERRUPTED = 130  # as a shell says of a command ended by Ctrl-C


def send_file(
    recording: Recording, url: str, key: str, rate: float | None, batch_events: int, progress_file: Path
) -> int:
    """Send it all, telling a person how far it is; return the exit code: 0 only if every event was accepted."""
    console = Console(stderr=True, highlight=False, soft_wrap=True)
    what = hashlib.sha256(f"{url} {replace(recording, path=recording.path.resolve())}".encode()).hexdigest()[:16]
    sent = _earlier(progress_file, what, console)
    problem, code = "", 0
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    try:
        with (
            Progress(*columns, console=console) as progress,
            Sender(url, key, batch_events=batch_events, tell=partial(progress.console.print, markup=False)) as sender,
        ):
            done = sent.accepted + sent.rejected.total()
            bar = progress.add_task(recording.path.name, total=None, completed=done)
            progress.update(bar, total=recording.lines())
            for events in sender.send(recording.events(after_line=sent.line), sent, rate=rate):
                sent.save(progress_file, what)
                progress.advance(bar, events)
    except (BadRow, GaveUp, OSError) as error:
        problem, code = str(error), 1
    except KeyboardInterrupt:
        problem, code = "interrupted", INTERRUPTED
    console.print(f"accepted {sent.accepted} · rejected {sent.rejected.total()} · retried {sent.retried}")
    for rejected, count in sent.rejected.items():
        console.print(f"  {count} {rejected}, first: {sent.examples[rejected]}", markup=False)
    if problem:
        console.print(f"stopped: {problem}", style="red", markup=False)
        if sent.line:
            console.print(f"The same command goes on after line {sent.line}.")
    return code or (1 if sent.rejected else 0)


def _earlier(progress_file: Path, what: str, console: Console) -> Sent:
    """Return what an earlier run of the same command left behind, and say so."""
    if not progress_file.exists():
        return Sent()
    try:
        sent = Sent.load(progress_file, what)
    except (ValueError, LookupError, TypeError, AttributeError):
        console.print(f"{progress_file} is of another sending; starting over (what was sent before is stored once).")
        return Sent()
    console.print(f"Going on after line {sent.line} (remove {progress_file} to start over).")
    return sent
