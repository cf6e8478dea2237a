"""Taking a file: line by line through the mapping and the rules, many in one transaction, noting how far it is."""

import asyncio
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import islice
from typing import Any, Literal, Protocol, TypeVar

import asyncpg

from drm_ingest.exchange.checkpoint import Checkpoint, Progress
from drm_ingest.exchange.fit import LINE
from drm_ingest.exchange.lines import File, Line, Unreadable
from drm_ingest.exchange.mapping import Columns, Unmappable
from drm_ingest.exchange.refused import ErrorFile, LineCode, Refused, ShareMax, Stopped
from drm_ingest.postgres.bulk.parties import Meanwhile
from drm_ingest.postgres.pool import PASSING
from drm_ingest.postgres.trouble import in_words
from drm_ingest.settings import Settings

TRIES = 5
TRY_AGAIN_S = 0.5

Became = Literal["made", "changed", "same"]
Wanted = TypeVar("Wanted")
Read_co = TypeVar("Read_co", covariant=True)


@dataclass(frozen=True, slots=True)
class Context:
    """What each kind of import knows of its own run."""

    settings: Settings
    asserted_by: str
    file_written_at: datetime
    dry_run: bool


class Reads(Protocol[Read_co]):
    """Knows what a line wants."""

    def read(self, fields: Any) -> Read_co:
        """Return it; raises Refused."""


class Taker(Reads[Wanted], Protocol[Wanted]):
    """One kind of import into Postgres; `lines` is how many it takes in one transaction."""

    lines: int

    async def write(self, db: asyncpg.Connection, wanted: Sequence[Wanted]) -> Sequence[Became | Refused]:
        """Bring it about in the transaction that is open, or only say what would be where it is a dry run."""


@dataclass(frozen=True, slots=True)
class Desk:
    """What a run takes from and notes on."""

    file: File
    columns: Columns
    share_max: ShareMax
    errors: ErrorFile | None
    checkpoint: Checkpoint | None
    """None, as `errors`, in a dry run, which leaves nothing behind."""
    on_refused: Callable[[int, Refused], None]


Told = tuple[int, str, Refused]
"""Of a line that is refused its number, the original, and why."""


def sort(reader: Reads[Wanted], desk: Desk, lines: Sequence[Line]) -> tuple[list[tuple[Line, Wanted]], list[Told]]:
    """Return what lines want, and those that are refused at once."""
    wanted: list[tuple[Line, Wanted]] = []
    refused: list[Told] = []
    for line in lines:
        try:
            if line.row is None:
                raise Refused(LineCode.UNREADABLE, line.wrong)
            row = {**line.row, LINE: line.number} if desk.columns.wants_line else line.row
            wanted.append((line, reader.read(desk.columns.fields(row))))
        except Unmappable as error:
            refused.append((line.number, line.original, Refused(LineCode.UNMAPPABLE, error.reason, error.pointer)))
        except Refused as why:
            refused.append((line.number, line.original, why))
    return wanted, refused


async def take(
    db: asyncpg.Connection, taker: Taker[Wanted], desk: Desk, progress: Progress, on_progress: Callable[[], None]
) -> None:
    """Take what is left of the file behind `progress`, bringing that up to date.

    Raises:
        Stopped: too much is refused, the file ends in the middle, or Postgres is away; what was taken stays taken.
    """
    lines = desk.file.lines(progress.line)

    def read() -> tuple[list[Line], list[tuple[Line, Wanted]], list[Told]]:
        batch = next_lines(lines, taker.lines)
        return batch, *sort(taker, desk, batch)

    # While Postgres is at work, a thread reads on: what one waits for is mostly the other.
    reading = asyncio.create_task(asyncio.to_thread(read))
    try:
        while (ready := await reading)[0]:
            batch, wanted, refused = ready
            reading = asyncio.create_task(asyncio.to_thread(read))
            became = await _write(db, taker, desk, progress, wanted, refused, len(batch))
            for (line, _), one in zip(wanted, became, strict=True):
                if isinstance(one, Refused):
                    refused.append((line.number, line.original, one))
                else:
                    setattr(progress, one, getattr(progress, one) + 1)
            note(desk, progress, batch, refused)
            on_progress()
        on_progress()  # only now the file has ended
    finally:
        await asyncio.wait([reading])  # a thread cannot be stopped
        if not reading.cancelled():
            reading.exception()  # what ended this one counts


def next_lines(lines: Iterator[Line], count: int) -> list[Line]:
    """Return the next so many lines, or what is left.

    Raises:
        Stopped: nothing more can be read.
    """
    try:
        return list(islice(lines, count))
    except Unreadable as error:
        raise Stopped(str(error)) from None


async def _write(
    db: asyncpg.Connection,
    taker: Taker[Wanted],
    desk: Desk,
    progress: Progress,
    wanted: Sequence[tuple[Line, Wanted]],
    refused: Sequence[Told],
    read: int,
) -> Sequence[Became | Refused]:
    """Write a batch in one transaction, again where others were in the way; before it commits, see what is refused."""
    dry_run = desk.checkpoint is None
    for tries in range(1, TRIES + 1):
        try:
            async with db.transaction(isolation="read_committed", readonly=dry_run):
                became = await taker.write(db, [one for _, one in wanted]) if wanted else []
                late = [one for one in became if isinstance(one, Refused)]
                example = refused[0][2] if refused else late[0] if late else None
                desk.share_max.check(progress.refused + len(refused) + len(late), progress.read + read, example)
            return became
        except (Meanwhile, asyncpg.DeadlockDetectedError, asyncpg.LockNotAvailableError) as error:
            if tries == TRIES:
                raise Stopped(f"others are in the way ({error}); run it again, and it goes on here") from None
            await asyncio.sleep(TRY_AGAIN_S)
        except PASSING as error:
            raise Stopped(f"{in_words(error)} · run it again, and it goes on here") from None
    raise AssertionError


def note(desk: Desk, progress: Progress, batch: Sequence[Line], refused: Sequence[Told]) -> None:
    """Keep what is refused, then note that the batch is done; killed in between, it is told again, and not twice."""
    progress.read += len(batch)
    progress.line = batch[-1].number
    progress.refused += len(refused)
    for number, _, why in sorted(refused, key=lambda told: told[0]):
        progress.codes[why.code.value] = progress.codes.get(why.code.value, 0) + 1
        desk.on_refused(number, why)
    if desk.errors is not None and desk.checkpoint is not None:
        desk.errors.add(sorted(refused, key=lambda told: told[0]))
        progress.errors_bytes = desk.errors.size
        desk.checkpoint.save(progress)
