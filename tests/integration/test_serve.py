"""serve as a process of its own: how it starts, bears a bad Postgres, and ends."""

import asyncio
import json
import os
import signal
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import asyncpg
import httpx
import psutil
import pytest

from drm_ingest.postgres.credentials import ensure_key, new_key
from drm_ingest.up.ports import free_port
from drm_ingest.up.postgres import Postgres


class Serve:
    """The process, where it listens, and what it wrote."""

    def __init__(self, process: asyncio.subprocess.Process, url: str, log: Path) -> None:
        self.process, self.url, self._log = process, url, log

    def log(self) -> list[dict[str, object]]:
        return [json.loads(line) for line in self._log.read_text().splitlines()]

    async def until(self, client: httpx.AsyncClient, path: str, status: int) -> httpx.Response:
        """Ask until the answer has this status; pytest's time-out ends a wait in vain."""
        while True:
            assert self.process.returncode is None, self._log.read_text()
            try:
                answer = await client.get(path)
            except httpx.TransportError:
                await asyncio.sleep(0.05)
                continue
            if answer.status_code == status:
                return answer
            await asyncio.sleep(0.05)


@asynccontextmanager
async def serving(dsn: str, folder: Path) -> AsyncIterator[Serve]:
    port, log = free_port(), folder / "serve.log"
    environment = {name: value for name, value in os.environ.items() if not name.startswith("DRM_")} | {
        "DRM_POSTGRES_DSN": dsn,
        "DRM_SERVE_PORT": str(port),
        "DRM_POSTGRES_ACQUIRE_TIMEOUT_S": "1",
        "DRM_POSTGRES_STATEMENT_TIMEOUT_S": "1",
        "DRM_DRAIN_TIMEOUT_S": "10",
    }
    with log.open("wb") as file:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "drm_ingest", "serve", env=environment, stderr=file
        )
    try:
        yield Serve(process, f"http://127.0.0.1:{port}", log)
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


@asynccontextmanager
async def asking(serve: Serve, key: str | None = None) -> AsyncIterator[httpx.AsyncClient]:
    headers = {"authorization": f"Bearer {key}"} if key else {}
    async with httpx.AsyncClient(base_url=serve.url, headers=headers, timeout=60) as client:
        yield client


async def admin_key(dsn: str) -> str:
    plain, _, _ = new_key()
    connection = await asyncpg.connect(dsn)
    await ensure_key(connection, "office", "admin", plain)
    await connection.close()
    return plain


async def test_it_serves_logs_what_it_served_and_finishes_what_is_under_way(database: str, tmp_path: Path) -> None:
    key = await admin_key(database)
    async with serving(database, tmp_path) as serve, asking(serve, key) as client:
        await serve.until(client, "/health/ready", 200)
        assert (await client.get("/health/live")).json() == {"status": "live"}
        made = await client.post(
            "/v1/parties", json={"kind": "customer", "name": "Ada"}, headers={"x-request-id": "trace-7"}
        )
        assert (made.status_code, made.headers["x-request-id"]) == (201, "trace-7")

        # A request that waits for a lock while the process is told to stop is still answered.
        connection = await asyncpg.connect(database)
        async with connection.transaction():
            await connection.execute("lock table party in access exclusive mode")
            waiting = asyncio.create_task(client.get("/v1/parties"))
            while not await connection.fetchval("select exists (select from pg_locks where not granted)"):  # noqa: ASYNC110
                await asyncio.sleep(0.01)
            serve.process.send_signal(signal.SIGTERM)
            await _stopped_listening(serve.url)
        assert [party["name"] for party in (await waiting).json()["items"]] == ["Ada"]
        await connection.close()
        assert await serve.process.wait() == 0

        (line,) = [line for line in serve.log() if line.get("request_id") == "trace-7"]
        assert {"event": "request", "method": "POST", "path": "/v1/parties", "status": 201, "sender": "office",
                "process": "serve"}.items() <= line.items()  # fmt: skip
        assert not [line for line in serve.log() if str(line.get("path", "")).startswith("/health")]
        assert key not in json.dumps(serve.log())


async def _stopped_listening(url: str) -> None:
    while True:
        try:
            async with httpx.AsyncClient() as client:
                await client.get(f"{url}/health/live")
        except httpx.TransportError:
            return
        await asyncio.sleep(0.01)


async def test_it_answers_503_while_postgres_is_away_and_goes_on_when_it_is_back(
    private_postgres: Callable[[], Postgres], tmp_path: Path
) -> None:
    postgres = await asyncio.to_thread(private_postgres)
    key = await admin_key(postgres.dsn)
    await asyncio.to_thread(postgres.stop)
    async with serving(postgres.dsn, tmp_path) as serve, asking(serve, key) as client:

        async def expect_unavailable() -> None:
            for path in ("/v1/parties", "/v1/devices/meter-7", "/v1/events?subject=a&id=b"):
                answer = await client.get(path)
                assert (answer.status_code, answer.json()["code"]) == (503, "store_unavailable"), answer.text
                assert int(answer.headers["retry-after"]) >= 1
            answer = await serve.until(client, "/health/ready", 503)
            assert answer.headers["retry-after"]
            what, _, to_do = answer.json()["detail"].partition(" · ")
            assert what.startswith("Postgres cannot be used: it "), what
            assert to_do

        await serve.until(client, "/health/live", 200)  # it starts without Postgres
        await expect_unavailable()
        await asyncio.to_thread(postgres.start)
        await serve.until(client, "/health/ready", 200)
        assert (await client.get("/v1/parties")).status_code == 200

        await asyncio.to_thread(postgres.kill)
        await expect_unavailable()
        await asyncio.to_thread(postgres.start)
        await serve.until(client, "/v1/parties", 200)

        server = psutil.Process(postgres.pid)
        hanging = [server, *server.children(recursive=True)]  # connections stand, answers do not come
        for process in hanging:
            process.suspend()
        try:
            await expect_unavailable()
        finally:
            for process in hanging:
                process.resume()
        await serve.until(client, "/v1/parties", 200)
        assert not [line for line in serve.log() if line["event"] == "a request failed"]


@pytest.mark.parametrize("name", ["DRM_SERVE_PORT", "DRM_SERVE_BODY_BYTES_MAX"])
async def test_it_refuses_to_start_with_a_wrong_setting(name: str) -> None:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "drm_ingest", "serve", env=os.environ | {name: "-1"}, stderr=asyncio.subprocess.PIPE
    )
    _, errors = await process.communicate()
    assert process.returncode != 0
    assert name.removeprefix("DRM_").lower() in errors.decode().lower()
