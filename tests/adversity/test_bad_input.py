"""Bad input, from the outside: each kind has its documented answer, is kept nowhere, and stops nothing.

Behind each comes a sentinel of the same subject and type: once that is stored, whatever would be kept of the bad one is
stored too.
"""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from typing import Any

import pytest
from tests.adversity.abuse import STATUS, Holds, at_the_door, at_the_route, post, sentinel_behind
from tests.adversity.bad_input import MESSAGES, REQUESTS, message, padded
from tests.integration.edge import Wire
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidStatus

FRAGMENT_BYTES = 500_000


# -- over HTTP


@pytest.mark.parametrize("reach", [at_the_door, at_the_route])
@pytest.mark.parametrize("kind", REQUESTS)
async def test_bad_input_over_http_gets_its_documented_answer_is_not_kept_and_stops_nothing(
    holds: Holds, subject: str, kind: str, reach: Callable[[str], AbstractAsyncContextManager[Wire]]
) -> None:
    where, bad = holds.path.where, REQUESTS[kind]
    body = bad.body(subject)
    sentinel = sentinel_behind(body, subject)
    async with reach(where["edge_url"]) as wire:
        reply = await post(wire, where["sender_key"], body, bad.headers)
        answer = reply.json()
        assert answer["request_id"] == reply.headers["x-request-id"]
        if bad.code is None:
            assert (reply.status, answer["accepted"]) == (200, 1)
        else:
            assert (reply.status, answer["code"]) == (STATUS[bad.code], bad.code), answer
            assert reply.headers["content-type"] == "application/problem+json"
            assert answer["detail"]
        assert [result["code"] for result in answer.get("results", [])] == ([bad.event] if bad.event else [])
        if reply.headers.get("connection") == "close":
            await wire.closed()
        else:
            assert (await post(wire, where["sender_key"], sentinel, {})).status == 200
    async with reach(where["edge_url"]) as wire:  # again, or at last: it is stored once
        assert (await post(wire, where["sender_key"], sentinel, {})).status == 200
    await holds.check(subject, *[] if bad.code else ["bad"])


# -- over a WebSocket


@contextlib.asynccontextmanager
async def a_socket(edge: str, key: str | None) -> AsyncIterator[ClientConnection]:
    headers = {"authorization": f"Bearer {key}"} if key else {}
    url = edge.replace("http", "ws") + "/v1/events"
    async with connect(url, additional_headers=headers, compression=None) as socket:
        yield socket


async def say(socket: ClientConnection, content: bytes, *, text: bool = True) -> dict[str, Any]:
    """Send and return what is told, beside the window; how it was closed, if it was."""
    try:
        # Large ones in fragments: asyncio fails in a client that is told to stop amid one of 50 MB (Python 3.11).
        parts = [content[at : at + FRAGMENT_BYTES] for at in range(0, len(content), FRAGMENT_BYTES)]
        await socket.send(parts, text=text)
        async with asyncio.timeout(30):
            while "window" in (told := json.loads(await socket.recv())):
                pass
    except ConnectionClosed:
        return {"closed": socket.close_code}
    assert isinstance(told, dict)
    return told


@pytest.mark.parametrize("kind", MESSAGES)
async def test_a_bad_message_closes_its_websocket_is_not_kept_and_stops_nothing(
    holds: Holds, subject: str, kind: str
) -> None:
    where, (code, make) = holds.path.where, MESSAGES[kind]
    text = make(subject)
    async with a_socket(where["edge_url"], where["sender_key"]) as socket:
        assert await say(socket, text) == {"closed": code}
    async with a_socket(where["edge_url"], where["sender_key"]) as socket:
        told = await say(socket, message(b"[%b]" % sentinel_behind(text, subject)))
    assert (told["ack"], told["accepted"]) == (7, 1)
    await holds.check(subject)


@pytest.mark.parametrize("kind", [kind for kind, bad in REQUESTS.items() if bad.event and not bad.headers])
async def test_a_bad_event_in_a_message_is_told_of_beside_its_good_neighbour(
    holds: Holds, subject: str, kind: str
) -> None:
    where, bad = holds.path.where, REQUESTS[kind]
    events = bad.body(subject)
    async with a_socket(where["edge_url"], where["sender_key"]) as socket:
        both = events[:-1] + b"," + sentinel_behind(events, subject) + b"]"
        told = await say(socket, message(both), text="UTF-8" not in kind)  # a text frame of such is refused as a frame
    first = [result["code"] for result in told["results"] if result["index"] == 0]
    assert (told["ack"], told["accepted"], first) == (7, 2 if bad.code is None else 1, [bad.event])
    await holds.check(subject, *[] if bad.code else ["bad"])


@pytest.mark.parametrize("hello", [None, {}, {"key": "drm_wrong"}])
async def test_a_websocket_that_names_no_good_key_is_closed_and_nothing_of_it_is_kept(
    holds: Holds, subject: str, hello: dict[str, str] | None
) -> None:
    where = holds.path.where
    first = message(padded(0)(subject)) if hello is None else json.dumps({"hello": hello}).encode()
    async with a_socket(where["edge_url"], None) as socket:
        assert await say(socket, first) == {"closed": 1008}
    async with a_socket(where["edge_url"], where["sender_key"]) as socket:
        assert (await say(socket, message(b"[%b]" % sentinel_behind(b"", subject))))["ack"] == 7
    await holds.check(subject)


async def test_a_websocket_with_a_wrong_key_in_its_header_is_refused_as_over_http(holds: Holds, subject: str) -> None:
    where = holds.path.where
    with pytest.raises(InvalidStatus) as refused:
        async with a_socket(where["edge_url"], "drm_wrong"):
            pass
    response = refused.value.response
    assert (response.status_code, json.loads(response.body)["code"]) == (STATUS["unauthenticated"], "unauthenticated")
    async with a_socket(where["edge_url"], where["sender_key"]) as socket:
        assert (await say(socket, message(b"[%b]" % sentinel_behind(b"", subject))))["ack"] == 7
    await holds.check(subject)
