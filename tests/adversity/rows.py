"""The rows of docs/reliability.md: which tests hold them, and what those saw.

A test is marked with `@pytest.mark.row("broker-killed")` and tells figures with the fixture `seen`.
"""

import re
from dataclasses import dataclass, field
from pathlib import Path

DOCUMENT = Path(__file__).parents[2] / "docs" / "reliability.md"
LINE = re.compile(r"^\| `(?P<name>[a-z-]+)` \|(?P<what>.*)\|(?P<bound>.*)\|(?P<seen>[^|]*)\|$", re.MULTILINE)


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
