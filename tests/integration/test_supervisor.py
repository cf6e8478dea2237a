"""What keeps the processes of `up` running, with small real processes."""

import io
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
from rich.console import Console

from drm_ingest.up.child import LOG_BYTES_MAX, Child, StartFailed
from drm_ingest.up.data_dir import DataDir, DataDirBusy
from drm_ingest.up.supervisor import Member, Supervisor

WAITS = "print('hello', flush=True); import time; time.sleep(600)"
STUBBORN = f"import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); {WAITS}"
FAILS = "import sys; sys.exit('the disk is full')"

Maker = Callable[..., Member]


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Maker]:
    """Return a function that makes a member running a line of Python; ready once it has written something."""
    made: list[Child] = []

    def make_member(name: str, code: str, share_s: float = 5.0) -> Member:
        child = Child(name, [sys.executable, "-c", code], tmp_path / f"{name}.log", tmp_path / f"{name}.pid")
        made.append(child)
        return Member(name, child, lambda: None if child.last_lines() else "silent", share_s=share_s)

    yield make_member
    for child in made:
        child.kill()


@pytest.fixture
def said() -> io.StringIO:
    return io.StringIO()


@pytest.fixture
def supervisor(said: io.StringIO) -> Supervisor:
    return Supervisor(Console(file=said, width=200))


def _eventually(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_process_that_is_killed_comes_back_with_a_new_pid_and_is_told_of(make: Maker, said: io.StringIO) -> None:
    told: list[int | None] = []
    supervisor = Supervisor(Console(file=said), on_change=lambda: told.append(member.child.pid))
    member = make("edge", WAITS)
    supervisor.start([member])
    first = member.child.pid
    assert first is not None

    def kill_and_wait() -> None:
        os.kill(first, signal.SIGKILL)
        _eventually(lambda: member.ready and member.child.pid != first)
        supervisor.stop_requested = True

    other = threading.Thread(target=kill_and_wait)
    other.start()
    supervisor.watch()
    other.join()
    assert told == [first, member.child.pid]
    assert f"edge (pid {first}) was ended by signal 9; starting it again in 0.25 s" in said.getvalue()


def test_a_process_that_cannot_start_is_given_up_with_its_last_words(make: Maker, supervisor: Supervisor) -> None:
    with pytest.raises(StartFailed, match=r"edge ended 2 times before it was ready(.|\n)*the disk is full"):
        supervisor.start([make("edge", FAILS)])


def test_all_stop_in_reverse_order(make: Maker, supervisor: Supervisor, said: io.StringIO) -> None:
    supervisor.start([make("first", WAITS), make("second", WAITS)])
    supervisor.start([make("third", WAITS)])
    supervisor.stop()
    stopped = [line.split()[0] for line in said.getvalue().splitlines() if " stopped after " in line]
    assert stopped == ["third", "second", "first"]
    assert not any(member.child.alive for member in supervisor.members)


def test_one_that_will_not_stop_is_killed_when_its_time_is_over(
    make: Maker, supervisor: Supervisor, said: io.StringIO
) -> None:
    supervisor.start([make("polite", WAITS), make("stubborn", STUBBORN, share_s=0.3)])
    supervisor.stop()
    assert "stubborn killed" in said.getvalue()
    assert "polite stopped" in said.getvalue()
    assert not any(member.child.alive for member in supervisor.members)


def test_a_second_ask_kills(make: Maker, supervisor: Supervisor) -> None:
    supervisor.start([make("stubborn", STUBBORN, share_s=600)])
    supervisor.kill_requested = True
    supervisor.stop()
    assert not supervisor.members[0].child.alive


def test_what_a_process_forked_ends_with_it(make: Maker, supervisor: Supervisor) -> None:
    forks = (
        f"import subprocess, sys; print(subprocess.Popen([sys.executable, '-c', {WAITS!r}]).pid, flush=True); {WAITS}"
    )
    member = make("edge", forks)
    supervisor.start([member])
    grandchild = psutil.Process(int(member.child.last_lines().split()[0]))
    supervisor.stop()
    _eventually(lambda: not grandchild.is_running() or grandchild.status() == psutil.STATUS_ZOMBIE)


def test_what_an_earlier_run_left_is_ended_before_a_new_start(make: Maker) -> None:
    left, successor = make("edge", WAITS).child, make("edge", WAITS).child
    left.start()
    successor.start()
    assert not left.alive
    assert successor.alive


def test_a_pid_that_is_somebody_elses_now_is_left_alone(make: Maker, tmp_path: Path) -> None:
    stranger, child = make("stranger", WAITS).child, make("edge", WAITS).child
    stranger.start()
    (tmp_path / "edge.pid").write_text(f"{stranger.pid} 12345.0\n")
    child.start()
    assert stranger.alive


def test_a_log_stays_bounded_while_it_is_written_to(make: Maker) -> None:
    child = make("edge", WAITS).child
    child.start()
    _eventually(lambda: bool(child.last_lines()))
    with child.log_file.open("ab") as log:
        log.write(b"x" * LOG_BYTES_MAX)
    child.trim_log()
    assert child.log_file.stat().st_size == 0
    assert child.log_file.with_name("edge.log.1").stat().st_size > LOG_BYTES_MAX


def test_a_second_up_on_the_same_folder_is_refused_and_told_who_holds_it(tmp_path: Path) -> None:
    first = DataDir(tmp_path)
    first.acquire()
    with pytest.raises(DataDirBusy, match=rf"already \(pid {os.getpid()}\)"):
        DataDir(tmp_path).acquire()
    first.release()


def test_keys_and_ports_stay_the_same(tmp_path: Path) -> None:
    first, again = DataDir(tmp_path), DataDir(tmp_path)
    assert first.key("sender_key") == again.key("sender_key") != again.key("admin_key")
    assert first.ports(["kafka", "postgres"], taken=[]) == again.ports(["kafka", "postgres"], taken=[])
    assert (tmp_path / "keys.json").stat().st_mode & 0o777 == 0o600


def test_a_port_taken_meanwhile_is_chosen_anew(tmp_path: Path) -> None:
    before = DataDir(tmp_path).ports(["kafka", "postgres"], taken=[])
    after = DataDir(tmp_path).ports(["kafka", "postgres"], taken=[before["kafka"]])
    assert after["kafka"] != before["kafka"]
    assert after["postgres"] == before["postgres"]


def test_tools_find_a_running_up_through_its_folder_and_none_after_its_end(tmp_path: Path) -> None:
    nobody = DataDir(tmp_path / "nothing")
    assert nobody.published_environment() == {}
    held = DataDir(tmp_path)
    held.acquire()
    held.publish_environment({"DRM_POSTGRES_DSN": "postgresql://drm:p'w $x@h/drm", "DRM_EDGE_URL": "http://h"})
    assert DataDir(tmp_path).published_environment() == {
        "DRM_POSTGRES_DSN": "postgresql://drm:p'w $x@h/drm",
        "DRM_EDGE_URL": "http://h",
    }
    held.release()
    assert DataDir(tmp_path).published_environment() == {}
