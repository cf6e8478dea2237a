"""What the edge bounds: time, sizes, counts; each with its own answer."""

import asyncio
import gzip
import json
import time
from collections.abc import Callable

import pytest
from tests.integration.edge import Edge, an_event, head, request

SWEEP_S = 1.5  # deadlines are looked at twice a second; the rest is for a busy machine


async def test_slow_headers_are_408(quick_edge: Edge) -> None:
    started = time.monotonic()
    async with quick_edge.connect() as wire:
        await wire.send("POST /v1/events HTTP/1.1\r\nHost: edge\r\nX-Slow: ")
        reply = await wire.reply()
        assert await wire.closed() == b""
    assert (reply.status, reply.code) == (408, "request_timeout")
    assert 1.5 <= time.monotonic() - started < 1.5 + SWEEP_S + 2  # the time to read the answer


@pytest.mark.parametrize("start", ["POST /v1/ev", "GET /metrics HTTP/1.1\r\nHost: "])
async def test_a_request_line_that_never_ends_is_408(quick_edge: Edge, start: str) -> None:
    async with quick_edge.connect() as wire:
        await wire.send(start)
        assert (await wire.reply()).status == 408
        assert await wire.closed() == b""


async def test_headers_in_drops_do_not_extend_their_deadline(quick_edge: Edge) -> None:
    started = time.monotonic()
    async with quick_edge.connect() as wire:
        await wire.send("POST /v1/events HTTP/1.1\r\nHost: edge\r\n")

        async def drip() -> None:
            while True:
                await wire.send("X-A: b\r\n")
                await asyncio.sleep(0.2)

        dripping = asyncio.create_task(drip())
        reply = await wire.reply()
        dripping.cancel()
    assert reply.status == 408
    assert time.monotonic() - started < 1.5 + SWEEP_S


@pytest.mark.parametrize("path", ["/v1/events", "/v1/events?by=the-route"])
async def test_a_slow_body_is_408(quick_edge: Edge, path: str) -> None:
    started = time.monotonic()
    async with quick_edge.connect() as wire:
        await wire.send((head("Content-Length: 100") + "\r\n[").replace("/v1/events", path))
        reply = await wire.reply()
        await wire.closed()
    assert (reply.status, reply.code) == (408, "request_timeout")
    assert time.monotonic() - started < 1.5 + SWEEP_S + 2


async def test_a_connection_that_says_nothing_is_closed(quick_edge: Edge) -> None:
    async with quick_edge.connect() as wire, asyncio.timeout(1.5 + SWEEP_S):
        assert await wire.closed() == b""


async def test_an_idle_connection_outlives_a_request_and_then_is_closed(quick_edge: Edge) -> None:
    async with quick_edge.connect() as wire:
        assert (await wire.post(an_event())).status == 200
        await asyncio.sleep(2)  # longer than the deadline of headers
        assert (await wire.post(an_event())).status == 200
        async with asyncio.timeout(3 + SWEEP_S):
            assert await wire.closed() == b""


async def test_headers_over_the_limit_are_431(edge: Edge) -> None:
    async with edge.connect() as wire:
        await wire.send(head("X-Long: " + "x" * edge.settings.request_header_bytes_max) + "\r\n")
        reply = await wire.reply()
    assert (reply.status, reply.code) == (431, "headers_too_large")
    assert reply.json()["limit"] == edge.settings.request_header_bytes_max


async def test_one_header_without_an_end_is_431(edge: Edge) -> None:
    async with edge.connect() as wire:
        await wire.send(head("X-Long: " + "x" * 20_000))
        assert (await wire.reply()).status == 431


@pytest.mark.parametrize("start", ["GET /metrics", "POST /v1/events?by=the-route"])
async def test_headers_over_the_limit_are_431_on_other_paths_too(edge: Edge, start: str) -> None:
    async with edge.connect() as wire:
        await wire.send(f"{start} HTTP/1.1\r\nHost: edge\r\nX-Long: " + "x" * 20_000)
        assert (await wire.reply()).status == 431


@pytest.mark.parametrize(
    "framing",
    [
        ("Content-Length: 3", "Transfer-Encoding: chunked"),
        ("Transfer-Encoding: chunked", "Content-Length: 3"),
        ("Content-Length: 3", "Content-Length: 4"),
        ("Transfer-Encoding: gzip, chunked",),
        ("Transfer-Encoding: gzip",),
        ("Content-Length: -1",),
        ("Content-Length: 3 4",),
        ("Content-Length: 99999999999999999999999",),
        ("Content-Length : 3",),
        (" Folded: 1",),
    ],
)
async def test_a_body_whose_end_could_be_read_two_ways_is_400_and_closed(edge: Edge, framing: tuple[str, ...]) -> None:
    """Each of them could smuggle a second request past a proxy that reads it the other way."""
    smuggled, sentinel = an_event(), an_event()
    async with edge.connect() as wire:
        await wire.send((head(*framing) + "\r\n0\r\n\r\n").encode() + request(smuggled))
        reply = await wire.reply()
        assert (reply.status, reply.code) == (400, "malformed_request")
        assert reply.headers["connection"] == "close"
        assert await wire.closed() == b""
    assert (await edge.post(sentinel)).status_code == 200
    assert await edge.stored(smuggled["subject"], sentinel["subject"]) == [sentinel["subject"]]


@pytest.mark.parametrize("nonsense", [b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", b"hello\r\n\r\n", b"\x00" * 40])
async def test_what_is_not_http_is_400(edge: Edge, nonsense: bytes) -> None:
    async with edge.connect() as wire:
        await wire.send(nonsense)
        reply = await wire.reply()
        assert await wire.closed() == b""
    assert (reply.status, reply.code) == (400, "malformed_request")


async def test_a_missing_host_is_400(edge: Edge) -> None:
    async with edge.connect() as wire:
        await wire.send(request(an_event()).replace(b"Host: edge\r\n", b""))
        assert (await wire.reply()).code == "malformed_request"


async def test_chunks_without_content_are_cut_off(edge: Edge) -> None:
    async with edge.connect() as wire:
        await wire.send(head("Transfer-Encoding: chunked") + "\r\n1;ext=" + "x" * 400_000)
        assert (await wire.reply()).status == 400


async def test_a_refused_body_is_read_over_only_so_far(start_edge: Callable[..., Edge]) -> None:
    edge = start_edge(refused_body_discard_bytes_max=1_000_000)
    async with edge.connect() as wire:
        await wire.send(head("Content-Length: 5000000000") + "\r\n")
        assert (await wire.reply()).status == 413
        with pytest.raises(ConnectionError):
            await wire.send(b"x" * 100_000_000)


async def test_one_connection_too_many_is_503(start_edge: Callable[..., Edge]) -> None:
    edge = start_edge(connections_max=3)
    async with edge.connect() as first, edge.connect() as second, edge.connect() as third:
        assert (await first.post(an_event())).status == 200
        assert (await second.post(an_event())).status == 200
        assert (await third.post(an_event())).status == 200
        async with edge.connect() as fourth:
            reply = await fourth.post(an_event())
            assert (reply.status, reply.code, reply.headers["connection"]) == (503, "overloaded", "close")
            assert int(reply.headers["retry-after"]) >= 1
        assert (await first.post(an_event())).status == 200
    async with asyncio.timeout(5), edge.connect() as next_one:
        assert (await next_one.post(an_event())).status == 200


@pytest.mark.parametrize("path", ["/v1/events", "/v1/events?by=the-route"])
async def test_bodies_beyond_what_may_be_in_memory_are_503(start_edge: Callable[..., Edge], path: str) -> None:
    edge = start_edge(request_in_flight_bytes_max=150_000)
    big = (head("Content-Length: 100000") + "\r\n" + "[" + " " * 80_000).replace("/v1/events", path)
    async with edge.connect() as first, edge.connect() as second:
        await first.send(big)
        async with asyncio.timeout(5):
            while (await edge.metrics())["drm_request_in_flight_bytes"] < 80_000:
                pass
        await second.send(big)
        reply = await second.reply()
        assert (reply.status, reply.code) == (503, "overloaded")
        assert "retry-after" in reply.headers
        await first.send(" " * 19_998 + "]")
        assert (await first.reply()).status in (200, 400, 422)
    assert (await edge.metrics())["drm_request_in_flight_bytes"] == 0


async def test_a_sender_that_does_not_read_its_answers_is_not_read_from_and_cut(quick_edge: Edge) -> None:
    """Its answers would pile up in memory."""
    async with quick_edge.connect() as wire:
        wire.reader._transport.pause_reading()  # type: ignore[attr-defined]
        sending = asyncio.create_task(wire.send(request(b"{") * 400_000))
        done, _ = await asyncio.wait([sending], timeout=2)
        assert not done
        async with asyncio.timeout(3 + SWEEP_S):
            with pytest.raises(ConnectionError):
                await sending
    assert (await quick_edge.post(an_event())).status_code == 200


async def test_events_beyond_what_the_writer_may_hold_are_503(start_edge: Callable[..., Edge]) -> None:
    edge = start_edge(writer_buffered_bytes_max=3_000, event_bytes_max=2_000, writer_batch_bytes_max=2_500)
    answer = await edge.post([an_event() for _ in range(100)])
    assert (answer.status_code, answer.json()["code"]) == (503, "overloaded")
    assert answer.headers["retry-after"]
    received, accounted = await edge.ledger()
    assert received == accounted == 100
    assert (await edge.metrics())['drm_events_total{outcome="unknown"}'] == 100


async def test_cross_origin_posts_are_allowed_where_the_setting_names_the_origin(
    start_edge: Callable[..., Edge],
) -> None:
    edge = start_edge(edge_cors_origins="https://app.example")
    allowed = await edge.post(an_event(), origin="https://app.example")
    other = await edge.post(an_event(), origin="https://evil.example")
    assert allowed.headers["access-control-allow-origin"] == "https://app.example"
    assert "access-control-allow-origin" not in other.headers
    async with edge.connect() as wire:
        await wire.send(
            "OPTIONS /v1/events HTTP/1.1\r\nHost: edge\r\nOrigin: https://app.example\r\n"
            "Access-Control-Request-Method: POST\r\nAccess-Control-Request-Headers: authorization\r\n\r\n"
        )
        reply = await wire.reply()
    assert (reply.status, reply.headers["access-control-allow-origin"]) == (200, "https://app.example")
    assert "POST" in reply.headers["access-control-allow-methods"]
    assert "authorization" in reply.headers["access-control-allow-headers"]


async def test_no_origin_is_allowed_unless_named(edge: Edge) -> None:
    answer = await edge.post(an_event(), origin="https://app.example")
    assert "access-control-allow-origin" not in answer.headers


async def test_long_bodies_that_wait_too_long_for_their_turn_are_told_to_come_again(
    start_edge: Callable[..., Edge],
) -> None:
    edge = start_edge(produce_deadline_s=0.5, produce_request_timeout_s=0.5)
    late = an_event()
    long = gzip.compress(json.dumps([late]).encode() + b" " * 30_000_000, 1)
    answers = await asyncio.gather(*(edge.post(long, content_encoding="gzip") for _ in range(60)))
    refused = [answer.json() for answer in answers if answer.status_code != 200]
    assert 0 < len(refused) < len(answers)
    assert {(refusal["status"], refusal["code"]) for refusal in refused} == {(503, "overloaded")}
    assert (await edge.post(an_event())).status_code == 200
    received, accounted = await edge.ledger()
    assert received == accounted == len(answers) - len(refused) + 1
