"""Several edges on one port: `drm-ingest edge --workers N`, one process a core.

Each worker is a whole edge with a listening socket of its own (SO_REUSEPORT: the kernel spreads new connections over
them). The parent holds the port, starts them, starts them again when they die, and ends them. They end with it, however
it ends: each watches a pipe that only the parent holds.

Metrics stay honest: whichever worker a scrape meets asks all of them over Unix sockets and shows every series with the
label `worker`, so that nothing is summed over counters that started at different times.
"""

import asyncio
import contextlib
import multiprocessing
import signal
import socket
import time
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from dataclasses import dataclass, field
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from pathlib import Path

import structlog
from prometheus_client import CollectorRegistry, Metric, generate_latest
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector

from drm_ingest.edge.buckets import Memory, shared_memory
from drm_ingest.edge.folder import held, own_folder
from drm_ingest.edge.quotas import quota_memory
from drm_ingest.settings import Settings

SIBLING_TIMEOUT_S = 2.0
ENDED_AFTER_DRAIN_S = 4.0
RESTART_AFTER_S, RESTART_AFTER_MAX_S, HEALTHY_AFTER_S = 0.5, 5.0, 30.0
_POLL_S = 0.2

log = structlog.get_logger(__name__)


class Siblings:
    """The workers that share a port, as one of them sees them."""

    def __init__(self, folder: Path, worker: int) -> None:
        """Sockets are in `folder`, which is this edge's own."""
        self._folder = folder
        self.who = folder.name, worker == 0
        """What they are called together, and whether this is the first of them."""
        self._path = folder / f"{worker}.sock"

    @contextlib.asynccontextmanager
    async def joined(self, registry: CollectorRegistry, orphaned: Callable[[], None]) -> AsyncIterator[None]:
        """Show our own counts to the others while the context is open; `orphaned` is called when the parent dies."""

        async def show(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.write(generate_latest(registry))
            writer.close()

        def orphan() -> None:
            loop.remove_reader(parent.sentinel)  # type: ignore[union-attr]
            orphaned()

        self._path.unlink(missing_ok=True)  # of the one that was killed before us
        server = await asyncio.start_unix_server(show, self._path)
        loop, parent = asyncio.get_running_loop(), multiprocessing.parent_process()
        if parent is not None:
            loop.add_reader(parent.sentinel, orphan)
        try:
            with held(self._folder):
                yield
        finally:
            server.close()
            if parent is not None:
                loop.remove_reader(parent.sentinel)

    async def gather(self) -> Collector:
        """Return the metrics of all workers that answer, each series with the label `worker`."""
        paths = sorted(self._folder.glob("*.sock"))
        texts = await asyncio.gather(*(_read(path) for path in paths))
        return _Gathered([(path.stem, text) for path, text in zip(paths, texts, strict=True) if text])


class _Gathered(Collector):
    def __init__(self, texts: list[tuple[str, str]]) -> None:
        self._texts = texts

    def collect(self) -> Iterable[Metric]:
        families: dict[str, Metric] = {}
        for worker, text in self._texts:
            for family in text_string_to_metric_families(text):
                all_of_it = families.setdefault(family.name, Metric(family.name, family.documentation, family.type))
                for sample in family.samples:
                    all_of_it.samples.append(sample._replace(labels={**sample.labels, "worker": worker}))
        return families.values()


async def _read(path: Path) -> str:
    try:
        async with asyncio.timeout(SIBLING_TIMEOUT_S):
            reader, writer = await asyncio.open_unix_connection(path)
            text = (await reader.read()).decode()
            writer.close()
            return text
    except (OSError, TimeoutError) as error:
        log.warning("a worker does not tell its metrics", worker=path.stem, error=repr(error))
        return ""


@dataclass
class _Worker:
    number: int
    process: BaseProcess | None = None
    started_at: float = 0.0
    start_at: float = 0.0
    pause_s: float = RESTART_AFTER_S


@dataclass
class Workers:
    """The parent's side."""

    settings: Settings
    count: int
    work: Callable[[Settings, Path, int, Memory], None]
    _stopping: bool = field(default=False, init=False)

    def run(self) -> int:
        """Run the workers until SIGTERM or SIGINT; return 0, or 1 where none of them could start.

        Raises:
            OSError: the address is taken or not ours.
        """
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: setattr(self, "_stopping", True))
        with _hold_port(self.settings) as port, own_folder() as folder:
            settings = self.settings.model_copy(update={"edge_port": port})
            memory = shared_memory(quota_memory(settings))
            workers = [_Worker(number) for number in range(self.count)]
            failed = False
            while not self._stopping and not failed:
                for worker in workers:
                    self._keep(worker, settings, folder, memory)
                failed = any(worker.process is None for worker in workers) and not any(folder.iterdir())
                wait([worker.process.sentinel for worker in workers if worker.process], _POLL_S)
            self._end(workers)
            return 1 if failed else 0

    def _keep(self, worker: _Worker, settings: Settings, folder: Path, memory: Memory) -> None:
        now = time.monotonic()
        if worker.process is not None and worker.process.exitcode is not None:
            worker.pause_s = (
                RESTART_AFTER_S
                if now - worker.started_at > HEALTHY_AFTER_S
                else min(2 * worker.pause_s, RESTART_AFTER_MAX_S)
            )
            worker.start_at = now + worker.pause_s
            log.error(
                "a worker died", worker=worker.number, exit_code=worker.process.exitcode, again_in_s=worker.pause_s
            )
            worker.process = None
            return
        if worker.process is None and now >= worker.start_at:
            worker.started_at = now
            worker.process = multiprocessing.get_context("spawn").Process(
                target=self.work, args=(settings, folder, worker.number, memory), name=f"edge-{worker.number}"
            )
            worker.process.start()
            log.info("started a worker", worker=worker.number, pid_of_worker=worker.process.pid)

    def _end(self, workers: list[_Worker]) -> None:
        processes = [worker.process for worker in workers if worker.process]
        for process in processes:
            process.terminate()
        deadline = time.monotonic() + self.settings.drain_timeout_s + ENDED_AFTER_DRAIN_S
        for process in processes:
            process.join(max(0.0, deadline - time.monotonic()))
            if process.exitcode is None:
                log.error("a worker does not end and is killed", worker=process.name)
                process.kill()


@contextlib.contextmanager
def _hold_port(settings: Settings) -> Iterator[int]:
    """Make sure that the port is nobody else's, and keep it ours while no worker listens."""
    family = socket.AF_INET6 if ":" in settings.edge_host else socket.AF_INET
    address = (settings.edge_host, settings.edge_port)
    with socket.socket(family) as probe:  # another edge of this user would let us share its port
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind(address)
    with socket.socket(family) as held:
        held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        held.bind(address)
        yield held.getsockname()[1]
