"""What goes wrong with an import is told in words, on whatever it is shown, and what was taken stays taken."""

import asyncio
import contextlib
import gzip
import json
import os
import pty
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from tests.integration.edge import KEY, Edge
from tests.integration.test_import import names_in
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
    assert names_in(tmp_path) == ["customers.csv", "customers.toml"]


EVENTS = "type;subject;time\nx.seen;m-1;2026-03-01T08:00:00Z\nx.seen;m-2;2026-03-01T08:00:00Z\n"


def test_a_header_that_something_else_separates_is_told_once_with_what_to_say(tmp_path: Path) -> None:
    file = tmp_path / "events.csv"
    file.write_text(EVENTS)
    code, told = run("events", str(file), "--dry-run")
    expected = "stopped: the header of events.csv seems to be separated by ';': say --delimiter ';'\n"
    assert (code, told) == (1, expected)
    code, told = run("events", str(file), "--dry-run", "--delimiter", ";")
    assert (code, "2 lines" in told, "accepted 2 · refused 0" in told) == (0, True, True), told


def test_columns_or_a_mapping_that_fit_no_line_are_told_once(tmp_path: Path) -> None:
    file, mapping = tmp_path / "customers.csv", tmp_path / "customers.toml"
    file.write_text("Customer Ref,Customer Name\n1,Ada\n2,Ben\n")
    code, told = run("parties", str(file))
    assert (code, told.count("\n"), "stopped: the columns of customers.csv are not the fields" in told) == (1, 1, True)
    assert "--mapping names a file that says which column is which field (docs/import.md)" in told
    mapping.write_text("[fields]\nnme = 'Customer Name'\nkind = {constant = 'customer'}\nrefs.crm = 'Customer Ref'\n")
    code, told = run("parties", str(file), "--mapping", str(mapping))
    assert (code, told.count("\n"), "customers.toml does not fit parties: /nme: " in told) == (1, 1, True), told
    assert names_in(tmp_path) == ["customers.csv", "customers.toml"]


def test_what_is_packed_is_read_whatever_it_is_called(tmp_path: Path) -> None:
    for name in ("events.csv", "events.CSV.GZ"):
        (tmp_path / name).write_bytes(gzip.compress(EVENTS.encode()))
        code, told = run("events", str(tmp_path / name), "--dry-run", "--delimiter", ";")
        assert (code, "accepted 2 · refused 0" in told) == (0, True), told


@pytest.mark.parametrize("command", ["import", "export"])
def test_where_nothing_says_which_postgres_it_is_told_how_that_of_an_up_elsewhere_is_found(
    tmp_path: Path, command: str
) -> None:
    file = tmp_path / "customers.csv"
    file.write_text(CUSTOMERS)
    # As it is by itself, but for the port, at which somebody else's may be.
    default = f"Settings.model_fields['postgres_dsn'].default = SecretStr('postgresql://127.0.0.1:{free_port()}/x')"
    main = f"""if True:
        import sys
        from pydantic import SecretStr
        from drm_ingest.settings import Settings
        {default}
        Settings.model_rebuild(force=True)
        from drm_ingest.__main__ import cli
        cli(sys.argv[1:])
    """
    arguments = ["import", "parties", str(file)] if command == "import" else ["export", str(tmp_path / "out")]
    done = subprocess.run(
        [sys.executable, "-c", main, *arguments],
        env=environment(), cwd=tmp_path, capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip
    assert (done.returncode, "it cannot be reached" in done.stderr) == (1, True), done.stderr
    assert "DRM_DATA_DIR=THERE/.drm, or with --data-dir THERE/.drm" in done.stderr
    _, told = run("parties", str(file), DRM_POSTGRES_DSN=f"postgresql://127.0.0.1:{free_port()}/x")
    assert "THERE" not in told, "it was said which"


def test_events_without_a_key_are_told_where_one_is(tmp_path: Path) -> None:
    code, told = run("events", str(readings(tmp_path / "x.ndjson", 1)))
    assert (code, "DRM_DATA_DIR" in told) == (2, True), told


@pytest.mark.parametrize(
    "command", [("export", "out", "--since"), ("dead-letters", "list", "--until"), ("send", __file__, "--starts-at")]
)
def test_a_time_that_is_none_is_told_with_how_one_is_written(tmp_path: Path, command: tuple[str, ...]) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "drm_ingest", *command, "march"],
        env=environment(COLUMNS="300"), cwd=tmp_path, capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip
    assert done.returncode == 2
    assert "'march' is no time; write it as in 2026-03-01 or 2026-03-01T09:30Z" in done.stderr


def test_what_an_earlier_run_refused_stays_until_lines_are_taken(tmp_path: Path) -> None:
    file, errors = tmp_path / "customers.csv", tmp_path / "customers.csv.errors.ndjson"
    file.write_text(CUSTOMERS)
    errors.write_text('{"line": 2}\n')
    code, told = run("parties", str(file), DRM_POSTGRES_DSN=f"postgresql://127.0.0.1:{free_port()}/x")
    assert (code, f"{errors} has what an earlier run refused" in told) == (1, True), told
    assert errors.read_text() == '{"line": 2}\n'


def test_that_postgres_the_edge_or_kafka_is_away_is_told_with_what_to_do(tmp_path: Path) -> None:
    away, file = f"127.0.0.1:{free_port()}", tmp_path / "customers.csv"
    file.write_text(CUSTOMERS)
    code, told = run("parties", str(file), DRM_POSTGRES_DSN=f"postgresql://nobody@{away}/drm")
    assert (code, "stopped: Postgres cannot be used: it cannot be reached" in told, "DRM_POSTGRES_DSN" in told) == (
        1,
        True,
        True,
    ), told
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
        sys.executable, "-m", "drm_ingest", "import", "events", str(file), "--lag-max-events", "0", "--share", "0.01",
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
