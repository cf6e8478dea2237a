"""docs/relations.md, pasted into a shell block after block, answers what it says; `make story` writes that anew."""

import json
import os
import sys
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
from tests.adversity import story
from tests.adversity.running import Running
from tests.integration.edge import NO_TLS, an_event

DOCS = Path(__file__).parents[2] / "docs"
PAGE, TOLD = DOCS / "relations.md", DOCS / "pictures/household.json"
SUBJECTS = {"thermo-501": "thermo-501", "thermo-733": "thermo-733", "crm:4711": "Ekman family"}


@pytest.mark.timeout(400)
def test_one_households_story_runs_as_it_stands_and_answers_what_it_says(path: Running, tmp_path: Path) -> None:
    page = PAGE.read_text()
    answers = story.run(page, beside(path, tmp_path), timeout_s=300)
    made = json.dumps(told_by(path), indent=1, ensure_ascii=False) + "\n"
    if os.environ.get("WRITE_STORY"):
        PAGE.write_text(story.rewritten(page, answers))
        TOLD.write_text(made)
    answers_as(PAGE.read_text(), answers)
    assert made == TOLD.read_text(), "what the pictures show is something else: make story docs"


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_the_story_is_the_same_where_all_of_it_is_longer_ago_than_events_are_kept(
    start_up: Callable[..., Running], tmp_path: Path
) -> None:
    page = PAGE.read_text().replace("2026-", "2016-")
    path = start_up(DRM_KEEPER_INTERVAL_S="0.5")
    now = datetime.now(UTC)  # retention goes by newer events too
    recent = [an_event(time=(now - timedelta(days=days)).isoformat()) for days in (0, 40)]
    headers = {"Authorization": f"Bearer {path.where['sender_key']}"}
    httpx.post(f"{path.where['edge_url']}/v1/events", json=recent, headers=headers, verify=NO_TLS).raise_for_status()
    answers_as(page, story.run(page, beside(path, tmp_path), timeout_s=300))


def beside(path: Running, folder: Path) -> Path:
    """Make a folder in which commands find what they find in the repository after `make up`."""
    (folder / ".drm").symlink_to(path.ready_file.parent / "data")
    (folder / ".venv").symlink_to(sys.prefix)
    (folder / "docs").symlink_to(DOCS)
    return folder


def answers_as(page: str, answers: list[str]) -> None:
    blocks = story.told(page)
    assert len(blocks) == len(answers) >= 15
    said = [block.answer or "" for block in blocks]
    for block, expected, answered in zip(blocks, story.lasting(said), story.lasting(answers), strict=True):
        assert answered == expected, f"{block.commands}answers this"


def told_by(path: Running) -> dict[str, Any]:
    """Return what the pictures are drawn from: relations and events of the household, without what is of this run."""
    where = path.where
    with httpx.Client(
        base_url=where["serve_url"], headers={"Authorization": f"Bearer {where['admin_key']}"}, verify=NO_TLS
    ) as client:

        def ask(resource: str, **query: str) -> Any:
            answer = client.get(f"/v1/{resource}", params=query)
            answer.raise_for_status()
            return answer.json()

        def named(subject: str) -> str:
            return f"party:{ask(f'parties/{subject}')['id']}" if ":" in subject else subject

        relations = [
            {
                "subject": subject,
                "role": row["role"],
                "party": ask(f"parties/{row['party']}")["name"],
                "batch": row["batch"],
                **held(row),
            }
            for subject in SUBJECTS
            for row in ask("relationships", subject=named(subject))["items"]
        ]
        own = ask("parties/crm:4711/timeline", limit="1000")["items"]
        happened = [("crm:4711", row) for row in own if row["event"] and row["device"] is None]
        happened += [
            (subject, row) for subject in SUBJECTS if ":" not in subject
            for row in ask(f"devices/{subject}/events")["items"] if row["subject"] == subject
        ]  # fmt: skip
        events = [
            {"subject": subject, "type": row["type"], "occurred_at": row["occurred_at"]} for subject, row in happened
        ]
        events.sort(key=lambda event: event["occurred_at"])
        [owned] = ask("relationships", subject="thermo-501", role="owner")["items"]
        versions = [
            {"subject": "thermo-501", "version": row["version"], "change": row["change"], **held(row)}
            for row in ask(f"relationships/{owned['id']}/versions")["items"]
        ]
        relations.sort(key=lambda row: (list(SUBJECTS).index(row["subject"]), row["valid_from"], row["role"]))
    return {"subjects": SUBJECTS, "relations": relations, "events": events, "versions": versions}


def held(row: dict[str, Any]) -> dict[str, str | None]:
    """Return from when to when; `today` is when the story was run."""
    return {name: "today" if row[name] and "." in row[name] else row[name] for name in ("valid_from", "valid_to")}
