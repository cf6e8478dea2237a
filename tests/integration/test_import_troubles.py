"""What goes wrong with an import is told in words, on whatever it is shown, and what was taken stays taken."""

import asyncio
import contextlib
import json
import os
import pty
import signal
import subprocess
import sys
from pathlib import Path

from tests.integration.edge import KEY, Edge
from tests.integration.test_import_events import import_, stored

from drm_ingest.up.ports import free_port

CUSTOMERS = "kind,name,refs.crm\ncustomer,Ada,1\ncustomer,Ben,2\n"


def environment(**more: str) -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if not name.startswith("DRM_")} | more


def run(*arguments: str, **more: str) -> tuple[int, str]:
    command = [sys.executable, "-m", "drm_ingest", "import", *arguments]
    done = subprocess.run(
        command, env=environment(**more), capture_output=True, text=True, check=False, timeout=120
    )  # fmt: skip
    return done.returncode, done.stderr


def readings(file: Path, count: int) -> Path:
    lines = [
        {"type": "device.measurement", "subject": f"{file.stem}-{n % 7}", "time": "2026-03-01T08:00:00Z", "id": str(n),
         "data": {"temperature": n % 40}}
        for n in range(count)
    ]  # fmt: skip
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return file


def test_a_column_that_is_not_there_is_told_before_anything_is_taken(tmp_path: Path) -> None:
    file, mapping = tmp_path / "customers.csv", tmp_path / "customers.toml"
    file.write_text(CUSTOMERS)
    mapping.write_text("[fields]\nkind = 'kind'\nname = 'Nmae'\n")
    code, told = run("parties", str(file), "--mapping", str(mapping), DRM_POSTGRES_DSN="postgresql://127.0.0.1:1/x")
    assert code == 1
    assert "does not fit customers.csv: /name: There is no column 'Nmae' (did you mean 'name'?)" in told
    assert sorted(path.name for path in tmp_path.iterdir()) == ["customers.csv", "customers.toml"]


def test_that_postgres_the_edge_or_kafka_is_away_is_told_with_what_to_do(tmp_path: Path) -> None:
    away, file = f"127.0.0.1:{free_port()}", tmp_path / "customers.csv"
    file.write_text(CUSTOMERS)
    code, told = run("parties", str(file), DRM_POSTGRES_DSN=f"postgresql://nobody@{away}/drm")
    assert (code, "stopped: Postgres cannot be reached" in told, "DRM_POSTGRES_DSN" in told) == (1, True, True), told
    assert "Traceback" not in told

    events, key = (
        str(readings(tmp_path / "events.ndjson", 3)),
        {"DRM_SENDER_KEY": KEY, "DRM_EDGE_URL": f"http://{away}"},
    )
    code, told = run("events", events, "--lag-max-events", "0", "--patience-s", "0.5", **key)
    assert (code, "stopped:" in told, away in told, "it goes on here" in told) == (1, True, True, True), told
    assert "Traceback" not in told


def test_on_a_terminal_it_shows_how_far_it_is_and_elsewhere_it_does_not_redraw(tmp_path: Path) -> None:
    file = readings(tmp_path / "events.ndjson", 20_000)
    command = [sys.executable, "-m", "drm_ingest", "import", "events", str(file), "--dry-run"]
    ours, theirs = pty.openpty()
    with subprocess.Popen(command, stdout=theirs, stderr=theirs, env=environment(TERM="xterm", COLUMNS="100")) as shown:
        os.close(theirs)
        seen = b""
        with contextlib.suppress(OSError):  # nobody writes any more
            while part := os.read(ours, 65536):
                seen += part
    os.close(ours)
    text = seen.decode()
    assert shown.returncode == 0
    assert text.count("events.ndjson") >= 2, "it is drawn again as it goes on"  # how often is up to the clock
    assert " 0%" in text
    assert "100%" in text
    assert "20,000 lines" in text
    assert "accepted 20,000 · refused 0" in text
    code, told = run("events", str(file), "--dry-run")
    assert (code, told.count("events.ndjson")) == (0, 1)
    assert "\x1b" not in told


async def test_events_whose_import_is_killed_midway_are_whole_after_the_next_and_none_is_two(
    edge: Edge, tmp_path: Path
) -> None:
    file = readings(tmp_path / "killed.ndjson", 6000)
    note = tmp_path / ".killed.ndjson.events.import"
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "drm_ingest", "import", "events", str(file), "--lag-max-events", "0", "--share", "0.05",
        env=environment(DRM_EDGE_URL=edge.url, DRM_SENDER_KEY=KEY), stderr=asyncio.subprocess.DEVNULL,
    )  # fmt: skip
    async with asyncio.timeout(60):
        while not note.exists():  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    assert await process.wait() == -signal.SIGKILL
    reached = json.loads(note.read_text())["progress"]["line"]
    assert 0 < reached < 6000
    code, told = await import_(edge, file, "--lag-max-events", "0", "--share", "1")
    assert (code, f"Going on after line {reached}" in told, "accepted 6,000 · refused 0" in told) == (0, True, True), (
        told
    )
    events = [event for number in range(7) for event in await stored(edge, f"killed-{number}")]
    assert len({event["id"] for event in events}) == 6000  # what was under way may be there twice: that is a retry
    assert len(events) <= 6000 + 500
    assert not note.exists()
