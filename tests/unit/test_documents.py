"""Documents that list what the code knows are held to the code."""

import re
from pathlib import Path

import pytest
from docs import draw, tables

from drm_ingest.event import RESERVED_ATTRIBUTES

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("name", tables.TABLES)
def test_a_table_that_the_code_knows_is_as_the_code_has_it(name: str) -> None:
    assert (ROOT / "docs" / name).read_text() == tables.written(name), "run: make docs"


def test_pictures_are_of_the_schema_and_of_the_story_as_they_are_now() -> None:
    drawn = draw.drawn()
    assert {name: (ROOT / "docs/pictures" / name).read_text() for name in drawn} == drawn, "run: make docs"


def test_every_attribute_that_enrichment_adds_is_documented() -> None:
    text = (ROOT / "docs/events.md").read_text()
    assert [name for name in sorted(RESERVED_ATTRIBUTES) if f"`{name}`" not in text] == []


def test_the_links_of_every_document_lead_somewhere() -> None:
    documents = [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("loadtests/*.md")]
    broken = [
        f"{document.relative_to(ROOT)} → {target}"
        for document in documents
        for target in re.findall(r"\]\(([^)#\s]+)", document.read_text())
        if "://" not in target and not (document.parent / target).exists()
    ]
    assert broken == []


def test_decisions_are_numbered_one_by_one() -> None:
    decisions = sorted(ROOT.glob("docs/decisions/0*.md"))
    titles = [(int(path.name[:4]), path.read_text().partition(".")[0]) for path in decisions]
    assert titles == [(number, f"# {number}") for number in range(1, len(decisions) + 1)]


def test_every_row_of_the_bad_day_has_a_test_and_every_such_test_a_row() -> None:
    _, _, bad_day = (ROOT / "docs/reliability.md").read_text().partition("## The bad day")
    rows = re.findall(r"^\| `([a-z-]+)` \|", bad_day, re.MULTILINE)
    tests = "".join(path.read_text() for path in (ROOT / "tests/adversity").glob("test_*.py"))
    assert set(re.findall(r'mark\.row\("([a-z-]+)"\)', tests)) == set(rows)
