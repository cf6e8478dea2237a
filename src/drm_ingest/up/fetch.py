"""Fetch Apache Kafka's jars by their pinned Maven coordinates, once a person; later runs find them in the cache."""

import fcntl
import hashlib
import os
import shutil
import tempfile
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

from jgo.config import GlobalSettings
from jgo.maven import MavenContext, PythonResolver
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeElapsedColumn, TransferSpeedColumn

DOWNLOADS_AT_ONCE = 8
ATTEMPTS = 3
TIMEOUT_S = 20

Advance = Callable[[int], None]


@dataclass(frozen=True)
class Jar:
    group: str
    artifact: str
    version: str
    sha256: str
    size_bytes: int

    @property
    def file_name(self) -> str:
        return f"{self.artifact}-{self.version}.jar"


class FetchFailed(Exception):
    """The message says which jar, why, and what to do."""


def pinned() -> list[Jar]:
    """The jars of `kafka.lock`, in its order, which is the class path's (`up.pin` writes that file)."""
    lines = files("drm_ingest.up").joinpath("kafka.lock").read_text().splitlines()
    jars = []
    for line in lines:
        if line and not line.startswith("#"):
            coordinate, sha256, size = line.split()
            group, artifact, version = coordinate.split(":")
            jars.append(Jar(group, artifact, version, sha256, int(size)))
    return jars


def cache_dir() -> Path:
    """`$XDG_CACHE_HOME/drm-ingest`, by default under `~/.cache`."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "drm-ingest"


def kafka_jars(console: Console | None = None, cache: Path | None = None) -> list[Path]:
    """Return the class path of the Kafka this package pins, fetching what is missing or damaged.

    Safe to run several times at once. Raises FetchFailed.
    """
    folder = (cache or cache_dir()) / "kafka"
    folder.mkdir(parents=True, exist_ok=True)
    jars = pinned()
    if missing := [jar for jar in jars if not _is_whole(folder / jar.file_name, jar)]:
        with (folder / ".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            missing = [jar for jar in missing if not _is_whole(folder / jar.file_name, jar)]
            _fetch(missing, folder, console or Console(stderr=True))
    return [folder / jar.file_name for jar in jars]


def _is_whole(path: Path, jar: Jar) -> bool:
    """Files arrive under their name by rename, checked; so size is enough afterwards."""
    return path.exists() and path.stat().st_size == jar.size_bytes


def _fetch(jars: list[Jar], folder: Path, console: Console) -> None:
    if not jars:
        return
    total_bytes = sum(jar.size_bytes for jar in jars)
    staging = Path(tempfile.mkdtemp(prefix=".fetching-", dir=folder))
    executor = ThreadPoolExecutor(DOWNLOADS_AT_ONCE)
    broken_off = threading.Event()
    try:
        with _display(console, len(jars), total_bytes) as show:

            def advance(count: int) -> None:
                if broken_off.is_set():
                    raise FetchFailed("broken off")
                show(count)

            downloads = {executor.submit(_download, jar, staging, folder, advance): jar for jar in jars}
            for done in as_completed(downloads):
                done.result()
    finally:
        broken_off.set()
        executor.shutdown(cancel_futures=True)
        shutil.rmtree(staging, ignore_errors=True)


def _download(jar: Jar, staging: Path, folder: Path, advance: Advance) -> None:
    last: Exception | None = None
    for attempt in range(ATTEMPTS):
        received = 0

        @contextmanager
        def progress(_name: str, _size: int) -> Iterator[Advance]:
            def update(count: int) -> None:
                nonlocal received
                received += count
                advance(count)

            yield update

        repository = staging / f"{jar.file_name}.{attempt}"
        settings = GlobalSettings.load()  # a person's own mirror, from jgo's own configuration file
        context = MavenContext(
            resolver=PythonResolver(progress_callback=progress),
            repo_cache=repository,
            remote_repos=settings.repositories or None,
            timeout=TIMEOUT_S,
        )
        try:
            path = context.project(jar.group, jar.artifact).at_version(jar.version).artifact().resolve()
            digest = hashlib.sha256(path.read_bytes()).hexdigest()
            if digest == jar.sha256:
                path.replace(folder / jar.file_name)
                return
            last = FetchFailed(f"its SHA-256 is {digest}, not {jar.sha256}")
        except (OSError, RuntimeError) as error:  # requests' errors are OSErrors; jgo says RuntimeError for a 404
            last = error
        advance(-received)
    raise FetchFailed(
        f"cannot fetch {jar.group}:{jar.artifact}:{jar.version} ({last}). "
        "Check the network, the proxy and certificate variables, or name a mirror in jgo's configuration file; "
        "what has arrived is kept, so run it again."
    ) from last


@contextmanager
def _display(console: Console, count: int, total_bytes: int) -> Iterator[Advance]:
    """A progress bar for a person, one line at either end for a log."""
    what = f"Apache Kafka, {count} files"
    if not console.is_terminal:
        console.print(f"fetching {what}, {total_bytes / 1e6:.0f} MB …", highlight=False)
        yield lambda _count: None
        console.print(f"fetched {what}", highlight=False)
        return
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, TimeElapsedColumn(), console=console) as bar:
        task = bar.add_task(f"fetching {what}", total=total_bytes)
        yield lambda received: bar.advance(task, received)


if __name__ == "__main__":
    kafka_jars()
