"""JSON made to be hard to read: refused at little cost, and never with a 500."""

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager

import pytest
from tests.adversity.abuse import Holds, at_the_door, at_the_route, post, sentinel_behind, watched
from tests.adversity.bad_input import UNTYPED, an_event, message
from tests.adversity.test_bad_input import a_socket, say
from tests.integration.edge import Wire

from drm_ingest.settings import Settings

CPU_S = 0.1
STALL_S = 0.1
ATTEMPTS = 4  # the least counts: on a busy machine caches and cores are also those of others
MB = 1_000_000
LINES = {"content-type": "application/x-ndjson"}
ONE = {"content-type": "application/cloudevents+json"}


def holding(data: bytes) -> Callable[[str], bytes]:
    return lambda subject: b"[%b]" % an_event(subject, data, UNTYPED)


def beside(more: bytes) -> Callable[[str], bytes]:
    """Return what makes an event with more attributes."""
    return lambda subject: b"%b,%b" % (an_event(subject, b"0", UNTYPED)[:-1], more[1:])


def thirty(data: bytes) -> Callable[[str], bytes]:
    return lambda subject: b"[%b]" % b",".join([an_event(subject, data, UNTYPED)] * 30)


def keys(count: int, form: bytes = b'"k%d":0') -> bytes:
    return b"{%b}" % b",".join(form % number for number in range(count))


def colliding(count: int) -> bytes:
    """Keys that are one key in a table without a secret: as bytes they add up, and multiply by 31, to the same."""
    return b"{%b}" % b",".join(
        b'"%b":0' % b"".join(b"Aa" if number >> bit & 1 else b"BB" for bit in range(18)) for number in range(count)
    )


# What it is, and its headers; each is refused as a whole or event by event.
HOSTILE: dict[str, tuple[dict[str, str], Callable[[str], bytes]]] = {
    "depth 100,000": ({}, holding(b"[" * 100_000 + b"]" * 100_000)),
    "depth 100,000 on a line": (LINES, lambda s: an_event(s, b"[" * 100_000 + b"]" * 100_000, UNTYPED)),
    "objects 40,000 deep on a line": (LINES, lambda s: an_event(s, b'{"":' * 40_000 + b"0" + b"}" * 40_000, UNTYPED)),
    "depth 8,000,000, without an end": ({}, lambda _: b"[" * 8 * MB),
    "depth 1,600,000 of objects": (ONE, lambda _: b'{"a":' * 1_600_000),
    "a million keys in data": ({}, lambda s: b"[%b]" % an_event(s, keys(MB, b'"%x":0'), UNTYPED)[: 8 * MB]),
    "600,000 keys in data": ({}, lambda s: b"[%b]" % an_event(s, keys(600_000), UNTYPED)),
    "600,000 attributes": (ONE, beside(keys(600_000))),
    "20,000 attributes": (ONE, beside(keys(20_000, b'"K%d":0'))),
    "180,000 keys that collide": ({}, lambda s: b"[%b]" % an_event(s, colliding(180_000), UNTYPED)),
    "5,500 attributes that collide": (ONE, beside(colliding(5_500))),
    "a text of 5 MB": ({}, holding(b'"%b"' % (b"x" * 5 * MB))),
    "a text of 5 MB for an id": ({}, lambda s: b"[%b]" % an_event(s, id_="x" * 5 * MB)),
    "a text of 240 KB for a type": ({}, lambda s: b"[%b]" % an_event(s, type_="x" * 240_000)),
    "a million objects": ({}, lambda _: b"[%b]" % b",".join([b"{}"] * MB)),
    "a million numbers": ({}, lambda _: b"[%b]" % b",".join([b"0"] * MB)),
    "a million arrays": ({}, lambda _: b"[%b]" % b",".join([b"[]"] * MB)),
    "a million lines": (LINES, lambda _: b"{}\n" * MB),
    "eight million empty lines": (LINES, lambda _: b"\n" * 8 * MB),
    "eight million commas": ({}, lambda _: b"[" + b"," * 8 * MB),
    "eight million blanks": ({}, lambda _: b" " * 8 * MB),
    "a number of a million digits": ({}, holding(b"9" * MB)),
    "a number of 250,000 digits": ({}, holding(b"9" * 250_000)),
    "a fraction of 250,000 digits": ({}, holding(b"0." + b"1" * 250_000)),
    "an exponent of 250,000 digits": ({}, holding(b"1e" + b"1" * 250_000)),
    "7 MB of backslashes": ({}, holding(b'"%b"' % (b"\\" * 7 * MB))),
    "an odd number of backslashes": ({}, holding(b'"%b"' % (b"\\" * (7 * MB - 1)))),
    "backslashes before a NUL": ({}, holding(b'"%bu0000"' % (b"\\" * 250_001))),
    "6 MB of lone surrogates": ({}, holding(b'"%b"' % (b"\\ud800" * MB))),
    "a text of quotes without an end": (LINES, lambda s: b"[" * 70 + an_event(s, b'"%b' % (b'\\"' * 120_000))),
}  # fmt: skip


@pytest.mark.row("hostile-json")
@pytest.mark.parametrize("reach", [at_the_door, at_the_route])
async def test_hostile_json_is_refused_within_100_ms_of_cpu(
    holds: Holds,
    subject: str,
    reach: Callable[[str], AbstractAsyncContextManager[Wire]],
    seen: Callable[[str], None],
) -> None:
    where = holds.path.where
    costs: dict[str, float] = {}
    for kind, (headers, make) in HOSTILE.items():
        body = make(subject)
        for _ in range(ATTEMPTS):
            async with reach(where["edge_url"]) as wire:
                with watched(holds.pids["edge"], where["edge_url"], every_s=0.05) as cost:
                    reply = await post(wire, where["sender_key"], body, headers)
            assert reply.status in (400, 413, 422), (kind, reply.status)
            costs[kind] = min(costs.get(kind, cost.cpu_s), cost.cpu_s)
            if cost.cpu_s < CPU_S:
                break
        assert costs[kind] < CPU_S, kind
    async with reach(where["edge_url"]) as wire:
        assert (await post(wire, where["sender_key"], sentinel_behind(UNTYPED.encode(), subject), {})).status == 200
    await holds.check(subject)
    worst = max(costs, key=lambda kind: costs[kind])
    seen(f"{len(costs)} kinds {reach.__name__.replace('_', ' ')}: {1000 * costs[worst]:.0f} ms at most ({worst})")


# Much to read, and not wrong as a whole: it costs what it costs, and holds up nobody.
LONG: dict[str, tuple[dict[str, str], Callable[[str], bytes]]] = {
    "10,000 events 300 deep": (LINES, lambda s: b"\n".join([an_event(s, b"[" * 300 + b"]" * 300, UNTYPED)] * 10_000)),
    "10,000 events of the wrong data": (LINES, lambda s: b"\n".join([an_event(s, b'{"temperature": "x"}')] * 10_000)),
    "7 MB of numbers that are hardly too small": (
        {}, thirty(b"[%b1e-400]" % (b"1e-300," * 33_000))
    ),
    "7 MB of numbers of 22 digits": (
        {}, thirty(b"[%b1e400]" % (b"0.1234567890123456789," * 10_000))
    ),
    "7 MB of lone surrogates": (
        {}, thirty(b'"%b"' % (b"\\ud800" * 38_000))
    ),
}  # fmt: skip


@pytest.mark.row("hostile-json")
@pytest.mark.parametrize("kind", LONG)
async def test_a_long_body_is_judged_while_others_are_served(
    holds: Holds, subject: str, kind: str, seen: Callable[[str], None]
) -> None:
    where, (headers, make) = holds.path.where, LONG[kind]
    body, stalls = make(subject), []
    for _ in range(ATTEMPTS):
        async with at_the_door(where["edge_url"]) as wire:
            with watched(holds.pids["edge"], where["edge_url"]) as cost:
                reply = await post(wire, where["sender_key"], body, headers)
        assert reply.status == 422, reply.body[:500]
        stalls.append(cost.stall_s)
        if cost.stall_s < STALL_S:
            break
    assert min(stalls) < STALL_S
    seen(f"{kind}: {1000 * cost.cpu_s:.0f} ms of CPU, the loop busy for {1000 * min(stalls):.0f} ms at most")
    async with at_the_door(where["edge_url"]) as wire:
        assert (await post(wire, where["sender_key"], sentinel_behind(body, subject), {})).status == 200
    await holds.check(subject)


MESSAGES = [  # as long as a message may be
    b'{"seq": 7, "events": [' + b"[" * 500_000,
    b'{"seq": 7, "events": ["' + b"\\\\" * 250_000,
    b'{"seq": 7, "events": ["' + b"\\n" * 250_000,
    b'{"seq": 7, "events": [' + b"9" * 500_000,
    b'{"seq": 7, "e": 0, ' + keys(45_000)[1:-1],
    b"{" + b'"seq": 7, ' * 50_000,
]
assert 500_000 < max(map(len, MESSAGES)) < Settings.model_fields["websocket_message_bytes_max"].default


@pytest.mark.row("hostile-json")
async def test_a_hostile_message_closes_its_websocket_at_little_cost(holds: Holds, subject: str) -> None:
    where = holds.path.where
    for text in MESSAGES:
        costs: list[float] = []
        while not costs or (min(costs) >= CPU_S and len(costs) < ATTEMPTS):
            async with a_socket(where["edge_url"], where["sender_key"]) as socket:
                with watched(holds.pids["edge"], where["edge_url"], every_s=0.05) as cost:
                    assert await say(socket, text) == {"closed": 1007}
            costs.append(cost.cpu_s)
        assert min(costs) < CPU_S, text[:50]
    async with a_socket(where["edge_url"], where["sender_key"]) as socket:
        assert (await say(socket, message(b"[%b]" % sentinel_behind(b"", subject))))["ack"] == 7
    await holds.check(subject)
