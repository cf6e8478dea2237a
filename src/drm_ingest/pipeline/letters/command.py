"""What `drm-ingest dead-letters` does: each function returns the exit code."""

import asyncio
import heapq
import logging
import os
import sys
from collections.abc import Coroutine, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import structlog
import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from drm_ingest.kafka.connection import KafkaUnreachable
from drm_ingest.kafka.writer import NotAcknowledged, Outgoing
from drm_ingest.pipeline.letters import show
from drm_ingest.pipeline.letters.find import Letter, NoSuchTopic, Position, Wanted, find, position
from drm_ingest.pipeline.letters.replay import Plan, Replay, Replayed, clock, follow
from drm_ingest.postgres.pool import PASSING
from drm_ingest.settings import Settings


class BadInput(Exception):
    """What was named or given cannot be used; the message says why."""


def list_all(settings: Settings, wanted: Wanted, limit: int, *, json: bool) -> int:
    """List them: the latest `limit` as a table, or all as lines."""

    async def work() -> int:
        if json:
            async for letter in find(settings, wanted):
                sys.stdout.buffer.write(show.line(letter))
            sys.stdout.buffer.flush()
            return 0
        latest: list[tuple[int, Position, Letter]] = []
        found = 0
        async for letter in find(settings, wanted):
            found += 1
            heapq.heappush(latest, (letter.record.timestamp, letter.position, letter))
            if len(latest) > limit:
                heapq.heappop(latest)
        show.listed(Console(highlight=False), [letter for _, _, letter in sorted(latest, key=lambda one: one[:2])])
        letters = "1 dead letter" if found == 1 else f"{found} dead letters"
        _say(letters + (f", the latest {limit} of them shown" if found > limit else ""))
        return 0

    return _run(work())


def show_some(settings: Settings, which: str, *, raw: bool, json: bool) -> int:
    """Show the letter at a position, or all of a subject."""
    at = position(which)
    wanted = Wanted(subject=which) if at is None else Wanted(positions=frozenset([at]))

    async def work() -> int:
        found = 0
        async for letter in find(settings, wanted):
            found += 1
            if raw:
                sys.stdout.buffer.write(letter.value)
            elif json:
                sys.stdout.buffer.write(show.line(letter))
            else:
                show.whole(Console(highlight=False), letter)
        sys.stdout.buffer.flush()
        if not found:
            _say(f"there is no dead letter {which}; `drm-ingest dead-letters list` shows those there are")
        return 0 if found else 1

    return _run(work())


def values(
    which: Sequence[str], from_file: Path | None, mended: Iterable[bytes] | None
) -> dict[Position, bytes | None]:
    """Return the positions that were named, with the mended value where there is one.

    Raises:
        BadInput
    """
    named: dict[Position, bytes | None] = dict.fromkeys(map(_position, which))
    if from_file is not None:
        if len(named) != 1:
            raise BadInput("--from-file mends one letter: name it, as in 2:17")
        named = dict.fromkeys(named, from_file.read_bytes())
    for number, line in enumerate(mended or (), 1):
        try:
            name, value = show.value_of(line)
        except ValueError as error:
            raise BadInput(f"line {number} of the mended letters: {error}") from None
        named[_position(name)] = value
    return named


def replay_some(
    settings: Settings,
    wanted: Wanted,
    named: Mapping[Position, bytes | None],
    *,
    dry_run: bool,
    rate: float | None,
    again: bool,
    limit: int | None,
    wait_s: float,
) -> int:
    """Replay them, and tell what became of them; 1 where some could not be, or were set aside again."""
    plan = Plan(
        wanted=replace(wanted, positions=frozenset(named)),
        mended={at: value for at, value in named.items() if value is not None},
        again=again,
        limit=limit,
        rate=rate,
    )

    async def work() -> int:
        going = Replay(settings, plan, _say)
        if dry_run:
            await going.dry(lambda letter, out: typer.echo(_would(letter, out)))
            _tell(going.done, "would be written")
            return 1 if going.done.wrong else 0
        since = await clock(settings) if wait_s else None
        total = limit
        if seen := sys.stderr.isatty():  # counting them is reading them all
            total = sum([1 async for letter in find(settings, plan.wanted) if again or not letter.replayed])
        with _progress(seen) as progress:
            bar = progress.add_task("replaying", total=total if limit is None else min(total or 0, limit))
            try:
                await going.run(lambda count: progress.advance(bar, count))
            except NotAcknowledged as error:
                _tell(going.done, "written again")
                _say(f"Kafka did not take the next: {error}; run it again, it goes on where it stopped")
                return 1
        _tell(going.done, "written again")
        if going.done.followed and since is not None:
            return max(await _follow(settings, going.done, since, wait_s), 1 if going.done.wrong else 0)
        if going.done.followed and wait_s:
            _say("Postgres does not answer, so what becomes of them is not known yet")
        return 1 if going.done.wrong else 0

    return _run(work())


async def _follow(settings: Settings, done: Replayed, since: Any, wait_s: float) -> int:
    try:
        seen = await follow(settings, done.followed, since, wait_s)
    except PASSING as error:
        _say(f"what became of them cannot be told: {error or type(error).__name__}")
        return 0
    told = [
        (seen.stored, "stored"),
        (seen.conflicts, "not stored, another event has their identity (id_conflict)"),
        (seen.refused, "set aside again; `drm-ingest dead-letters list` says why"),
        (seen.open, f"not to be seen yet after {wait_s:g} s; enrich or attach may be behind, or have set them aside"),
    ]
    _say("; ".join(f"{count} {what}" for count, what in told if count))
    return 1 if seen.conflicts or seen.refused else 0


def _would(letter: Letter, out: Outgoing) -> str:
    return f"{letter.name} → {out.topic}/{out.partition}  {letter.reason.get('code', '?')}"


def _tell(done: Replayed, what: str) -> None:
    told = [f"{done.written} {what}"]
    told += [f"{done.before} left out, replayed before (--again)"] if done.before else []
    told += [f"{done.conflicts} left out, id_conflict (name them, or --code)"] if done.conflicts else []
    told += [f"{done.impossible} cannot be replayed"] if done.impossible else []
    told += [f"{done.missing} not there, or outside of the filters"] if done.missing else []
    _say("; ".join(told))


def _progress(seen: bool) -> Progress:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    return Progress(*columns, console=Console(stderr=True), disable=not seen)


def _position(text: str) -> Position:
    if (at := position(text)) is None:
        raise BadInput(f"{text} is no position of a dead letter; they look like 2:17")
    return at


def _say(what: str) -> None:
    typer.echo(what, err=True)


def _run(work: Coroutine[Any, Any, int]) -> int:
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))  # a person is told
    try:
        return asyncio.run(work)
    except (KafkaUnreachable, NoSuchTopic) as error:
        _say(str(error))
        return 1
    except KeyboardInterrupt:
        _say("interrupted; run it again, it goes on where it stopped")
        return 130
    except BrokenPipeError:  # `| head` has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
