"""The edge as a process: starting, stopping, several on one port, and Kafka or Postgres gone."""

import asyncio
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest
from tests.conftest import make_environment, make_settings
from tests.integration.edge import Edge, an_event, head, request, until
from tests.integration.sockets import a_socket, closed, tell, told

from drm_ingest.edge.folder import held, own_folder
from drm_ingest.settings import Settings
from drm_ingest.up.kafka import Kafka
from drm_ingest.up.ports import free_port
from drm_ingest.up.postgres import Postgres


async def test_sigterm_finishes_what_has_begun_and_ends_with_0(start_edge: Callable[..., Edge]) -> None:
    edge = start_edge()
    body = json.dumps(an_event())
    async with edge.connect() as begun, edge.connect() as idle:
        assert (await idle.post(an_event())).status == 200
        await begun.send(head(f"Content-Length: {len(body)}") + "\r\n" + body[:10])
        edge.process.send_signal(signal.SIGTERM)
        assert await idle.closed() == b""
        with pytest.raises(httpx.TransportError):
            await edge.post(an_event())
        await begun.send(body[10:])
        reply = await begun.reply()
        assert (reply.status, reply.headers["connection"]) == (200, "close")
    assert await asyncio.to_thread(edge.process.wait, 10) == 0


async def test_sigterm_does_not_wait_for_ever_for_a_sender_that_hangs(start_edge: Callable[..., Edge]) -> None:
    edge = start_edge(drain_timeout_s=1)
    async with edge.connect() as wire:
        await wire.send(head("Content-Length: 100") + "\r\n")
        edge.process.send_signal(signal.SIGTERM)
        assert await asyncio.to_thread(edge.process.wait, 10) == 0


async def test_everything_it_logs_is_json(start_edge: Callable[..., Edge]) -> None:
    edge = start_edge()
    await edge.post(b"{")
    edge.stop()
    lines = [json.loads(line) for line in edge.log.read_text().splitlines()]
    assert {line["process"] for line in lines} == {"edge"}
    assert not [line for line in lines if line["level"] in ("error", "critical")]


async def test_a_taken_port_ends_it_with_a_reason(settings: Settings) -> None:
    with socket.create_server(("127.0.0.1", settings.edge_port)):
        for workers in ("1", "2"):
            done = await asyncio.to_thread(run_edge, settings, workers)
            [line] = [json.loads(line) for line in done.stderr.splitlines()]
            assert (done.returncode, line["level"]) == (1, "critical")
            assert "in use" in line["reason"]


async def test_missing_topics_end_it_with_what_to_do(settings: Settings) -> None:
    done = await asyncio.to_thread(run_edge, settings, "1")
    assert done.returncode == 1
    assert "drm-ingest topics" in json.loads(done.stderr.splitlines()[-1])["reason"]


def run_edge(settings: Settings, workers: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "drm_ingest", "edge", "--workers", workers]
    return subprocess.run(
        command, env=make_environment(settings), capture_output=True, text=True, check=False, timeout=40
    )


# -- several workers


async def test_workers_share_the_port_and_show_all_their_counts(start_edge: Callable[..., Edge]) -> None:
    edge = start_edge(workers=2)
    await until(lambda: all_tell(edge, 2))
    for _ in range(40):
        assert (await edge.post(an_event())).status_code == 200  # a new connection each
    samples = await edge.metrics()
    counts = [samples[f'drm_events_total{{outcome="accepted",worker="{number}"}}'] for number in (0, 1)]
    assert sum(counts) == 40
    assert min(counts) > 0
    assert edge.stop() == 0


async def all_tell(edge: Edge, workers: int) -> bool:
    samples = await edge.metrics()
    return len([name for name in samples if name.startswith("drm_process_info")]) == workers


async def replaced(edge: Edge, before: set[int]) -> bool:
    return len(children(edge.process.pid) | before) > len(before)


async def gone(pids: set[int]) -> bool:
    return not any(os.path.exists(f"/proc/{pid}") for pid in pids)  # noqa: ASYNC240


async def test_a_killed_worker_is_started_again(start_edge: Callable[..., Edge]) -> None:
    edge = start_edge(workers=2)
    before = children(edge.process.pid)
    assert len(before) == 2
    os.kill(min(before), signal.SIGKILL)
    await until(lambda: replaced(edge, before))
    await until(lambda: all_tell(edge, 2))
    assert edge.stop() == 0


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
async def test_workers_end_with_a_parent_that_was_killed(start_edge: Callable[..., Edge]) -> None:
    edge = start_edge(workers=2)
    workers = children(edge.process.pid)
    edge.process.kill()
    edge.process.wait()
    await until(lambda: gone(workers))
    with pytest.raises(httpx.TransportError):
        await edge.post(an_event())


def folders(temporary: str) -> set[Path]:
    return set(Path(temporary).glob("drm-edge-*"))


async def test_what_killed_edges_left_in_the_temporary_folder_is_removed_by_the_next_and_nothing_else(
    start_edge: Callable[..., Edge], monkeypatch: pytest.MonkeyPatch
) -> None:
    with tempfile.TemporaryDirectory() as temporary:  # a socket's path is short
        monkeypatch.setenv("TMPDIR", temporary)
        living = start_edge(workers=2, edge_port=free_port())
        used = folders(temporary)
        start_edge(workers=2, edge_port=free_port()).kill()
        (left,) = folders(temporary) - used
        (young := Path(temporary, "drm-edge-young")).mkdir()
        for folder in (left, *used):
            os.utime(folder, (0, 0))
        last = start_edge(workers=2)
        assert not left.exists()
        assert len(folders(temporary)) == 3
        assert folders(temporary) > {*used, young}
        await until(lambda: all_tell(living, 2))
        assert (living.stop(), last.stop()) == (0, 0)
        assert folders(temporary) == {young}


def test_a_folder_is_kept_for_workers_whose_parent_was_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    (used := tmp_path / "drm-edge-used").mkdir()
    os.utime(used, (0, 0))
    with held(used), own_folder():
        assert used.exists()
    with own_folder():
        assert not used.exists()
    assert not list(tmp_path.iterdir())


def children(pid: int) -> set[int]:
    """Return the workers under a process; multiprocessing's resource tracker is a child, too."""
    found = set()
    for line in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
        with contextlib.suppress(FileNotFoundError):
            if b"spawn_main" in Path(f"/proc/{line}/cmdline").read_bytes():
                found.add(int(line))
    return found


# -- without Kafka, without Postgres


async def test_without_kafka_it_answers_503_in_time_and_recovers(
    spare_kafka: Callable[[], Kafka], database: str, tmp_path: Path
) -> None:
    broker = await asyncio.to_thread(spare_kafka)
    settings = make_settings(broker, database).model_copy(update={"produce_deadline_s": 3})
    edge = await asyncio.to_thread(Edge.start, settings, tmp_path / "edge.log")
    try:
        assert (await edge.post(an_event())).status_code == 200
        broker.kill()
        started = time.monotonic()
        answer = await edge.post(an_event())
        assert time.monotonic() - started < settings.produce_deadline_s + 1
        assert (answer.status_code, answer.json()["code"]) == (503, "not_acknowledged")
        assert int(answer.headers["retry-after"]) >= 1
        async with httpx.AsyncClient() as client:
            ready = await client.get(edge.url + "/health/ready")
            live = await client.get(edge.url + "/health/live")
        assert (ready.status_code, live.status_code) == (503, 200)
        assert await edge.ledger() == (2, 2)
        assert (await edge.metrics())['drm_events_total{outcome="unknown"}'] == 1
        await asyncio.to_thread(broker.start)
        async with asyncio.timeout(30):
            while (await edge.post(an_event())).status_code != 200:
                pass
        received, accounted = await edge.ledger()
        assert received == accounted
    finally:
        edge.stop()


async def test_without_kafka_a_websocket_is_told_to_retry_and_a_new_one_to_come_later(
    spare_kafka: Callable[[], Kafka], database: str, tmp_path: Path
) -> None:
    broker = await asyncio.to_thread(spare_kafka)
    settings = make_settings(broker, database).model_copy(update={"produce_deadline_s": 3})
    edge = await asyncio.to_thread(Edge.start, settings, tmp_path / "edge.log")
    try:
        async with a_socket(edge) as socket:
            await told(socket)
            broker.kill()
            await tell(socket, {"seq": 5, "events": [an_event()]})
            retry = await told(socket)
            assert (retry["retry"], retry["after_ms"]) == (5, 1000 * settings.retry_after_s)
            async with a_socket(edge) as late:
                assert (await closed(late))[0] == 1013
            await asyncio.to_thread(broker.start)
            async with asyncio.timeout(30):
                while "ack" not in retry:
                    await tell(socket, {"seq": 5, "events": [an_event()]})
                    retry = await told(socket)
    finally:
        edge.stop()


async def test_a_sender_that_left_before_its_503_is_counted_as_unknown(
    spare_kafka: Callable[[], Kafka], database: str, tmp_path: Path
) -> None:
    broker = await asyncio.to_thread(spare_kafka)
    settings = make_settings(broker, database).model_copy(update={"produce_deadline_s": 2})
    edge = await asyncio.to_thread(Edge.start, settings, tmp_path / "edge.log")
    try:
        broker.kill()
        async with edge.connect() as wire:
            await wire.send(request(an_event()))
            async with asyncio.timeout(5):
                while (await edge.metrics())["drm_events_in_flight"] != 1:
                    pass
            wire.writer.transport.abort()
        async with asyncio.timeout(10):
            while (await edge.metrics())["drm_events_in_flight"]:
                pass
        assert (await edge.metrics())['drm_events_total{outcome="unknown"}'] == 1
    finally:
        edge.stop()


async def test_without_postgres_it_goes_on_with_the_keys_it_knows(
    kafka: Kafka, private_postgres: Callable[[], Postgres], tmp_path: Path
) -> None:
    database = await asyncio.to_thread(private_postgres)
    edge = await asyncio.to_thread(Edge.start, make_settings(kafka, database.dsn), tmp_path / "edge.log")
    try:
        database.kill()
        for _ in range(3):
            assert (await edge.post(an_event())).status_code == 200
        assert (await edge.post(an_event(), key="wrong")).status_code == 401
    finally:
        edge.stop()


async def test_before_it_has_read_any_key_it_answers_503_and_not_401(
    kafka: Kafka, database: str, tmp_path: Path
) -> None:
    """A sender that is told 401 gives up; this one is told to come back."""
    reachable = make_settings(kafka, database)
    edge = await asyncio.to_thread(Edge.start, reachable, tmp_path / "edge.log")  # makes the topics
    edge.stop()
    nowhere = make_settings(kafka, f"postgresql://drm@127.0.0.1:{free_port()}/drm")
    settings = nowhere.model_copy(update={"topic_prefix": reachable.topic_prefix})
    blind = await asyncio.to_thread(Edge.launch, settings, tmp_path / "second.log")
    try:
        await until(lambda: listens(blind))
        answer = await blind.post(an_event())
        assert (answer.status_code, answer.json()["code"]) == (503, "not_ready")
        assert answer.headers["retry-after"]
    finally:
        blind.stop()


async def listens(edge: Edge) -> bool:
    with contextlib.suppress(httpx.TransportError):
        await edge.post(an_event())
        return True
    return False
