"""What the edge answers is what its own documents describe: OpenAPI over HTTP, AsyncAPI over a WebSocket."""

import gzip
import json
from collections.abc import Callable
from typing import Any

import asyncpg
import httpx
import jsonschema_rs
import pytest
from tests.integration.edge import Edge, an_event, head, request
from tests.integration.sockets import a_socket, tell, told

from drm_ingest.edge.shapes import EDGE_CODES
from drm_ingest.errors import DEAD_LETTER_CODES, PROBLEM_MEDIA_TYPE
from drm_ingest.postgres.credentials import ensure_key

READER = "the-key-of-a-reader"
BAD = {"state": 7}
BARE = an_event(id=None, time=None)


def all_of_it(**attributes: Any) -> bytes:
    return request([an_event(**attributes)])


ANSWERS: dict[str, tuple[int, bytes]] = {
    "accepted": (200, all_of_it()),
    "id and time assigned, no schema": (200, request([BARE, an_event(type="toaster.popped")])),
    "in the far future": (200, all_of_it(time="2999-01-01T00:00:00Z")),
    "no object": (200, request([an_event(), 7])),
    "no event in a line": (
        200,
        request(json.dumps(an_event()).encode() + b"\n{x\n", "Content-Type: application/x-ndjson"),
    ),
    "without an id": (200, request([an_event(), an_event(id=None, data=BAD)])),
    "no type": (422, all_of_it(type=None)),
    "a wrong attribute": (422, all_of_it(id=7)),
    "a reserved attribute": (422, all_of_it(receivedat="x")),
    "no subject": (422, all_of_it(subject=None)),
    "a wrong time": (422, all_of_it(time="yesterday")),
    "a wrong version": (422, all_of_it(dataschema="9.9")),
    "wrong data": (422, all_of_it(data=BAD)),
    "a NUL": (422, all_of_it(data={"state": "online", "reason": "\0"})),
    "too large a number": (422, all_of_it(data={"state": "online", "reason": 2**70})),
    "too deep": (422, request(b'[{"type": "a", "subject": "b", "data": ' + b"[" * 99 + b"]" * 99 + b"}]")),
    "too large an event": (422, all_of_it(data={"state": "x" * 300_000})),
    "no JSON": (400, request(b"{")),
    "no gzip": (400, request(b"x", "Content-Encoding: gzip")),
    "gzip that is not declared": (400, request(gzip.compress(b"[]"))),
    "no HTTP": (400, b"POST /v1/events HTTP/1.1\r\nContent-Length: x\r\n\r\n"),
    "no key": (401, b"POST /v1/events HTTP/1.1\r\nHost: edge\r\nContent-Length: 0\r\n\r\n"),
    "a wrong key": (401, request([an_event()], key="wrong")),
    "a key that may only read": (403, request([an_event()], key=READER)),
    "another method": (405, b"PUT /v1/events HTTP/1.1\r\nHost: edge\r\nContent-Length: 0\r\n\r\n"),
    "too large a body": (413, head("Content-Length: 50000000").encode() + b"\r\n"),
    "too large once decompressed": (413, request(gzip.compress(bytes(34 * 2**20)), "Content-Encoding: gzip")),
    "too many events": (413, request([{}] * 10_001)),
    "another media type": (415, request(b"x", "Content-Type: text/csv")),
    "another encoding": (415, request(b"x", "Content-Encoding: br")),
    "too large headers": (431, head("X: " + "x" * 20_000).encode() + b"\r\n"),
}


async def document(edge: Edge, path: str) -> dict[str, Any]:
    async with httpx.AsyncClient() as client:
        found = (await client.get(edge.url + path)).json()
    assert isinstance(found, dict)
    return found


def violations(described: dict[str, Any], schema: dict[str, Any], answer: object) -> list[str]:
    whole = {"$schema": "https://json-schema.org/draft/2020-12/schema", "components": described["components"], **schema}
    return [str(error) for error in jsonschema_rs.validator_for(whole).iter_errors(answer)]


@pytest.mark.parametrize("kind", ANSWERS)
async def test_an_answer_is_as_the_openapi_document_describes_it(edge: Edge, kind: str) -> None:
    connection = await asyncpg.connect(edge.settings.postgres_dsn.get_secret_value())
    await ensure_key(connection, "reads", "reader", READER)
    await connection.close()
    described = await document(edge, "/openapi.json")
    status, sent = ANSWERS[kind]
    for _ in range(100):
        async with edge.connect() as wire:
            await wire.send(sent)
            reply = await wire.reply()
        if not (reply.status == 401 and status == 403):  # until the new key is known
            break
    assert reply.status == status
    response = described["paths"]["/v1/events"]["post"]["responses"][str(status)]
    schema = response["content"][reply.headers["content-type"]]["schema"]
    assert violations(described, schema, reply.json()) == []


async def test_an_answer_that_asks_to_wait_is_as_described(start_edge: Callable[..., Edge]) -> None:
    edge = start_edge(writer_buffered_bytes_max=1)
    answer = await edge.post(an_event())
    described = await document(edge, "/openapi.json")
    response = described["paths"]["/v1/events"]["post"]["responses"]["503"]
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")
    assert violations(described, response["content"][PROBLEM_MEDIA_TYPE]["schema"], answer.json()) == []


async def test_every_example_is_as_its_schema_describes_it_and_says_something_of_its_own(edge: Edge) -> None:
    described = await document(edge, "/openapi.json")
    details: list[str] = []
    for response in described["paths"]["/v1/events"]["post"]["responses"].values():
        for content in response["content"].values():
            for example in content["examples"].values():
                assert violations(described, content["schema"], example["value"]) == []
                details += [example["value"]["detail"]] if "detail" in example["value"] else []
    assert len(details) == len(set(details)) >= 19


async def test_the_examples_are_what_is_really_answered(edge: Edge) -> None:
    described = await document(edge, "/openapi.json")
    responses = described["paths"]["/v1/events"]["post"]["responses"]

    def example(status: int, name: str) -> Any:
        [content] = responses[str(status)]["content"].values()
        return content["examples"][name]["value"]

    refused = [
        (400, "malformed_json", b'[{"type": "device.status"', {}),
        (401, "unauthenticated", b"", {"key": None}),
        (415, "unsupported_media_type", b"x", {"content_type": "text/csv"}),
        (415, "unsupported_encoding", b"x", {"content_encoding": "br"}),
    ]
    for status, code, body, more in refused:
        answer = await edge.post(body, **more)  # type: ignore[arg-type]
        assert answer.json()["detail"] == example(status, code)["detail"]
    wrong = an_event(type="device.measurement", id="meter-7-000043", data={"temperature": "21.5"})
    answer = await edge.post([an_event(), wrong])
    assert answer.json()["results"] == example(200, "one rejected")["results"]


async def test_the_codes_of_results_are_those_an_answer_can_have(edge: Edge) -> None:
    described = await document(edge, "/openapi.json")
    codes = set(described["components"]["schemas"]["Result"]["properties"]["code"]["enum"])
    assert codes == {code.value for code in EDGE_CODES}
    assert not codes & {code.value for code in DEAD_LETTER_CODES}


@pytest.mark.parametrize("subprotocol", [None, "cloudevents.json"])
async def test_messages_are_as_the_asyncapi_document_describes_them(edge: Edge, subprotocol: str | None) -> None:
    described = await document(edge, "/asyncapi.json")
    messages = described["channels"]["events"]["messages"]
    kinds = ("window", "ack", "retry", "refused", "goaway")

    async def as_described(socket: Any) -> str:
        message = await told(socket)
        [kind] = [kind for kind in kinds if kind in message]
        assert violations(described, messages[kind]["payload"], message) == []
        return kind

    events = [an_event(), an_event(data=BAD), BARE, an_event(id=7)]
    async with a_socket(edge, subprotocol=subprotocol) as socket:
        assert await as_described(socket) == "window"
        for seq, event in enumerate(events):
            await tell(socket, event if subprotocol else {"seq": seq, "events": [event]})
            assert await as_described(socket) == "ack"
        if not subprotocol:
            await tell(socket, {"seq": 9, "events": [{}] * 10_001})
            assert await as_described(socket) == "refused"


async def test_the_asyncapi_document_says_where_and_with_which_key(edge: Edge) -> None:
    described = await document(edge, "/asyncapi.json")
    server = described["servers"]["edge"]
    assert (server["host"], server["protocol"]) == (edge.url.removeprefix("http://"), "ws")
    for security in server["security"]:
        assert (
            security["$ref"].removeprefix("#/components/securitySchemes/") in described["components"]["securitySchemes"]
        )
    for message in described["channels"]["events"]["messages"].values():
        for example in message["examples"]:
            assert violations(described, message["payload"], example["payload"]) == []
