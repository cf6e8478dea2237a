"""Recordings sent from the command line, whole in Postgres whatever happens to the one who sends them."""

import asyncio
import gzip
import json
import os
import sys
from importlib import resources
from pathlib import Path

import asyncpg
import httpx
from tests.adversity.running import Running

DEADLINE_S = 60


async def run(*arguments: str, where: dict[str, str], folder: Path) -> asyncio.subprocess.Process:
    own = {name: value for name, value in os.environ.items() if not name.startswith("DRM_")}
    own |= {f"DRM_{name.upper()}": where[name] for name in ("edge_url", "serve_url", "sender_key", "admin_key")}
    return await asyncio.create_subprocess_exec(
        sys.executable, "-m", "drm_ingest", *arguments, cwd=folder, env=own,
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
    )  # fmt: skip


async def test_a_recording_whose_sender_is_killed_midway_again_and_again_is_stored_once_and_whole(
    path: Running, tmp_path: Path
) -> None:
    file, note, subject = tmp_path / "rig.csv", tmp_path / ".rig.csv.sent", f"rig-{os.urandom(6).hex()}"
    rows = [f"2026-05-01T{h:02}:{m:02}:{s:02}Z,{s}" for h in range(2) for m in range(30) for s in range(60)]
    file.write_text("time,temperature\n" + "\n".join(rows) + "\n")
    command = (
        "send", "rig.csv", "--type", "device.measurement", "--subject", subject, "--time-column", "time",
        "--rate", "1500", "--batch-events", "20",
    )  # fmt: skip
    for at_least in (200, 900, 1500):
        process = await run(*command, where=path.where, folder=tmp_path)
        async with asyncio.timeout(DEADLINE_S):
            while _line(note) < at_least:
                assert process.returncode is None
                await asyncio.sleep(0.01)
        process.kill()
        await process.wait()
        assert at_least <= _line(note) < len(rows) + 1
    process = await run(*command, where=path.where, folder=tmp_path)
    told = (await process.communicate())[0].decode()
    assert (process.returncode, f"accepted {len(rows)} · rejected 0" in told) == (0, True), told
    db = await asyncpg.connect(path.where["postgres_dsn"])
    try:
        async with asyncio.timeout(DEADLINE_S):
            while await db.fetchval("select count(*) from event where subject = $1", subject) < len(rows):  # noqa: ASYNC110
                await asyncio.sleep(0.1)
        stored = await db.fetch("select occurred_at, data from event where subject = $1 order by occurred_at", subject)
    finally:
        await db.close()
    assert [f"{row[0]:%Y-%m-%dT%H:%M:%SZ},{json.loads(row[1])['temperature']}" for row in stored] == rows


async def test_the_demo_ends_with_records_equal_to_the_recordings_however_often_it_runs(
    path: Running, tmp_path: Path
) -> None:
    where = path.where
    for _ in range(2):
        process = await run("demo", where=where, folder=tmp_path)
        told = (await process.communicate())[0].decode()
        assert (process.returncode, "exactly the counts of the recordings" in told) == (0, True), told
        for shown in ("165  mg/dL  glucose", "Sensors, ten", "459.00 SEK", "owner since 18 Apr 2026", "of 1 to 7"):
            assert shown in told, told
    async with httpx.AsyncClient(
        base_url=where["serve_url"], headers={"authorization": f"Bearer {where['admin_key']}"}
    ) as serve:
        for ref, name, facts in (
            ("alva", "CGM", {"commerce.purchase": 2, "feedback.rating": 2}),
            ("ben", "cycling", {"commerce.purchase": 1, "feedback.rating": 2}),
        ):
            recording = resources.files("bokeh_sampledata") / "_data" / f"{name}.csv.gz"
            rows = len(gzip.decompress(recording.read_bytes()).splitlines()) - 1
            [party] = (await serve.get("/v1/parties", params={"ref": f"demo:{ref}"})).json()["items"]
            record = (await serve.get(f"/v1/parties/{party['id']}")).json()
            assert record["events_by_type"] == {"device.measurement": rows} | facts


def _line(note: Path) -> int:
    return int(json.loads(note.read_text())["sent"]["line"]) if note.exists() else 0
