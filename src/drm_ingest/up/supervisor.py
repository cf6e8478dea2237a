"""Keep a few processes running: start them, start again what dies, stop them in reverse order."""

import contextlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from rich.console import Console

from drm_ingest.up.child import Child, StartFailed

BACKOFF_FIRST_S = 0.25
BACKOFF_MAX_S = 5.0
HEALTHY_S = 30.0  # alive for so long: the next death is news, not a series
TOLD_ANYWAY_S = 3.0  # a restarted process that is alive but not ready by then is told of all the same
POLL_S = 0.05
START_ATTEMPTS = 2  # before the first time that all are ready: then it is rather a mistake than bad luck
TELL_S = 10.0
LOG_TRIM_S = 10.0


class StopRequested(Exception):
    """A person, or the system, asked us to stop."""


@dataclass
class Member:
    """One process to keep running.

    `prepare` makes it startable and may block; `not_ready` returns why it is not ready, or None when it is, within
    seconds. `share_s` is its part of the time that stopping all may take.
    """

    name: str
    child: Child
    not_ready: Callable[[], str | None]
    prepare: Callable[[], None] = lambda: None
    share_s: float = 2.0
    ready: bool = field(default=False, init=False)
    reason: str | None = field(default=None, init=False)
    told: bool = field(default=False, init=False)
    started_at: float = field(default=0.0, init=False)
    deaths: int = field(default=0, init=False)
    restart_at: float | None = field(default=None, init=False)


class Supervisor:
    """Runs in the main thread, in one loop; `stop_requested` and `kill_requested` are what signal handlers set."""

    def __init__(self, console: Console, on_change: Callable[[], None] = lambda: None) -> None:
        self.members: list[Member] = []
        self.stop_requested = False
        self.kill_requested = False
        self._console = console
        self._on_change = on_change
        self._trimmed_at = 0.0

    @property
    def pids(self) -> dict[str, int | None]:
        """The last pid of each member."""
        return {member.name: member.child.pid for member in self.members}

    def start(self, members: Sequence[Member]) -> None:
        """Start these at once and wait until all are ready, telling what it waits for.

        Raises:
            StartFailed: one ended several times before it was ready; with its last lines.
            StopRequested
        """
        for member in members:
            self.check_stop()
            self.members.append(member)
            member.prepare()
            self._launch(member)
        told_at = time.monotonic()
        while waiting := [member for member in members if not member.ready]:
            self.check_stop()
            now = time.monotonic()
            for member in waiting:
                if not member.child.alive and member.deaths == START_ATTEMPTS - 1 and member.restart_at is None:
                    raise StartFailed(f"{member.name} ended {START_ATTEMPTS} times before it was ready", member.child)
                self._tend(member, now)
                if now - told_at > TELL_S and member.reason:
                    told_at = now
                    self.say(f"  waiting for {member.name}: {member.reason}; its log is {member.child.log_file}")
            time.sleep(POLL_S)

    def run(self, child: Child) -> None:
        """Run a one-shot to its end.

        Raises:
            StartFailed: it failed; with its last lines.
            StopRequested
        """
        child.start()
        while child.alive:
            if self.stop_requested:
                child.stop(2.0)
            self.check_stop()
            time.sleep(POLL_S)
        child.kill()  # and whatever it may have left
        if child.exit_code != 0:
            raise StartFailed(f"{child.name} failed with code {child.exit_code}", child)
        self.say(f"[green]✓[/] {child.name}")

    def watch(self) -> None:
        """Start again what dies, with growing pauses; returns when asked to stop."""
        while not self.stop_requested:
            now = time.monotonic()
            for member in self.members:
                self._tend(member, now)
            if now - self._trimmed_at > LOG_TRIM_S:
                self._trimmed_at = now
                for member in self.members:
                    member.child.trim_log()
            time.sleep(POLL_S)

    def _tend(self, member: Member, now: float) -> None:
        if member.restart_at is not None:
            if now >= member.restart_at:
                self._restart(member)
        elif not member.child.alive:
            self._bury(member, now)
        elif not member.ready:
            self._see_whether_it_is_ready(member, now)

    def _bury(self, member: Member, now: float) -> None:
        lived_s = now - member.started_at
        member.deaths = member.deaths + 1 if lived_s < HEALTHY_S else 1
        pause_s = restart_pause_s(member.deaths)
        member.restart_at = now + pause_s
        what = _how_it_ended(member.child.exit_code)
        self.say(f"[red]✗[/] {member.name} (pid {member.child.pid}) {what}; starting it again in {pause_s:g} s")
        if lived_s < HEALTHY_S and (lines := member.child.last_lines(5)):
            self.say(f"  [dim]its log {member.child.log_file} ends:[/]")
            self._print(lines, markup=False, style="dim")

    def _restart(self, member: Member) -> None:
        member.restart_at = None
        try:
            member.prepare()
            self._launch(member)
        except StopRequested:
            raise
        except Exception as error:  # whatever it is, it may pass: say so and try again
            member.deaths += 1
            member.restart_at = time.monotonic() + BACKOFF_MAX_S
            self.say(f"[red]✗[/] {member.name} cannot be started ({error}); trying again in {BACKOFF_MAX_S:g} s")

    def _see_whether_it_is_ready(self, member: Member, now: float) -> None:
        lived_s = now - member.started_at
        member.reason = member.not_ready()
        if member.reason is None:
            member.ready = True
            self.say(f"[green]✓[/] {member.name:<10} ready after {lived_s:.1f} s, pid {member.child.pid}")
        if member.ready or (lived_s > TOLD_ANYWAY_S and not member.told):
            member.told = True
            self._on_change()

    def _launch(self, member: Member) -> None:
        member.ready = member.told = False
        member.child.start()
        member.started_at = time.monotonic()

    def check_stop(self) -> None:
        """Raise StopRequested once somebody asked."""
        if self.stop_requested:
            raise StopRequested

    def stop(self) -> None:
        """Stop all in reverse order, each in its share of the time; then, or at a second ask, it is killed."""
        deadline = time.monotonic()
        for member in reversed(self.members):
            deadline += member.share_s  # time another did not need is there for the next
            if member.child.alive:
                began = time.monotonic()
                member.child.ask_to_stop()
                while member.child.alive and time.monotonic() < deadline and not self.kill_requested:
                    member.child.wait(POLL_S)
                ended = not member.child.alive
                took_s = time.monotonic() - began
                self.say(f"  {member.name} {'stopped' if ended else 'killed'} after {took_s:.1f} s")
            member.child.kill()

    def say(self, text: str) -> None:
        """Print markup, lines however long."""
        self._print(text)

    def _print(self, text: str, *, markup: bool = True, style: str | None = None) -> None:
        with contextlib.suppress(OSError, SystemExit):  # a closed terminal must not keep us from stopping everything
            self._console.print(text, markup=markup, style=style, highlight=False, soft_wrap=True)


def restart_pause_s(deaths: int) -> float:
    """How long to wait after so many deaths in a row: a quarter of a second, doubled each time, five at most."""
    return min(BACKOFF_FIRST_S * 2.0 ** min(deaths - 1, 10), BACKOFF_MAX_S)


def _how_it_ended(exit_code: int | None) -> str:
    if exit_code is not None and exit_code < 0:
        return f"was ended by signal {-exit_code}"
    return f"ended with code {exit_code}"
