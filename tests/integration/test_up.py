"""`drm-ingest up` as a person runs it: the command, its ready file, an event from end to end, Ctrl-C."""

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import asyncpg
import httpx
import psutil
import pytest

from drm_ingest.up.data_dir import DataDir
from drm_ingest.up.kafka import Kafka
from drm_ingest.up.ports import is_free

pytestmark = pytest.mark.timeout(500)  # most of it is starting six processes, some of it twice

PROCESSES = {"edge", "enrich", "attach", "serve"}
READY_S = 150  # on a busy machine, with Kafka fetched already
STOP_S = 15  # the promise


@dataclass
class Running:
    """One `up`; `start` again after `interrupt` to see what it kept."""

    folder: Path
    port: int
    environment: dict[str, str] = field(default_factory=dict)
    process: subprocess.Popen[bytes] | None = None

    @property
    def ready_file(self) -> Path:
        return self.folder / "there" / "ready.json"

    @property
    def ready(self) -> dict[str, Any]:
        return dict(json.loads(self.ready_file.read_text()))

    @property
    def output(self) -> str:
        return (self.folder / "output").read_text()

    def start(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        own = {name: value for name, value in os.environ.items() if not name.startswith("DRM_")}
        command = [sys.executable, "-m", "drm_ingest", "up", "--data-dir", str(self.folder / "data")]
        command += ["--port", str(self.port), "--ready-file", str(self.ready_file)]
        with (self.folder / "output").open("ab") as output:
            self.process = subprocess.Popen(
                command, stdout=output, stderr=output, env=own | self.environment, start_new_session=True
            )
        self.until(self.ready_file.exists, READY_S)

    def until(self, holds: Callable[[], bool], timeout_s: float = 60) -> None:
        deadline = time.monotonic() + timeout_s
        while not holds():
            assert self.process is not None
            assert self.process.poll() is None, self.output
            assert time.monotonic() < deadline, self.output
            time.sleep(0.05)

    def everybody(self) -> list[psutil.Process]:
        assert self.process is not None
        return list(psutil.Process(self.process.pid).children(recursive=True))

    def interrupt(self) -> float:
        """Ctrl-C, passed on twice, as by a terminal and by make; returns how long it took."""
        assert self.process is not None
        began = time.monotonic()
        for _ in range(2):
            os.killpg(self.process.pid, signal.SIGINT)
            time.sleep(0.1)
        self.process.wait(60)
        return time.monotonic() - began

    def clear_up(self) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.kill()  # what it started goes with it
            self.process.wait()

    def send(self, subject: str, temperature: float) -> str:
        """Send one measurement and return its id; tries again as a 503 asks, and while an edge starts."""
        event = {
            "id": f"{subject}-1",
            "type": "device.measurement",
            "subject": subject,
            "data": {"temperature": temperature},
        }
        ready = self.ready
        deadline = time.monotonic() + 60
        while True:
            try:
                answer = httpx.post(
                    ready["edge_url"] + "/v1/events",
                    json=[event],
                    headers={"authorization": f"Bearer {ready['sender_key']}"},
                    timeout=30,
                )
            except httpx.TransportError:
                answer = None
            if answer is not None and answer.status_code == 200:
                assert answer.json()["accepted"] == 1
                return str(event["id"])
            assert answer is None or answer.status_code == 503, answer.text
            assert time.monotonic() < deadline
            time.sleep(0.2)


async def _stored(dsn: str, subject: str) -> list[str]:
    """Wait until an event of that subject is in Postgres; return the ids of all of them."""
    async with asyncio.timeout(60):
        while True:
            try:
                connection = await asyncpg.connect(dsn)
                try:
                    rows = await connection.fetch("SELECT id FROM event WHERE subject = $1", subject)
                finally:
                    await connection.close()
            except (OSError, asyncpg.PostgresError):
                rows = []
            if rows:
                return [row["id"] for row in rows]
            await asyncio.sleep(0.1)


def _four_ports() -> int:
    return next(port for port in range(18_400, 19_400, 4) if all(is_free(port + offset) for offset in range(4)))


@pytest.fixture
def make_up(tmp_path: Path) -> Iterator[Callable[..., Running]]:
    made: list[Running] = []

    def make(**environment: str) -> Running:
        made.append(Running(tmp_path / f"up-{len(made)}", _four_ports(), environment))
        made[-1].start()
        return made[-1]

    yield make
    for one in made:
        one.clear_up()


@pytest.fixture(scope="module")
def up(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    running = Running(tmp_path_factory.mktemp("up"), _four_ports())
    try:
        running.start()
        yield running
    finally:
        running.clear_up()


def test_the_ready_file_tells_where_everything_is_and_all_of_it_is_ready(up: Running) -> None:
    ready = up.ready
    assert set(ready) == {
        *("edge_url", "serve_url", "sender_key", "admin_key", "kafka_bootstrap", "postgres_dsn", "metrics", "pids"),
    }
    assert (ready["edge_url"], ready["serve_url"]) == (f"http://127.0.0.1:{up.port}", f"http://127.0.0.1:{up.port + 1}")
    assert set(ready["metrics"]) == PROCESSES
    assert set(ready["pids"]) == {*PROCESSES, "kafka", "postgres"}
    assert all(psutil.pid_exists(pid) for pid in ready["pids"].values())
    for url in ready["metrics"].values():
        assert httpx.get(url.replace("/metrics", "/health/ready")).status_code == 200
        assert "drm_process_info" in httpx.get(url).text
    assert up.ready_file.stat().st_mode & 0o077 == 0


async def test_an_event_sent_with_the_key_arrives_in_postgres(up: Running) -> None:
    sent = up.send("meter-1", 20.5)
    assert await _stored(up.ready["postgres_dsn"], "meter-1") == [sent]


async def test_the_command_it_prints_sends_an_event(up: Running) -> None:
    (command,) = [line for line in up.output.splitlines() if line.startswith("curl ")]
    done = subprocess.run(["/bin/sh", "-c", command], capture_output=True, text=True, check=True)  # noqa: ASYNC221
    answer = json.loads(done.stdout)
    assert (answer["accepted"], answer["results"]) == (1, [])  # nothing to remark on
    assert await _stored(up.ready["postgres_dsn"], "meter-7")


def test_the_tail_command_finds_the_running_up_and_shows_an_event(up: Running, tmp_path: Path) -> None:
    own = {name: value for name, value in os.environ.items() if not name.startswith("DRM_")}
    own["DRM_DATA_DIR"] = str(up.folder / "data")
    shown = tmp_path / "shown"
    with shown.open("w") as output:
        tail = subprocess.Popen(
            [sys.executable, "-m", "drm_ingest", "tail", "device.measurement"], env=own, stdout=output
        )
    try:
        number = 0
        while "tail-" not in shown.read_text():  # it shows what comes after its start, whenever that is
            assert tail.poll() is None
            up.send(f"tail-{number}", 1)
            number += 1
            assert number < 300
            time.sleep(0.2)
    finally:
        tail.kill()
        tail.wait()


def test_a_second_up_on_the_same_folder_is_refused(up: Running) -> None:
    command = [sys.executable, "-m", "drm_ingest", "up", "--data-dir", str(up.folder / "data"), "--port", "18300"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert f"already (pid {up.process.pid if up.process else None})" in done.stdout + done.stderr
    assert up.ready_file.exists()


@pytest.mark.parametrize("name", ["edge", "enrich", "attach", "serve", "kafka", "postgres"])
async def test_a_killed_process_comes_back_and_the_path_works_again(up: Running, name: str) -> None:
    before = up.ready
    os.kill(before["pids"][name], signal.SIGKILL)
    up.until(lambda: up.ready["pids"][name] != before["pids"][name])
    after = up.ready
    assert {key: after[key] for key in after if key != "pids"} == {key: before[key] for key in before if key != "pids"}
    assert psutil.pid_exists(after["pids"][name])
    sent = up.send(f"after-{name}", 21)
    assert await _stored(after["postgres_dsn"], f"after-{name}") == [sent]
    assert f"{name} (pid {before['pids'][name]}) was ended by signal 9" in up.output


async def test_ctrl_c_leaves_nothing_running_and_a_new_start_finds_data_and_keys(
    make_up: Callable[..., Running],
) -> None:
    up = make_up()
    before = up.ready
    published = DataDir(up.folder / "data").published_environment()
    assert published["DRM_KAFKA_BOOTSTRAP"] == before["kafka_bootstrap"]
    sent = up.send("meter-2", 19)
    assert await _stored(before["postgres_dsn"], "meter-2") == [sent]
    everybody = up.everybody()
    assert {process.pid for process in everybody} >= set(before["pids"].values())
    assert up.interrupt() < STOP_S
    assert up.process is not None
    assert up.process.returncode == 0
    left = [one for one in everybody if one.is_running() and one.status() != psutil.STATUS_ZOMBIE]
    assert left == []
    assert not up.ready_file.exists()
    stopped = [line.split()[0] for line in up.output.splitlines() if " stopped after " in line]
    assert stopped == ["serve", "attach", "enrich", "edge", "postgres", "kafka"]

    up.environment |= published
    up.start()
    after = up.ready
    assert None not in after["pids"].values()
    assert (after["sender_key"], after["admin_key"]) == (before["sender_key"], before["admin_key"])
    assert await _stored(after["postgres_dsn"], "meter-2") == [sent]
    again = up.send("meter-3", 18)
    assert await _stored(after["postgres_dsn"], "meter-3") == [again]


async def test_two_run_side_by_side_and_one_with_a_kafka_and_a_database_that_are_there(
    up: Running, make_up: Callable[..., Running], kafka: Kafka, database: str
) -> None:
    other = make_up(
        DRM_KAFKA_BOOTSTRAP=kafka.bootstrap,
        DRM_POSTGRES_DSN=database,
        DRM_TOPIC_PREFIX="beside",
        DRM_TOPIC_REPLICATION_FACTOR="1",
        DRM_TOPIC_MIN_INSYNC_REPLICAS="1",
    )
    ready = other.ready
    assert (ready["kafka_bootstrap"], ready["postgres_dsn"]) == (kafka.bootstrap, database)
    assert (ready["pids"]["kafka"], ready["pids"]["postgres"]) == (None, None)
    assert "Kafka is yours: DRM_KAFKA_BOOTSTRAP is set" in other.output
    assert "Postgres is yours: DRM_POSTGRES_DSN is set" in other.output
    assert "yours" not in up.output
    here, there = up.send("only-here", 1), other.send("only-there", 2)
    assert await _stored(up.ready["postgres_dsn"], "only-here") == [here]
    assert await _stored(database, "only-there") == [there]
    assert kafka.child.alive
    assert other.interrupt() < STOP_S
    assert kafka.child.alive
