"""What the edge says in its log about what it refused: enough to answer a customer who names a request id."""

import asyncio
import json
from collections.abc import Callable
from typing import Any

import httpx
from tests.integration.edge import KEY, Edge, an_event, until
from tests.integration.sockets import a_socket, closed, tell, told

from drm_ingest.postgres.credentials import new_key


def lines(edge: Edge, event: str) -> list[dict[str, Any]]:
    found = [json.loads(line) for line in edge.log.read_text().splitlines()]
    return [line for line in found if line["event"] == event]


async def has_line(edge: Edge, event: str) -> bool:
    return bool(lines(edge, event))


async def line_of(edge: Edge, event: str, request_id: str) -> dict[str, Any]:
    def found() -> list[dict[str, Any]]:
        return [line for line in lines(edge, event) if line.get("request_id") == request_id]

    async def there() -> bool:
        return bool(found())

    await until(there)
    [line] = found()
    return line


async def test_a_refused_request_is_a_line_with_its_request_id_and_reason(edge: Edge) -> None:
    body = b'[{"type": "device.status"'
    await edge.post(body, x_request_id="asked-about.1")
    line = await line_of(edge, "a request was refused", "asked-about.1")
    assert (line["status"], line["code"], line["sender"]) == (400, "malformed_json", "tests")
    assert (line["client"], line["body_bytes"], line["level"]) == ("127.0.0.1", len(body), "info")
    assert "it ends too early" in line["detail"]


async def test_a_limit_that_was_exceeded_is_named(start_edge: Callable[..., Edge]) -> None:
    edge = start_edge(request_body_bytes_max=1000)
    await edge.post([an_event()] * 50, x_request_id="too-large")
    line = await line_of(edge, "a request was refused", "too-large")
    assert (line["status"], line["code"], line["limit"], line["sender"]) == (413, "body_too_large", 1000, "tests")


async def test_rejected_events_are_one_line_with_their_codes_counted(edge: Edge) -> None:
    bad, older = an_event(data={"state": 7}), an_event(dataschema="9.9")
    unknown = an_event(type="toaster.popped")
    await edge.post([an_event(), unknown, bad, bad, older], x_request_id="some-rejected")
    line = await line_of(edge, "events were rejected", "some-rejected")
    assert (line["status"], line["accepted"], line["rejected"], line["sender"]) == (200, 2, 3, "tests")
    assert line["codes"] == {"schema_violation": 2, "schema_unknown": 1}


async def test_a_wrong_key_is_known_by_what_the_registry_shows_of_it_and_by_no_more(edge: Edge) -> None:
    revoked, _, prefix = new_key()
    await edge.post(an_event(), key=revoked, x_request_id="revoked")
    await edge.post(an_event(), key="somebody's-password", x_request_id="no-key")
    assert (await line_of(edge, "a request was refused", "revoked"))["key_prefix"] == prefix
    assert "key_prefix" not in await line_of(edge, "a request was refused", "no-key")
    log = edge.log.read_text()
    assert not [secret for secret in (revoked, "somebody's-password", KEY) if secret in log]


async def test_a_request_for_another_path_is_a_line_too(edge: Edge) -> None:
    async with httpx.AsyncClient() as client:
        await client.get(edge.url + "/v1/nothing", headers={"x-request-id": "elsewhere"})
    line = await line_of(edge, "a request was refused", "elsewhere")
    assert (line["status"], line["code"], line["client"]) == (404, "not_found", "127.0.0.1")


async def test_what_was_refused_over_a_websocket_is_in_the_log(start_edge: Callable[..., Edge]) -> None:
    edge = start_edge(websocket_message_events_max=2)
    async with a_socket(edge) as socket:
        await told(socket)
        await tell(socket, {"seq": 1, "events": [an_event(), an_event(data={"state": 7})]})
        await told(socket)
        await tell(socket, {"seq": 2, "events": [an_event()] * 3})
        request_id = (await told(socket))["request_id"]
        await socket.send("{}")
        await closed(socket)
    line = await line_of(edge, "a request was refused", request_id)
    assert (line["code"], line["sender"], line["client"]) == ("too_many_events", "tests", "127.0.0.1")
    [rejected] = lines(edge, "events were rejected")
    assert (rejected["sender"], rejected["codes"]) == ("tests", {"schema_violation": 1})
    await until(lambda: has_line(edge, "a WebSocket was closed"))  # which is after it was
    [end] = lines(edge, "a WebSocket was closed")
    assert (end["close_code"], end["sender"]) == (1003, "tests")


async def test_nonsense_is_a_few_lines_however_much_comes(start_edge: Callable[..., Edge]) -> None:
    edge = start_edge(log_refusals_per_s_max=5)
    for _ in range(40):
        async with edge.connect() as wire:
            await wire.send(b"NONSENSE / HTTP/9.9\r\n\r\n")
            assert (await wire.reply()).status == 400
    await until(lambda: has_line(edge, "lines about refusals were left out"))
    assert 1 <= len(lines(edge, "a request was refused")) <= 10
    assert len(edge.log.read_text().splitlines()) < 25


async def test_what_is_accepted_is_not_logged(start_edge: Callable[..., Edge]) -> None:
    edge = start_edge()
    for _ in range(5):
        assert (await edge.post([an_event(), an_event(type="toaster.popped")])).status_code == 200
    await edge.post(b"", x_request_id="sentinel")
    await line_of(edge, "a request was refused", "sentinel")
    assert len(edge.log.read_text().split("serving")[1].splitlines()) == 2


async def test_many_refusals_are_a_few_lines_and_a_count_of_the_others(start_edge: Callable[..., Edge]) -> None:
    edge = start_edge(log_refusals_per_s_max=2)
    answers = await asyncio.gather(*(edge.post(b"") for _ in range(40)))
    assert {answer.status_code for answer in answers} == {400}

    async def all_accounted_for() -> bool:
        left_out = sum(int(line["lines"]) for line in lines(edge, "lines about refusals were left out"))
        written = len(lines(edge, "a request was refused"))
        return left_out > 0 and written + left_out == 40

    await until(all_accounted_for)
