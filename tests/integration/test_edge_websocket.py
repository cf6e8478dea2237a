"""Events over a WebSocket, with the real edge and the real Kafka."""

import asyncio
import contextlib
import json
import os
import signal
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import asyncpg
import pytest
from tests.integration.edge import KEY, Edge, an_event, until
from tests.integration.sockets import a_socket, closed, tell, told
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed, InvalidStatus

from drm_ingest.event import HEADER_RECEIPT
from drm_ingest.postgres.credentials import ensure_key, new_key

BAD = {"state": 7}


async def test_a_message_is_acknowledged_by_its_number_once_its_events_are_durable(edge: Edge) -> None:
    first, second = an_event(), an_event()
    async with a_socket(edge) as socket:
        assert await told(socket) == {"window": edge.settings.websocket_window_messages}
        await tell(socket, {"seq": 7, "events": [first, second]})
        assert await told(socket) == {"ack": 7, "accepted": 2, "results": []}
    assert await edge.stored(first["subject"], second["subject"]) == sorted([first["subject"], second["subject"]])


async def test_binary_messages_are_taken_too(edge: Edge) -> None:
    async with a_socket(edge) as socket:
        await told(socket)
        await socket.send(json.dumps({"seq": 1, "events": [an_event()]}).encode())
        assert (await told(socket))["ack"] == 1


async def test_a_refused_event_is_in_the_results_of_its_ack(edge: Edge) -> None:
    async with a_socket(edge) as socket:
        await told(socket)
        await tell(socket, {"seq": 1, "events": [an_event(), an_event(data=BAD)]})
        ack = await told(socket)
        await tell(socket, {"seq": 2, "events": [an_event(data=BAD)]})
        all_refused = await told(socket)
    assert (ack["ack"], ack["accepted"]) == (1, 1)
    [result] = ack["results"]
    assert (result["index"], result["status"], result["code"]) == (1, "rejected", "schema_violation")
    assert (all_refused["ack"], all_refused["accepted"], len(all_refused["results"])) == (2, 0, 1)


async def test_a_browser_names_its_key_in_a_hello(edge: Edge) -> None:
    async with a_socket(edge, key=None) as socket:
        await tell(socket, {"hello": {"key": KEY}})
        assert "window" in await told(socket)
        await tell(socket, {"seq": 0, "events": [an_event()]})
        assert (await told(socket))["ack"] == 0


@pytest.mark.parametrize("key", [None, KEY])
async def test_a_clock_that_is_off_by_the_hello_is_corrected(edge: Edge, key: str | None) -> None:
    event = an_event()
    stated = (datetime.now(UTC) - timedelta(hours=2)).isoformat()
    async with a_socket(edge, key=key) as socket:
        await tell(socket, {"hello": {"sent_at": stated} | ({} if key else {"key": KEY})})
        assert "window" in await told(socket)
        await tell(socket, {"seq": 1, "events": [event]})
        await told(socket)
    [record] = [record for record in await edge.records() if record.key == event["subject"].encode()]
    receipt = json.loads(dict(record.headers)[HEADER_RECEIPT])
    assert abs(receipt["clock_offset_ms"] - 7_200_000) < 10_000


async def test_a_wrong_key_in_a_header_is_answered_401_before_the_upgrade(edge: Edge) -> None:
    before = await edge.metrics()
    with pytest.raises(InvalidStatus) as refused:
        async with a_socket(edge, key="wrong"):
            pass
    response = refused.value.response
    assert (response.status_code, response.headers["content-type"]) == (401, "application/problem+json")
    problem = json.loads(response.body or b"")
    assert (problem["code"], problem["detail"][:18]) == ("unauthenticated", "The key is unknown")
    assert response.headers["x-request-id"] == problem["request_id"]
    name = 'drm_requests_total{status="401",transport="websocket"}'
    assert (await edge.metrics())[name] == before[name] + 1


async def test_a_wrong_key_in_a_hello_is_closed_with_1008(edge: Edge) -> None:
    async with a_socket(edge, key=None) as socket:
        await tell(socket, {"hello": {"key": "wrong"}})
        assert (await closed(socket))[0] == 1008


@pytest.mark.parametrize("by_hello", [False, True])
async def test_a_key_that_is_revoked_while_connected_sends_no_more(edge: Edge, by_hello: bool) -> None:
    key, hash_, prefix = new_key()
    connection = await asyncpg.connect(edge.settings.postgres_dsn.get_secret_value())
    try:
        await ensure_key(connection, f"guest-{prefix}", "sender", key)
        await until(lambda: works(edge, key))
        async with a_socket(edge, key=None if by_hello else key) as socket:
            if by_hello:
                await tell(socket, {"hello": {"key": key}})
            await told(socket)
            await tell(socket, {"seq": 1, "events": [an_event()]})
            assert (await told(socket))["ack"] == 1
            await connection.execute("update sender_key set revoked_at = now() where hash = $1", hash_)
            await until(lambda: fails(edge, key))
            refused = an_event()
            with contextlib.suppress(ConnectionClosed):  # it is closed by itself, a moment later
                await tell(socket, {"seq": 2, "events": [refused]})
            code, reason = await closed(socket)
    finally:
        await connection.close()
    assert code == 1008
    assert reason.startswith("unauthenticated: The key is unknown, revoked or expired")
    assert await edge.stored(refused["subject"]) == []


async def works(edge: Edge, key: str) -> bool:
    return (await edge.post([], key=key)).status_code == 200


async def fails(edge: Edge, key: str) -> bool:
    return (await edge.post([], key=key)).status_code == 401


async def test_events_before_a_hello_are_closed_with_1008(edge: Edge) -> None:
    event, sentinel = an_event(), an_event()
    async with a_socket(edge, key=None) as socket:
        await tell(socket, {"seq": 1, "events": [event]})
        assert (await closed(socket))[0] == 1008
    await edge.post(sentinel)
    assert await edge.stored(event["subject"], sentinel["subject"]) == [sentinel["subject"]]


async def test_no_hello_in_time_is_closed_with_1008(quick_edge: Edge) -> None:
    async with a_socket(quick_edge, key=None) as socket, asyncio.timeout(5):
        assert (await closed(socket))[0] == 1008


async def test_a_second_hello_is_closed_with_1003(edge: Edge) -> None:
    async with a_socket(edge) as socket:
        await tell(socket, {"hello": {}})
        await tell(socket, {"hello": {}})
        assert (await closed(socket))[0] == 1003


@pytest.mark.parametrize(
    "message",
    [
        "[]",
        "7",
        "{}",
        '{"seq": 1}',
        '{"events": []}',
        '{"seq": "1", "events": []}',
        '{"seq": -1, "events": []}',
        '{"seq": 9007199254740992, "events": []}',
        '{"seq": 1.5, "events": []}',
        '{"hello": {"sent_at": "yesterday"}}',
    ],
)
async def test_what_is_no_message_of_ours_is_closed_with_1003(edge: Edge, message: str) -> None:
    async with a_socket(edge) as socket:
        await socket.send(message)
        assert (await closed(socket))[0] == 1003


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        ("[]", 'send {"seq": a number, "events": [...]}'),
        ('{"seq": "1", "events": []}', "seq must be a whole number from 0 to 2^53-1"),
        ('{"seq": 1.5, "events": []}', "seq must be a whole number from 0 to 2^53-1"),
        ('{"seq": -1, "events": []}', "seq must be a whole number from 0 to 2^53-1"),
        ('{"seq": 1, "events": {}}', "events must be an array of events"),
        ('{"seq": 1}', 'events is missing: send {"seq": a number, "events": [...]}'),
        ('{"hello": 1}', 'hello is {"key": text, "sent_at": text}, both optional'),
        ('{"hello": {"key": 1}}', 'hello is {"key": text, "sent_at": text}, both optional'),
        ('{"hello": {"sent_at": "yesterday"}}', "sent_at is not an RFC 3339 time"),
        ("hello", "the message is not JSON: at byte 0"),
        ('{"seq"', "the message is not JSON: it ends too early"),
        (b"\xff", "the message is not JSON: at byte 0"),
    ],
)
async def test_a_closed_connection_says_in_a_sentence_why(edge: Edge, message: str | bytes, reason: str) -> None:
    async with a_socket(edge) as socket:
        await socket.send(message)
        assert (await closed(socket))[1] == reason


async def test_a_wrong_message_undoes_none_of_the_acks_that_are_owed(start_edge: Callable[..., Edge]) -> None:
    """While the process is stopped the wrong message arrives right behind the good ones."""
    edge = start_edge()
    events = [an_event() for _ in range(20)]
    async with a_socket(edge) as socket:
        await told(socket)
        os.kill(edge.process.pid, signal.SIGSTOP)
        try:
            for seq, event in enumerate(events):
                await tell(socket, {"seq": seq, "events": [event]})
            await socket.send("[]")
        finally:
            os.kill(edge.process.pid, signal.SIGCONT)
        acks = [(await told(socket))["ack"] for _ in events]
        assert (await closed(socket))[0] == 1003
    assert sorted(acks) == list(range(20))


@pytest.mark.parametrize("message", ["", "{", "hello", '{"seq": 1, "events": ' + "[" * 100_000, b"\x00", b"\xff"])
async def test_what_is_not_json_is_closed_with_1007(edge: Edge, message: str | bytes) -> None:
    async with a_socket(edge) as socket:
        await socket.send(message)
        assert (await closed(socket))[0] == 1007


async def test_text_that_is_not_utf8_is_closed_with_1007(edge: Edge) -> None:
    async with a_socket(edge) as socket:
        await socket.send(b'{"seq": 1, "events": [{"type": "\xff"}]}', text=True)
        assert (await closed(socket))[0] == 1007


async def test_a_message_over_the_limit_is_closed_with_1009(edge: Edge) -> None:
    async with a_socket(edge) as socket:
        await socket.send(" " * (edge.settings.websocket_message_bytes_max + 1))
        assert (await closed(socket))[0] == 1009


async def test_fragments_that_add_up_to_too_much_are_closed_with_1009(edge: Edge) -> None:
    async with a_socket(edge) as socket:
        with contextlib.suppress(ConnectionClosed):
            await socket.send(" " * 100_000 for _ in range(200))
        assert (await closed(socket))[0] == 1009


async def test_a_message_over_the_limit_undoes_none_of_those_before_it(start_edge: Callable[..., Edge]) -> None:
    edge = start_edge()
    events = [an_event() for _ in range(20)]
    async with a_socket(edge) as socket:
        for seq, event in enumerate(events):
            await tell(socket, {"seq": seq, "events": [event]})
        with contextlib.suppress(ConnectionClosed):
            await socket.send(" " * (edge.settings.websocket_message_bytes_max + 1))
        messages = []
        with contextlib.suppress(ConnectionClosed):
            while True:
                messages.append(await told(socket))
    assert socket.close_code == 1009
    received, accounted = await edge.ledger()
    assert received == accounted
    acknowledged = {events[message["ack"]]["subject"] for message in messages if "ack" in message}
    assert acknowledged <= set(await edge.stored(*(event["subject"] for event in events)))
    edge.stop()
    assert '"level":"error"' not in edge.log.read_text()


async def test_too_many_events_in_a_message_are_refused_and_the_next_is_taken(start_edge: Callable[..., Edge]) -> None:
    edge = start_edge(websocket_message_events_max=2)
    async with a_socket(edge) as socket:
        await told(socket)
        await tell(socket, {"seq": 1, "events": [an_event()] * 3})
        refused = await told(socket)
        await tell(socket, {"seq": 2, "events": [an_event()] * 2})
        assert (await told(socket))["ack"] == 2
    assert (refused["refused"], refused["code"]) == (1, "too_many_events")
    assert refused["detail"]


async def test_messages_within_the_window_are_taken_without_waiting(edge: Edge) -> None:
    async with a_socket(edge) as socket:
        window = (await told(socket))["window"]
        events = [an_event() for _ in range(window)]
        for seq, event in enumerate(events):
            await tell(socket, {"seq": seq, "events": [event]})
        acks = [await told(socket) for _ in events]
    assert sorted(ack["ack"] for ack in acks) == list(range(window))
    subjects = [event["subject"] for event in events]
    assert await edge.stored(*subjects) == sorted(subjects)


async def test_more_than_the_window_is_closed_with_1008(
    start_edge: Callable[..., Edge],
) -> None:
    """While the process is stopped nothing is acknowledged, so the messages pile up unread in the socket."""
    edge = start_edge(websocket_window_messages=4)
    async with a_socket(edge) as socket:
        await told(socket)
        os.kill(edge.process.pid, signal.SIGSTOP)
        try:
            for seq in range(40):
                await tell(socket, {"seq": seq, "events": [an_event()]})
        finally:
            os.kill(edge.process.pid, signal.SIGCONT)
        code, reason = await closed(socket)
    assert (code, "window" in reason) == (1008, True)


async def test_a_client_that_comes_back_sends_again_and_nothing_is_missing(edge: Edge) -> None:
    events = [an_event() for _ in range(20)]
    unacknowledged = dict(enumerate(events))
    with contextlib.suppress(ConnectionClosed):
        async with a_socket(edge) as socket:
            await told(socket)
            for seq, event in enumerate(events):
                await tell(socket, {"seq": seq, "events": [event]})
            unacknowledged.pop((await told(socket))["ack"])
            socket.transport.abort()
    async with a_socket(edge) as socket:
        await told(socket)
        for seq, event in unacknowledged.items():
            await tell(socket, {"seq": seq, "events": [event]})
        assert {(await told(socket))["ack"] for _ in unacknowledged} == set(unacknowledged)
    subjects = [event["subject"] for event in events]
    assert set(await edge.stored(*subjects)) == set(subjects)


async def test_single_cloudevents_are_acknowledged_by_their_id(edge: Edge) -> None:
    event = an_event()
    async with a_socket(edge, subprotocol="cloudevents.json") as socket:
        assert socket.subprotocol == "cloudevents.json"
        await told(socket)
        await tell(socket, event)
        assert await told(socket) == {"ack": event["id"], "message": 1, "accepted": 1, "results": []}
        await tell(socket, {name: value for name, value in an_event().items() if name != "id"})
        assigned = await told(socket)
        assert (assigned["ack"], assigned["message"]) == (assigned["results"][0]["id"], 2)
        await tell(socket, an_event(id="bad", data=BAD))
        refused = await told(socket)
        assert (refused["ack"], refused["message"], refused["accepted"]) == ("bad", 3, 0)
        await tell(socket, an_event(id=7))
        odd = await told(socket)
        assert (odd["ack"], odd["message"], odd["results"][0]["code"]) == (None, 4, "attribute_invalid")
    assert await edge.stored(event["subject"]) == [event["subject"]]


async def test_a_single_cloudevent_may_follow_a_hello(edge: Edge) -> None:
    async with a_socket(edge, key=None, subprotocol="cloudevents.json") as socket:
        await tell(socket, {"hello": {"key": KEY}})
        await told(socket)
        await tell(socket, an_event(id="after"))
        ack = await told(socket)
        assert (ack["ack"], ack["message"]) == ("after", 1)


async def test_another_path_is_no_websocket(edge: Edge) -> None:
    with pytest.raises(InvalidStatus) as refused:
        await connect(edge.url.replace("http", "ws") + "/v1/other")
    assert refused.value.response.status_code in (403, 404)


async def test_a_stopping_edge_says_goaway_acknowledges_and_closes_with_1012(start_edge: Callable[..., Edge]) -> None:
    edge = start_edge()
    event = an_event()
    async with a_socket(edge) as socket:
        await told(socket)
        await tell(socket, {"seq": 1, "events": [event]})
        os.kill(edge.process.pid, signal.SIGTERM)
        messages = [await told(socket), await told(socket)]
        code, _ = await closed(socket)
    assert code == 1012
    [goaway] = [message["goaway"] for message in messages if "goaway" in message]
    assert goaway["reconnect_after_ms"] > 0
    assert [message["ack"] for message in messages if "ack" in message] == [1]
    assert await asyncio.to_thread(edge.process.wait, 10) == 0
    assert await edge.stored(event["subject"]) == [event["subject"]]


async def test_messages_count_in_the_ledger(start_edge: Callable[..., Edge]) -> None:
    edge = start_edge()
    async with a_socket(edge) as socket:
        await told(socket)
        assert (await edge.metrics())['drm_connections{transport="websocket"}'] == 1
        await tell(socket, {"seq": 1, "events": [an_event(), an_event(), an_event(data=BAD)]})
        await told(socket)
        assert await edge.ledger() == (3, 3)
    samples = await edge.metrics()
    assert samples['drm_events_total{outcome="accepted"}'] == 2
    assert samples['drm_requests_total{status="200",transport="websocket"}'] == 1


async def test_a_lone_surrogate_is_the_fault_of_its_event_and_not_of_the_message(edge: Edge) -> None:
    bad, good = json.dumps(an_event(data={"state": "online", "reason": "\ud800"})), an_event()
    sent = json.dumps(good | {"data": {"state": "online", "reason": "\U0001f600 is written \\ud83d\\ude00"}})
    async with a_socket(edge) as socket:
        await told(socket)
        await socket.send(f'{{"seq": 1, "events": [{bad}, {sent}]}}')
        answer = await told(socket)
    assert (answer["ack"], answer["accepted"]) == (1, 1)
    assert [(result["index"], result["code"]) for result in answer["results"]] == [(0, "text_not_storable")]
    [record] = [record for record in await edge.records() if record.key == good["subject"].encode()]
    assert record.value == sent.encode()
