"""A server that is not ours, as we run it: prepared, started and awaited, stopped, killed, frozen."""

import signal
import time
from abc import ABC, abstractmethod
from typing import ClassVar

from drm_ingest.up.child import Child, StartFailed


class Server(ABC):
    """One server and its data; several run side by side on ports of their own, which may change between two starts.

    Blocking; safe to call from any thread.
    """

    start_timeout_s: ClassVar[float]
    """After a crash it goes over its log first; one that ended is noticed at once."""
    child: Child

    @abstractmethod
    def prepare(self) -> None:
        """Make it startable, whatever an earlier run left."""

    @abstractmethod
    def ready(self) -> bool:
        """Whether it answers."""

    @property
    def pid(self) -> int | None:
        return self.child.pid

    def start(self) -> None:
        """Prepare, start, and wait until it answers; raises StartFailed, and whatever `prepare` raises."""
        self.prepare()
        self.child.start()
        try:
            self._wait_until_ready()
        except BaseException:
            self.kill()
            raise

    def stop(self, grace_s: float = 15.0) -> bool:
        """Ask it to end, wait, then kill; True when it ended by itself."""
        return self.child.stop(grace_s)

    def kill(self) -> None:
        """SIGKILL to it and all it has forked; what it acknowledged stays."""
        self.child.kill()

    def signal(self, number: signal.Signals) -> None:
        """For a bad day: SIGSTOP makes it hang, SIGCONT go on."""
        self.child.signal(number)

    def _wait_until_ready(self) -> None:
        deadline = time.monotonic() + self.start_timeout_s
        while not self.ready():
            child = self.child
            if not child.alive:
                raise StartFailed(f"{child.name} ended with code {child.exit_code} before it was ready", child)
            if time.monotonic() > deadline:
                raise StartFailed(f"{child.name} was not ready within {self.start_timeout_s:.0f} s", child)
            time.sleep(0.05)
