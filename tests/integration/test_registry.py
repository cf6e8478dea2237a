"""The registry: senders and keys, parties, devices, relations; through the real application on the real Postgres."""

import asyncio
import base64
import json
import re
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta, timezone
from typing import Any
from uuid import UUID

import asyncpg
import httpx
import pytest
from fastapi import FastAPI
from tests.integration.conftest import Ask

from drm_ingest.errors import PROBLEMS
from drm_ingest.postgres.credentials import key_hash

MARCH, APRIL, MAY = "2026-03-01T00:00:00Z", "2026-04-01T00:00:00Z", "2026-05-01T00:00:00Z"


async def make_party(admin: httpx.AsyncClient, name: str = "Ada", kind: str = "customer", **refs: str) -> str:
    answer = await admin.post("/v1/parties", json={"kind": kind, "name": name, "refs": refs})
    assert answer.status_code == 201, answer.text
    made: str = answer.json()["id"]
    return made


async def begin(admin: httpx.AsyncClient, **relation: Any) -> httpx.Response:
    return await admin.post("/v1/relationships", json={"role": "owner", "valid_from": MARCH} | relation)


def refused(answer: httpx.Response, status: int, code: str) -> dict[str, Any]:
    """Return the problem document, which must be one."""
    assert (answer.status_code, answer.headers["content-type"]) == (status, "application/problem+json"), answer.text
    problem: dict[str, Any] = answer.json()
    assert (problem["code"], problem["status"], problem["title"]) == (code, status, PROBLEMS[code].title)
    assert problem["request_id"] == answer.headers["x-request-id"]
    return problem


# -- who asks ---------------------------------------------------------------------------------------------------------


async def test_without_a_key_nothing_is_told(ask: Ask) -> None:
    nobody = await ask(key="")
    for path in ("/v1/senders", "/v1/parties", "/v1/parties/crm:1", "/v1/devices/d", "/v1/relationships", "/v1/events"):
        answer = await nobody.get(path)
        refused(answer, 401, "unauthenticated")
        assert answer.headers["www-authenticate"].startswith("Bearer")


@pytest.mark.parametrize(
    "header",
    ["Bearer drm_wrong", "Bearer", "Bearer ", "Basic !", "Basic " + base64.b64encode(b"\xff").decode(), "Digest x",
     "Bearer " + "drm_" + "k" * 5000, "Bearer drm_\xe4"],
)  # fmt: skip
async def test_a_header_that_holds_no_valid_key_is_refused(ask: Ask, header: str) -> None:
    nobody = await ask(key="")
    answer = await nobody.get("/v1/senders", headers={b"authorization": header.encode("latin-1")})
    refused(answer, 401, "unauthenticated")


async def test_a_key_is_taken_as_the_user_name_of_basic_too(admin: httpx.AsyncClient, ask: Ask) -> None:
    key = admin.headers["authorization"].removeprefix("Bearer ")
    nobody = await ask(key="")
    assert (await nobody.get("/v1/senders", auth=(key, ""))).status_code == 200


async def test_a_reader_reads_but_changes_nothing_and_sees_no_senders(admin: httpx.AsyncClient, ask: Ask) -> None:
    party = await make_party(admin)
    await begin(admin, subject="meter-7", party=party)
    reader = await ask("dashboard", "reader")
    for path in (
        "/v1/parties", f"/v1/parties/{party}", f"/v1/parties/{party}/timeline", "/v1/devices/meter-7",
        "/v1/devices/meter-7/events", "/v1/relationships", "/v1/events?subject=meter-7&id=1",
    ):  # fmt: skip
        assert (await reader.get(path)).status_code == 200, path
    for answer in (
        await reader.get("/v1/senders"),
        await reader.post("/v1/senders", json={"name": "x"}),
        await reader.post("/v1/parties", json={"kind": "customer", "name": "x"}),
        await reader.put("/v1/devices/meter-7", json={}),
        await begin(reader, subject="meter-8", party=party),
    ):
        refused(answer, 403, "forbidden")


async def test_a_senders_key_opens_nothing_but_the_fate_of_events(ask: Ask) -> None:
    fleet = await ask("fleet", "sender")
    for path in ("/v1/senders", "/v1/parties", "/v1/parties/crm:1", "/v1/devices/d", "/v1/relationships"):
        refused(await fleet.get(path), 403, "forbidden")
    assert (await fleet.get("/v1/events?subject=d&id=1")).json()["fate"] == "pending"


# -- senders and keys -------------------------------------------------------------------------------------------------


async def test_a_key_is_shown_once_and_stored_hashed(
    admin: httpx.AsyncClient, db: asyncpg.Connection, ask: Ask
) -> None:
    made = await admin.post("/v1/senders", json={"name": "back office", "role": "reader"})
    assert made.status_code == 201
    sender = made.json()
    assert (await admin.get(made.headers["location"])).json() == sender
    assert {"name": "back office", "role": "reader", "device": None}.items() <= sender.items()

    shown = (await admin.post(f"/v1/senders/{sender['id']}/keys")).json()
    listed = (await admin.get(f"/v1/senders/{sender['id']}/keys")).json()["items"]
    assert listed == [{name: value for name, value in shown.items() if name != "key"}]
    assert shown["key"].startswith(shown["prefix"])
    assert await db.fetchval("select hash from sender_key where id = $1", UUID(shown["id"])) == key_hash(shown["key"])
    assert (await (await ask(key=shown["key"])).get("/v1/parties")).status_code == 200


async def test_a_name_belongs_to_one_sender(admin: httpx.AsyncClient) -> None:
    first = (await admin.post("/v1/senders", json={"name": "fleet"})).json()
    problem = refused(await admin.post("/v1/senders", json={"name": "fleet"}), 409, "conflict")
    assert problem["sender"] == first["id"]


async def test_a_revoked_key_is_refused_with_the_next_request(admin: httpx.AsyncClient, ask: Ask) -> None:
    sender = (await admin.post("/v1/senders", json={"name": "fleet", "role": "reader"})).json()["id"]
    keys = [(await admin.post(f"/v1/senders/{sender}/keys")).json() for _ in range(3)]
    first, second, third = [await ask(key=key["key"]) for key in keys]
    assert (await first.get("/v1/parties")).status_code == 200

    for revoked in (1, 0):  # again, and nothing is left to revoke
        answer = await admin.delete(f"/v1/senders/{sender}/keys/{keys[0]['id']}")
        assert (answer.status_code, answer.json()) == (200, {"revoked": revoked})
    refused(await first.get("/v1/parties"), 401, "unauthenticated")
    assert (await second.get("/v1/parties")).status_code == 200

    assert (await admin.delete(f"/v1/senders/{sender}/keys")).json() == {"revoked": 2}
    refused(await second.get("/v1/parties"), 401, "unauthenticated")
    refused(await third.get("/v1/parties"), 401, "unauthenticated")
    listed = (await admin.get(f"/v1/senders/{sender}/keys")).json()["items"]
    assert [key["revoked_at"] is not None for key in listed] == [True, True, True]


async def test_whoever_guesses_keys_is_refused_unlooked_at_and_keys_in_use_go_on(
    admin: httpx.AsyncClient, ask: Ask
) -> None:
    sender = (await admin.post("/v1/senders", json={"name": "reader of records", "role": "reader"})).json()["id"]
    used, unused = [(await admin.post(f"/v1/senders/{sender}/keys")).json()["key"] for _ in range(2)]
    in_use = await ask(key=used)
    assert (await in_use.get("/v1/parties")).status_code == 200
    guess = await ask(key=f"drm_{'x' * 43}")
    while (answer := await guess.get("/v1/parties")).status_code == 401:
        pass
    assert refused(answer, 429, "rate_limited")["limit"] == 10
    assert int(answer.headers["retry-after"]) >= 1
    assert (await (await ask(key=unused)).get("/v1/parties")).status_code == 429
    assert (await in_use.get("/v1/parties")).status_code == 200


async def test_a_key_that_would_have_ended_already_is_not_made(admin: httpx.AsyncClient) -> None:
    sender = (await admin.post("/v1/senders", json={"name": "visitor"})).json()["id"]
    second, in_rome = timedelta(seconds=1), timezone(timedelta(hours=1))
    for past in (datetime.now(UTC) - second, (datetime.now(UTC) - second).astimezone(in_rome)):
        answer = await admin.post(f"/v1/senders/{sender}/keys", json={"expires_at": past.isoformat()})
        problem = refused(answer, 422, "invalid_parameters")
        assert problem["violations"][0]["pointer"] == "/expires_at"
        assert problem["detail"].startswith("/expires_at: Must lie ahead: here it is 20")
    assert (await admin.get(f"/v1/senders/{sender}/keys")).json()["items"] == []


async def test_whose_a_key_is_is_found_by_its_first_characters_and_it_is_revoked_by_that(
    admin: httpx.AsyncClient, ask: Ask
) -> None:
    made = []
    for name in ("back office", "night shift"):
        sender = (await admin.post("/v1/senders", json={"name": name, "role": "reader"})).json()
        made.append((sender, (await admin.post(f"/v1/senders/{sender['id']}/keys")).json()))
    (_, other), (sender, key) = made
    [found] = (await admin.get("/v1/keys", params={"prefix": key["prefix"]})).json()["items"]
    assert found == {name: value for name, value in key.items() if name != "key"} | {
        "sender": sender["id"], "sender_name": "night shift",
    }  # fmt: skip
    assert (await admin.delete(f"/v1/senders/{found['sender']}/keys/{found['id']}")).json() == {"revoked": 1}
    refused(await (await ask(key=key["key"])).get("/v1/parties"), 401, "unauthenticated")
    assert (await (await ask(key=other["key"])).get("/v1/parties")).status_code == 200
    [found] = (await admin.get("/v1/keys", params={"prefix": key["prefix"]})).json()["items"]
    assert found["revoked_at"]  # and the log of its last tries can still be understood
    assert (await admin.get("/v1/keys?prefix=drm_________")).json() == {"items": [], "next": None}


async def test_two_keys_that_begin_alike_are_told_page_by_page(
    admin: httpx.AsyncClient, db: asyncpg.Connection
) -> None:
    sender = (await admin.post("/v1/senders", json={"name": "fleet"})).json()["id"]
    made = [(await admin.post(f"/v1/senders/{sender}/keys")).json() for _ in range(2)]
    await db.execute("update sender_key set prefix = $1 where sender = $2", made[0]["prefix"], UUID(sender))
    query = {"prefix": made[0]["prefix"], "limit": "1"}
    first = (await admin.get("/v1/keys", params=query)).json()
    second = (await admin.get("/v1/keys", params=query | {"cursor": first["next"]})).json()
    assert [page["items"][0]["id"] for page in (first, second)] == [key["id"] for key in made]
    assert second["next"] is None


async def test_a_whole_key_is_not_looked_for_and_not_repeated(admin: httpx.AsyncClient) -> None:
    key = admin.headers["authorization"].removeprefix("Bearer ")
    for prefix in (key, key[:11], "x" * 12, key[:11] + "ä", key[:12] + "\n"):
        problem = refused(await admin.get("/v1/keys", params={"prefix": prefix}), 422, "invalid_parameters")
        assert "the first 12 characters" in problem["detail"]
        assert prefix not in str(problem)
    refused(await admin.get("/v1/keys"), 422, "invalid_parameters")


async def test_an_expired_key_is_refused(admin: httpx.AsyncClient, db: asyncpg.Connection, ask: Ask) -> None:
    sender = (await admin.post("/v1/senders", json={"name": "visitor", "role": "reader"})).json()["id"]
    tomorrow = (datetime.now(UTC) + timedelta(days=1)).isoformat()
    key = (await admin.post(f"/v1/senders/{sender}/keys", json={"expires_at": tomorrow})).json()
    visitor = await ask(key=key["key"])
    assert (await visitor.get("/v1/parties")).status_code == 200
    await db.execute("update sender_key set expires_at = clock_timestamp() where id = $1", UUID(key["id"]))
    refused(await visitor.get("/v1/parties"), 401, "unauthenticated")


async def test_the_last_key_of_an_administrator_cannot_be_revoked(admin: httpx.AsyncClient, ask: Ask) -> None:
    office = (await admin.get("/v1/senders")).json()["items"][0]["id"]
    refused(await admin.delete(f"/v1/senders/{office}/keys"), 409, "conflict")
    other = await ask("deputy", "admin")
    assert (await admin.delete(f"/v1/senders/{office}/keys")).json() == {"revoked": 1}
    refused(await admin.get("/v1/senders"), 401, "unauthenticated")
    assert (await other.get("/v1/senders")).status_code == 200


async def test_what_is_not_there_is_404(admin: httpx.AsyncClient) -> None:
    none = UUID(int=7)
    for path in (
        f"/v1/senders/{none}", f"/v1/senders/{none}/keys", f"/v1/parties/{none}", "/v1/parties/crm:none",
        "/v1/parties/nobody", "/v1/parties/crm:none/timeline", "/v1/devices/none", "/v1/devices/none/events",
        f"/v1/relationships/{none}", "/v1/nothing", "/", "/v1/parties/",
    ):  # fmt: skip
        refused(
            await admin.get(path),
            422 if path == "/v1/parties/" else 404,
            "invalid_parameters" if path == "/v1/parties/" else "not_found",
        )
    refused(await admin.post(f"/v1/senders/{none}/keys"), 404, "not_found")
    refused(await admin.delete(f"/v1/senders/{none}/keys"), 404, "not_found")
    refused(await admin.delete(f"/v1/senders/{none}/keys/{none}"), 404, "not_found")


# -- parties ----------------------------------------------------------------------------------------------------------


async def test_a_party_is_found_by_its_id_and_by_each_reference(admin: httpx.AsyncClient) -> None:
    made = await admin.post(
        "/v1/parties", json={"kind": "vendor", "name": "Volt & Söhne", "refs": {"crm": "778", "shop": "a/9:ä"}}
    )
    assert made.status_code == 201
    party = made.json()
    refs = {"crm": ["778"], "shop": ["a/9:ä"]}
    assert {"kind": "vendor", "name": "Volt & Söhne", "refs": refs}.items() <= party.items()
    for ref in ("crm:778", "shop:a/9:ä"):
        found = (await admin.get("/v1/parties", params={"ref": ref})).json()
        assert found == {"items": [party], "next": None}
    for name in (party["id"], "crm:778", "shop:a%2F9:ä", "shop:a/9:ä"):
        record = (await admin.get(f"/v1/parties/{name}")).json()
        assert record["id"] == party["id"]
    assert (await admin.get("/v1/parties", params={"ref": "crm:779"})).json()["items"] == []
    assert (await admin.get("/v1/parties", params={"ref": "crm:778", "kind": "customer"})).json()["items"] == []


async def test_a_taken_reference_names_its_party_and_nothing_is_made(admin: httpx.AsyncClient) -> None:
    ada = await make_party(admin, crm="778")
    bo = {"kind": "customer", "name": "Bo", "refs": {"aaa": "1", "crm": "778"}}
    problem = refused(await admin.post("/v1/parties", json=bo), 409, "conflict")
    assert (problem["party"], problem["ref"]) == (ada, "crm:778")
    assert [party["id"] for party in (await admin.get("/v1/parties")).json()["items"]] == [ada]
    assert (await admin.get("/v1/parties?ref=aaa:1")).json()["items"] == []


async def test_of_two_parties_with_one_reference_made_at_once_one_is_made(admin: httpx.AsyncClient) -> None:
    parties = [{"kind": "customer", "name": str(n), "refs": {"crm": "1", "shop": "2"}} for n in range(8)]
    answers = await asyncio.gather(*(admin.post("/v1/parties", json=party) for party in parties))
    assert sorted(answer.status_code for answer in answers) == [201] + [409] * 7
    (made,) = (answer.json()["id"] for answer in answers if answer.status_code == 201)
    assert {answer.json()["party"] for answer in answers if answer.status_code == 409} == {made}


# -- devices ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("device", ["meter-7", "site 4/meter 7", "zähler-7", "a+b%2F?#&=", "x" * 200])
async def test_a_device_is_registered_and_described_anew(admin: httpx.AsyncClient, device: str) -> None:
    url = httpx.URL("http://serve").copy_with(raw_path=b"/v1/devices/" + _quoted(device))
    first = await admin.put(url, json={"model": "Thermo 3", "firmware": "3.1.4"})
    assert first.status_code == 201, first.text
    assert {
        "id": device,
        "model": "Thermo 3",
        "firmware": "3.1.4",
        "registered_by": "registry",
    }.items() <= first.json().items()
    again = await admin.put(url, json={"model": "Thermo 3"})
    assert (again.status_code, again.json()["firmware"]) == (200, None)
    record = (await admin.get(url)).json()
    assert record == again.json() | {
        "events": 0, "events_by_type": {}, "first_seen": None, "last_seen": None, "latest": {},
        "claimed": False, "related": [], "related_later": [], "related_before": [], "relations_before": 0,
        "predecessors": [], "replaced_by": None,
    }  # fmt: skip


def _quoted(text: str) -> bytes:
    from urllib.parse import quote

    return quote(text, safe="").encode()


async def test_a_device_cannot_be_called_like_a_party(admin: httpx.AsyncClient) -> None:
    refused(await admin.put("/v1/devices/party:crm:1", json={}), 422, "invalid_parameters")


# -- relations --------------------------------------------------------------------------------------------------------


async def test_a_relation_registers_its_device_and_is_listed(admin: httpx.AsyncClient) -> None:
    ada, volt = await make_party(admin, crm="778"), await make_party(admin, "Volt", "vendor")
    made = await begin(admin, subject="meter-7", party="crm:778", valid_to=None, reason="sale 12")
    assert made.status_code == 201, made.text
    relation = made.json()
    assert relation == {
        "id": relation["id"], "subject": "meter-7", "role": "owner", "party": ada, "valid_from": MARCH,
        "valid_to": None, "recorded_at": relation["recorded_at"], "asserted_by": "office", "reason": "sale 12",
        "version": 1, "batch": None, "withdrawn_at": None,
    }  # fmt: skip
    assert (await admin.get(made.headers["location"])).json() == relation
    sold = (await begin(admin, subject="meter-7", role="sold_by", party=volt, asserted_by="erp")).json()
    assert sold["asserted_by"] == "erp"

    device = (await admin.get("/v1/devices/meter-7")).json()
    assert (device["claimed"], device["registered_by"]) == (True, "relationship")
    assert [(held["role"], held["party"], held["kind"], held["name"]) for held in device["related"]] == [
        ("owner", ada, "customer", "Ada"), ("sold_by", volt, "vendor", "Volt"),
    ]  # fmt: skip

    other = (await begin(admin, subject="meter-8", party=ada)).json()
    for filters, expected in (
        ({}, [relation, sold, other]),
        ({"subject": "meter-7"}, [relation, sold]),
        ({"party": ada}, [relation, other]),
        ({"party": "crm:778", "subject": "meter-8"}, [other]),
        ({"role": "sold_by"}, [sold]),
        ({"party": ada, "role": "sold_by"}, []),
        ({"subject": "meter-none"}, []),
    ):
        assert (await admin.get("/v1/relationships", params=filters)).json()["items"] == expected, filters


async def test_a_list_of_relations_says_what_of_its_filters_there_is_not(admin: httpx.AsyncClient) -> None:
    for filters in ({"party": "crm:none"}, {"party": str(UUID(int=7))}, {"subject": "party:crm:none"}):
        problem = refused(await admin.get("/v1/relationships", params=filters), 404, "not_found")
        (name,) = filters.values()
        assert f"There is no party {name.removeprefix('party:')}" in problem["detail"]
    for role in ("emperor", "Owner"):
        problem = refused(await admin.get("/v1/relationships", params={"role": role}), 422, "invalid_parameters")
        (violation,) = problem["violations"]
        assert violation["parameter"] == "role"
        assert "buys_from, cared_for_by, installed_by, made_by, owner," in violation["detail"]


async def test_half_the_name_of_a_party_becomes_no_device(admin: httpx.AsyncClient) -> None:
    ada, bo = await make_party(admin, crm="4711"), await make_party(admin, "Bo")
    for subject in ("crm:4711", ada):
        problem = refused(await begin(admin, subject=subject, party=bo), 422, "invalid_parameters")
        (violation,) = problem["violations"]
        assert (violation["pointer"], f"write party:{subject}." in violation["detail"]) == ("/subject", True)
        refused(await admin.get(f"/v1/devices/{subject}"), 404, "not_found")
    assert (await begin(admin, subject="crm:4712", party=bo)).status_code == 201, "of whom nobody is called so"
    await admin.put("/v1/devices/crm:4711", json={})
    assert (await begin(admin, subject="crm:4711", party=bo)).json()["subject"] == "crm:4711"


async def test_an_exclusive_role_is_handed_over_at_an_instant_and_never_shared(admin: httpx.AsyncClient) -> None:
    ada, bo = await make_party(admin), await make_party(admin, "Bo")
    first = (await begin(admin, subject="meter-7", party=ada, valid_to=APRIL)).json()
    assert (await begin(admin, subject="meter-7", party=bo, valid_from=APRIL)).status_code == 201
    problem = refused(
        await begin(admin, subject="meter-7", party=bo, valid_from="2026-03-31T23:59:59.999999Z", valid_to=APRIL),
        409, "conflict",
    )  # fmt: skip
    assert problem["relationship"] == first
    assert all(told in problem["detail"] for told in (ada, first["id"], "a time outside of that"))
    # Another role is another matter, and so is another device.
    volt = await make_party(admin, "Volt", "vendor")
    assert (await begin(admin, subject="meter-7", role="sold_by", party=volt)).status_code == 201
    assert (await begin(admin, subject="meter-8", party=bo)).status_code == 201


async def test_a_shared_role_is_held_by_several_but_by_each_only_once(admin: httpx.AsyncClient) -> None:
    ada, bo = await make_party(admin), await make_party(admin, "Bo")
    first = (await begin(admin, subject="tablet", role="user", party=ada, valid_to=MAY)).json()
    assert (await begin(admin, subject="tablet", role="user", party=bo)).status_code == 201
    problem = refused(await begin(admin, subject="tablet", role="user", party=ada, valid_from=APRIL), 409, "conflict")
    assert problem["relationship"] == first


async def test_of_several_owners_claimed_at_once_one_becomes_it(admin: httpx.AsyncClient) -> None:
    parties = [await make_party(admin, str(n)) for n in range(8)]
    answers = await asyncio.gather(*(begin(admin, subject="meter-7", party=party) for party in parties))
    assert sorted(answer.status_code for answer in answers) == [201] + [409] * 7
    (owner,) = (answer.json() for answer in answers if answer.status_code == 201)
    assert [answer.json()["relationship"] for answer in answers if answer.status_code == 409] == [owner] * 7


async def test_a_relation_joins_two_parties_by_whatever_name(admin: httpx.AsyncClient) -> None:
    ada = await make_party(admin, crm="778")
    volt = await make_party(admin, "Volt", "vendor", erp="v-12")
    made = await begin(admin, subject="party:crm:778", role="buys_from", party="erp:v-12")
    assert (made.json()["subject"], made.json()["party"]) == (f"party:{ada}", volt)
    for subject in ("party:crm:778", f"party:{ada}", f"party:{ada.upper()}"):
        assert (await admin.get("/v1/relationships", params={"subject": subject})).json()["items"] == [made.json()]
    again = await begin(admin, subject=f"party:{ada.upper()}", role="buys_from", party=volt)
    assert (again.status_code, again.json()) == (200, made.json())


async def test_postgres_holds_relations_to_one_name_of_a_party(
    admin: httpx.AsyncClient, db: asyncpg.Connection
) -> None:
    ada, volt = await make_party(admin, crm="778"), await make_party(admin, "Volt", "vendor")
    for subject in ("party:crm:778", f"party:{ada.upper()}", f"party:{ada.replace('-', '')}", "party:"):
        with pytest.raises((asyncpg.CheckViolationError, asyncpg.InvalidTextRepresentationError)):
            await db.execute(
                "insert into relationship (subject, role, party, exclusive, subject_kind, party_kind, valid) "
                "values ($1, 'buys_from', $2, false, 'customer', 'vendor', '(,)')", subject, UUID(volt),
            )  # fmt: skip


async def test_what_makes_no_sense_is_refused_where_it_is(admin: httpx.AsyncClient) -> None:
    ada, _ = await make_party(admin), await make_party(admin, "Bo", crm="778")
    for wrong, pointer, says in (
        ({"role": "emperor"}, "/role", "owner"),
        ({"role": "buys_from"}, "/role", "device"),
        ({"subject": "party:crm:778", "role": "owner"}, "/role", "buys_from"),
        ({"role": "sold_by"}, "/party", "kind vendor"),
        ({"subject": "party:crm:778", "role": "buys_from"}, "/party", "partner or vendor"),
        ({"role": "owner", "batch": "7"}, "/batch", "parts_by"),
        ({"party": str(UUID(int=1))}, "/party", "POST /v1/parties"),
        ({"party": "crm:none"}, "/party", "crm:none"),
        ({"subject": "party:crm:none", "role": "buys_from"}, "/subject", "crm:none"),
        ({"subject": f"party:{ada}", "role": "buys_from"}, "/party", "itself"),
        ({"valid_to": MARCH}, "/valid_to", "later"),
        ({"valid_from": "2026-03-01T00:00:00"}, "/valid_from", "with an offset"),
        ({"valid_from": "0001-01-01T00:00:00+14:00"}, "/valid_from", "years"),
        ({"valid_from": "9999-12-31T23:59:59.999999Z"}, "/valid_from", "years"),
        ({"subject": ""}, "/subject", "empty"),
        ({"subject": "x" * 201}, "/subject", "200"),
        ({"subject": "a\0b"}, "/subject", "NUL"),
        ({"valid_until": APRIL}, "/valid_until", "nothing of this name"),
    ):
        relation = {"subject": "meter-7", "role": "owner", "party": ada, "valid_from": MARCH} | wrong
        problem = refused(await admin.post("/v1/relationships", json=relation), 422, "invalid_parameters")
        (violation,) = problem["violations"]
        assert (violation["pointer"], says in violation["detail"]) == (pointer, True), violation
    assert (await admin.get("/v1/relationships")).json()["items"] == []
    refused(await admin.get("/v1/devices/meter-7"), 404, "not_found")  # and no device came of it


async def test_a_relation_begins_now_unless_it_says_when(admin: httpx.AsyncClient, db: asyncpg.Connection) -> None:
    ada = await make_party(admin)
    before = await db.fetchval("select clock_timestamp()")
    now = (await admin.post("/v1/relationships", json={"subject": "a", "role": "owner", "party": ada})).json()
    assert now["valid_from"] == now["recorded_at"]
    assert before <= datetime.fromisoformat(now["valid_from"]) <= await db.fetchval("select clock_timestamp()")
    ever = (await begin(admin, subject="b", party=ada, valid_from=None)).json()
    assert ever["valid_from"] is None


async def test_each_change_is_written_down_with_the_time_of_its_row(
    admin: httpx.AsyncClient, db: asyncpg.Connection
) -> None:
    ada = await make_party(admin)
    made = (await begin(admin, subject="meter-7", party=ada, reason="sale")).json()
    refused(await begin(admin, subject="meter-7", party=ada, valid_from=MAY), 409, "conflict")  # writes nothing
    assert (await begin(admin, subject="meter-7", party=ada)).status_code == 200  # nor does this
    (change,) = await db.fetch("select * from relationship_change")
    assert str(change["relationship"]) == made["id"]
    assert (change["subject"], str(change["party"]), change["role"], change["change"]) == (
        "meter-7",
        ada,
        "owner",
        "begun",
    )
    assert change["recorded_at"] == datetime.fromisoformat(made["recorded_at"])
    detail = json.loads(change["detail"])
    assert detail == {
        "valid_from": MARCH, "valid_to": None, "batch": None, "asserted_by": "office", "reason": "sale",
    }  # fmt: skip


async def test_changes_of_one_subject_are_recorded_in_the_order_they_were_made(
    admin: httpx.AsyncClient, db: asyncpg.Connection
) -> None:
    parties = [await make_party(admin, str(n)) for n in range(10)]
    await asyncio.gather(*(begin(admin, subject="tablet", role="user", party=party) for party in parties))
    rows = await db.fetch("select recorded_at from relationship_change where subject = 'tablet' order by number")
    times = [row["recorded_at"] for row in rows]
    assert (len(times), times) == (10, sorted(set(times)))


# -- lists ------------------------------------------------------------------------------------------------------------


async def test_a_list_is_read_page_by_page_without_gap_or_repeat(admin: httpx.AsyncClient) -> None:
    made = [await make_party(admin, str(n), "vendor" if n % 3 == 0 else "customer") for n in range(10)]
    vendors = [id_ for n, id_ in enumerate(made) if n % 3 == 0]
    for kind, expected in ((None, made), ("vendor", vendors)):
        for limit in (1, 3, 4, 10, 1000):
            seen, params = [], {"limit": limit} | ({"kind": kind} if kind else {})
            while True:
                page = (await admin.get("/v1/parties", params=params)).json()
                assert len(page["items"]) <= limit
                seen += [party["id"] for party in page["items"]]
                if page["next"] is None:
                    break
                params["cursor"] = page["next"]
            assert seen == expected


async def test_a_cursor_is_good_only_for_its_list_and_filters(admin: httpx.AsyncClient) -> None:
    for n in range(3):
        await begin(admin, subject=f"meter-{n}", party=await make_party(admin, str(n)))
    cursor = (await admin.get("/v1/parties?limit=1")).json()["next"]
    assert (await admin.get("/v1/parties", params={"cursor": cursor, "limit": 2})).status_code == 200
    tampered = base64.urlsafe_b64encode(base64.urlsafe_b64decode(cursor + "==").replace(b"-", b"+")).decode()
    for path, query in (
        ("/v1/parties", {"cursor": cursor, "kind": "customer"}),
        ("/v1/relationships", {"cursor": cursor}),
        *(
            ("/v1/parties", {"cursor": wrong})
            for wrong in (cursor[:-4], tampered, "nonsense", "ä", "", "W10", "x" * 1999)
        ),
    ):
        problem = refused(await admin.get(path, params=query), 422, "invalid_parameters")
        assert problem["violations"][0]["parameter"] == "cursor"


@pytest.mark.parametrize(
    "query", ["limit=0", "limit=1001", "limit=x", "kind=king", "knd=vendor", "ref=778", "ref=CRM:1"]
)
async def test_a_wrong_parameter_is_named(admin: httpx.AsyncClient, query: str) -> None:
    problem = refused(await admin.get(f"/v1/parties?{query}"), 422, "invalid_parameters")
    assert problem["violations"][0]["parameter"] == query.partition("=")[0]


async def test_a_parameter_that_a_door_does_not_know_is_refused_at_every_door(
    admin: httpx.AsyncClient, serve_app: FastAPI
) -> None:
    doors = [
        (method, re.sub("{[^}]*}", str(UUID(int=7)), path))
        for path, operations in serve_app.openapi()["paths"].items()
        for method in operations
        if path.startswith("/v1/")
    ]
    assert len(doors) > 30
    for method, path in doors:
        answer = await admin.request(method, f"{path}?dry_run=true", json=None if method == "get" else {})
        problem = refused(answer, 422, "invalid_parameters")
        assert {
            "parameter": "dry_run", "detail": "There is nothing of this name here; /docs lists what there is.",
        } in problem["violations"], (method, path)  # fmt: skip


@pytest.mark.parametrize(
    ("method", "path", "sent", "place", "detail"),
    [
        ("POST", "/v1/senders", {}, "/name", "Must be given."),
        ("POST", "/v1/senders", [], "", "Must be a JSON object."),
        ("POST", "/v1/senders", {"name": ""}, "/name", "Must not be empty."),
        ("POST", "/v1/senders", {"name": "x" * 101}, "/name", "Must have at most 100 characters."),
        ("POST", "/v1/senders", {"name": 7}, "/name", 'Must be a string: "4711" and not 4711.'),
        ("POST", "/v1/senders", {"name": True}, "/name", "Must be a string."),
        ("POST", "/v1/senders", {"name": "a\0b"}, "/name", "Must not contain NUL."),
        ("POST", "/v1/senders", {"name": "a", "role": "boss"}, "/role", "Must be 'sender', 'reader' or 'admin'."),
        ("POST", "/v1/senders", {"name": "a", "nam/e": 1}, "/nam~1e",
         "There is nothing of this name here; /docs lists what there is."),
        ("PUT", "/v1/senders/{id}/quota", {"events_per_s": "ten"}, "/events_per_s", "Must be a number."),
        ("PUT", "/v1/senders/{id}/quota", {"burst_s": 3601}, "/burst_s", "Must be at most 3600."),
        ("PUT", "/v1/senders/{id}/quota", {"burst_s": 0.5}, "/burst_s", "Must be a whole number."),
        ("POST", "/v1/senders/{id}/keys", {"expires_at": "tomorrow"}, "/expires_at",
         "Must be a time in RFC 3339 with an offset, as in 2026-11-22T10:00:00Z."),
        ("POST", "/v1/senders/{id}/keys", {"expires_at": 20990301}, "/expires_at",
         "Must be a time in RFC 3339 with an offset, as in 2026-11-22T10:00:00Z."),
        ("POST", "/v1/senders/{id}/keys", {"expires_at": "4080000000"}, "/expires_at",
         "Must be a time in RFC 3339 with an offset, as in 2026-11-22T10:00:00Z."),
        ("POST", "/v1/senders/{id}/keys", {"scope": {"types": []}}, "/scope/types", "Must not be empty."),
        ("POST", "/v1/senders/{id}/keys", {"scope": {"types": "x"}}, "/scope/types", "Must be a JSON array."),
        ("POST", "/v1/senders/{id}/keys", {"scope": {"devices": ["a", 7]}}, "/scope/devices/1",
         'Must be a string: "4711" and not 4711.'),
        ("POST", "/v1/senders/{id}/keys", {"scope": {"parties": "si"}}, "/scope/parties", "Must be true or false."),
        ("POST", "/v1/senders/{id}/fleet-keys", {"public_key": 7}, "/public_key",
         "Must be a string or a JSON object."),
        ("POST", "/v1/senders/{id}/fleet-keys", {"public_key": "x" * 4001}, "/public_key",
         "Must have at most 4000 characters."),
        ("POST", "/v1/parties", {"kind": "vendor", "name": "a", "refs": {"C[": "1"}}, "/refs/C[",
         "Must match ^[a-z][a-z0-9-]{0,39}$."),
        ("POST", "/v1/parties", {"kind": "vendor", "name": "a", "refs": {"crm": ["1", 7]}}, "/refs/crm/1",
         'Must be a string: "4711" and not 4711.'),
        ("POST", "/v1/parties", {"kind": "vendor", "name": "a", "refs": {"crm": 4712}}, "/refs/crm",
         'Must be a string: "4711" and not 4711.'),
        ("POST", "/v1/parties", {"kind": "vendor", "name": "a", "refs": {"crm": {}}}, "/refs/crm", "Must be a string."),
        ("POST", "/v1/parties", {"kind": "vendor", "name": "a", "refs": {"crm": []}}, "/refs/crm",
         "Must not be empty."),
        ("GET", "/v1/parties?limit=x", None, "limit", "Must be a whole number."),
        ("GET", "/v1/relationships?as_of=20260301", None, "as_of",
         "Must be a time in RFC 3339 with an offset, as in 2026-11-22T10:00:00Z."),
        ("GET", "/v1/relationships?as_of=2026-03-01T00:00:00+02:00", None, "as_of",
         "Must be a time in RFC 3339 with an offset, as in 2026-11-22T10:00:00Z. In a URL + is written %2B."),
        ("GET", "/v1/senders/me", None, "sender", "Must be an id, as in 01a202fd-12a9-75d6-a27e-21b5246620a3."),
    ],
)  # fmt: skip
async def test_what_is_wrong_is_said_where_it_is_and_with_what_is_expected(
    admin: httpx.AsyncClient, method: str, path: str, sent: object, place: str, detail: str
) -> None:
    problem = refused(await admin.request(method, path.format(id=UUID(int=7)), json=sent), 422, "invalid_parameters")
    assert problem["violations"] == [{"pointer" if sent is not None else "parameter": place, "detail": detail}]
    assert problem["detail"] == f"{place or 'the body'}: {detail}"


# -- whatever is sent, never a 500 ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        (b"", 422, "invalid_parameters"),
        (b"{", 400, "malformed_json"),
        (b'{"kind":"customer","name":"\xff"}', 400, "malformed_json"),
        (b"[" * 10_000 + b"]" * 10_000, 400, "malformed_json"),
        (b"[]", 422, "invalid_parameters"),
        (b"null", 422, "invalid_parameters"),
        (b'{"kind":"customer","name":"a\\u0000b"}', 422, "invalid_parameters"),
        (b'{"kind":"customer","name":"\\ud800"}', 422, "invalid_parameters"),
        (b'{"kind":"customer","name":"' + b"x" * 301 + b'"}', 422, "invalid_parameters"),
        (b'{"kind":"customer","name":"a","refs":{"CRM":"1"}}', 422, "invalid_parameters"),
        (b'{"kind":"customer","name":"a","refs":{"crm":"a\\u0000"}}', 422, "invalid_parameters"),
        (b'{"kind":"customer","name":"a","refs":{"\\ud800":"a"}}', 422, "invalid_parameters"),
        (b'{"kind":"customer","name":1e400}', 422, "invalid_parameters"),
        (b'{"kind":"customer","name":' + b"9" * 5000 + b"}", 400, "malformed_json"),
        (b'{"kind":"customer","name":"a","refs":{' + b",".join(b'"n%d":"1"' % n for n in range(21)) + b"}}", 422,
         "invalid_parameters"),
        (b'{"kind":"customer","name":"' + b"x" * 100_000 + b'"}', 413, "body_too_large"),
    ],
)  # fmt: skip
async def test_a_bad_body_has_its_code(admin: httpx.AsyncClient, body: bytes, status: int, code: str) -> None:
    refused(await admin.post("/v1/parties", content=body, headers={"content-type": "application/json"}), status, code)
    assert (await admin.get("/v1/parties")).json()["items"] == []


async def test_a_body_that_is_not_said_to_be_json_is_refused(admin: httpx.AsyncClient) -> None:
    for kind in ("application/x-www-form-urlencoded", "text/plain", ""):
        answer = await admin.post(
            "/v1/parties", content=b'{"kind":"customer","name":"a"}', headers={"content-type": kind}
        )
        refused(answer, 415, "unsupported_media_type")


async def test_a_body_that_does_not_arrive_is_cut_off(admin: httpx.AsyncClient) -> None:
    async def trickle() -> AsyncIterator[bytes]:
        yield b"{"
        await asyncio.sleep(60)

    answer = await admin.post("/v1/parties", content=trickle(), headers={"content-type": "application/json"})
    refused(answer, 408, "request_timeout")


@pytest.mark.parametrize(
    "path",
    [
        "/v1/devices/a%00b",
        "/v1/parties/crm:a%00",
        "/v1/parties?ref=crm:%00",
        "/v1/events?subject=%00&id=1",
        "/v1/events?subject=a&id=%00",
        "/v1/relationships?subject=a%00",
        "/v1/devices/a/events?type=%00",
    ],
)
async def test_text_that_cannot_be_stored_is_refused(admin: httpx.AsyncClient, path: str) -> None:
    refused(await admin.get(path), 422, "invalid_parameters")


@pytest.mark.parametrize("path", ["/v1/devices/%ff", "/v1/parties/%ff", "/v1/devices/" + "x" * 201, "/v1/senders/7"])
async def test_an_odd_path_is_a_matter_of_the_asker(admin: httpx.AsyncClient, path: str) -> None:
    assert (await admin.get(path)).status_code in (404, 422)


async def test_a_path_says_which_methods_it_takes(admin: httpx.AsyncClient) -> None:
    for path, allow in (("/v1/parties", "GET, POST"), ("/v1/devices/a", "GET, PUT"), ("/v1/events", "GET")):
        answer = await admin.patch(path)
        refused(answer, 405, "method_not_allowed")
        assert answer.headers["allow"] == allow


async def test_a_door_of_other_methods_is_said_to_be_one_unless_something_is_called_just_so(
    admin: httpx.AsyncClient,
) -> None:
    ada = await make_party(admin, crm="1")
    relation = (await begin(admin, subject="meter-7", party=ada)).json()["id"]
    for method, path, allow in (
        ("GET", f"/v1/parties/{ada}/links", "POST"),
        ("GET", "/v1/parties/crm:1/links/crm:2", "DELETE"),
        ("GET", "/v1/parties/crm:1/refs", "POST"),
        ("GET", "/v1/parties/crm:1/refs/crm:a/links", "DELETE"),
        ("GET", "/v1/parties/crm:none/attributes/timeline", "PUT"),
        ("DELETE", "/v1/parties/crm:1/links", "POST"),
        ("GET", "/v1/devices/meter-7/hand-over", "POST"),
        ("GET", "/v1/devices/none/claim-code", "POST"),
        ("GET", "/v1/devices/meter-7/claims", "POST"),
        ("GET", "/v1/devices/meter-7/replacement", "DELETE, POST"),
        ("GET", f"/v1/relationships/{relation}/end", "POST"),
    ):
        answer = await admin.request(method, path)
        assert path in refused(answer, 405, "method_not_allowed")["detail"]
        assert answer.headers["allow"] == allow, path
    for path in ("/v1/parties/crm:a/7", "/v1/parties/crm:none/timeline", "/v1/devices/hall/7", "/v1/devices/no/events"):
        refused(await admin.get(path), 404, "not_found")

    await make_party(admin, "Bo", shop="a/links")
    assert (await admin.get("/v1/parties/shop:a/links")).json()["name"] == "Bo"
    await admin.put("/v1/devices/hall/claims", json={})
    assert (await admin.get("/v1/devices/hall/claims")).json()["id"] == "hall/claims"


async def test_a_request_keeps_the_id_it_came_with(admin: httpx.AsyncClient) -> None:
    answer = await admin.get("/v1/nothing", headers={"x-request-id": "trace-1"})
    assert refused(answer, 404, "not_found")["request_id"] == "trace-1"
    odd = await admin.get("/v1/nothing", headers={"x-request-id": "a b" + "c" * 200})
    assert len(odd.headers["x-request-id"]) == 16


async def test_requests_and_refusals_are_counted(admin: httpx.AsyncClient) -> None:
    await admin.get("/v1/parties")
    await admin.get("/v1/nothing")
    lines = (await admin.get("/metrics")).text.splitlines()
    assert 'drm_requests_total{status="200",transport="http"} 1.0' in lines
    assert 'drm_requests_total{status="404",transport="http"} 1.0' in lines
    assert 'drm_refusals_total{code="not_found"} 1.0' in lines
    assert "drm_request_seconds_count 2.0" in lines


# -- a bad Postgres ---------------------------------------------------------------------------------------------------


async def test_a_change_that_waits_too_long_for_a_lock_is_503(admin: httpx.AsyncClient, db: asyncpg.Connection) -> None:
    ada = await make_party(admin)
    async with db.transaction():
        await db.execute("lock table relationship in access exclusive mode")
        answer = await begin(admin, subject="meter-7", party=ada)
        refused(answer, 503, "store_unavailable")
        assert int(answer.headers["retry-after"]) >= 1
    assert (await begin(admin, subject="meter-7", party=ada)).status_code == 201


async def test_an_old_database_is_said_to_be_old(admin: httpx.AsyncClient, db: asyncpg.Connection) -> None:
    await db.execute("alter table party rename to party_before")
    problem = refused(await admin.get("/v1/parties"), 503, "not_ready")
    assert "migrate" in problem["detail"]


# -- what it says of itself -------------------------------------------------------------------------------------------


async def test_openapi_describes_every_route_with_examples_and_refusals(serve_app: FastAPI, ask: Ask) -> None:
    document = (await (await ask(key="")).get("/openapi.json")).json()
    assert document == serve_app.openapi()
    operations = [
        (f"{method.upper()} {path}", operation)
        for path, methods in document["paths"].items() if path.startswith("/v1/")
        for method, operation in methods.items()
    ]  # fmt: skip
    assert len(operations) >= 17
    for name, operation in operations:
        assert operation["summary"], name
        assert operation["tags"], name
        assert operation["security"], name
        for status in ("401", "403", "422", "503"):
            content = operation["responses"][status]["content"]
            assert set(content) == {"application/problem+json"}, name
            assert content["application/problem+json"]["schema"]["$ref"].endswith("/ProblemDocument"), name
        if body := operation.get("requestBody"):
            (content,) = body["content"].values()
            reference = content["schema"].get("$ref") or content["schema"]["anyOf"][0]["$ref"]
            schema = document["components"]["schemas"][reference.rpartition("/")[2]]
            assert schema["examples"], name
