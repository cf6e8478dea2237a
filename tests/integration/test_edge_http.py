"""The door over HTTP: every status of the ack table, told by the real edge and the real Kafka."""

import asyncio
import gzip
import json
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import asyncpg
import httpx
import pytest
from tests.integration.edge import KEY, Edge, an_event, head, request

from drm_ingest.edge.split import MEDIA
from drm_ingest.errors import PROBLEMS
from drm_ingest.event import HEADER_RECEIPT
from drm_ingest.postgres.credentials import ensure_key


async def test_an_accepted_event_is_in_the_ingress_topic_as_sent(edge: Edge) -> None:
    event = an_event()
    answer = await edge.post(event)
    assert (answer.status_code, answer.json()["accepted"], answer.json()["results"]) == (200, 1, [])
    [record] = [record for record in await edge.records() if record.key == event["subject"].encode()]
    assert json.loads(record.value) == event


async def test_an_answer_carries_the_request_id_of_the_sender(edge: Edge) -> None:
    event = an_event()
    answer = await edge.post(event, x_request_id="from-the-sender.1")
    assert answer.headers["x-request-id"] == answer.json()["request_id"] == "from-the-sender.1"
    [record] = [record for record in await edge.records() if record.key == event["subject"].encode()]
    assert json.loads(dict(record.headers)[HEADER_RECEIPT])["request_id"] == "from-the-sender.1"


async def test_a_request_id_that_could_break_a_log_is_replaced(edge: Edge) -> None:
    answer = await edge.post(an_event(), x_request_id='"}\tinjected')
    assert answer.status_code == 200
    assert "injected" not in answer.headers["x-request-id"]


async def test_every_request_gets_an_id_of_its_own(edge: Edge) -> None:
    first, second = await edge.post(an_event()), await edge.post(an_event())
    assert first.json()["request_id"] != second.json()["request_id"]


async def test_some_rejected_is_still_200_and_only_the_others_are_kept(edge: Edge) -> None:
    good, bad = an_event(), an_event(data={"state": 7})
    answer = await edge.post([good, bad])
    assert (answer.status_code, answer.json()["accepted"]) == (200, 1)
    [result] = answer.json()["results"]
    assert (result["index"], result["status"], result["code"]) == (1, "rejected", "schema_violation")
    assert await edge.stored(good["subject"], bad["subject"]) == [good["subject"]]


async def test_a_missing_key_and_a_wrong_one_are_told_apart(edge: Edge) -> None:
    missing, wrong = await edge.post(an_event(), key=None), await edge.post(an_event(), key="wrong")
    assert [answer.status_code for answer in (missing, wrong)] == [401, 401]
    assert missing.json()["detail"].startswith("Send your key")
    assert wrong.json()["detail"].startswith("The key is unknown, revoked or expired")


async def test_all_rejected_is_422_with_the_results(edge: Edge) -> None:
    answer = await edge.post([an_event(data={"state": 7})])
    assert answer.status_code == 422
    assert answer.headers["content-type"] == "application/problem+json"
    assert (answer.json()["code"], answer.json()["results"][0]["code"]) == ("all_rejected", "schema_violation")


async def test_a_wrong_key_is_401_before_the_body_is_read(edge: Edge) -> None:
    async with edge.connect() as wire:
        await wire.send(head("Content-Length: 5000000", key="wrong") + "\r\n")
        reply = await wire.reply()
    assert (reply.status, reply.code) == (401, "unauthenticated")
    assert reply.headers["www-authenticate"].startswith("Bearer")


async def test_no_key_is_401(edge: Edge) -> None:
    answer = await edge.post(an_event(), key=None)
    assert (answer.status_code, answer.json()["code"]) == (401, "unauthenticated")


async def test_a_key_may_be_the_user_name_of_basic(edge: Edge) -> None:
    async with httpx.AsyncClient(auth=(KEY, "")) as client:
        answer = await client.post(edge.url + "/v1/events", json=an_event())
    assert answer.status_code == 200


async def test_a_key_that_may_only_read_is_403(edge: Edge) -> None:
    connection = await asyncpg.connect(edge.settings.postgres_dsn.get_secret_value())
    await ensure_key(connection, "reader of the tests", "reader", "a-reading-key")
    await connection.close()
    async with asyncio.timeout(10):
        while (answer := await edge.post(an_event(), key="a-reading-key")).status_code == 401:
            pass  # until the snapshot has it
    assert (answer.status_code, answer.json()["code"]) == (403, "forbidden")


@pytest.mark.parametrize("body", [b"", b"{", b'{"a":"\xff"}', b"nonsense", b"[" * 10_000])
async def test_what_is_not_json_is_400(edge: Edge, body: bytes) -> None:
    answer = await edge.post(body)
    assert answer.status_code in (400, 422)
    assert answer.json()["code"] in ("malformed_json", "all_rejected")


async def test_what_does_not_decompress_is_400(edge: Edge) -> None:
    answer = await edge.post(b"not gzip", content_encoding="gzip")
    assert (answer.status_code, answer.json()["code"]) == (400, "malformed_encoding")


async def test_a_compressed_body_is_taken(edge: Edge) -> None:
    answer = await edge.post(gzip.compress(json.dumps(an_event()).encode()), content_encoding="gzip")
    assert answer.status_code == 200


async def test_an_unknown_content_type_is_415(edge: Edge) -> None:
    answer = await edge.post(b"<event/>", content_type="text/xml")
    assert (answer.status_code, answer.json()["code"]) == (415, "unsupported_media_type")


async def test_an_unknown_encoding_is_415(edge: Edge) -> None:
    answer = await edge.post(b"...", content_encoding="br")
    assert (answer.status_code, answer.json()["code"]) == (415, "unsupported_encoding")


async def test_too_many_events_are_413(edge: Edge) -> None:
    answer = await edge.post(b"[" + b"0," * edge.settings.request_events_max + b"0]")
    assert (answer.status_code, answer.json()["code"]) == (413, "too_many_events")


async def test_a_stated_length_over_the_limit_is_413_at_once(edge: Edge) -> None:
    async with edge.connect() as wire:
        await wire.send(head("Content-Length: 50000000") + "\r\n")
        reply = await wire.reply()
    assert (reply.status, reply.code) == (413, "body_too_large")
    assert reply.json()["limit"] == edge.settings.request_body_bytes_max
    assert reply.headers["connection"] == "close"


async def test_an_ordinary_client_that_sends_50_mb_reads_its_413(edge: Edge) -> None:
    answer = await edge.post(b"x" * 50_000_000)
    assert (answer.status_code, answer.json()["code"]) == (413, "body_too_large")


async def test_chunks_that_add_up_to_too_much_are_413(edge: Edge) -> None:
    async def chunks() -> AsyncIterator[bytes]:
        for _ in range(12):
            yield b"x" * 1_000_000

    async with httpx.AsyncClient() as client:
        headers = {"authorization": f"Bearer {KEY}", "content-type": "application/json"}
        answer = await client.post(edge.url + "/v1/events", content=chunks(), headers=headers)
    assert (answer.status_code, answer.json()["code"]) == (413, "body_too_large")


async def test_a_gzip_bomb_is_413(edge: Edge) -> None:
    answer = await edge.post(gzip.compress(b" " * 40_000_000), content_encoding="gzip")
    assert (answer.status_code, answer.json()["code"]) == (413, "decompressed_too_large")


async def test_every_refusal_says_what_to_do_under_its_request_id(edge: Edge) -> None:
    answer = await edge.post(b"{")
    problem = answer.json()
    assert answer.headers["content-type"] == "application/problem+json"
    assert problem["title"] == PROBLEMS[problem["code"]].title
    assert problem["detail"]
    assert problem["request_id"] == answer.headers["x-request-id"]


# -- time


async def clock_offset_ms(edge: Edge, subject: str) -> int:
    [record] = [record for record in await edge.records() if record.key == subject.encode()]
    return int(json.loads(dict(record.headers)[HEADER_RECEIPT]).get("clock_offset_ms", 0))


async def test_a_clock_that_is_an_hour_slow_by_its_own_date_is_corrected(edge: Edge) -> None:
    event = an_event()
    stated = format_datetime(datetime.now(UTC) - timedelta(hours=1), usegmt=True)
    assert (await edge.post(event, date=stated)).status_code == 200
    assert abs(await clock_offset_ms(edge, event["subject"]) - 3_600_000) < 10_000


async def test_a_clock_that_is_a_minute_slow_is_believed(edge: Edge) -> None:
    event = an_event()
    stated = format_datetime(datetime.now(UTC) - timedelta(minutes=1), usegmt=True)
    assert (await edge.post(event, date=stated)).status_code == 200
    assert await clock_offset_ms(edge, event["subject"]) == 0


@pytest.mark.parametrize("date", ["yesterday", "", "Sun, 99 Nov 2026 10:00:00 GMT"])
async def test_a_date_that_is_none_is_ignored(edge: Edge, date: str) -> None:
    event = an_event()
    assert (await edge.post(event, date=date)).status_code == 200
    assert await clock_offset_ms(edge, event["subject"]) == 0


# -- one connection, many requests


async def test_a_connection_is_kept_for_the_next_request(edge: Edge) -> None:
    async with edge.connect() as wire:
        assert [(await wire.post(an_event())).status for _ in range(3)] == [200, 200, 200]


async def test_a_small_refused_request_leaves_its_connection_open(edge: Edge) -> None:
    async with edge.connect() as wire:
        await wire.send(request(an_event(), key="wrong"))
        assert (await wire.reply()).status == 401
        assert (await wire.post(an_event())).status == 200


async def test_pipelined_requests_are_answered_in_their_order(edge: Edge) -> None:
    numbers = range(40)  # more than are read ahead
    async with edge.connect() as wire:
        bodies = [[an_event()] if number % 3 else b"{" for number in numbers]
        await wire.send(b"".join(request(body, f"X-Request-Id: n{n}") for n, body in zip(numbers, bodies, strict=True)))
        replies = [await wire.reply() for _ in numbers]
    assert [reply.headers["x-request-id"] for reply in replies] == [f"n{number}" for number in numbers]
    assert [reply.status for reply in replies] == [200 if number % 3 else 400 for number in numbers]


async def test_other_paths_between_ours_are_answered_in_their_order(edge: Edge) -> None:
    health = b"GET /health/live HTTP/1.1\r\nHost: edge\r\n\r\n"
    async with edge.connect() as wire:
        await wire.send(request(an_event()) + health + request(an_event()) + health)
        replies = [await wire.reply() for _ in range(4)]
    assert [reply.status for reply in replies] == [200] * 4
    assert [reply.json().get("accepted", reply.json().get("status")) for reply in replies] == [1, "live", 1, "live"]


async def test_a_connection_that_asked_for_something_else_still_posts(edge: Edge) -> None:
    event = an_event()
    async with edge.connect() as wire:
        await wire.send("GET /metrics HTTP/1.1\r\nHost: edge\r\n\r\n")
        assert b"drm_events_received_total" in (await wire.reply()).body
        reply = await wire.post([event, an_event(data={"state": 7})])
    assert (reply.status, reply.json()["accepted"], len(reply.json()["results"])) == (200, 1, 1)
    assert await edge.stored(event["subject"]) == [event["subject"]]


async def test_nonsense_after_another_request_does_not_overtake_its_answer(edge: Edge) -> None:
    async with edge.connect() as wire:
        await wire.send("GET /health/live HTTP/1.1\r\nHost: edge\r\n\r\nnonsense\r\n\r\n")
        assert (await wire.reply()).json() == {"status": "live"}
        await wire.closed()


async def test_a_request_that_arrives_byte_by_byte_is_understood(edge: Edge) -> None:
    async with edge.connect() as wire:
        for byte in request(an_event()):
            await wire.send(bytes([byte]))
        assert (await wire.reply()).status == 200


@pytest.mark.parametrize("trailer", ["", "X-Trailer: 1\r\n"])
async def test_a_chunked_body_is_taken_and_what_follows_it_too(edge: Edge, trailer: str) -> None:
    event = json.dumps(an_event(data={"state": "online", "reason": "\r\n\r\n"}))
    chunks = "".join(f"{len(part):x}\r\n{part}\r\n" for part in (event[:10], event[10:]))
    once = head("Transfer-Encoding: chunked") + "\r\n" + chunks + f"0\r\n{trailer}\r\n"
    async with edge.connect() as wire:
        await wire.send(once * 2)
        assert [(await wire.reply()).status for _ in range(2)] == [200, 200]
        for byte in once.encode():
            await wire.send(bytes([byte]))
        assert (await wire.reply()).status == 200


async def test_a_sender_that_expects_100_continue_is_told_to_go_on(edge: Edge) -> None:
    body = json.dumps(an_event())
    async with edge.connect() as wire:
        await wire.send(head("Expect: 100-continue", f"Content-Length: {len(body)}") + "\r\n")
        assert (await wire.reply()).status == 100
        await wire.send(body)
        assert (await wire.reply()).status == 200


async def test_a_sender_that_expects_100_continue_is_refused_before_it_sends(edge: Edge) -> None:
    async with edge.connect() as wire:
        await wire.send(head("Expect: 100-continue", "Content-Length: 100", key="wrong") + "\r\n")
        assert (await wire.reply()).status == 401
        assert await wire.closed() == b""


async def test_a_sender_that_says_close_is_answered_and_closed(edge: Edge) -> None:
    async with edge.connect() as wire:
        reply = await wire.post(an_event(), "Connection: close")
        assert (reply.status, reply.headers["connection"]) == (200, "close")
        assert await wire.closed() == b""


async def test_a_sender_that_closes_its_side_still_gets_its_answer(edge: Edge) -> None:
    async with edge.connect() as wire:
        await wire.send(request(an_event()))
        wire.writer.write_eof()
        assert (await wire.reply()).status == 200
        assert await wire.closed() == b""


async def test_an_offered_upgrade_is_ignored(edge: Edge) -> None:
    """Java's HttpClient offers HTTP/2 with every first request."""
    async with edge.connect() as wire:
        lines = ("Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c", "HTTP2-Settings: AAEAAEAAAAIAAAABAAMAAABk")
        assert (await wire.post(an_event(), *lines)).status == 200
        assert (await wire.post(an_event())).status == 200


async def test_http_1_0_is_answered(edge: Edge) -> None:
    async with edge.connect() as wire:
        await wire.send(request(an_event()).replace(b"HTTP/1.1", b"HTTP/1.0"))
        assert (await wire.reply()).status == 200
        assert await wire.closed() == b""


@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE", "HEAD"])
async def test_another_method_is_405(edge: Edge, method: str) -> None:
    async with httpx.AsyncClient() as client:
        answer = await client.request(method, edge.url + "/v1/events")
    assert (answer.status_code, answer.headers["allow"]) == (405, "POST")
    assert method == "HEAD" or answer.json()["code"] == "method_not_allowed"


async def test_another_path_is_404(edge: Edge) -> None:
    async with httpx.AsyncClient() as client:
        answer = await client.post(edge.url + "/v1/event", json=an_event())
    assert (answer.status_code, answer.json()["code"]) == (404, "not_found")


async def test_the_ordinary_route_answers_as_the_door_does(edge: Edge) -> None:
    """A query is not ours to read at the door, so it goes the other way."""
    cases = [
        request(an_event()),
        request([an_event(data={"state": 7})]),
        request(b"{"),
        request(an_event(), key="wrong"),
        request(b"x", "Content-Encoding: br"),
        head("Content-Length: 50000000").encode() + b"\r\n",
        head("Transfer-Encoding: chunked").encode() + b"\r\n3\r\n[1]\r\n0\r\n\r\n",
    ]
    for case in cases:
        replies = []
        for path in (b"/v1/events", b"/v1/events?other=1"):
            async with edge.connect() as wire:
                await wire.send(case.replace(b"/v1/events", path, 1))
                replies.append(await wire.reply())
        door, route = replies
        assert door.status == route.status, case
        assert door.headers["content-type"] == route.headers["content-type"]
        assert without_id(door.json()) == without_id(route.json())


def without_id(answer: dict[str, object]) -> dict[str, object]:
    return {name: value for name, value in answer.items() if name != "request_id"}


async def test_the_openapi_document_describes_every_answer_of_the_table(edge: Edge) -> None:
    async with httpx.AsyncClient() as client:
        document = (await client.get(edge.url + "/openapi.json")).json()
        messages = (await client.get(edge.url + "/asyncapi.json")).json()
    post = document["paths"]["/v1/events"]["post"]
    assert {"200", "400", "401", "403", "408", "413", "415", "422", "429", "431", "503"} <= set(post["responses"])
    assert set(post["requestBody"]["content"]) == set(MEDIA)
    assert messages["asyncapi"].startswith("3.")


async def test_the_examples_of_the_openapi_document_are_accepted(edge: Edge) -> None:
    async with httpx.AsyncClient() as client:
        document = (await client.get(edge.url + "/openapi.json")).json()
    content = document["paths"]["/v1/events"]["post"]["requestBody"]["content"]
    for media_type, described in content.items():
        for name, example in described["examples"].items():
            value = example["value"]
            body = value.encode() if isinstance(value, str) else json.dumps(value).encode()
            binary = {
                "ce-specversion": "1.0",
                "ce-type": "device.measurement",
                "ce-id": "1",
                "ce-source": "",
                "ce-subject": "m",
            }
            answer = await edge.post(body, content_type=media_type, **(binary if "ce-" in str(example) else {}))
            assert answer.status_code == 200, (media_type, name, answer.text)


# -- the ledger


async def test_received_is_always_the_outcomes_and_what_is_in_flight(edge: Edge) -> None:
    before, _ = await edge.ledger()

    async def send() -> None:
        for number in range(30):
            await edge.post([an_event(), an_event(data={"state": 7})] if number % 3 else b"{")

    senders = asyncio.gather(*(send() for _ in range(4)))
    while not senders.done():
        received, accounted = await edge.ledger()
        assert received == accounted
    await senders
    received, accounted = await edge.ledger()
    assert received == accounted == before + 4 * 20 * 2


async def test_an_event_whose_sender_left_is_counted_by_what_kafka_said(edge: Edge) -> None:
    before = await edge.metrics()
    event = an_event()
    async with edge.connect() as wire:
        await wire.send(request(event))
        wire.writer.transport.abort()
    async with asyncio.timeout(10):
        while event["subject"] not in await edge.stored(event["subject"]):
            pass
        while (after := await edge.metrics())["drm_events_in_flight"]:
            pass
    accepted = 'drm_events_total{outcome="accepted"}'
    assert after[accepted] == before[accepted] + 1
