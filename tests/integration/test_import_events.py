"""Events of the past go in by the edge, like live ones, and a line sent twice is one event."""

import asyncio
import json
import os
import sys
from pathlib import Path
from typing import Any

from tests.integration.edge import KEY, Edge


async def import_(edge: Edge, file: Path, *options: str) -> tuple[int, str]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("DRM_")}
    environment |= {"DRM_EDGE_URL": edge.url, "DRM_SENDER_KEY": KEY}
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "drm_ingest", "import", "events", str(file), *options,
        env=environment, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    _, told = await process.communicate()
    assert process.returncode is not None
    return process.returncode, told.decode()


def write(path: Path, text: str) -> str:
    path.write_text(text)
    return str(path)


def refused(path: Path) -> list[tuple[int, str, str | None]]:
    told = [json.loads(line) for line in path.read_text().splitlines()]
    return [(one["line"], one["code"], one.get("pointer")) for one in told]


async def stored(edge: Edge, subject: str) -> list[dict[str, Any]]:
    return [json.loads(record.value) for record in await edge.records() if record.key == subject.encode()]


async def test_lines_become_events_and_those_refused_are_told(edge: Edge, tmp_path: Path) -> None:
    mapping = write(tmp_path / "m.toml", """
        [times]
        format = "%m/%d/%Y %H:%M"
        zone = "Europe/Vienna"
        [fields]
        type = {constant = "device.measurement"}
        subject = "serial"
        time = {column = "when", type = "time"}
        data.temperature = {column = "celsius", type = "number"}
    """)  # fmt: skip
    file = tmp_path / "readings.csv"
    lines = ["03/01/2026 08:00,imp-1,21.5", "03/01/2026 08:01,imp-1,22", "03/01/2026 08:02,imp-1,warm", "soon,imp-1,2",
             "03/01/2026 08:03,,22"]  # fmt: skip
    write(file, "when,serial,celsius\n" + "\n".join(lines) + "\n")
    options = ("--mapping", mapping, "--lag-max-events", "0")
    code, told = await import_(edge, file, *options, "--dry-run")
    assert (code, "accepted 2 · refused 3 (nothing was changed" in told) == (1, True), told
    assert await stored(edge, "imp-1") == []
    for _ in range(2):
        code, told = await import_(edge, file, *options)
        assert (code, "accepted 2 · refused 3" in told) == (1, True), told
        assert "Of those accepted, what was there before stays as it is, stored once." in told
        assert refused(tmp_path / "readings.csv.errors.ndjson") == [
            (4, "unmappable", "/data/temperature"),
            (5, "unmappable", "/time"),
            (6, "event_rejected", "/subject"),
        ]
    found = await stored(edge, "imp-1")
    assert [(event["time"], event["data"]) for event in found[:2]] == [
        ("2026-03-01T07:00:00Z", {"temperature": 21.5}),
        ("2026-03-01T07:01:00Z", {"temperature": 22}),
    ]
    assert len(found) == 4
    assert len({event["id"] for event in found}) == 2


async def test_a_line_keeps_its_id_wherever_it_stands(edge: Edge, tmp_path: Path) -> None:
    lines = [
        json.dumps({"type": "device.status", "subject": "imp-2", "time": f"2026-03-01T08:0{n}:00Z", "data": data})
        for n, data in enumerate([{"state": "online"}] * 3)
    ]
    write(tmp_path / "one.ndjson", "\n".join(lines))
    write(tmp_path / "another.ndjson", "\n".join(lines[::-1]))
    for name in ("one.ndjson", "another.ndjson"):
        code, told = await import_(edge, tmp_path / name, "--lag-max-events", "0")
        assert code == 0, told
    assert len({event["id"] for event in await stored(edge, "imp-2")}) == 3
