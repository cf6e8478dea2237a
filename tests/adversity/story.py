"""Documents whose commands are run and whose answers are real: docs/relations.md.

A block of commands (```` ```sh ````) may have what it answers below it (```` ```text ````); all go into one shell.
"""

import os
import re
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

_BLOCK = re.compile(r"```sh\n(?P<commands>.*?)```\n(?:```text\n(?P<answer>.*?)```\n)?", re.DOTALL)
_END = "-- end of block --"
_UUID = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_OF_THIS_RUN = (
    (re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d+Z"), "<when it ran>"),  # times of the story are whole seconds
    (re.compile(r"number=\d+"), "number=<n>"),  # of a change, among all changes there were
    (re.compile(r"^.*━.*\n", re.MULTILINE), ""),  # bars that tell how far something is
    (re.compile(r"[\d,]+ rows in \d+ files in \S+"), "<n> rows in <n> files"),  # other tests may have left theirs
    (re.compile(r" {2,}"), "  "),  # columns are as wide as what is in them
)


@dataclass(frozen=True, slots=True)
class Told:
    """A block of commands, and what the page says that it answers; None: nothing is said."""

    commands: str
    answer: str | None


def told(page: str) -> list[Told]:
    return [Told(block["commands"], block["answer"]) for block in _BLOCK.finditer(page)]


def run(page: str, folder: Path, *, timeout_s: float) -> list[str]:
    """Return what each block answers, pasted in their order into a shell in this folder."""
    script = "".join(f"{block.commands}echo '{_END}'\n" for block in told(page))
    own = {name: value for name, value in os.environ.items() if not name.startswith("DRM_")}
    done = subprocess.run(
        ["/bin/sh"], input=script, cwd=folder, env=own, text=True, timeout=timeout_s, check=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    return done.stdout.split(f"{_END}\n")[:-1]


def lasting(texts: list[str]) -> list[str]:
    """Return texts without what differs from run to run; ids are numbered in the order in which they come."""
    seen: dict[str, str] = {}

    def number(id_: re.Match[str]) -> str:
        return seen.setdefault(id_[0], f"<id {len(seen) + 1}>")

    cut = [_UUID.sub(number, text) for text in texts]
    for pattern, instead in _OF_THIS_RUN:
        cut = [pattern.sub(instead, text) for text in cut]
    return cut


def rewritten(page: str, answers: list[str]) -> str:
    """Return the page with these answers, where it has any."""
    left: Iterator[str] = iter(answers)

    def with_answer(block: re.Match[str]) -> str:
        answer = next(left)
        below = "" if block["answer"] is None else f"```text\n{answer}```\n"
        return f"```sh\n{block['commands']}```\n{below}"

    return _BLOCK.sub(with_answer, page)
