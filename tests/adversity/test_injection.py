"""Text that means something to somebody (a database, a log, a terminal, a scrape, a topic) is text here, everywhere."""

import asyncio
import json
import re
from collections.abc import Callable
from typing import Any
from urllib.parse import quote

import httpx
import pytest
from loadtests.verify import quiet
from tests.adversity.abuse import STORED_WITHIN_S, Holds, at_the_door, at_the_route, post, sentinel_behind
from tests.adversity.bad_input import an_event
from tests.adversity.running import Running
from tests.integration.edge import NO_TLS

TEXTS = {
    "SQL": "'; DROP TABLE event; --",
    "SQL in quotes": "\" OR 1=1; $$ DELETE FROM sender $$ \\' /*",
    "what COPY ends with": "\\.\n\\N\t\\x00",
    "a line of a log": '\r\n{"level":"critical","event":"all is lost"}\r\n',
    "an escape of a terminal": "\x1b[2J\x1b[31mred\x1b]0;title\x07",
    "a label": 'a"} 1\ndrm_events_total{outcome="accepted',
    "a header": "x\r\nSet-Cookie: stolen=1\r\n\r\n<script>",
    "a topic": "../../drm.dead-letters",
    "a topic of Kafka": "__consumer_offsets",
    "a template": "${jndi:ldap://127.0.0.1/a} {{7*7}} %s%n {0.__class__} $(id) `id`",
    "a path": "/../../../etc/passwd",
    "the other direction": "\u202egnp.exe\u200b\ufeff",
    "ends of lines that are none": "one\u2028two\u2029three\x85four\x0bfive\x7f",
    "beyond the plane": "\U0001f9ea\U0010ffff\ue000",
    "markup": "]]><!-- &amp; <b>",
    "a member of an object": '"},"sender":"root","x":{"y":"',
    "blanks": " \t a \u00a0 ",
}
MANY = 60


def of_a_kind(text: str, subject: str) -> bytes:
    """Return an event with that text wherever there may be text."""
    event = json.loads(an_event(subject)) | {
        "id": text,
        "subject": f"{subject}{text}",
        "source": text,
        "type": text,
        "sequence": text,
        "traceparent": text,
        "extension": text,
        "data": {text: [text, {text: text}]},
    }
    return json.dumps(event, ensure_ascii=False).encode()


def latin(text: str) -> str:
    """Return what of a text can be in a header."""
    return re.sub(r"[^\x20-\x7e\x80-\xff]", "", text.encode().decode("latin-1")).strip() or "x"


@pytest.mark.row("injection")
@pytest.mark.parametrize("reach", [at_the_door, at_the_route])
async def test_a_text_is_stored_as_it_was_sent(holds: Holds, subject: str, reach: Callable[..., Any]) -> None:
    where = holds.path.where
    for text in TEXTS.values():
        headers = {"user-agent": latin(text), "x-request-id": latin(text), "tracestate": latin(text)}
        async with reach(where["edge_url"]) as wire:
            reply = await post(wire, where["sender_key"], of_a_kind(text, subject), headers)
            assert (reply.status, reply.json()["accepted"]) == (200, 1), text
            assert reply.headers["x-request-id"] == reply.json()["request_id"]
            assert "set-cookie" not in reply.headers
    async with reach(where["edge_url"]) as wire:
        assert (await post(wire, where["sender_key"], sentinel_behind(b"acme.untyped", subject), {})).status == 200
    stored = "select * from event where starts_with(subject, $1)"
    async with asyncio.timeout(STORED_WITHIN_S):
        while len(rows := await holds.db.fetch(stored, subject)) <= len(TEXTS):  # noqa: ASYNC110 - it is far away
            await asyncio.sleep(0.05)
    await holds.check(subject, *TEXTS.values())
    by_subject = {row["subject"]: row for row in rows}
    async with at_serve(where) as serve:
        for text in TEXTS.values():
            row = by_subject[subject + text]
            assert (row["id"], row["source"], row["type"], row["sequence"]) == (text, text, text, text)
            assert json.loads(row["data"]) == {text: [text, {text: text}]}
            found = await serve.get("/v1/events", params={"subject": subject + text, "source": text, "id": text})
            assert (found.status_code, found.json()["fate"]) == (200, "attached"), found.text


def at_serve(where: dict[str, Any]) -> httpx.AsyncClient:
    headers = bearer(where["admin_key"])
    return httpx.AsyncClient(base_url=where["serve_url"], headers=headers, timeout=30, verify=NO_TLS)


def bearer(key: str) -> dict[str, str]:
    return {"authorization": f"Bearer {key}"}


@pytest.mark.row("injection")
async def test_a_text_in_the_registry_comes_out_as_it_went_in(path: Running, subject: str) -> None:
    where = path.where
    async with at_serve(where) as serve:
        for text in TEXTS.values():
            sender = await serve.post("/v1/senders", json={"name": subject + text})
            assert (sender.status_code, sender.json()["name"]) == (201, subject + text)
            assert (await serve.get(f"/v1/senders/{sender.json()['id']}")).json()["name"] == subject + text
            reference = f"{subject}{text}"[:150]
            party = await serve.post("/v1/parties", json={"kind": "customer", "name": text, "refs": {"crm": reference}})
            assert party.status_code == 201, party.text
            by_id = (await serve.get(f"/v1/parties/{party.json()['id']}")).json()
            by_reference = (await serve.get("/v1/parties", params={"ref": f"crm:{reference}"})).json()
            assert [found["id"] for found in by_reference["items"]] == [by_id["id"]]
            assert (by_id["name"], by_id["refs"]) == (text, {"crm": [reference]})
            for strange in (f"/v1/{quote(text, safe='')}", f"/v1/devices/{quote(subject + text, safe='')}"):
                answer = await serve.get(strange)
                assert answer.status_code == 404
                assert "set-cookie" not in answer.headers
            device = f"/v1/devices/{quote(subject + text, safe='')}"
            assert (await serve.put(device, json={"model": text})).status_code == 201, text
            for described in (await serve.get(device), await serve.put(device, json={"model": text})):
                assert (described.json()["id"], described.json()["model"]) == (subject + text, text)
            for room in (device + "/events", f"/v1/parties/crm:{quote(reference, safe='')}/timeline"):
                assert (await serve.get(room)).json()["items"] == [], room
            key = await serve.get("/v1/senders", headers={b"authorization": f"Bearer {latin(text)}".encode("latin-1")})
            assert key.status_code == 401


@pytest.mark.row("injection")
async def test_each_line_of_a_log_is_one_object_whatever_was_sent(path: Running, subject: str) -> None:
    where = path.where
    for text in TEXTS.values():
        for reach in (at_the_door, at_the_route):
            for headers in (
                {"user-agent": latin(text), "authorization": latin(text)},
                {"authorization": f"Bearer {latin(text)}"},
                {"content-type": latin(text)},
                {"content-encoding": latin(text)},
                {f"ce-{name}": latin(text) for name in ("id", "type", "source", "subject", "time")},
                {"x-request-id": latin(text), "date": latin(text), "origin": latin(text)},
            ):
                async with reach(where["edge_url"]) as wire:
                    reply = await post(wire, where["sender_key"], of_a_kind(text, subject)[:-1], headers)
                    assert 400 <= reply.status < 500
        async with at_serve(where) as serve:
            await serve.get("/v1/parties/" + quote(text, safe=""), params={text: text})
            await serve.post("/v1/senders", json={text: text, "name": [text]})
    logs = [*(path.ready_file.parent / "data" / "logs").glob("*.log")]
    ours = [log for log in logs if log.stem in ("edge", "enrich", "attach", "serve")]
    assert len(ours) == 4
    for log in ours:
        content = log.read_bytes()
        assert content.endswith(b"\n")
        for line in content[:-1].split(b"\n"):
            said = json.loads(line)
            assert {"time", "level", "event", "process", "pid"} <= set(said)
            assert said["event"] != "all is lost"
            assert line.decode().isprintable()


@pytest.mark.row("injection")
async def test_the_series_of_the_metrics_do_not_grow_with_what_is_sent(
    path: Running, subject: str, seen: Callable[[str], None]
) -> None:
    where = path.where

    async def send(number: int) -> None:
        events = [
            json.loads(of_a_kind(f"{text[:80]}{number}", f"{subject}-{number}")) for text in (*TEXTS.values(), "a.b")
        ]
        sent = {"user-agent": f"agent/{number}", "x-request-id": f"request-{number}", "origin": f"http://{number}"}
        assert (await edge.post("/v1/events", json=events, headers=sent)).status_code == 200
        await edge.post(f"/v1/{number}", headers={"content-type": f"x/{number}"})
        await edge.post("/v1/events", content=b"x", headers={"content-type": f"x/{number}"})
        await edge.request(f"BREW{'X' * (number % 3)}", "/v1/events")
        await serve.get(f"/v1/parties/{number}", params={f"q{number}": number})
        await serve.get(f"/v1/{number}")

    async def settled() -> dict[str, int]:
        await quiet(where["kafka_bootstrap"], where["postgres_dsn"], "drm")
        return {process: len(samples) for process, samples in (await path.samples()).items()}

    async with (
        httpx.AsyncClient(base_url=where["edge_url"], headers=bearer(where["sender_key"]), timeout=30) as edge,
        at_serve(where) as serve,
    ):
        for number in range(3):
            await send(number)
        before = await settled()
        for start in range(3, MANY, 10):
            await asyncio.gather(*(send(number) for number in range(start, start + 10)))
        after = await settled()
    assert after == before
    seen(f"{MANY * (len(TEXTS) + 1)} types and subjects, the same {sum(after.values())} series")
