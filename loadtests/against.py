"""Another version beside this one: its code, and how figures of rounds next to each other compare."""

import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def checkout(against: str) -> Iterator[tuple[list[str], dict[str, str]]]:
    """Give the interpreter and the environment of another version, of a folder or of a commit."""
    repository = Path(__file__).parents[1]
    folder, made = Path(against).resolve(), None
    if not (folder / "src/drm_ingest").is_dir():
        folder = made = Path(tempfile.mkdtemp()) / "against"
        subprocess.run(["git", "-C", repository, "worktree", "add", "--quiet", "--detach", made, against], check=True)
    own = folder / ".venv/bin/python"
    try:
        # The interpreter of a folder knows its own dependencies; those of a commit are taken to be ours.
        yield [str(own) if own.exists() else sys.executable], {"PYTHONPATH": str(folder / "src")}
    finally:
        if made is not None:
            subprocess.run(["git", "-C", repository, "worktree", "remove", "--force", made], check=True)
            shutil.rmtree(made.parent)


def spread(values: Sequence[float]) -> str:
    """Say the median, and where the middle half of the values lies."""
    low, median, high = statistics.quantiles(values, n=4) if len(values) > 1 else [*values] * 3
    return f"{median:.2f} ({low:.2f} to {high:.2f})"
