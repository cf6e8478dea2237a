"""What is not taken of a file: the code of each reason, and the file in which it is kept with its line.

Refused   a line is not taken; the rest goes on
Stopped   nothing more is taken: too large a share is refused, or the file cannot be read
"""

import os
from collections.abc import Iterable
from enum import StrEnum
from pathlib import Path
from typing import Self

import orjson


class LineCode(StrEnum):
    """Why a line is refused; the second part of each value is what to do."""

    remedy: str

    def __new__(cls, code: str, remedy: str) -> Self:
        """Attach the remedy to the code."""
        member = str.__new__(cls, code)
        member._value_ = code
        member.remedy = remedy
        return member

    UNREADABLE = "unreadable", "Correct the line: it is no record of the file's format, or no UTF-8."
    UNMAPPABLE = "unmappable", "Correct the column, or the mapping: it does not hold what the field is."
    FIELD_INVALID = "field_invalid", "Correct the field at pointer."
    REFERENCE_REFUSED = "reference_refused", "Leave out what identifies nobody; see the reason."
    REFERENCE_MISSING = "reference_missing", "Give the party a reference: it is how the next import knows it again."
    REFERENCE_CONFLICT = "reference_conflict", "Its references name several parties; link those, or correct the line."
    KIND_CONFLICT = "kind_conflict", "The party is there, of another kind; correct one of the two."
    TOO_MANY = "too_many", "The party would have more references or attributes than it may."
    PARTY_UNKNOWN = "party_unknown", "Import the parties first; no party is called so."
    ROLE_MISFIT = "role_misfit", "The role does not join such a subject with such a party; see the reason."
    HELD_ALREADY = "held_already", "The role is held at that time; end or correct the relation that the reason names."
    EVENT_REJECTED = "event_rejected", "The edge refused the event; the reason begins with its code (docs/errors.md)."


class Refused(Exception):
    """A line is not taken, and no repeat changes that."""

    def __init__(self, code: LineCode, reason: str | None = None, pointer: str | None = None) -> None:
        """`pointer` leads to the field; without a reason the code's own remedy is told."""
        super().__init__(code, reason, pointer)
        self.code, self.reason, self.pointer = code, reason or code.remedy, pointer


class Stopped(Exception):
    """Nothing more is taken; says why, and what to do."""


class ErrorFile:
    """Newline-delimited JSON: line, code, reason, pointer, original."""

    def __init__(self, path: Path, size: int) -> None:
        """`size` is how long it was at the last checkpoint: what is behind is told again."""
        self.path = path
        self.size = size
        self._behind_is_gone = False
        if size and not path.exists():
            raise Stopped(f"{path}, with what was refused until now, is gone; --restart begins anew")

    @property
    def of_an_earlier_run(self) -> bool:
        """Whether the file has what another run refused, and loses it with the first lines that this one takes."""
        return not self.size and self.path.exists() and self.path.stat().st_size > 0

    def add(self, refused: Iterable[tuple[int, str, Refused]]) -> None:
        """Add lines, each with its number and the original; where there is none at all, leave no file."""
        if not self._behind_is_gone:  # not before lines are taken: what cannot begin takes nobody's file away
            self._behind_is_gone = True
            if self.size:
                os.truncate(self.path, self.size)
            else:
                self.path.unlink(missing_ok=True)
        text = b"".join(
            orjson.dumps(
                {
                    "line": line,
                    "code": why.code,
                    "reason": why.reason,
                    **({"pointer": why.pointer} if why.pointer else {}),
                    "original": original.encode(errors="backslashreplace").decode(),
                },
                option=orjson.OPT_APPEND_NEWLINE,
            )
            for line, original, why in refused
        )
        if not text:
            return
        with self.path.open("ab") as file:
            file.write(text)
        self.size += len(text)


class ShareMax:
    """Stops where more is refused than single lines that are wrong: a mapping or a whole file is."""

    def __init__(self, share_max: float, lines_min: int) -> None:
        """It stops from `lines_min` refused lines on, where they are more than `share_max` of those read."""
        self._share_max = share_max
        self._lines_min = lines_min

    def check(self, refused: int, read: int, example: Refused | None) -> None:
        """See whether so many may be refused.

        Raises:
            Stopped
        """
        if refused >= self._lines_min and refused > self._share_max * read and self._share_max < 1 and example:
            raise Stopped(
                f"{refused:,} of {read:,} lines are refused, so nothing more is taken; one of them: {example.code}: "
                f"{example.reason} · mend the mapping or the file and run it again; if they really are all to be left "
                "out, say --refused-share-max 1"
            )
