"""A process we started: in a group of its own, logging to a file, and gone when we are."""

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from drm_ingest.up import launch
from drm_ingest.up.last_words import readable

LOG_BYTES_MAX = 16 * 1024 * 1024  # then what is there becomes NAME.log.1, and what was there is dropped


class StartFailed(Exception):
    """A process did not come up; the message ends with the last lines it wrote."""

    def __init__(self, message: str, child: "Child") -> None:
        lines = child.last_lines()
        super().__init__(f"{message}; its log is {child.log_file}" + (f", and ends:\n{lines}" if lines else ""))


@dataclass(frozen=True)
class User:
    """Who a process runs as, and the one capability it keeps (capabilities(7)); only root can ask for this."""

    uid: int
    gid: int
    capability: int | None = None


@dataclass
class Child:
    """One program that can be started, stopped, killed and started again; its arguments may change in between.

    It has its own process group, so a Ctrl-C at our terminal does not reach it and a kill reaches all it has forked.
    When we die without stopping it, the kernel sends it `orphan_signal`; where the kernel cannot (macOS), the next
    start on the same `pid_file` ends what was left.
    """

    name: str
    argv: Sequence[str]
    log_file: Path
    pid_file: Path
    env: Mapping[str, str] = field(default_factory=dict)
    cwd: Path | None = None
    stop_signal: signal.Signals = signal.SIGTERM
    orphan_signal: signal.Signals = signal.SIGKILL
    user: User | None = None
    pid: int | None = None
    _process: subprocess.Popen[bytes] | None = None
    _log_start_bytes: int = 0

    @property
    def alive(self) -> bool:
        return self._process is not None and self._process.poll() is None

    @property
    def exit_code(self) -> int | None:
        """As in `subprocess`: negative is the signal that ended it, None while it runs or before it ever ran."""
        return None if self._process is None else self._process.poll()

    def start(self) -> int:
        """Start it and return its pid; raises OSError when it cannot be."""
        if self.alive:
            raise RuntimeError(f"{self.name} is running already")
        self.kill()
        end_leftover(self.pid_file, self.stop_signal)
        self.log_file.parent.mkdir(parents=True, exist_ok=True)
        self.trim_log()
        self._log_start_bytes = self.log_file.stat().st_size if self.log_file.exists() else 0
        started = threading.Event()
        failure: list[OSError] = []
        threading.Thread(target=self._run, args=(started, failure), name=f"keeper of {self.name}", daemon=True).start()
        started.wait()
        if failure:
            raise failure[0]
        assert self._process is not None  # noqa: S101 - set before `started`
        self.pid = self._process.pid
        _write_pid(self.pid_file, self.pid)
        return self.pid

    def _run(self, started: threading.Event, failure: list[OSError]) -> None:
        """The thread that forks must outlive the child: its end counts as the parent's death (prctl(2))."""
        try:
            with self.log_file.open("ab") as log:
                self._process = process = subprocess.Popen(
                    launched(self.user, self.orphan_signal, *self.argv),
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    env=dict(self.env),
                    cwd=self.cwd,
                    process_group=0,
                )
        except OSError as error:
            failure.append(error)
            return
        finally:
            started.set()
        process.wait()

    def wait(self, timeout_s: float) -> bool:
        """Wait for its end; False when it still runs after `timeout_s`."""
        if self._process is None:
            return True
        try:
            self._process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            return False
        return True

    def ask_to_stop(self) -> None:
        self.signal(self.stop_signal)

    def signal(self, number: signal.Signals) -> None:
        if self._process is not None:
            self._process.send_signal(number)  # does nothing once it has ended

    def stop(self, grace_s: float = 10.0) -> bool:
        """Ask, wait, then kill, with all it forked; True when it ended by itself."""
        self.ask_to_stop()
        ended = self.wait(grace_s)
        self.kill()
        return ended

    def kill(self) -> None:
        """SIGKILL to it and everything in its group, also when it is gone and what it forked is not."""
        if self._process is None:
            return
        deadline = time.monotonic() + 2.0
        while _group_lives(self._process.pid) and time.monotonic() < deadline:
            with contextlib.suppress(ProcessLookupError, PermissionError):  # macOS: EPERM for a group of zombies
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            time.sleep(0.005)
        self.pid_file.unlink(missing_ok=True)

    def last_lines(self, count: int = 10) -> str:
        """The end of what it wrote since its last start, for a person."""
        if not self.log_file.exists():
            return ""
        with self.log_file.open("rb") as log:
            size = log.seek(0, os.SEEK_END)
            log.seek(max(min(self._log_start_bytes, size), size - 256 * 1024))
            return "\n".join(readable(log.read().decode(errors="replace").splitlines()[-count:]))

    def trim_log(self) -> None:
        """Keep the log bounded while it is written to: copy it aside, cut it; who appends goes on at its start."""
        if not self.log_file.exists() or self.log_file.stat().st_size <= LOG_BYTES_MAX:
            return
        older = self.log_file.with_name(self.log_file.name + ".1")
        with self.log_file.open("rb+") as log, older.open("wb") as copy:
            while block := log.read(1 << 20):
                copy.write(block)
            log.truncate(0)
        self._log_start_bytes = 0


def _write_pid(pid_file: Path, pid: int) -> None:
    try:
        started_at = psutil.Process(pid).create_time()
    except psutil.NoSuchProcess:  # it ended at once; its exit code will tell
        return
    pid_file.parent.mkdir(parents=True, exist_ok=True)
    pid_file.write_text(f"{pid} {started_at}\n")


def _group_lives(group: int) -> bool:
    """Whether anything in it runs; a zombie whose parent (in a container, maybe nobody) never asks does not."""
    try:
        os.killpg(group, 0)
    except (ProcessLookupError, PermissionError):
        return False
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.NoSuchProcess, ProcessLookupError):
            if os.getpgid(process.pid) == group and process.status() != psutil.STATUS_ZOMBIE:
                return True
    return False


def launched(user: User | None, orphan_signal: signal.Signals, *program: str) -> list[str]:
    """Wrap a program so that it runs as `user`, and gets `orphan_signal` when we die."""
    who = "-" if user is None else f"{user.uid}:{user.gid}"
    capability = "-" if user is None or user.capability is None else str(user.capability)
    launcher = [sys.executable, "-I", "-S", launch.__file__, str(os.getpid()), str(int(orphan_signal))]
    return [*launcher, who, capability, *program]


def end_leftover(pid_file: Path, stop_signal: signal.Signals) -> None:
    """End the process an earlier run left behind; pids are reused, so its start time must match."""
    with contextlib.suppress(FileNotFoundError, ValueError, psutil.NoSuchProcess, ProcessLookupError):
        pid_text, started_at = pid_file.read_text().split()
        process = psutil.Process(int(pid_text))
        if abs(process.create_time() - float(started_at)) < 0.5:
            process.send_signal(stop_signal)
            if psutil.wait_procs([process], timeout=5)[1]:
                os.killpg(process.pid, signal.SIGKILL)
    pid_file.unlink(missing_ok=True)
