"""`drm-ingest send`: the progress bar around sending a recording, and the note of where it stopped."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from drm_ingest.device.recording import BadRow, Recording
from drm_ingest.device.send import GaveUp, Sender, Sent

Tell = Callable[[str], None]

INTERRUPTED = 130  # as a shell says of a command ended by Ctrl-C
BAD_LINES_TOLD = 5


@dataclass(frozen=True, slots=True)
class Sending:
    """What to send, where, and how."""

    recording: Recording
    url: str
    key: str
    progress_file: Path
    rate: float | None = None  # a multiple of real time; None: as fast as acknowledged
    batch_events: int = 500
    patience_s: float = 300.0
    skip_bad_lines: bool = False
    restart: bool = False


def send_file(sending: Sending) -> int:
    """Send it all, telling a person how far it is; return the exit code.

    0: every event was accepted; lines that were to be skipped are counted.
    """
    console = Console(stderr=True, highlight=False, soft_wrap=True)
    tell = partial(console.print, markup=False)
    recording, problem, code = sending.recording, "", 0
    of = _fingerprint(sending)
    sent = Sent() if sending.restart else _earlier(sending.progress_file, of, recording.path, tell)
    began_after = sent.line
    bad_lines = _BadLines(sent, tell)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    try:
        with (
            Progress(*columns, console=console) as progress,
            Sender(
                sending.url, sending.key, batch_events=sending.batch_events, patience_s=sending.patience_s, tell=tell
            ) as sender,
        ):
            done = sent.accepted + sent.rejected.total() + sent.skipped
            bar = progress.add_task(recording.path.name, total=None, completed=done)
            progress.update(bar, total=recording.lines())
            on_bad = bad_lines.add if sending.skip_bad_lines else None
            for events in sender.send(recording.events(sent.line, on_bad=on_bad), sent, rate=sending.rate):
                skipped = bad_lines.count(up_to=sent.line)
                sent.save(sending.progress_file, of)
                progress.advance(bar, events + skipped)
            progress.advance(bar, bad_lines.count())
            sent.save(sending.progress_file, of)
    except (BadRow, GaveUp, OSError) as error:
        problem, code = str(error), 1
    except KeyboardInterrupt:
        problem, code = "interrupted", INTERRUPTED
    if not problem and began_after and sent.line == began_after:
        tell("Everything was sent already; --restart sends it again (what is stored is stored once).")
    skipped_told = f" · skipped {sent.skipped}" if sent.skipped else ""
    tell(f"accepted {sent.accepted} · rejected {sent.rejected.total()}{skipped_told} · retried {sent.retried}")
    for rejected, count in sent.rejected.items():
        tell(f"  {count} {rejected}, first: {sent.examples[rejected]}")
    if sent.rejected:
        tell("What was rejected is not sent again unless the file or the options change, or with --restart.")
    if problem:
        console.print(f"stopped: {problem}", style="red", markup=False)
        if sent.line:
            tell(f"The same command goes on after line {sent.line}.")
    return code or (1 if sent.rejected else 0)


class _BadLines:
    """Lines passed over: told while they are few, counted once what was read before them has its answer."""

    def __init__(self, sent: Sent, tell: Tell) -> None:
        self._sent = sent
        self._tell = tell
        self._told = 0
        self._waiting: list[int] = []

    def add(self, line: int, bad: BadRow) -> None:
        self._waiting.append(line)
        self._told += 1
        if self._told <= BAD_LINES_TOLD:
            self._tell(f"skipped {bad}")
        elif self._told == BAD_LINES_TOLD + 1:
            self._tell("skipped more lines; they are counted")

    def count(self, up_to: int | None = None) -> int:
        """Count those up to a line, or all, and move on to the last of them."""
        counted = [line for line in self._waiting if up_to is None or line <= up_to]
        self._waiting = self._waiting[len(counted) :]
        self._sent.skipped += len(counted)
        if counted:
            self._sent.line = max(self._sent.line, counted[-1])
        return len(counted)


def _fingerprint(sending: Sending) -> dict[str, Any]:
    """Tell a sending from others: where to, how the lines are read, and what the file holds now."""
    read = replace(sending.recording, path=Path(sending.recording.path.name))
    path = sending.recording.path
    size = path.stat().st_size
    options = hashlib.sha256(f"{sending.url} {read}".encode()).hexdigest()[:32]
    return {"options": options, "bytes": size, "content": _content(path, size)}


def _earlier(progress_file: Path, of: dict[str, Any], path: Path, tell: Tell) -> Sent:
    """Return what an earlier run of the same command left behind, and say so."""
    if not progress_file.exists():
        return Sent()
    try:
        sent, noted = Sent.load(progress_file)
        if noted["options"] != of["options"]:
            changed = "the options or the address are not those of last time"
        elif _content(path, int(noted["bytes"])) != noted["content"]:
            changed = f"{path.name} has changed (not just grown)"
        else:
            tell(f"Going on after line {sent.line}, as {progress_file} says; --restart starts over.")
            return sent
    except (ValueError, LookupError, TypeError, AttributeError):
        changed = f"{progress_file} is no note of a sending"
    tell(f"Starting over: {changed}. What was sent before is stored once.")
    return Sent()


def _content(path: Path, size: int) -> str:
    """Hash the first bytes of a file: one that has only grown since is the same so far."""
    with path.open("rb") as file:
        digest, left = hashlib.sha256(), size
        while left and (part := file.read(min(left, 1 << 20))):
            digest.update(part)
            left -= len(part)
    return digest.hexdigest()[:32] if not left else ""
