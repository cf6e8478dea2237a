"""Documents that list what the code knows are held to the code."""

import re
from pathlib import Path

from drm_ingest.errors import PROBLEMS, EventCode
from drm_ingest.event import RESERVED_ATTRIBUTES

ROOT = Path(__file__).parents[2]


def documented() -> str:
    """The tables of docs/errors.md, made from errors.py."""
    lines = ["| status | code | meaning | again? |", "|---|---|---|---|"]
    lines += [
        f"| {problem.status} | `{problem.code}` | {problem.title} | {'yes' if problem.retry else 'no'} |"
        for problem in PROBLEMS.values()
    ]
    lines += ["", "| code | what to do |", "|---|---|"]
    lines += [f"| `{code}` | {code.remedy} |" for code in EventCode]
    return "\n".join(lines) + "\n"


def test_every_error_code_is_documented() -> None:
    assert documented() in (ROOT / "docs/errors.md").read_text(), documented()


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
