"""CPU, memory, descriptors and threads of processes, from /proc: a child process counts with its parent."""

import contextlib
import os
from pathlib import Path

_TICKS = os.sysconf("SC_CLK_TCK")


def family(pid: int) -> list[int]:
    """Return a process and all its descendants."""
    pids = [pid]
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        for child in task.read_text().split():
            pids += family(int(child))
    return pids


def cpu_s(pid: int) -> float:
    """Return the CPU seconds of a process and its descendants, children that have ended included."""
    total = 0
    for one in family(pid):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # ended meanwhile: its parent has its time
            total += _own_ticks(one)
    return total / _TICKS


def exact_cpu_s(pid: int) -> float:
    """Return the same of what is running, to the nanosecond and not to the tick of 10 ms, for short measurements."""
    tasks = (task for one in family(pid) for task in Path(f"/proc/{one}/task").iterdir())
    return sum(int((task / "schedstat").read_text().split()[0]) for task in tasks) / 1e9  # sched-stats.rst


def _own_ticks(pid: int) -> int:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return sum(int(field) for field in fields[11:15])  # utime, stime, cutime, cstime: proc(5)


def resident_mb(pid: int) -> float:
    """Return the resident memory of a process and its descendants, shared pages counted once per process (PSS)."""
    total = 0
    for one in family(pid):
        for line in Path(f"/proc/{one}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                total += int(line.split()[1])
    return total / 1024


def usage(pid: int) -> tuple[float, int, int]:
    """Return resident megabytes, open descriptors and threads of a process and its descendants.

    Resident is RSS where it has no children, and PSS where it has: what they share would be counted again and again.
    """
    pids = family(pid)
    kind = "Rss:" if len(pids) == 1 else "Pss:"
    resident_kb = descriptors = threads = 0
    for one in pids:
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # ended meanwhile
            rollup = Path(f"/proc/{one}/smaps_rollup").read_text().splitlines()
            resident_kb += sum(int(line.split()[1]) for line in rollup if line.startswith(kind))
            descriptors += len(os.listdir(f"/proc/{one}/fd"))
            threads += len(os.listdir(f"/proc/{one}/task"))
    return resident_kb / 1024, descriptors, threads
