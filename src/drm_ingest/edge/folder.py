"""A temporary folder that several processes share, and that outlives them no longer than until the next one is made.

Nobody cleans up after SIGKILL. So whoever uses a folder holds a lock on it, which the kernel lets go of with the
process; a folder that can be locked exclusively belongs to no living process. (systemd-tmpfiles, which removes what is
old, leaves what is locked as well.)
"""

import contextlib
import fcntl
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

PREFIX = "drm-edge-"
YOUNG_S = 60
"""What is younger may have been made just now, by a process that does not hold it yet."""


@contextlib.contextmanager
def own_folder() -> Iterator[Path]:
    """Make a folder, which is removed at the end, and remove those that were left by processes that were killed."""
    _remove_abandoned(Path(tempfile.gettempdir()))
    with tempfile.TemporaryDirectory(prefix=PREFIX) as folder, held(Path(folder)):
        yield Path(folder)


@contextlib.contextmanager
def held(folder: Path) -> Iterator[None]:
    """Keep others from removing it, as long as this process lives."""
    with _locked(folder, fcntl.LOCK_SH):
        yield


def _remove_abandoned(where: Path) -> None:
    for folder in where.glob(f"{PREFIX}*"):
        with contextlib.suppress(OSError):  # another user's, or somebody removes it at the same time
            if time.time() - folder.stat().st_mtime < YOUNG_S:
                continue
            with _locked(folder, fcntl.LOCK_EX) as ours:
                if ours:
                    shutil.rmtree(folder)


@contextlib.contextmanager
def _locked(folder: Path, how: int) -> Iterator[bool]:
    """Yield whether it could be locked at once; where a file system cannot lock, nobody can, and nothing is removed."""
    opened = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        try:
            fcntl.flock(opened, how | fcntl.LOCK_NB)
        except OSError:
            yield False
        else:
            yield True
    finally:
        os.close(opened)
