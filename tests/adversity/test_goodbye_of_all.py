"""`drm-ingest up` told to stop under load: every process ends by itself, and the next start has every event."""

import asyncio
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from loadtests.clients import Ledger
from loadtests.ledger import generate
from loadtests.verify import verify
from tests.adversity.running import Running

STOPPED_WITHIN_S = 20.0


@pytest.mark.slow
@pytest.mark.timeout(300)
async def test_up_told_to_stop_under_load_ends_in_time_and_its_next_start_has_every_event(
    start_up: Callable[..., Running], seed: int
) -> None:
    running = await asyncio.to_thread(start_up)
    folder, where = running.ready_file.parent, running.where
    up = psutil.Process(int((folder / "data" / "lock").read_text()))
    ledger = Ledger(give_up_after_s=1)
    load = generate(
        ledger, edge_url=where["edge_url"], key=where["sender_key"], events=100_000, seed=seed, rate=1500
    )  # fmt: skip
    sending = asyncio.create_task(load)
    await asyncio.sleep(3)
    below = up.children(recursive=True)
    began = time.monotonic()
    up.send_signal(signal.SIGTERM)
    while up.is_running() and up.status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() - began < STOPPED_WITHIN_S, (folder / "up.log").read_text()
        await asyncio.sleep(0.1)
    sending.cancel()
    await asyncio.wait([sending])
    told = (folder / "up.log").read_text()
    assert " killed after" not in told, told
    assert told.count(" stopped after") == 6, told
    assert not [process for process in below if process.is_running() and process.status() != psutil.STATUS_ZOMBIE]
    for entry in ledger.entries:
        if entry.answer == "unsent":
            entry.answer = "unknown"
    again = await asyncio.to_thread(start_again, folder, int(where["edge_url"].rpartition(":")[2]))
    try:
        where = running.where
        findings = await verify(
            ledger.entries, kafka_bootstrap=where["kafka_bootstrap"], postgres_dsn=where["postgres_dsn"], prefix="drm",
            metrics=where["metrics"],
        )  # fmt: skip
        assert not findings.counts, str(findings)
        assert sum(entry.answer == "accepted" for entry in ledger.entries) > 500
    finally:
        again.terminate()
        assert await asyncio.to_thread(again.wait, STOPPED_WITHIN_S) == 0


def start_again(folder: Path, port: int) -> subprocess.Popen[bytes]:
    command = [
        sys.executable, "-m", "drm_ingest", "up", "--data-dir", str(folder / "data"), "--port", str(port),
        "--ready-file", str(folder / "ready.json"),
    ]  # fmt: skip
    with (folder / "again.log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
    deadline = time.monotonic() + 120
    while not (folder / "ready.json").exists():
        assert process.poll() is None, (folder / "again.log").read_text()
        assert time.monotonic() < deadline, (folder / "again.log").read_text()
        time.sleep(0.1)
    return process
