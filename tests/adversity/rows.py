"""The rows of docs/reliability.md: which tests hold them, and what those saw.

A test is marked with `@pytest.mark.row("broker-killed")` and tells figures with the fixture `seen`.
As a plugin this prints the rows at the end, and with WRITE_RELIABILITY=1 writes them there. It goes by reports: these
come back from where a test ran, if that was another process.
"""

import os
import re
from collections import defaultdict
from collections.abc import Generator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

DOCUMENT = Path(__file__).parents[2] / "docs" / "reliability.md"
LINE = re.compile(r"^\| `(?P<name>[a-z-]+)` \|(?P<what>.*)\|(?P<bound>.*)\|(?P<seen>[^|]*)\|$", re.MULTILINE)

FIGURES: pytest.StashKey[list[str]] = pytest.StashKey()


@dataclass
class Row:
    """What the tests of one row came to in this run."""

    passed: int = 0
    failed: list[str] = field(default_factory=list)
    seconds: float = 0.0
    figures: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        """Return it as the last column says it."""
        if self.failed:
            return f"**failed**: {', '.join(self.failed)}"
        tests = f"{self.passed} test{'s' if self.passed > 1 else ''}, {self.seconds:.0f} s"
        return "; ".join([tests, *self.figures]).replace("|", "/").replace("\n", " ")


def names() -> list[str]:
    """Return the rows of the document, in its order."""
    return [found["name"] for found in LINE.finditer(DOCUMENT.read_text())]


def write(rows: dict[str, Row]) -> None:
    """Put what was seen into the last column; a row that did not run keeps what it has."""

    def line(found: re.Match[str]) -> str:
        seen = f" {rows[found['name']]} " if found["name"] in rows else found["seen"]
        return f"| `{found['name']}` |{found['what']}|{found['bound']}|{seen}|"

    DOCUMENT.write_text(LINE.sub(line, DOCUMENT.read_text()))


def figures(item: pytest.Item) -> list[str]:
    """Return what a test has told so far."""
    return item.stash.setdefault(FIGURES, [])


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    named = [("row", mark.args[0]) for mark in item.iter_markers("row")]
    report.user_properties = [*report.user_properties, *named, *(("figure", told) for told in figures(item))]
    return report


class Rows:
    """The rows of this run."""

    def __init__(self) -> None:
        self.found: dict[str, Row] = defaultdict(Row)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        for name in (value for key, value in report.user_properties if key == "row"):
            row = self.found[str(name)]
            row.seconds += report.duration
            if report.failed:
                row.failed.append(report.nodeid.rpartition("::")[-1])
            elif report.when == "call":
                row.passed += report.passed
                row.figures += [str(value) for key, value in report.user_properties if key == "figure"]

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        if self.found:
            terminalreporter.section("rows of docs/reliability.md")
            for name in sorted(self.found, key=[*names(), *self.found].index):
                terminalreporter.line(f"{name:<26}{self.found[name]}")
            if os.environ.get("WRITE_RELIABILITY"):
                write(self.found)


def pytest_configure(config: pytest.Config) -> None:
    config.pluginmanager.register(Rows())
