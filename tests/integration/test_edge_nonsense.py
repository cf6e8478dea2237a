"""Whatever senders do, nothing breaks: random requests, right and wrong, cut anywhere, dropped at any time."""

import asyncio
import contextlib
import json
import os
from collections.abc import Callable
from random import Random

from tests.integration.edge import Edge, an_event, head, request, until

CONNECTIONS = 400
AT_ONCE = 20


def nonsense(random: Random) -> bytes:
    """Return one thing that a sender might say."""
    event = json.dumps(an_event()).encode()
    cut = random.randrange(1, len(event))
    chunks = b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in (event[:cut], event[cut:]))
    upgrade = "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: " + "x" * 24
    one = request(event)
    return random.choice(
        [
            one,
            one,
            request([an_event(), an_event(data=7)]),
            head("Transfer-Encoding: chunked").encode() + b"\r\n" + chunks + b"0\r\n\r\n",
            request(b"{"),
            request(event, key="wrong"),
            request(event, "Connection: close"),
            request(event, "Expect: 100-continue"),
            request(event, "Connection: Upgrade", "Upgrade: h2c"),
            one.replace(b"/v1/events", b"/v1/events?by=the-route"),
            one.replace(b"HTTP/1.1", b"HTTP/1.0"),
            one[: random.randrange(1, len(one))],
            head("Content-Length: 60000000").encode() + b"\r\n" + b"x" * random.randrange(50_000),
            b"GET /metrics HTTP/1.1\r\nHost: edge\r\n\r\n",
            b"OPTIONS * HTTP/1.1\r\nHost: edge\r\n\r\n",
            f"GET /v1/events HTTP/1.1\r\nHost: edge\r\n{upgrade}\r\n\r\n".encode() + random.randbytes(20),
            random.randbytes(random.randrange(1, 200)),
        ]
    )


async def pester(edge: Edge, random: Random) -> None:
    """Open a connection, say things, read or not, end one way or another."""
    said = b"".join(nonsense(random) for _ in range(random.randrange(1, 8)))
    with contextlib.suppress(OSError):
        async with edge.connect() as wire:
            reading = asyncio.create_task(wire.closed()) if random.random() < 0.8 else None
            at = 0
            while at < len(said) and random.random() > 0.02:
                size = random.choice([50, 500, 100_000])
                await wire.send(said[at : at + size])
                at += size
            ending = random.random()
            if ending < 0.3:
                wire.writer.transport.abort()
            elif ending < 0.6:
                wire.writer.write_eof()
            await asyncio.sleep(random.random() * 0.1)
            if reading is not None:
                reading.cancel()


async def test_the_ledger_holds_and_no_error_is_logged_whatever_senders_do(start_edge: Callable[..., Edge]) -> None:
    seed = int.from_bytes(os.urandom(3))
    print(f"seed {seed}")
    random = Random(seed)
    edge = start_edge(refused_body_discard_timeout_s=1, request_header_timeout_s=1, request_body_timeout_s=1)
    for _ in range(CONNECTIONS // AT_ONCE):
        await asyncio.gather(*(pester(edge, random) for _ in range(AT_ONCE)))
        received, accounted = await edge.ledger()
        assert received == accounted > 0

    async def quiet() -> bool:
        samples = await edge.metrics()
        held = samples["drm_events_in_flight"] + samples["drm_request_in_flight_bytes"]
        connections = sum(value for name, value in samples.items() if name.startswith("drm_connections"))
        return held == 0 and connections == 1  # the one that asks

    await until(quiet)
    assert (await edge.post(an_event())).status_code == 200
    assert edge.stop() == 0
    lines = [json.loads(line) for line in edge.log.read_text().splitlines()]
    assert [line for line in lines if line["level"] not in ("debug", "info")] == []
