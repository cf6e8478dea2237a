"""Where a request ends must not be a matter of opinion: what could be read in two ways is refused and its connection
closed, at the door and behind it, and nothing that was smuggled into it is stored.
"""

import asyncio
import contextlib
import json
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager

import pytest
from tests.adversity.abuse import Holds, at_the_door, at_the_route, post, sentinel_behind, watched
from tests.adversity.bad_input import an_event
from tests.integration.edge import Wire

MiB = 1024 * 1024
BOTH = pytest.mark.parametrize("reach", [at_the_door, at_the_route])
Reach = Callable[[str], AbstractAsyncContextManager[Wire]]


def begin(key: str, *lines: str, path: str = "/v1/events", version: str = "HTTP/1.1") -> bytes:
    """Return a head, with everything in it that these lines do not say."""
    head = [f"POST {path} {version}", "Host: edge", f"Authorization: Bearer {key}", "Content-Type: application/json"]
    return "".join(f"{line}\r\n" for line in [*head, *lines]).encode("latin-1") + b"\r\n"


def smuggled(key: str, subject: str) -> bytes:
    """Return a request that would be taken, were it one."""
    event = an_event(subject)
    return begin(key, f"Content-Length: {len(event)}") + event


async def refused(wire: Wire, what: str, status: int = 400) -> None:
    """Expect one refusal, and then nothing more."""
    async with asyncio.timeout(30):
        reply = await wire.reply()
        assert (reply.status, reply.headers.get("connection")) == (status, "close"), what
        assert await wire.closed() == b"", what


async def nothing_was_stored(holds: Holds, subject: str) -> None:
    where = holds.path.where
    async with at_the_door(where["edge_url"]) as wire:
        assert (await post(wire, where["sender_key"], sentinel_behind(b"", subject), {})).status == 200
    await holds.check(subject)


# -- headers that say two things, or something else to another reader

CHUNKED = "Transfer-Encoding: chunked"
AMBIGUOUS = {
    "both lengths": ("Content-Length: 5", CHUNKED),
    "both lengths, the other way round": (CHUNKED, "Content-Length: 5"),
    "both lengths, and the first is 0": ("Content-Length: 0", CHUNKED),
    "two lengths": ("Content-Length: 5", "Content-Length: 6"),
    "two lengths that agree": ("Content-Length: 5", "Content-Length: 5"),
    "a list of lengths": ("Content-Length: 5, 5",),
    "a list of two lengths": ("Content-Length: 5,6",),
    "a negative length": ("Content-Length: -5",),
    "a length with a sign": ("Content-Length: +5",),
    "a length in hexadecimal": ("Content-Length: 0x5",),
    "a length with a fraction": ("Content-Length: 5.0",),
    "a length of two numbers": ("Content-Length: 5 6",),
    "an empty length": ("Content-Length:",),
    "a length beyond 64 bits": ("Content-Length: 18446744073709551621",),
    "a blank before the colon of a length": ("Content-Length : 5",),
    "a blank before the colon of the encoding": ("Transfer-Encoding : chunked",),
    "a tab before the colon": ("Transfer-Encoding\t: chunked",),
    "an encoding that ends with another": ("Transfer-Encoding: chunked, identity",),
    "an encoding before": ("Transfer-Encoding: gzip, chunked",),
    "another encoding": ("Transfer-Encoding: identity",),
    "an encoding nobody knows": ("Transfer-Encoding: xchunked",),
    "an encoding that begins so": ("Transfer-Encoding: chunkedx",),
    "chunked twice": ("Transfer-Encoding: chunked, chunked",),
    "chunked in two lines": (CHUNKED, CHUNKED),
    "another encoding in a second line": (CHUNKED, "Transfer-Encoding: identity"),
    "another encoding in a first line": ("Transfer-Encoding: identity", CHUNKED),
    "an encoding in quotes": ('Transfer-Encoding: "chunked"',),
    "an encoding after a vertical tab": ("Transfer-Encoding: \x0bchunked",),
    "an encoding with a NUL": ("Transfer-Encoding: chunked\0",),
    "an encoding on a folded line": ("Transfer-Encoding:\r\n chunked",),
    "a folded header": ("X-Folded: one\r\n two", CHUNKED),
    "a header that begins with a blank": (" " + CHUNKED,),
    "a header without a name": (": nothing", CHUNKED),
    "a header without a colon": ("nothing", CHUNKED),
    "a bare line feed in a header": ("X-A: one\nX-B: two", CHUNKED),
    "a bare carriage return in a header": ("X-A: one\rTransfer-Encoding: chunked",),
    "a NUL in a header": ("X-A: \0", CHUNKED),
    "two hosts": ("Host: another", CHUNKED),
    "two keys": ("Authorization: Bearer another", CHUNKED),
    "two content types": ("Content-Type: text/plain", CHUNKED),
}


@BOTH
@pytest.mark.row("framing")
async def test_a_head_that_could_be_read_in_two_ways_is_refused_and_nothing_is_smuggled(
    holds: Holds, subject: str, reach: Reach, seen: Callable[[str], None]
) -> None:
    where = holds.path.where
    key = where["sender_key"]
    for kind, lines in AMBIGUOUS.items():
        async with reach(where["edge_url"]) as wire:
            await wire.send(begin(key, *lines) + b"0\r\n\r\n" + smuggled(key, f"{subject}-{kind}"))
            await refused(wire, kind)
    await nothing_was_stored(holds, subject)
    seen(f"{len(AMBIGUOUS)} ambiguous heads refused {reach.__name__.replace('_', ' ')}")


CHUNKS = {
    "a size in words": b"0x2\r\n[]\r\n0\r\n\r\n",
    "a negative size": b"-2\r\n[]\r\n0\r\n\r\n",
    "a size with a sign": b"+2\r\n[]\r\n0\r\n\r\n",
    "no size": b"\r\n[]\r\n0\r\n\r\n",
    "a size beyond 64 bits": b"10000000000000002\r\n[]\r\n0\r\n\r\n",
    "a blank before a size": b" 2\r\n[]\r\n0\r\n\r\n",
    "more than the size": b"2\r\n[]x\r\n0\r\n\r\n",
    "less than the size": b"3\r\n[]\r\n0\r\n\r\n",
    "a bare line feed after a size": b"2\n[]\r\n0\r\n\r\n",
    "a bare line feed after a chunk": b"2\r\n[]\n0\r\n\r\n",
    "a bare line feed in an extension": b"2;a=\n\r\n[]\r\n0\r\n\r\n",
    "a bare line feed at the end": b"2\r\n[]\r\n0\n\n",
    "a folded trailer": b"2\r\n[]\r\n0\r\nX-A: one\r\n two\r\n\r\n",
    "a trailer without a colon": b"2\r\n[]\r\n0\r\nnothing\r\n\r\n",
    "endless extensions": b"2;" + b"a=b;" * 100_000,
    "endless trailers": b"2\r\n[]\r\n0\r\n" + b"X-A: b\r\n" * 50_000,
}


@BOTH
@pytest.mark.row("framing")
async def test_a_chunk_that_could_be_read_in_two_ways_is_refused_and_nothing_is_smuggled(
    holds: Holds, subject: str, reach: Reach
) -> None:
    where = holds.path.where
    key = where["sender_key"]
    for kind, chunks in CHUNKS.items():
        async with reach(where["edge_url"]) as wire:
            said = begin(key, CHUNKED) + chunks + smuggled(key, f"{subject}-{kind}")
            sending = asyncio.create_task(wire.send(said))
            await refused(wire, kind)
            with contextlib.suppress(ConnectionError):
                await sending
    await nothing_was_stored(holds, subject)


# -- what is a body is never a request


@BOTH
@pytest.mark.row("framing")
async def test_a_request_within_a_body_is_not_one(holds: Holds, subject: str, reach: Reach) -> None:
    where = holds.path.where
    key = where["sender_key"]
    body = b"\r\n\r\n" + smuggled(key, subject)
    chunks = b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body)
    for offer in ((), ("Connection: Upgrade", "Upgrade: h2c"), ("Connection: Upgrade", "Upgrade: websocket")):
        for framing, framed in ((CHUNKED, chunks), (f"Content-Length: {len(body)}", body)):
            async with reach(where["edge_url"]) as wire:
                await wire.send(begin(key, *offer, framing) + framed)
                assert 400 <= (await wire.reply()).status < 500, (offer, framing)
                wire.writer.write_eof()
                assert b"HTTP/1.1 200" not in await wire.closed(), (offer, framing)
    await nothing_was_stored(holds, subject)


@pytest.mark.row("framing")
async def test_both_parsers_agree_on_where_requests_end_when_a_connection_goes_from_one_to_the_other(
    holds: Holds, subject: str
) -> None:
    """And wherever the network cuts them."""
    where = holds.path.where
    key = where["sender_key"]
    hidden = b"\r\n\r\n" + smuggled(key, subject)
    chunk = b"%x;a=b\r\n%b\r\n0\r\nX-Trailer: 1\r\n\r\n" % (len(hidden), hidden)
    whole = b"".join(
        [
            begin(key, f"Content-Length: {len(hidden)}") + hidden,
            begin(key, CHUNKED) + chunk,
            b"GET /health/live HTTP/1.1\r\nHost: edge\r\n\r\n",
            begin(key, f"Content-Length: {len(hidden)}", path="/v1/events?by=the-route") + hidden,
            begin(key, CHUNKED) + chunk,
            begin(key, f"Content-Length: {len(hidden)}", path="/v1/nothing") + hidden,
            begin(key, "Content-Length: 2") + b"[]",
        ]
    )
    for size in (len(whole), 1000, 7, 1):
        async with at_the_door(where["edge_url"]) as wire:
            sending = asyncio.create_task(in_pieces(wire, whole, size))
            async with asyncio.timeout(60):
                assert [(await wire.reply()).status for _ in range(7)] == [400, 400, 200, 400, 400, 404, 200]
            await sending
    await nothing_was_stored(holds, subject)


async def in_pieces(wire: Wire, data: bytes, size: int) -> None:
    for at in range(0, len(data), size):
        await wire.send(data[at : at + size])


@BOTH
@pytest.mark.row("framing")
async def test_a_trailer_is_no_header(holds: Holds, subject: str, reach: Reach) -> None:
    where = holds.path.where
    event = an_event(subject)
    head = begin("x", CHUNKED).replace(b"Authorization: Bearer x\r\n", b"")
    trailer = b"Authorization: Bearer %b\r\n" % where["sender_key"].encode()
    async with reach(where["edge_url"]) as wire:
        await wire.send(head + b"%x\r\n%b\r\n0\r\n%b\r\n" % (len(event), event, trailer))
        assert (await wire.reply()).status == 401
    await nothing_was_stored(holds, subject)


@BOTH
@pytest.mark.row("framing")
async def test_after_an_upgrade_that_is_not_taken_no_request_is_lost_in_silence(holds: Holds, reach: Reach) -> None:
    offer = b"GET /health/live HTTP/1.1\r\nHost: edge\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n\r\n"
    async with reach(holds.path.where["edge_url"]) as wire:
        await wire.send(offer * 2)
        reply = await wire.reply()
        assert (reply.status, reply.headers["connection"]) == (200, "close")
        async with asyncio.timeout(30):
            assert await wire.closed() == b""


# -- lengths that lie


@BOTH
@pytest.mark.row("framing")
async def test_a_body_shorter_than_it_says_is_not_taken(holds: Holds, subject: str, reach: Reach) -> None:
    where = holds.path.where
    event = an_event(subject)
    for lines, body in (
        ((f"Content-Length: {len(event) + 1}",), event),
        ((CHUNKED,), b"%x\r\n%b\r\n" % (len(event), event)),
        ((CHUNKED,), b"%x\r\n%b\r\n0\r\n" % (len(event), event)),
    ):
        async with reach(where["edge_url"]) as wire:
            await wire.send(begin(where["sender_key"], *lines) + body)
            wire.writer.write_eof()
            async with asyncio.timeout(30):
                assert b"HTTP/1.1 200" not in await wire.closed()
    await nothing_was_stored(holds, subject)


@BOTH
@pytest.mark.row("framing")
async def test_what_follows_a_body_longer_than_it_says_is_refused(holds: Holds, subject: str, reach: Reach) -> None:
    where = holds.path.where
    event = an_event(subject)
    async with reach(where["edge_url"]) as wire:
        await wire.send(begin(where["sender_key"], f"Content-Length: {len(event) - 1}") + event + b" and more\r\n\r\n")
        assert (await wire.reply()).status == 400  # cut short, it is no JSON
        async with asyncio.timeout(30):
            rest = await wire.closed()  # behind the door the first answer is the last
        assert rest.startswith(b"HTTP/1.1 400 ") or not rest
    await nothing_was_stored(holds, subject)


# -- much of it


@BOTH
@pytest.mark.row("framing")
async def test_headers_of_64_kb_are_431(holds: Holds, reach: Reach) -> None:
    where = holds.path.where
    long = "X-Long: " + "x" * 65_536 + "\r\n"
    for lines in (
        long,
        long + "\r\n",
        "X-A: b\r\n" * 8192,
        "X-A: b\r\n" * 8192 + "\r\n",
        "a:\r\n" * 16_384,
        "x" * 65_536,
    ):
        async with reach(where["edge_url"]) as wire:
            await wire.send(begin(where["sender_key"])[:-2] + lines.encode())
            await refused(wire, lines[:10], 431)


@BOTH
@pytest.mark.row("framing")
async def test_chunks_without_an_end_are_413_and_held_no_further_than_the_limit(
    holds: Holds, subject: str, reach: Reach
) -> None:
    where = holds.path.where

    async def endlessly(wire: Wire) -> None:
        with contextlib.suppress(ConnectionError):
            while True:
                await wire.send(b"10000\r\n" + b" " * 65_536 + b"\r\n")

    with watched(holds.pids["edge"], where["edge_url"]) as cost:
        async with reach(where["edge_url"]) as wire:
            await wire.send(begin(where["sender_key"], CHUNKED))
            sending = asyncio.create_task(endlessly(wire))
            async with asyncio.timeout(30):
                assert (await wire.reply()).status == 413
                await sending  # until it is cut
    assert cost.grown_bytes < 32 * MiB
    await nothing_was_stored(holds, subject)


@BOTH
@pytest.mark.row("framing")
async def test_a_body_in_chunks_of_one_byte_is_read(holds: Holds, subject: str, reach: Reach) -> None:
    where = holds.path.where
    body = sentinel_behind(b"", subject) + b" " * 50_000
    async with reach(where["edge_url"]) as wire:
        await wire.send(
            begin(where["sender_key"], CHUNKED) + b"".join(b"1\r\n%c\r\n" % byte for byte in body) + b"0\r\n\r\n"
        )
        assert (await wire.reply()).status == 200
    await holds.check(subject)


@BOTH
@pytest.mark.row("framing")
async def test_pipelining_beyond_the_limit_waits_in_the_network(
    holds: Holds, subject: str, reach: Reach, seen: Callable[[str], None]
) -> None:
    """Answers come in order, and what is not yet looked at is not read."""
    where, count = holds.path.where, 3000
    event = an_event(subject, id_="sentinel")
    one = begin(where["sender_key"], f"Content-Length: {len(event)}") + event
    with watched(holds.pids["edge"], where["edge_url"]) as cost:
        async with reach(where["edge_url"]) as wire:
            sending = asyncio.create_task(wire.send(one * count))
            async with asyncio.timeout(120):
                assert {(await wire.reply()).status for _ in range(count)} == {200}
            await sending
    assert cost.grown_bytes < 16 * MiB
    seen(f"{count} requests pipelined {reach.__name__.replace('_', ' ')}: memory +{cost.grown_bytes / MiB:.1f} MiB")
    await holds.check(subject)


# -- RFC 9110 and 9112


async def ask(wire: Wire, method: str, target: str = "/v1/events", *lines: str) -> tuple[int, dict[str, str], bytes]:
    head = "".join(f"{line}\r\n" for line in (f"{method} {target} HTTP/1.1", *(lines or ("Host: edge",))))
    await wire.send(head + "\r\n")
    async with asyncio.timeout(30):
        answer = (await wire.reader.readuntil(b"\r\n\r\n")).decode()
        status, *rest = answer.strip().split("\r\n")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in rest)}
        body = b"" if method == "HEAD" else await wire.reader.readexactly(int(headers["content-length"]))
    return int(status.split()[1]), headers, body


@BOTH
@pytest.mark.row("framing")
@pytest.mark.parametrize("method", ["GET", "HEAD", "OPTIONS", "PUT", "PATCH", "DELETE", "TRACE", "PROPFIND"])
async def test_another_method_is_405_and_names_the_one_there_is(holds: Holds, method: str, reach: Reach) -> None:
    async with reach(holds.path.where["edge_url"]) as wire:
        for _ in range(2):  # the connection goes on, so the answer to HEAD had no body
            status, headers, body = await ask(wire, method)
            assert (status, headers["allow"]) == (405, "POST")
            assert method == "HEAD" or json.loads(body)["code"] == "method_not_allowed"


@BOTH
@pytest.mark.row("framing")
@pytest.mark.parametrize("method", ["BREW", "post", "POST\t", "PO ST", "GET\0", "CONNECT"])
async def test_a_method_nobody_knows_is_refused(holds: Holds, method: str, reach: Reach) -> None:
    async with reach(holds.path.where["edge_url"]) as wire:
        status, headers, _ = await ask(wire, method)
        assert 400 <= status < 500
        assert headers.get("connection") == "close"
        assert await wire.closed() == b""


@BOTH
@pytest.mark.row("framing")
async def test_a_target_in_absolute_form_is_understood(holds: Holds, subject: str, reach: Reach) -> None:
    """As RFC 9112, 3.2.2 demands."""
    where, event = holds.path.where, sentinel_behind(b"", subject)
    async with reach(where["edge_url"]) as wire:
        lines = f"Content-Length: {len(event)}"
        await wire.send(begin(where["sender_key"], lines, path=where["edge_url"] + "/v1/events") + event)
        assert (await wire.reply()).status == 200
    await holds.check(subject)


@BOTH
@pytest.mark.row("framing")
@pytest.mark.parametrize("lines", [("X-No-Host: 1",), ("Host: edge", "Host: edge"), ("Host: a", "Host: b")])
async def test_a_request_has_one_host(holds: Holds, reach: Reach, lines: tuple[str, ...]) -> None:
    """As RFC 9112, 3.2 demands; of another target than events too."""
    async with reach(holds.path.where["edge_url"]) as wire:
        status, _, _ = await ask(wire, "GET", "/health/live", *lines)
        assert status == 400
        assert await wire.closed() == b""


@BOTH
@pytest.mark.row("framing")
async def test_a_sender_that_expects_100_continue_is_told_so_before_it_sends(
    holds: Holds, subject: str, reach: Reach
) -> None:
    where, event = holds.path.where, sentinel_behind(b"", subject)
    async with reach(where["edge_url"]) as wire:
        await wire.send(begin(where["sender_key"], "Expect: 100-continue", f"Content-Length: {len(event)}"))
        assert (await wire.reply()).status == 100
        await wire.send(event)
        assert (await wire.reply()).status == 200
    await holds.check(subject)
