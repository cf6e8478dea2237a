"""Parties: references, attributes by origin, and the values that identify nobody; through the real application."""

import asyncio
import hmac
from datetime import UTC, datetime, timedelta
from itertools import islice, permutations
from typing import Any
from uuid import UUID

import asyncpg
import httpx
import pytest
from fastapi import FastAPI
from pydantic import SecretStr
from tests.integration.conftest import Ask, Attach, Sent
from tests.integration.test_registry import make_party, refused

from drm_ingest.settings import Settings

MARCH, APRIL, MAY = "2026-03-01T00:00:00Z", "2026-04-01T00:00:00Z", "2026-05-01T00:00:00Z"
KEY = "a key of at least thirty-two bytes"


@pytest.fixture
def serve_settings(serve_settings: Settings) -> Settings:
    return serve_settings.model_copy(
        update={
            "party_references_max": 5,
            "party_attributes_max": 6,
            "attribute_bytes_max": 100,
            "origins_max": 4,
            "reference_hmac_key": SecretStr(KEY),
            "postgres_lock_timeout_s": 20,  # whoever waits for others gets its turn, on a busy machine too
            "postgres_acquire_timeout_s": 20,
        }
    )


async def say(admin: httpx.AsyncClient, party: str, origin: str, said_at: str | None = None, **values: Any) -> Any:
    body = {"attributes": values} | ({"said_at": said_at} if said_at else {})
    answer = await admin.put(f"/v1/parties/{party}/attributes/{origin}", json=body)
    assert answer.status_code == 200, answer.text
    return answer.json()


async def attributes(admin: httpx.AsyncClient, party: str) -> dict[str, Any]:
    found: dict[str, Any] = (await admin.get(f"/v1/parties/{party}")).json()["attributes"]
    return found


async def agreed(admin: httpx.AsyncClient, party: str) -> dict[str, tuple[Any, str]]:
    return {name: (of["value"], of["origin"]) for name, of in (await attributes(admin, party)).items()}


# -- references -------------------------------------------------------------------------------------------------------


async def test_references_come_and_go_after_the_party_is_made(admin: httpx.AsyncClient, attach: Attach) -> None:
    ada = await make_party(admin, crm="778")
    await attach(Sent("party:shop:a/9", "1", datetime(2026, 3, 1, tzinfo=UTC), "commerce.purchase"))
    assert (await admin.get(f"/v1/parties/{ada}")).json()["events"] == 0
    for _ in range(2):  # a repeat changes nothing
        answer = await admin.post("/v1/parties/crm:778/refs", json={"refs": {"shop": ["b2", "a/9"]}})
        assert (answer.status_code, answer.json()["refs"]) == (200, {"crm": ["778"], "shop": ["a/9", "b2"]})
    assert (await admin.get("/v1/parties/shop:a/9")).json()["events"] == 1

    for removed in (1, 0):
        gone = await admin.delete(f"/v1/parties/{ada}/refs/shop:a%2F9")
        assert (gone.status_code, gone.json()) == (200, {"removed": removed})
    refused(await admin.get("/v1/parties/shop:a/9"), 404, "not_found")
    record = (await admin.get(f"/v1/parties/{ada}")).json()
    assert (record["events"], record["refs"]) == (0, {"crm": ["778"], "shop": ["b2"]})


async def test_a_reference_of_another_party_is_neither_taken_nor_removed(admin: httpx.AsyncClient) -> None:
    ada, bo = await make_party(admin, crm="778"), await make_party(admin, "Bo")
    for answer in (
        await admin.post(f"/v1/parties/{bo}/refs", json={"refs": {"aaa": "1", "crm": "778"}}),
        await admin.delete(f"/v1/parties/{bo}/refs/crm:778"),
    ):
        problem = refused(answer, 409, "conflict")
        assert (problem["party"], problem["ref"]) == (ada, "crm:778")
    assert (await admin.get(f"/v1/parties/{bo}")).json()["refs"] == {}
    assert (await admin.get("/v1/parties/crm:778")).json()["id"] == ada


async def test_a_party_has_only_so_many_references_however_they_come(admin: httpx.AsyncClient) -> None:
    ada = await make_party(admin, crm="1")
    answers = await asyncio.gather(
        *(admin.post(f"/v1/parties/{ada}/refs", json={"refs": {"shop": f"a{n}"}}) for n in range(8))
    )
    assert sorted(answer.status_code for answer in answers) == [200] * 4 + [422] * 4
    assert len((await admin.get(f"/v1/parties/{ada}")).json()["refs"]["shop"]) == 4
    too_many = {"kind": "customer", "name": "Bo", "refs": {"shop": [f"b{n}" for n in range(6)]}}
    problem = refused(await admin.post("/v1/parties", json=too_many), 422, "invalid_parameters")
    assert "at most 5" in problem["detail"]
    assert len((await admin.get("/v1/parties")).json()["items"]) == 1


@pytest.mark.parametrize("ref", ["null", "0", "Anonymous", "test@acme.se", "[object Object]"])
async def test_what_may_stand_for_anybody_is_refused_wherever_it_is_said(admin: httpx.AsyncClient, ref: str) -> None:
    ada = await make_party(admin)
    for method, path, body in (
        ("POST", "/v1/parties", {"kind": "customer", "name": "Bo", "refs": {"crm": ref}}),
        ("POST", f"/v1/parties/{ada}/refs", {"refs": {"crm": ref}}),
    ):
        problem = refused(await admin.request(method, path, json=body), 422, "invalid_parameters")
        assert problem["violations"][0]["pointer"] == "/refs/crm"
    listed = await admin.post(f"/v1/parties/{ada}/refs", json={"refs": {"crm": ["778", ref]}})
    assert refused(listed, 422, "invalid_parameters")["violations"][0]["pointer"] == "/refs/crm/1"
    assert [party["refs"] for party in (await admin.get("/v1/parties")).json()["items"]] == [{}]


async def test_a_mail_address_is_kept_keyed_and_found_again(admin: httpx.AsyncClient, db: Any) -> None:
    ada = await make_party(admin, email="Ada@Acme.se")
    hashed = hmac.new(KEY.encode(), b"ada@acme.se", "sha256").hexdigest()
    for name in (ada, f"email-hmac:{hashed}"):
        assert (await admin.get(f"/v1/parties/{name}")).json()["refs"] == {"email-hmac": [hashed]}
    found = await admin.get("/v1/parties", params={"ref": "email:ada@ACME.se"})
    assert [party["id"] for party in found.json()["items"]] == [ada]
    assert "acme" not in str([dict(row) for row in await db.fetch("select * from party_ref")]).lower()


async def test_a_party_is_called_by_its_mail_address_at_every_door(admin: httpx.AsyncClient) -> None:
    ada, bo = await make_party(admin, email="Ada@Acme.se"), await make_party(admin, "Bo", phone="+46 70 123 45 67")
    cy = await make_party(admin, "Cy", "vendor", email="cy@acme.se")
    mail, phone = "email:ADA@acme.se", "phone:0046701234567"
    assert (await admin.get(f"/v1/parties/{mail}")).json()["id"] == ada
    for subject, role, name, party in (
        ("meter-7", "owner", mail, ada),
        (f"party:{mail}", "buys_from", "email:CY@acme.se", cy),
    ):
        begun = await admin.post("/v1/relationships", json={"subject": subject, "role": role, "party": name})
        assert begun.json()["party"] == party, begun.text
        listed = await admin.get("/v1/relationships", params={"subject": subject, "party": name})
        assert [row["id"] for row in listed.json()["items"]] == [begun.json()["id"]]
    handed_over = await admin.post("/v1/devices/meter-7/hand-over", json={"from": mail, "to": phone})
    assert handed_over.json()["begun"]["party"] == bo
    linked = await admin.post(f"/v1/parties/{mail}/links", json={"party": phone, "reason": "one household"})
    assert linked.json()["parties"] == [ada, bo]
    assert (await admin.delete(f"/v1/parties/{mail}/links/{phone}")).json() == {"unlinked": 1, "parties": [ada]}
    nobody = await admin.get("/v1/parties/email:nobody")
    refused(nobody, 404, "not_found")


async def test_a_mail_address_is_removed_by_what_it_is_however_it_is_kept_and_in_no_log(
    admin: httpx.AsyncClient, db: asyncpg.Connection, capsys: pytest.CaptureFixture[str]
) -> None:
    ada = await make_party(admin, email="Ada@Acme.se")
    await db.execute("insert into party_ref (namespace, ref, party) values ('email', 'ada@old.se', $1)", UUID(ada))
    for address in ("ada@ACME.se", "ada@old.se"):
        removed = [await admin.delete(f"/v1/parties/{ada}/refs/email:{address}") for _ in range(2)]
        assert [answer.json() for answer in removed] == [{"removed": 1}, {"removed": 0}], address
    refused(await admin.delete(f"/v1/parties/{ada}/refs/email:nothing"), 422, "invalid_parameters")
    assert (await admin.get(f"/v1/parties/{ada}")).json()["refs"] == {}
    await admin.get("/v1/parties/email:ada@ACME.se/timeline")
    logged = capsys.readouterr().out
    assert logged.count("/refs/email:…") == 5
    assert "/v1/parties/email:…" in logged
    assert "ada@" not in logged


async def test_without_a_key_a_mail_address_is_refused_and_the_remedy_told(
    admin: httpx.AsyncClient, serve_app: FastAPI, serve_settings: Settings
) -> None:
    object.__setattr__(
        serve_app.state.store, "settings", serve_settings.model_copy(update={"reference_hmac_key": None})
    )
    body = {"kind": "customer", "name": "Ada", "refs": {"email": "ada@acme.se"}}
    problem = refused(await admin.post("/v1/parties", json=body), 422, "invalid_parameters")
    assert "email-hmac" in problem["detail"]
    assert "DRM_REFERENCE_HMAC_KEY" in problem["detail"]
    assert "ada@" not in problem["detail"]
    refused(await admin.get("/v1/parties", params={"ref": "email:ada@acme.se"}), 422, "invalid_parameters")


# -- attributes -------------------------------------------------------------------------------------------------------


async def test_each_origin_keeps_its_word_and_the_most_trusted_is_agreed_on(admin: httpx.AsyncClient) -> None:
    ada = await make_party(admin, crm="778")
    await say(admin, "crm:778", "shop", MAY, city="Malmö", tier=3)
    stands = await say(admin, ada, "crm", MARCH, city="Lund", address={"street": "Bredgatan 1", "zip": ["2", None]})
    assert stands["outlived"] == []
    assert stands["attributes"] == await attributes(admin, ada)
    # Nothing is declared: the latest word is agreed on.
    assert await agreed(admin, ada) == {
        "address": ({"street": "Bredgatan 1", "zip": ["2", None]}, "crm"), "city": ("Malmö", "shop"),
        "tier": (3, "shop"),
    }  # fmt: skip
    assert (await admin.get("/v1/origins")).json() == {"origins": []}
    for order, expected in (
        (["crm", "shop"], ("Lund", "crm")), (["shop", "crm"], ("Malmö", "shop")), (["crm"], ("Lund", "crm")),
        (["erp"], ("Malmö", "shop")), ([], ("Malmö", "shop")),
    ):  # fmt: skip
        answer = await admin.put("/v1/origins", json={"origins": order})
        assert (answer.status_code, answer.json()) == (200, {"origins": order})
        assert (await admin.get("/v1/origins")).json() == {"origins": order}
        assert (await agreed(admin, ada))["city"] == expected, order
    words = (await attributes(admin, ada))["city"]["words"]
    assert [(word["origin"], word["value"], word["said_at"], word["asserted_by"], word["party"]) for word in words] == [
        ("shop", "Malmö", MAY, "office", ada), ("crm", "Lund", MARCH, "office", ada),
    ]  # fmt: skip
    assert all(word["recorded_at"] > MAY for word in words)


async def test_null_takes_a_word_back_and_leaves_those_of_others(admin: httpx.AsyncClient) -> None:
    ada = await make_party(admin)
    await say(admin, ada, "crm", MARCH, city="Lund", tier=1)
    await say(admin, ada, "shop", MARCH, city="Malmö")
    await say(admin, ada, "crm", APRIL, city=None)
    assert await agreed(admin, ada) == {"city": ("Malmö", "shop"), "tier": (1, "crm")}
    await say(admin, ada, "shop", APRIL, city=None)
    assert await agreed(admin, ada) == {"tier": (1, "crm")}


async def test_any_order_of_arrival_ends_the_same(admin: httpx.AsyncClient) -> None:
    said: list[tuple[str, Any]] = [(MARCH, "Lund"), (APRIL, None), (MAY, "Malmö"), (MAY, "Lund"), (APRIL, "Ystad")]
    ends = set()
    for order in islice(permutations(said), 0, None, 7):
        ada = await make_party(admin)
        for said_at, value in order:
            await say(admin, ada, "crm", said_at, city=value)
        ends.add(str(await agreed(admin, ada)))
    assert ends == {"{'city': ('Malmö', 'crm')}"}


async def test_what_is_older_than_the_word_that_stands_is_told_so(admin: httpx.AsyncClient) -> None:
    ada = await make_party(admin)
    await say(admin, ada, "crm", APRIL, city="Lund")
    before = await attributes(admin, ada)
    stands = await say(admin, ada, "crm", MARCH, city="Ystad", tier=2)
    assert (stands["outlived"], stands["attributes"]["city"]) == (["city"], before["city"])
    assert (await say(admin, ada, "crm", APRIL, city="Lund"))["outlived"] == []  # a repeat is no other word
    assert (await attributes(admin, ada))["city"] == before["city"]


async def test_left_out_it_is_said_now_and_by_the_sender_of_the_key(admin: httpx.AsyncClient) -> None:
    ada = await make_party(admin)
    before = datetime.now(UTC)
    (word,) = (await say(admin, ada, "crm", city="Lund"))["attributes"]["city"]["words"]
    assert before - timedelta(seconds=5) <= datetime.fromisoformat(word["said_at"]) <= datetime.now(UTC)
    body = {"attributes": {"city": "Ystad"}, "asserted_by": "help desk"}
    answer = await admin.put(f"/v1/parties/{ada}/attributes/crm", json=body)
    assert answer.json()["attributes"]["city"]["words"][0]["asserted_by"] == "help desk"
    assert (await agreed(admin, ada))["city"] == ("Ystad", "crm")


@pytest.mark.parametrize(
    ("body", "pointer"),
    [
        (b'{"attributes": {"a": "%s"}}' % (b"x" * 99), "/attributes/a"),
        (b'{"attributes": {"a": NaN}}', "/attributes/a"),
        (b'{"attributes": {"a": [1e400]}}', "/attributes/a"),
        (b'{"attributes": {"a": 18446744073709551616}}', "/attributes/a"),
        (b'{"attributes": {"a": {"b": "\\u0000"}}}', "/attributes/a"),
        (b'{"attributes": {"a": {"\\ud800": 1}}}', "/attributes/a"),
        (b'{"attributes": {"a": %s}}' % (b"[" * 300 + b"]" * 300), "/attributes/a"),
        (b'{"attributes": {}}', "/attributes"),
        (b'{"attributes": {"City": 1}}', "/attributes/City"),
        (b'{"attributes": {"a": 1, "b": 1, "c": 1, "d": 1, "e": 1, "f": 1, "g": null}}', "/attributes"),
        (b'{"attributes": {"a": 1}, "said_at": "2999-01-01T00:00:00Z"}', "/said_at"),
        (b'{"attributes": {"a": 1}, "said_at": "2026-01-01T00:00:00"}', "/said_at"),
        (b'{"attributes": {"a": 1}, "reason": "typo"}', "/reason"),
    ],
)
async def test_what_cannot_be_kept_is_refused_and_nothing_changes(
    admin: httpx.AsyncClient, body: bytes, pointer: str
) -> None:
    ada = await make_party(admin)
    answer = await admin.put(
        f"/v1/parties/{ada}/attributes/crm", content=body, headers={"content-type": "application/json"}
    )
    problem = refused(answer, 422, "invalid_parameters")
    assert problem["violations"][0]["pointer"] == pointer
    assert await attributes(admin, ada) == {}


async def test_a_party_has_only_so_many_attributes_however_they_come(admin: httpx.AsyncClient) -> None:
    ada = await make_party(admin)
    answers = await asyncio.gather(
        *(admin.put(f"/v1/parties/{ada}/attributes/o{n}", json={"attributes": {"a": n}}) for n in range(10))
    )
    assert sorted(answer.status_code for answer in answers) == [200] * 6 + [422] * 4
    assert len((await attributes(admin, ada))["a"]["words"]) == 6


async def test_an_order_of_trust_is_a_list_of_origins(admin: httpx.AsyncClient, ask: Ask) -> None:
    for origins in (["crm", "crm"], ["CRM"], [""], ["a", "b", "c", "d", "e"], "crm"):
        refused(await admin.put("/v1/origins", json={"origins": origins}), 422, "invalid_parameters")
    reader = await ask("dashboard", "reader")
    assert (await reader.get("/v1/origins")).json() == {"origins": []}
    refused(await reader.put("/v1/origins", json={"origins": ["crm"]}), 403, "forbidden")


async def test_orders_declared_at_once_end_as_one_of_them(admin: httpx.AsyncClient) -> None:
    orders = [["a", "b", "c"], ["c", "b", "a"], ["d"], []]
    answers = await asyncio.gather(*(admin.put("/v1/origins", json={"origins": order}) for order in orders * 3))
    assert {answer.status_code for answer in answers} == {200}
    assert (await admin.get("/v1/origins")).json()["origins"] in orders


async def test_who_only_reads_changes_no_party_and_nobody_is_found_who_is_not_there(
    admin: httpx.AsyncClient, ask: Ask
) -> None:
    ada = await make_party(admin, crm="778")
    reader = await ask("dashboard", "reader")
    changes = [
        ("POST", "refs", {"refs": {"crm": "1"}}), ("DELETE", "refs/crm:778", None),
        ("PUT", "attributes/crm", {"attributes": {"a": 1}}), ("POST", "links", {"party": "crm:778", "reason": "same"}),
        ("POST", "links?preview=true", {"party": "crm:778", "reason": "same"}), ("DELETE", "links/crm:778", None),
    ]  # fmt: skip
    for method, room, body in changes:
        refused(await reader.request(method, f"/v1/parties/{ada}/{room}", json=body), 403, "forbidden")
        refused(await admin.request(method, f"/v1/parties/crm:none/{room}", json=body), 404, "not_found")
    assert (await reader.get("/v1/parties/crm:778")).json()["refs"] == {"crm": ["778"]}
