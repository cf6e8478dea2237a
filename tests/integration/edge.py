"""A real edge process for tests, and a client that says exactly the bytes it is told to."""

import asyncio
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import asyncpg
import httpx
import psutil
from aiokafka import AIOKafkaConsumer, ConsumerRecord, TopicPartition
from prometheus_client.parser import text_string_to_metric_families
from tests.conftest import make_environment, run_aside

from drm_ingest.kafka import topics
from drm_ingest.kafka.topics import Topics
from drm_ingest.postgres.credentials import ensure_key
from drm_ingest.schema import Schemas
from drm_ingest.settings import Settings

START_WITHIN_S = 90.0
NO_TLS = False
"""For the `verify` of httpx: else each client reads all certificates anew, for 25 ms of CPU."""
KEY = "the-key-of-the-tests"
_HEAD = "POST /v1/events HTTP/1.1\r\nHost: edge\r\nAuthorization: Bearer {key}\r\n"


def an_event(**attributes: Any) -> dict[str, Any]:
    """Return an event that the edge accepts without a remark."""
    number = next(_numbers)
    return {
        "specversion": "1.0",
        "id": f"event-{number}",
        "type": "device.status",
        "subject": f"meter-{number}",
        "source": "",
        "time": "2026-11-22T10:00:00Z",
        "data": {"state": "online"},
    } | attributes


def _count() -> Iterator[int]:
    number = 0
    while True:
        number += 1
        yield number


_numbers = _count()


async def until(true: Callable[[], Awaitable[bool]], within_s: float = 20.0) -> None:
    """Wait for what must come true."""
    async with asyncio.timeout(within_s):
        while not await true():  # noqa: ASYNC110 - another process has no event for us
            await asyncio.sleep(0.02)


@dataclass
class Reply:
    status: int
    headers: dict[str, str]
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def code(self) -> Any:
        return self.json().get("code")


@dataclass
class Wire:
    """One connection, byte by byte."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    async def send(self, data: str | bytes) -> None:
        self.writer.write(data.encode() if isinstance(data, str) else data)
        await self.writer.drain()

    async def post(self, events: Any, *header_lines: str) -> Reply:
        await self.send(request(events, *header_lines))
        return await self.reply()

    async def reply(self) -> Reply:
        """Read one response."""
        head = (await self.reader.readuntil(b"\r\n\r\n")).decode()
        status_line, *lines = head.split("\r\n")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines if line)}
        body = await self.reader.readexactly(int(headers.get("content-length", 0)))
        return Reply(int(status_line.split()[1]), headers, body)

    async def closed(self) -> bytes:
        """Wait until the server closes; return what else it sent."""
        with contextlib.suppress(ConnectionError):
            return await self.reader.read()
        return b""


def head(*header_lines: str, key: str = KEY) -> str:
    """Return the head of a request without its last empty line, for more headers to follow."""
    if not any(line.lower().startswith("content-type:") for line in header_lines):
        header_lines = ("Content-Type: application/json", *header_lines)
    return _HEAD.format(key=key) + "".join(f"{line}\r\n" for line in header_lines)


def request(events: Any, *header_lines: str, key: str = KEY) -> bytes:
    """Return a whole request."""
    body = events if isinstance(events, bytes) else json.dumps(events).encode()
    return (head(*header_lines, key=key) + f"Content-Length: {len(body)}\r\n\r\n").encode() + body


@dataclass
class Edge:
    """A running edge."""

    settings: Settings
    log: Path
    process: subprocess.Popen[bytes]
    workers: int = 1

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.settings.edge_port}"

    @classmethod
    def start(cls, settings: Settings, log: Path, workers: int = 1) -> Self:
        """Create its topics and its key, start it, and wait until it is ready."""

        async def prepare() -> None:
            await topics.create(settings, Schemas.load(settings.schemas_dir).families)
            connection = await asyncpg.connect(settings.postgres_dsn.get_secret_value())
            await ensure_key(connection, "tests", "sender", KEY)
            await connection.close()

        run_aside(prepare())
        return cls.start_unprepared(settings, log, workers)

    @classmethod
    def start_unprepared(cls, settings: Settings, log: Path, workers: int = 1) -> Self:
        edge = cls.launch(settings, log, workers)
        deadline = time.monotonic() + START_WITHIN_S
        try:
            while True:
                with contextlib.suppress(httpx.TransportError):
                    if httpx.get(edge.url + "/health/ready", verify=NO_TLS).status_code == 200:
                        return edge
                assert edge.process.poll() is None, log.read_text()
                assert time.monotonic() < deadline, log.read_text()
                time.sleep(0.05)
        except BaseException:
            edge.kill()  # nobody else knows of it yet
            raise

    @classmethod
    def launch(cls, settings: Settings, log: Path, workers: int = 1) -> Self:
        """Start it and do not wait."""
        command = [sys.executable, "-m", "drm_ingest", "edge", "--workers", str(workers)]
        with log.open("ab") as out:
            return cls(settings, log, subprocess.Popen(command, env=make_environment(settings), stderr=out), workers)

    def stop(self) -> int:
        """Send SIGTERM and return the exit code."""
        if self.process.poll() is None:
            os.kill(self.process.pid, signal.SIGTERM)
        return self.process.wait(30)

    def kill(self) -> None:
        """SIGKILL, and wait until its workers have ended too."""
        workers = psutil.Process(self.process.pid).children(recursive=True) if self.process.poll() is None else []
        self.process.kill()
        self.process.wait()
        for each in workers:
            with contextlib.suppress(psutil.NoSuchProcess):
                each.kill()
        psutil.wait_procs(workers, timeout=10)

    @contextlib.asynccontextmanager
    async def connect(self, receive_buffer_bytes: int | None = None) -> AsyncIterator[Wire]:
        """Open a connection; the kernel takes in no more than `receive_buffer_bytes` that we do not read."""
        connection = socket.socket()
        if receive_buffer_bytes is not None:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer_bytes)
        connection.setblocking(False)
        try:
            await asyncio.get_running_loop().sock_connect(connection, ("127.0.0.1", self.settings.edge_port))
            reader, writer = await asyncio.open_connection(sock=connection)
        except BaseException:
            connection.close()
            raise
        try:
            yield Wire(reader, writer)
        finally:
            writer.close()
            with contextlib.suppress(ConnectionError):
                await writer.wait_closed()

    async def post(self, content: Any, key: str | None = KEY, **headers: str) -> httpx.Response:
        """Post with an ordinary client; `content` that is not bytes is sent as JSON."""
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        sent = {name.replace("_", "-"): value for name, value in headers.items()}
        sent.setdefault("content-type", "application/json")
        if key is not None:
            sent.setdefault("authorization", f"Bearer {key}")
        async with httpx.AsyncClient(timeout=30, verify=NO_TLS) as client:
            return await client.post(self.url + "/v1/events", content=body, headers=sent)

    async def metrics(self) -> dict[str, float]:
        """Return the samples, as `name` or `name{label="value"}`."""
        async with httpx.AsyncClient(verify=NO_TLS) as client:
            text = (await client.get(self.url + "/metrics")).text
        samples = {}
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                labels = ",".join(f'{name}="{value}"' for name, value in sorted(sample.labels.items()))
                samples[sample.name + (f"{{{labels}}}" if labels else "")] = sample.value
        return samples

    async def ledger(self) -> tuple[float, float]:
        """Return the two sides that are always equal: received, and outcomes with what is in flight."""
        samples = await self.metrics()
        outcomes = sum(value for name, value in samples.items() if name.startswith("drm_events_total"))
        return samples["drm_events_received_total"], outcomes + samples["drm_events_in_flight"]

    async def records(self) -> list[ConsumerRecord]:
        """Return everything that is in the ingress topic now."""
        topic = Topics.of(self.settings).ingress
        consumer = AIOKafkaConsumer(bootstrap_servers=self.settings.kafka_bootstrap, auto_offset_reset="earliest")
        await consumer.start()
        try:
            partitions = [TopicPartition(topic, number) for number in range(self.settings.topic_partitions)]
            consumer.assign(partitions)
            ends = await consumer.end_offsets(partitions)
            left = {partition for partition, end in ends.items() if end > 0}
            await consumer.seek_to_beginning(*partitions)
            found: list[ConsumerRecord] = []
            while left:
                for partition, batch in (await consumer.getmany(timeout_ms=500)).items():
                    found += batch
                    if batch and batch[-1].offset >= ends[partition] - 1:
                        left.discard(partition)
            return found
        finally:
            await consumer.stop()

    async def stored(self, *subjects: str) -> list[str]:
        """Return which of these subjects are in the ingress topic, once for each of their events."""
        asked = set(subjects)
        return sorted(subject for record in await self.records() if (subject := record.key.decode()) in asked)
