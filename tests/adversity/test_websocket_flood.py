"""WebSockets opened by the thousand, or flooded: each is closed with a code that says why, and costs little."""

import asyncio
import base64
import contextlib
import itertools
import json
import resource
import signal
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Iterator
from itertools import repeat
from pathlib import Path
from typing import Any

import psutil
import pytest
from tests.adversity.abuse import watched
from tests.adversity.good import Good, exact
from tests.integration.edge import KEY, Edge, Wire, an_event, until

from drm_ingest.settings import KiB, MiB, Settings
from drm_ingest.up.kafka import Kafka

HELLO_S = 3.0
BOUNDS = {
    "request_header_timeout_s": HELLO_S,
    "request_body_timeout_s": 1.5,
    "websocket_ping_interval_s": 1,
    "websocket_ping_timeout_s": 6,
}
UPGRADE = (
    "GET /v1/events HTTP/1.1\r\nHost: edge\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    f"Sec-WebSocket-Key: {base64.b64encode(b'0123456789abcdef').decode()}\r\nSec-WebSocket-Version: 13\r\n\r\n"
)
pytestmark = pytest.mark.row("websocket-flood")


@pytest.fixture
def many_files() -> None:
    """Let this process open thousands of sockets."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 12_000 if hard == resource.RLIM_INFINITY else min(12_000, hard)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, wanted), hard))


@pytest.mark.parametrize("connects", [500, pytest.param(5000, marks=[pytest.mark.slow, pytest.mark.timeout(600)])])
@pytest.mark.usefixtures("many_files")
async def test_thousands_of_connects_are_refused_or_closed_and_cost_little(
    start_edge: Callable[..., Edge], seen: Callable[[str], None], connects: int
) -> None:
    most, open_at_once = connects // 5, 0.0
    edge = start_edge(**BOUNDS, websocket_unauthenticated_max=most)
    process = psutil.Process(edge.process.pid)
    good = Good(edge)
    async with good.sending():
        await asyncio.sleep(1)
        before = peak = process.memory_info().rss
        answers: Counter[str] = Counter()
        flood = asyncio.gather(*(connect(edge, answers) for _ in range(connects)))
        while not flood.done():
            peak = max(peak, process.memory_info().rss)
            open_at_once = max(open_at_once, (await edge.metrics())['drm_connections{transport="websocket"}'])
            await asyncio.sleep(0.05)
        await flood
    assert set(answers) == {"503", "1008"}
    assert answers["1008"] > 0
    assert 0 < open_at_once <= most
    await until(lambda: none_open(edge), within_s=60)
    await exact(edge, good)
    each = (peak - before) / connects
    assert each < 1 * MiB
    seen(f"{connects} connects: {dict(answers)}, {open_at_once:.0f} open at most and {each / KiB:.0f} KiB each")
    seen(f"p99 of good clients meanwhile {good.p99_ms():.0f} ms")


async def connect(edge: Edge, answers: Counter[str]) -> None:
    """Open a WebSocket and say nothing; count the status of the upgrade, or the code of the close."""
    async with edge.connect() as wire:
        await wire.send(UPGRADE)
        status_line = (await wire.reader.readuntil(b"\r\n\r\n")).split()[1].decode()
        if status_line != "101":
            answers[status_line] += 1
            return
        answers[str((await end_of(wire))[0])] += 1


async def none_open(edge: Edge) -> bool:
    samples = await edge.metrics()
    return samples['drm_connections{transport="websocket"}'] == 0 and samples["drm_request_in_flight_bytes"] == 0


async def test_a_reconnecting_crowd_is_let_in_bit_by_bit(
    start_edge: Callable[..., Edge], seen: Callable[[str], None]
) -> None:
    edge = start_edge(**BOUNDS, websocket_handshakes_per_s_max=20)
    answers: Counter[str] = Counter()
    started = time.monotonic()
    await asyncio.gather(*(connect(edge, answers) for _ in range(100)))
    took = time.monotonic() - started
    assert 20 <= answers["1008"] <= 20 * (took + 1), answers
    assert answers["503"] >= 100 - 20 * (took + 1)
    seen(f"100 at once, 20 a second allowed: {dict(answers)}")


def frame(opcode: int, payload: bytes, *, last: bool = True) -> bytes:
    """Return a frame of a client, masked with zeros."""
    return head_of(opcode, len(payload), last=last) + payload


def head_of(opcode: int, size: int, *, last: bool = True) -> bytes:
    """Return what a frame begins with."""
    if size < 126:
        length = bytes([0x80 | size])
    elif size < 65536:
        length = b"\xfe" + size.to_bytes(2, "big")
    else:
        length = b"\xff" + size.to_bytes(8, "big")
    return bytes([opcode | (0x80 if last else 0)]) + length + bytes(4)


@contextlib.asynccontextmanager
async def opened(edge: Edge, key: str | None = KEY) -> AsyncIterator[Wire]:
    """Open a WebSocket by hand."""
    async with edge.connect() as wire:
        authorization = f"\r\nAuthorization: Bearer {key}" if key else ""
        await wire.send(UPGRADE.replace("Host: edge", f"Host: edge{authorization}"))
        assert b" 101 " in await wire.reader.readuntil(b"\r\n\r\n")
        yield wire


async def end_of(wire: Wire) -> tuple[int, str]:
    """Read over all frames, answering nothing, until that of the close; return its code and reason."""
    async with asyncio.timeout(60):
        while True:
            opcode, length = await wire.reader.readexactly(2)
            if length == 126:
                length = int.from_bytes(await wire.reader.readexactly(2), "big")
            payload = await wire.reader.readexactly(length)
            if opcode == 0x88:
                return int.from_bytes(payload[:2], "big"), payload[2:].decode()


async def flood(edge: Edge, frames: Iterable[bytes], key: str | None = KEY, between_s: float = 0.0) -> tuple[int, str]:
    """Send these for as long as it is possible; return how it ended."""
    async with opened(edge, key) as wire:

        async def send() -> None:
            with contextlib.suppress(ConnectionError):
                for each in frames:
                    await wire.send(each)
                    await asyncio.sleep(between_s)

        sending = asyncio.create_task(send())
        try:
            return await end_of(wire)
        finally:
            sending.cancel()


TEXT, CONTINUED, PING = 1, 0, 9
PART_BYTES = 448 * KiB
A_MESSAGE = json.dumps({"seq": 1, "events": [an_event()]}).encode()


def in_pieces(size: int) -> Iterator[bytes]:
    """A frame bit by bit: a hundred whole ones of 17 MiB would take us more memory than the edge."""
    yield head_of(TEXT, size)
    yield from repeat(b"x" * MiB, size // MiB)


def fragments(size: int) -> Iterator[bytes]:
    yield frame(TEXT, b"x" * size, last=False)
    while True:
        yield frame(CONTINUED, b"x" * size, last=False)


def messages(edge: Edge) -> Coroutine[Any, Any, tuple[int, str]]:
    return flood(edge, repeat(frame(TEXT, A_MESSAGE) * 50))


def large_frame(edge: Edge) -> Coroutine[Any, Any, tuple[int, str]]:
    return flood(edge, in_pieces(17 * MiB))


def large_frame_before_a_hello(edge: Edge) -> Coroutine[Any, Any, tuple[int, str]]:
    return flood(edge, in_pieces(17 * MiB), key=None)


def small_fragments(edge: Edge) -> Coroutine[Any, Any, tuple[int, str]]:
    return flood(edge, fragments(1))


def large_fragments(edge: Edge) -> Coroutine[Any, Any, tuple[int, str]]:
    return flood(edge, fragments(100_000))


def slow_fragments(edge: Edge) -> Coroutine[Any, Any, tuple[int, str]]:
    return flood(edge, fragments(1), between_s=0.2)


def pings(edge: Edge) -> Coroutine[Any, Any, tuple[int, str]]:
    return flood(edge, repeat(frame(PING, b"?")))


def no_pong(edge: Edge) -> Coroutine[Any, Any, tuple[int, str]]:
    return flood(edge, [])


FLOODS: list[tuple[Callable[[Edge], Coroutine[Any, Any, tuple[int, str]]], int, str]] = [
    (messages, 1008, "unacknowledged"),
    (large_frame, 1009, ""),
    (large_frame_before_a_hello, 1009, ""),
    (small_fragments, 1008, "frames in a message"),
    (large_fragments, 1009, ""),
    (slow_fragments, 1008, "whole within"),
    (pings, 1008, "pings"),
    (no_pong, 1008, "no pong"),
]


@pytest.mark.parametrize("times", [2, pytest.param(50, marks=[pytest.mark.slow, pytest.mark.timeout(600)])])
async def test_every_flood_is_closed_with_its_reason(
    start_edge: Callable[..., Edge], seen: Callable[[str], None], times: int
) -> None:
    bounds: dict[str, float] = {**BOUNDS, "websocket_window_messages": 4, "websocket_handshakes_per_s_max": 1000}
    if times > 2:  # hundreds at once have to wait for each other, and would be cut for that
        bounds |= {"request_body_timeout_s": 10, "websocket_ping_timeout_s": 20}
    edge = start_edge(**bounds)
    good = Good(edge)
    async with good.sending(2):
        ends = await asyncio.gather(*(begin(edge) for begin, _, _ in FLOODS for _ in range(times)))
    expected = [(code, reason) for _, code, reason in FLOODS for _ in range(times)]
    wrong = [
        (end, must) for end, must in zip(ends, expected, strict=True) if end[0] != must[0] or must[1] not in end[1]
    ]
    assert wrong == []
    await until(lambda: none_open(edge))
    await exact(edge, good)
    seen(f"{len(ends)} floods of {len(FLOODS)} kinds closed with {sorted({code for code, _ in ends})}")


@pytest.mark.parametrize("sockets", [40, pytest.param(200, marks=[pytest.mark.slow, pytest.mark.timeout(600)])])
async def test_messages_that_arrive_in_part_take_no_more_than_they_may(
    start_edge: Callable[..., Edge], seen: Callable[[str], None], sockets: int
) -> None:
    edge = start_edge(request_body_timeout_s=30)
    process = psutil.Process(edge.process.pid)
    before = process.memory_info().rss
    part = frame(TEXT, b"x" * (PART_BYTES), last=False)
    async with contextlib.AsyncExitStack() as stack:
        for _ in range(sockets):
            await (await stack.enter_async_context(opened(edge))).send(part)
        await until(lambda: holding(edge, sockets * PART_BYTES))
        each = (process.memory_info().rss - before) / sockets
        assert each < 1 * MiB  # the message, and what the parser and the allocator keep of it
        seen(f"{each / KiB:.0f} KiB for each connection with {len(part) // KiB} KiB of a message")
    await until(lambda: none_open(edge))


async def holding(edge: Edge, held_bytes: int) -> bool:
    return (await edge.metrics())["drm_request_in_flight_bytes"] >= held_bytes


async def test_more_than_may_be_held_is_closed_with_1013_and_http_gets_503_meanwhile(
    start_edge: Callable[..., Edge], seen: Callable[[str], None]
) -> None:
    edge = start_edge(request_body_timeout_s=20, request_in_flight_bytes_max=2 * MiB)
    part = frame(TEXT, b"x" * (PART_BYTES), last=False)
    async with contextlib.AsyncExitStack() as stack:
        wires = [await stack.enter_async_context(opened(edge)) for _ in range(8)]
        for wire in wires:
            await wire.send(part)
        ends = [asyncio.create_task(end_of(wire)) for wire in wires]
        done, others = await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED, timeout=30)
        assert {end.result()[0] for end in done} == {1013}
        large = [an_event(type="acme.large", data="x" * 200_000) for _ in range(6)]
        assert (await edge.post(large)).status_code == 503
        for end in others:
            end.cancel()
    await until(lambda: none_open(edge))
    assert (await edge.post(an_event())).status_code == 200
    seen("messages of 0.4 MiB where 2 MiB may be held: closed with 1013")


def numbered(events: list[Any], at_once: int = 1) -> Iterator[bytes]:
    """Message after message of these, so many in a piece."""
    body = json.dumps(events).encode()
    numbers = itertools.count()
    while True:
        yield b"".join(frame(TEXT, b'{"seq":%d,"events":%b}' % (next(numbers), body)) for _ in range(at_once))


def padded(size: int) -> dict[str, Any]:
    """Return an event that is refused: what Kafka has not acknowledged is bounded elsewhere."""
    return {"type": "", "padding": "x" * size}


WAITING: dict[str, Callable[[], Iterable[bytes]]] = {
    "long messages": lambda: numbered([padded(1000)] * 480),
    "answers that nobody reads": lambda: numbered([padded(1)] * 1000),
    "many messages": lambda: numbered([padded(1000)], 100),
    "a long message before tiny ones": lambda: itertools.chain(
        itertools.islice(numbered([padded(480_000)]), 1), repeat(frame(TEXT, b"{}") * 10_000)
    ),
}


@pytest.mark.parametrize(
    ("kind", "sockets", "seconds"),
    [
        *((kind, 60, 2) for kind in tuple(WAITING)[:2]),
        *(pytest.param(kind, 200, 8, marks=[pytest.mark.slow, pytest.mark.timeout(600)]) for kind in WAITING),
    ],
)
@pytest.mark.usefixtures("many_files")
async def test_messages_and_answers_that_wait_take_no_more_than_they_may(
    start_edge: Callable[..., Edge], seen: Callable[[str], None], kind: str, sockets: int, seconds: float
) -> None:
    # Patient, for hundreds that wait for each other.
    edge = start_edge(request_body_timeout_s=60, produce_deadline_s=60, websocket_handshakes_per_s_max=1000)
    with watched(edge.process.pid, edge.url) as cost:
        await asyncio.gather(*(pour(edge, WAITING[kind](), seconds) for _ in range(sockets)))
    each = cost.grown_bytes / sockets
    seen(f"{kind} on {sockets} connections: {each / KiB:.0f} KiB each")
    assert each < 1 * MiB
    await until(lambda: none_open(edge), within_s=60)
    assert (await edge.post(an_event())).status_code == 200


@pytest.mark.usefixtures("many_files")
@pytest.mark.parametrize("sockets", [30, pytest.param(150, marks=[pytest.mark.slow, pytest.mark.timeout(600)])])
async def test_results_that_wait_for_kafka_take_no_more_than_they_may(
    settings: Settings,
    spare_kafka: Callable[[], Kafka],
    tmp_path: Path,
    seen: Callable[[str], None],
    sockets: int,
) -> None:
    kafka = await asyncio.to_thread(spare_kafka)
    patient = {"kafka_bootstrap": kafka.bootstrap, "produce_deadline_s": 30, "websocket_handshakes_per_s_max": 1000}
    edge = Edge.start(settings.model_copy(update=patient), tmp_path / "edge.log")
    one_is_kept = [an_event(), *({"type": ""} for _ in range(999))]
    try:
        kafka.signal(signal.SIGSTOP)
        with watched(edge.process.pid, edge.url) as cost:
            await asyncio.gather(*(pour(edge, numbered(one_is_kept), 4) for _ in range(sockets)))
        kafka.signal(signal.SIGCONT)
        each = cost.grown_bytes / sockets
        seen(f"messages of 1,000 results on {sockets} connections without Kafka: {each / KiB:.0f} KiB each")
        assert each < 1 * MiB
        await until(lambda: none_open(edge), within_s=60)
    finally:
        kafka.signal(signal.SIGCONT)
        edge.process.kill()
        edge.process.wait()


async def pour(edge: Edge, frames: Iterable[bytes], seconds: float) -> None:
    """Send for so long, as fast as it is taken; read no answer."""
    async with opened(edge) as wire:
        wire.writer.transport.pause_reading()  # type: ignore[attr-defined]
        with contextlib.suppress(TimeoutError, ConnectionError):
            async with asyncio.timeout(seconds):
                for piece in frames:
                    await wire.send(piece)
        wire.writer.transport.abort()  # else closing waits until the edge has read everything
