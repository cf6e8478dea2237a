"""`drm-ingest send`: the progress bar around sending a recording."""

from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from drm_ingest.device.recording import BadRow, Recording
from drm_ingest.device.send import GaveUp, Sender, Sent


def send_file(
    recording: Recording, url: str, key: str, rate: float | None, batch_events: int, progress_file: Path | None
) -> int:
    """Send it all, telling a person how far it is; return the exit code: 0 only if every event was accepted."""
    console = Console(stderr=True)
    sent = Sent.load(progress_file)
    if sent.line:
        console.print(f"Going on after line {sent.line} (remove {progress_file} to start over).")
    problem: Exception | None = None
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Sender(url, key, batch_events=batch_events) as sender, Progress(*columns, console=console) as progress:
        try:
            bar = progress.add_task(
                recording.path.name, total=recording.lines(), completed=sent.accepted + sent.rejected.total()
            )
            for events in sender.send(recording.events(after_line=sent.line), sent, rate=rate):
                progress.advance(bar, events)
                sent.save(progress_file)
        except (BadRow, GaveUp) as error:
            problem = error
    console.print(f"accepted {sent.accepted} · rejected {sent.rejected.total()} · retried {sent.retried}")
    for code, count in sent.rejected.items():
        console.print(f"  {count} {code}, first {sent.examples.get(code, 'in an earlier run')}", highlight=False)
    if problem is not None:
        console.print(f"stopped: {problem}", style="red", highlight=False)
    return 1 if problem or sent.rejected else 0
