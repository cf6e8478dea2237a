"""Quotas at a real edge: set at a sender, answered 429 beyond, over HTTP and WebSocket, and over all workers."""

import asyncio
import contextlib
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import asyncpg
import pytest
from tests.integration.edge import KEY, Edge, an_event, request, until
from tests.integration.sockets import a_socket, tell, told

from drm_ingest.edge.replies import INSISTENT_PAUSE_S
from drm_ingest.postgres.credentials import ensure_key
from drm_ingest.up.ports import free_port


async def set_quota(edge: Edge, sender: str = "tests", key: str = KEY, **quota: float) -> None:
    """Give a sender these quotas, and wait until the edge knows them; `burst_s` is 1 if not given."""
    connection = await asyncpg.connect(edge.settings.postgres_dsn.get_secret_value())
    try:
        await ensure_key(connection, sender, "sender", key)
        columns = {"burst_s": 1} | quota
        changes = ", ".join(f"{name} = {value}" for name, value in columns.items())
        await connection.execute(f"update sender set {changes} where name = $1", sender)
    finally:
        await connection.close()
    await asyncio.sleep(3 * edge.settings.credential_refresh_s)  # every worker has read it


async def spend_all(edge: Edge, key: str = KEY, **attributes: Any) -> dict[str, Any]:
    """Send until a quota is used up; return the refusal with its headers."""
    while True:
        response = await edge.post([an_event(**attributes) for _ in range(20)], key=key)
        if response.status_code == 429:
            return {"headers": response.headers, **response.json()}
        assert response.status_code == 200


async def test_a_sender_beyond_its_quota_is_told_which_and_when_and_nothing_is_stored(
    start_edge: Callable[..., Edge],
) -> None:
    edge = start_edge()
    await set_quota(edge, events_per_s=10)
    refusal = await spend_all(edge)
    assert (refusal["code"], refusal["limit"], refusal["quota"]) == ("rate_limited", 10, "sender-events")
    headers = refusal["headers"]
    wait_s = int(headers["retry-after"])
    assert 1 <= wait_s <= 3
    assert headers["ratelimit-policy"] == '"sender-events";q=10;w=1'
    assert headers["ratelimit"] == f'"sender-events";r=0;t={wait_s}'
    refused, sentinel = an_event(), an_event()
    assert (await edge.post(refused)).status_code == 429
    await asyncio.sleep(wait_s + 0.1)
    assert (await edge.post(sentinel)).status_code == 200
    assert await edge.stored(refused["subject"], sentinel["subject"]) == [sentinel["subject"]]
    received, accounted = await edge.ledger()
    assert received == accounted


async def counted_codes(edge: Edge) -> dict[str, float]:
    return {name: value for name, value in (await edge.metrics()).items() if name.startswith("drm_event_codes_total")}


async def test_codes_are_counted_with_the_events_they_are_about(start_edge: Callable[..., Edge]) -> None:
    edge = start_edge()
    await edge.post([an_event(type="acme.unknown"), an_event(type=None), an_event(type=None)])
    counted = {name: value for name, value in (await counted_codes(edge)).items() if value}
    assert counted == {
        'drm_event_codes_total{code="unclassified_type"}': 1,
        'drm_event_codes_total{code="attribute_missing"}': 2,
    }


async def test_a_device_beyond_its_quota_stops_no_other_device_of_its_sender(start_edge: Callable[..., Edge]) -> None:
    edge = start_edge()
    await set_quota(edge, device_events_per_s=1, device_bytes_per_s=100_000)
    refusal = await spend_all(edge, subject="noisy")
    assert (refusal["quota"], refusal["subject"]) == ("device-events", "noisy")
    assert (await edge.post(an_event(subject="noisy", type="acme.unknown"))).status_code == 429
    assert not any((await counted_codes(edge)).values())  # so it was no event of an unknown type either
    assert (await edge.post(an_event())).status_code == 200
    large = an_event(type="acme.large", data="x" * 250_000)
    assert (await edge.post(large)).status_code == 200
    refusal = (await edge.post(an_event(subject=large["subject"]))).json()
    assert (refusal["quota"], refusal["limit"]) == ("device-bytes", 100_000)


@pytest.mark.parametrize("in_two_parts", [False, True])
async def test_whoever_sends_on_after_a_429_waits_for_each_further_one(
    start_edge: Callable[..., Edge], in_two_parts: bool
) -> None:
    edge = start_edge()
    await set_quota(edge, events_per_s=0.01)
    await spend_all(edge)
    sent = request(an_event())
    async with edge.connect() as wire:
        started = time.monotonic()
        for parts in (1, 2, 3, 4):
            await wire.send(sent[: -10 if in_two_parts else None])
            await asyncio.sleep(0.01)
            await wire.send(sent[-10:] if in_two_parts else b"")
            assert (await wire.reply()).status == 429
            took = time.monotonic() - started
            assert took >= (parts - 1) * INSISTENT_PAUSE_S
        await wire.send(sent * 4)
        pipelined = time.monotonic()
        assert {(await wire.reply()).status for _ in range(4)} == {429}
        assert time.monotonic() - pipelined >= 4 * (INSISTENT_PAUSE_S - 0.001)  # uvloop's timers may be that early


async def test_whoever_has_spent_all_is_refused_whatever_the_body_holds(start_edge: Callable[..., Edge]) -> None:
    edge = start_edge()
    await set_quota(edge, events_per_s=0.01)
    await spend_all(edge)
    async with edge.connect() as wire:
        await wire.send(request(b"x" * 10_000))  # so long that the quota is asked first
        assert (await wire.reply()).status == 429
        await wire.send(request(b"x"))  # and so it is for whoever was refused just now
        assert (await wire.reply()).status == 429


async def test_a_quota_that_is_taken_away_limits_no_more(start_edge: Callable[..., Edge]) -> None:
    edge = start_edge()
    await set_quota(edge, events_per_s=0.01)
    await spend_all(edge)
    connection = await asyncpg.connect(edge.settings.postgres_dsn.get_secret_value())
    await connection.execute("update sender set events_per_s = null")
    await connection.close()
    await until(lambda: accepted(edge))


async def accepted(edge: Edge) -> bool:
    return (await edge.post(an_event())).status_code == 200


async def test_a_compressed_body_and_a_long_one_count_what_they_hold(start_edge: Callable[..., Edge]) -> None:
    edge = start_edge()
    await set_quota(edge, events_per_s=1000)
    assert (await edge.post([an_event() for _ in range(6000)])).status_code == 200
    refusal = await edge.post(an_event())
    assert (refusal.status_code, refusal.json()["limit"]) == (429, 1000)
    assert int(refusal.headers["retry-after"]) >= 2


async def test_over_a_websocket_a_message_beyond_the_quota_is_to_be_sent_again_later(
    start_edge: Callable[..., Edge],
) -> None:
    edge = start_edge()
    await set_quota(edge, events_per_s=10)
    async with a_socket(edge) as socket:
        assert "window" in await told(socket)
        for seq, events in ((1, 25), (2, 1)):
            await tell(socket, {"seq": seq, "events": [an_event() for _ in range(events)]})
        answers = {next(iter(answer)): answer for answer in [await told(socket), await told(socket)]}
        assert answers["ack"]["ack"] == 1
        retry = answers["retry"]
        assert (retry["retry"], retry["code"], retry["quota"]) == (2, "rate_limited", "sender-events")
        assert 1000 <= retry["after_ms"] <= 3000
        await asyncio.sleep(retry["after_ms"] / 1000)
        await tell(socket, {"seq": 2, "events": [an_event()]})
        assert (await told(socket))["ack"] == 2


RATE, SECONDS = 50, 4


async def test_two_workers_hold_one_quota_together_and_one_connection_gets_all_of_it(
    start_edge: Callable[..., Edge],
) -> None:
    edge = start_edge(workers=2)
    await set_quota(edge, events_per_s=RATE, device_events_per_s=RATE)
    for connections in (1, 12):  # on one worker, whichever; on both
        await asyncio.sleep(2)  # full again
        answers: Counter[int] = Counter()
        started = time.monotonic()
        await asyncio.gather(*(insist(edge, started + SECONDS, answers) for _ in range(connections)))
        took = time.monotonic() - started
        burst = RATE
        assert RATE * (SECONDS - 1) <= answers[200] <= RATE * took + burst + 2 * connections, (connections, answers)
        assert answers[429] > 0


async def insist(edge: Edge, until_: float, answers: Counter[int]) -> None:
    """Send one event after the other of one device, whatever the answers are."""
    async with edge.connect() as wire:
        while time.monotonic() < until_:
            with contextlib.suppress(asyncio.IncompleteReadError):
                reply = await wire.post(an_event(subject="one"))
                answers[reply.status] += 1
            await asyncio.sleep(0.002)


async def test_the_key_that_up_makes_has_no_quota(edge: Edge) -> None:
    connection = await asyncpg.connect(edge.settings.postgres_dsn.get_secret_value())
    await ensure_key(connection, "quickstart", "sender", "another-key")
    row = await connection.fetchrow("select * from sender where name = 'quickstart'")
    await connection.close()
    names = ("events_per_s", "bytes_per_s", "device_events_per_s", "device_bytes_per_s")
    assert [row[name] for name in names] == [None] * 4


async def test_what_one_machine_gave_out_the_other_does_not_give_out_again(start_edge: Callable[..., Edge]) -> None:
    """Two edges that share a database and nothing else."""
    here, there = start_edge(), start_edge(edge_port=free_port())
    await set_quota(here, events_per_s=100, device_events_per_s=50)
    await asyncio.sleep(2)  # they have heard of each other
    assert (await here.post([an_event(subject="one") for _ in range(1000)])).status_code == 200
    await until(lambda: refused(there))
    refusal = await there.post(an_event(subject="one"))
    assert refusal.json()["quota"] == "sender-events"
    assert 5 <= int(refusal.headers["retry-after"]) <= 10


async def refused(edge: Edge) -> bool:
    return (await edge.post(an_event(subject="another"))).status_code == 429
