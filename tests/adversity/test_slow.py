"""Senders who are too slow, on purpose or not: each is cut in time, and nobody else notices."""

import asyncio
import contextlib
import os
import resource
import shutil
import subprocess
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path
from statistics import median
from typing import Any, cast

import pytest
from tests.adversity.good import PATIENT, Good, exact
from tests.integration.edge import Edge, an_event, head, request, until

from drm_ingest.up.ports import free_port

HEADER_S, BODY_S, IDLE_S = 2.0, 2.0, 3.0
SWEPT_S = 2.0  # the sweep is twice a second and cuts nobody too early: up to a second too late
READING_S = 12.0  # and who does not read is cut when all buffers are full, which takes its time to begin with
DRIP_S = 0.2
DEADLINES = {
    "request_header_timeout_s": HEADER_S,
    "request_body_timeout_s": BODY_S,
    "connection_idle_timeout_s": IDLE_S,
    "refused_body_discard_timeout_s": 1,
    **PATIENT,
}
SOCKETS = [pytest.param(200, id="200"), pytest.param(2000, marks=[pytest.mark.slow, pytest.mark.timeout(600)])]
pytestmark = pytest.mark.row("slow")


async def say_nothing(edge: Edge) -> float:
    """Return after how many seconds we were cut."""
    async with edge.connect() as wire:
        started = time.monotonic()
        await wire.closed()
        return time.monotonic() - started


async def drip_headers(edge: Edge) -> float:
    return await drip(edge, "POST /v1/events HTTP/1.1\r\nHost: edge\r\n", "X-A: b\r\n")


async def drip_headers_elsewhere(edge: Edge) -> float:
    return await drip(edge, "GET /metrics HTTP/1.1\r\nHost: edge\r\n", "X-A: b\r\n")


async def drip_a_body(edge: Edge) -> float:
    return await drip(edge, head("Content-Length: 1000") + "\r\n[", " ")


async def drip_chunks(edge: Edge) -> float:
    return await drip(edge, head("Transfer-Encoding: chunked") + "\r\n", "1\r\n \r\n")


async def drip(edge: Edge, first: str, drop: str) -> float:
    """Send a little now and then; return after how many seconds we were cut, and see that it was said why."""
    async with edge.connect() as wire:
        started = time.monotonic()
        await wire.send(first)

        async def go_on() -> None:
            with contextlib.suppress(ConnectionError):
                while True:
                    await wire.send(drop)
                    await asyncio.sleep(DRIP_S)

        dripping = asyncio.create_task(go_on())
        try:
            reply = await wire.reply()
            assert (reply.status, reply.code) == (408, "request_timeout")
            return time.monotonic() - started
        finally:
            dripping.cancel()


async def read_nothing(edge: Edge) -> float:
    """Ask for more than the socket's buffers hold, and do not read it; return after how many seconds we were cut."""
    rejected = request([an_event(data={"state": 7}) for _ in range(500)])
    return await without_reading(edge, rejected)


async def read_nothing_elsewhere(edge: Edge) -> float:
    return await without_reading(edge, b"GET /openapi.json HTTP/1.1\r\nHost: edge\r\n\r\n")


async def without_reading(edge: Edge, asked: bytes) -> float:
    # A small window, as who attacks like that has: else it is the many questions that cost, not the waiting answers.
    async with edge.connect(receive_buffer_bytes=4096) as wire:
        wire.writer.transport.pause_reading()  # type: ignore[attr-defined]
        started = time.monotonic()
        with contextlib.suppress(ConnectionError):
            while True:
                wire.writer.write(asked)
                async with asyncio.timeout(30):
                    await wire.writer.drain()
                await asyncio.sleep(0.01)
        return time.monotonic() - started


WAYS: dict[str, tuple[Callable[[Edge], Coroutine[Any, Any, float]], float]] = {
    "silent": (say_nothing, HEADER_S),
    "slow headers": (drip_headers, HEADER_S),
    "slow headers, another path": (drip_headers_elsewhere, HEADER_S),
    "slow body": (drip_a_body, BODY_S),
    "slow chunks": (drip_chunks, BODY_S),
    "slow read": (read_nothing, IDLE_S),
    "slow read, another path": (read_nothing_elsewhere, IDLE_S),
}
OF_EACH = 10
FILES = 4096


async def abuse(edge: Edge, silent: int) -> tuple[dict[str, float], float]:
    """Be slow in every way; return after how many seconds the last of each kind was cut, and for how long we stood.

    Not all begin at the same moment: the first questions of who then reads nothing are work like any other.
    """
    lag = asyncio.create_task(longest_lag_s())
    cut: dict[str, list[asyncio.Task[float]]] = {}
    for name, (way, _) in WAYS.items():
        cut[name] = []
        for number in range(silent if name == "silent" else OF_EACH):
            cut[name].append(asyncio.create_task(way(edge)))
            if name != "silent" or not number % 20:
                await asyncio.sleep(0.02)
    took = {name: max([await task for task in tasks]) for name, tasks in cut.items()}
    lag.cancel()
    return took, await lag


async def longest_lag_s() -> float:
    """Return, when cancelled, for how long this process once had no core, or too much to do, to hear of anything."""
    longest_s, loop = 0.0, asyncio.get_running_loop()
    with contextlib.suppress(asyncio.CancelledError):
        while True:
            due = loop.time() + 0.05
            await asyncio.sleep(0.05)
            longest_s = max(longest_s, loop.time() - due)
    return longest_s


@contextlib.contextmanager
def abuser() -> Iterator[Callable[[Edge, int], Awaitable[tuple[dict[str, float], float]]]]:
    """Return what begins the abuse, in another process: who abuses has a machine and a loop of their own."""
    loop = asyncio.get_running_loop()
    with ProcessPoolExecutor(1, get_context("spawn")) as process:
        process.submit(stand_back).result()
        # The process of an edge cannot go there, and is not needed.
        yield lambda edge, silent: loop.run_in_executor(
            process, apart, replace(edge, process=cast("Any", None)), silent
        )


def stand_back() -> None:
    os.nice(10)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = FILES if hard == resource.RLIM_INFINITY else min(FILES, hard)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, wanted), hard))


def apart(edge: Edge, silent: int) -> tuple[dict[str, float], float]:
    return asyncio.run(abuse(edge, silent))


@pytest.mark.parametrize("silent", SOCKETS)
async def test_whoever_is_too_slow_is_cut_in_time_and_good_clients_do_not_notice(
    start_edge: Callable[..., Edge], seen: Callable[[str], None], silent: int
) -> None:
    rounds = 5 if silent > 200 else 1
    edge = await asyncio.to_thread(start_edge, **DEADLINES)
    elsewhere = await asyncio.to_thread(start_edge, **DEADLINES, edge_port=free_port()) if rounds > 1 else None
    quiet, abused = [Good(edge) for _ in range(rounds)], [Good(edge) for _ in range(rounds)]
    late: list[str] = []
    latest_s = 0.0
    with abuser() as begin:
        for alone, disturbed in zip(quiet, abused, strict=True):  # in turns: a machine that is busy is so for both
            if elsewhere is not None:  # the abuser is on our machine, for once: what that costs, it costs in both
                async with alone.sending():
                    await begin(elsewhere, silent)
            async with disturbed.sending():
                took, lag_s = await begin(edge, silent)
            latest_s = max(latest_s, *took.values())
            # What keeps a good client waiting (a busy machine, 2,000 sockets of our own) keeps the others too: when
            # they come, when their time is up, and when they hear of it; the last, for want of a core, even longer.
            pulse_s = max(disturbed.seconds)
            late += [
                f"{name}: {seconds:.1f} s, the pulse took {pulse_s:.2f} s, who waited stood for {lag_s:.2f} s"
                for name, seconds in took.items()
                if seconds > (READING_S if "read" in name else WAYS[name][1]) + SWEPT_S + 3 * pulse_s + 2 * lag_s
            ]
    assert not late
    await until(lambda: only_ours(edge))
    await exact(edge, *(good for good in (*quiet, *abused) if good.answers))
    seen(f"{silent} silent and {OF_EACH} of each other kind cut within {latest_s:.1f} s")
    if elsewhere is not None:
        # That of the middle round: what else the machine does for a second or two spoils one or two of them.
        before, after = (median(good.p99_ms() for good in each) for each in (quiet, abused))
        seen(f"p99 of good clients, with the abuse elsewhere and here, {before:.0f} → {after:.0f} ms")
        assert after <= 2 * before + 10


async def only_ours(edge: Edge) -> bool:
    """Whether every connection but that of this question is gone, and nothing is held any more."""
    samples = await edge.metrics()
    return samples['drm_connections{transport="http"}'] <= 1 and samples["drm_request_in_flight_bytes"] == 0


@pytest.mark.slow
@pytest.mark.timeout(400)
@pytest.mark.parametrize("mode", ["-H", "-B", "-X"], ids=["headers", "body", "read"])
async def test_slowhttptest_closes_no_door(
    start_edge: Callable[..., Edge], seen: Callable[[str], None], mode: str, tmp_path: Path
) -> None:
    """The tool calls a service down when a probe has no answer within its time."""
    tool = shutil.which("slowhttptest")
    assert tool, "install slowhttptest (a Debian package)"
    edge = start_edge(**DEADLINES)
    url = edge.url + ("/v1/events" if mode != "-X" else "/openapi.json")
    command = [
        tool, mode, "-c", "500", "-r", "100", "-i", "1", "-l", "20", "-p", "5", "-t", "POST" if mode == "-B" else "GET",
        "-u", url,
    ]  # fmt: skip
    good = Good(edge)
    async with good.sending():
        with (tmp_path / "slowhttptest.log").open("wb") as log:
            process = await asyncio.create_subprocess_exec(*command, stdout=log, stderr=subprocess.STDOUT)
            await asyncio.wait_for(process.wait(), 120)
    text = (tmp_path / "slowhttptest.log").read_text(errors="replace")
    assert "service available:" in text, text[-2000:]
    assert good.answers[200] > 100
    await until(lambda: only_ours(edge))
    await exact(edge, good)
    seen(f"slowhttptest {mode}: good p99 {good.p99_ms():.0f} ms")
