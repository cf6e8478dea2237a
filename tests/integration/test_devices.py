"""Devices that nobody holds, claims that prove possession, hand-overs, and hardware that is replaced; from outside."""

import asyncio
import re
from datetime import datetime, timedelta
from typing import Any

import asyncpg
import httpx
import pytest
from fastapi import FastAPI
from tests.integration.conftest import Ask, Attach, Sent
from tests.integration.test_records import DAY, HOUR, INSTANT, NOON, _text, get, holds, party
from tests.integration.test_registry import refused
from tests.integration.test_relations import change, history, listed

from drm_ingest.postgres.relations.replace import REPLACEMENTS
from drm_ingest.settings import Settings

DEVICE = "/v1/devices/meter-7"
EVER = datetime.fromisoformat("2026-01-01T00:00:00Z")


@pytest.fixture
def serve_settings(serve_settings: Settings) -> Settings:
    few = {"claim_code_guesses_max": 4, "devices_scanned_max": 5}
    return serve_settings.model_copy(update=few | {"postgres_lock_timeout_s": 20, "postgres_acquire_timeout_s": 20})


@pytest.fixture
async def meter(admin: httpx.AsyncClient) -> str:
    assert (await admin.put(DEVICE, json={"model": "Meter 7"})).status_code == 201
    return "meter-7"


async def code_of(admin: httpx.AsyncClient, **body: Any) -> str:
    answer = await admin.post(f"{DEVICE}/claim-code", json=body)
    assert answer.status_code == 201, answer.text
    code: str = answer.json()["code"]
    return code


async def claim(admin: httpx.AsyncClient, party: str, code: str, **body: Any) -> httpx.Response:
    return await admin.post(f"{DEVICE}/claims", json={"party": party, "code": code} | body)


async def hand_over(admin: httpx.AsyncClient, giver: str, taker: str, **body: Any) -> httpx.Response:
    return await admin.post(f"{DEVICE}/hand-over", json={"from": giver, "to": taker} | body)


async def replace(
    admin: httpx.AsyncClient, by: str = "meter-8", device: str = "meter-7", **body: Any
) -> httpx.Response:
    return await admin.post(f"/v1/devices/{device}/replacement", json={"by": by} | body)


async def undo(admin: httpx.AsyncClient, device: str = "meter-7") -> httpx.Response:
    return await admin.delete(f"/v1/devices/{device}/replacement", params={"reason": "wrong box"})


async def seen(admin: httpx.AsyncClient, who: str) -> tuple[int, set[str]]:
    """Return how many events are on the record of a party, and the ids of those on its timeline."""
    record = await get(admin, f"/v1/parties/{who}")
    items = (await get(admin, f"/v1/parties/{who}/timeline"))["items"]
    return record["events"], {item["event"]["id"] for item in items if item.get("event")}


async def attached_to(admin: httpx.AsyncClient, id_: str, subject: str = "meter-7") -> set[str]:
    return {row["party"] for row in (await get(admin, "/v1/events", subject=subject, id=id_))["attached_to"]}


async def held(admin: httpx.AsyncClient, **filters: Any) -> set[tuple[str | None, ...]]:
    return {
        (row["subject"], row["role"], row["party"], row["valid_from"], row["valid_to"])
        for row in await listed(admin, **filters)
    }


# -- devices that nobody holds ----------------------------------------------------------------------------------------


async def test_unclaimed_devices_are_listed_page_by_page_however_few_there_are(
    admin: httpx.AsyncClient, db: asyncpg.Connection
) -> None:
    ada = await party(admin)
    names = [f"meter-{n:02}" for n in range(24)]
    await db.execute("insert into device (subject, registered_by) select unnest($1::text[]), 'event'", names)
    free = {"meter-03", "meter-04", "meter-22"}
    for name in names:
        if name not in free:
            await holds(admin, ada, "user", name, EVER)
    past = next(row for row in await listed(admin, subject="meter-10"))
    await change(admin, past, "end", at=_text(NOON))
    future = next(row for row in await listed(admin, subject="meter-11"))
    await change(admin, future, "correct", valid_from="2200-01-01T00:00:00Z")
    mistaken = next(row for row in await listed(admin, subject="meter-12"))
    await change(admin, mistaken, "withdraw")
    free |= {"meter-10", "meter-11", "meter-12"}

    for limit in (1, 2, 100):
        found: list[str] = []
        cursor: str | None = ""
        asked = 0
        while cursor is not None:
            params = {"unclaimed": "true", "limit": str(limit)} | ({"cursor": cursor} if cursor else {})
            page = await get(admin, "/v1/devices", **params)
            assert len(page["items"]) <= limit
            found += [item["id"] for item in page["items"]]
            cursor, asked = page["next"], asked + 1
        assert found == sorted(free)
        assert asked <= len(names) // 5 + 1 + len(free)
    for name in found:
        assert (await get(admin, f"/v1/devices/{name}"))["claimed"] is False

    everything = []
    cursor = ""
    while cursor is not None:
        page = await get(admin, "/v1/devices", limit=7, **({"cursor": cursor} if cursor else {}))
        everything += [item["id"] for item in page["items"]]
        cursor = page["next"]
    assert everything == names
    refused(await admin.get("/v1/devices", params={"unclaimed": "perhaps"}), 422, "invalid_parameters")


# -- claims -----------------------------------------------------------------------------------------------------------


async def test_whoever_has_the_code_becomes_the_owner_and_asking_again_changes_nothing(
    admin: httpx.AsyncClient, db: asyncpg.Connection, meter: str
) -> None:
    ada, bo = await party(admin, crm="778"), await party(admin, "Bo")
    code = await code_of(admin)
    assert re.fullmatch("([0-9A-HJKMNP-TV-Z]{4}-){3}[0-9A-HJKMNP-TV-Z]{4}", code)
    kept = await db.fetchval("select row_to_json(claim_code)::text from claim_code")
    assert code not in kept
    assert code.replace("-", "") not in kept

    begun = await claim(admin, "crm:778", code.lower().replace("-", " ").replace("0", "o"), reason="moved in")
    assert begun.status_code == 201, begun.text
    relation = begun.json()
    assert (relation["party"], relation["role"], relation["reason"]) == (ada, "owner", "moved in")
    assert abs(datetime.fromisoformat(relation["valid_from"]) - await db.fetchval("select now()")) < timedelta(
        minutes=2
    )
    again = await claim(admin, ada, code)
    assert (again.status_code, again.json()) == (200, relation)
    assert again.headers["location"] == begun.headers["location"] == f"/v1/relationships/{relation['id']}"

    assert refused(await claim(admin, bo, code), 403, "claim_code_dead")["reason"] == "used"
    assert [row["id"] for row in await listed(admin, subject=meter)] == [relation["id"]]
    assert [row["change"] for row in await history(admin, relation)] == ["begun"]


@pytest.mark.parametrize("verb", ["end", "withdraw"])
async def test_who_owns_it_no_more_is_not_told_that_the_claim_was_made(
    admin: httpx.AsyncClient, meter: str, verb: str
) -> None:
    ada = await party(admin)
    code = await code_of(admin)
    begun = (await claim(admin, ada, code)).json()
    assert (await change(admin, begun, verb)).status_code == 200
    assert refused(await claim(admin, ada, code), 403, "claim_code_dead")["reason"] == "used"


async def test_an_owned_device_is_claimed_by_nobody_and_the_refusal_names_the_relation(
    admin: httpx.AsyncClient, meter: str
) -> None:
    ada, bo = await party(admin), await party(admin, "Bo")
    await holds(admin, ada, "owner", meter, EVER)
    code = await code_of(admin)
    problem = refused(await claim(admin, bo, code), 409, "conflict")
    (relation,) = await listed(admin, subject=meter)
    assert problem["relationship"] == relation
    assert "guesses_left" not in problem
    # Without the code not even that is told.
    assert "relationship" not in refused(await claim(admin, bo, "0000"), 403, "claim_code_wrong")
    assert (await change(admin, relation, "end")).status_code == 200
    assert (await claim(admin, bo, code)).status_code == 201, "the code was not used up"


async def test_guesses_are_counted_for_the_device_and_then_its_code_is_dead(
    admin: httpx.AsyncClient, db: asyncpg.Connection, meter: str, ask: Ask
) -> None:
    ada = await party(admin)
    code = await code_of(admin)
    others = [await ask(f"office {n}") for n in range(3)]
    guesses = await asyncio.gather(*(claim(others[n % 3], ada, f"wrong {n}") for n in range(7)))
    problems = [answer.json() for answer in guesses]
    assert {answer.status_code for answer in guesses} == {403}
    left = sorted(problem["guesses_left"] for problem in problems if problem["code"] == "claim_code_wrong")
    assert left == [0, 1, 2, 3], "each of four is counted, though they came at once"
    assert refused(await claim(admin, ada, code), 403, "claim_code_dead")["reason"] == "guessed"
    assert await db.fetchval("select guesses from claim_code") == 4
    assert 'drm_refusals_total{code="claim_code_wrong"} 4.0' in (await admin.get("/metrics")).text

    new = await code_of(admin)
    assert refused(await claim(admin, ada, code), 403, "claim_code_wrong")["guesses_left"] == 3
    assert (await claim(admin, ada, new)).status_code == 201


async def test_a_code_expires_is_replaced_and_is_of_one_device(
    admin: httpx.AsyncClient, db: asyncpg.Connection, meter: str
) -> None:
    ada = await party(admin)
    assert refused(await claim(admin, ada, "K7QM"), 403, "claim_code_dead")["reason"] == "none"
    code = await code_of(admin, expires_at="2200-01-01T00:00:00Z")
    assert (await admin.put("/v1/devices/meter-8", json={})).status_code == 201
    other = (await admin.post("/v1/devices/meter-8/claim-code")).json()
    assert other["made_by"] == "office"
    hours = datetime.fromisoformat(other["expires_at"]) - datetime.fromisoformat(other["made_at"])
    assert hours == timedelta(hours=72)
    refused(await claim(admin, ada, other["code"]), 403, "claim_code_wrong")
    await db.execute("update claim_code set expires_at = now() where device = 'meter-7'")
    assert refused(await claim(admin, ada, code), 403, "claim_code_dead")["reason"] == "expired"
    past = await admin.post(f"{DEVICE}/claim-code", json={"expires_at": _text(NOON - DAY * 9000)})
    assert refused(past, 422, "invalid_parameters")["violations"][0]["pointer"] == "/expires_at"


async def test_of_many_claims_at_once_with_one_code_one_party_becomes_the_owner(
    admin: httpx.AsyncClient, meter: str
) -> None:
    parties = [await party(admin, f"party {n}") for n in range(4)]
    code = await code_of(admin)
    answers = await asyncio.gather(*(claim(admin, who, code) for who in parties * 2))
    made = [answer.json() for answer in answers if answer.status_code == 201]
    again = [answer.json() for answer in answers if answer.status_code == 200]
    assert (len(made), again) == (1, made)
    assert {answer.json()["code"] for answer in answers if answer.status_code == 403} == {"claim_code_dead"}
    assert len(await listed(admin, subject=meter)) == 1


# -- hand-over --------------------------------------------------------------------------------------------------------


async def test_neither_owner_sees_what_happened_while_the_other_had_it(
    admin: httpx.AsyncClient, attach: Attach, meter: str
) -> None:
    ada, bo, eve = await party(admin), await party(admin, "Bo"), await party(admin, "Eve")
    await holds(admin, ada, "owner", meter, EVER)
    await holds(admin, ada, "user", meter, EVER + DAY)
    await holds(admin, ada, "user", "phone-1", EVER)
    await holds(admin, eve, "user", meter, EVER)
    hers = [Sent(meter, f"ada-{n}", NOON - INSTANT - n * HOUR * 9) for n in range(9)]
    his = [Sent(meter, f"bo-{n}", NOON + n * HOUR * 9) for n in range(9)]
    await attach(*hers[:5], *his[:5], Sent("phone-1", "other", NOON + DAY))

    done = await hand_over(admin, ada, bo, at=_text(NOON), reason="sold on")
    assert done.status_code == 201, done.text
    await attach(*hers[5:], *his[5:])  # late, on either side
    assert await seen(admin, ada) == (10, {event.id for event in hers} | {"other"})
    assert await seen(admin, bo) == (9, {event.id for event in his})
    for event in (*hers, *his):
        assert await attached_to(admin, event.id) == {eve, bo if event in his else ada}
    assert (await seen(admin, eve))[0] == 18, "who used it besides goes on"

    answer = done.json()
    assert {(row["role"], row["party"], row["valid_to"]) for row in answer["ended"]} == {
        ("owner", ada, _text(NOON)), ("user", ada, _text(NOON)),
    }  # fmt: skip
    assert (answer["begun"]["party"], answer["begun"]["valid_from"], answer["begun"]["valid_to"]) == (
        bo, _text(NOON), None,
    )  # fmt: skip
    assert [row["party"] for row in answer["using"]] == [eve]
    rows = [*answer["ended"], answer["begun"]]
    assert len({row["recorded_at"] for row in rows}) == 1, "at no time between was it known to be nobody's"
    moves = {(row["role"], row["party"]): (await history(admin, row))[-1]["moves"] for row in rows}
    assert [(move["direction"], move["events"]) for move in moves["owner", bo]] == [("gained", 5)]
    lost = [
        (move["direction"], move["events"]) for moved in (moves["owner", ada], moves["user", ada]) for move in moved
    ]
    assert lost == [("lost", 5)]


async def test_handing_over_again_answers_the_same_and_changes_nothing(
    admin: httpx.AsyncClient, db: asyncpg.Connection, meter: str
) -> None:
    ada, bo = await party(admin), await party(admin, "Bo")
    await holds(admin, ada, "owner", meter, EVER)
    await holds(admin, ada, "user", meter, EVER)
    for at in ({"at": _text(NOON)}, {}):
        first = await hand_over(admin, ada, bo, **at)
        changes = await db.fetchval("select count(*) from relationship_change")
        again = await hand_over(admin, ada, bo, **at, reason="once more")
        assert (first.status_code, again.status_code) == (201, 200), again.text
        assert {row["id"] for row in again.json()["ended"]} == {row["id"] for row in first.json()["ended"]}
        assert again.json()["begun"] == first.json()["begun"]
        assert await db.fetchval("select count(*) from relationship_change") == changes
        ada, bo = bo, ada


async def test_nothing_of_a_hand_over_stays_when_part_of_it_cannot_be(
    admin: httpx.AsyncClient, db: asyncpg.Connection, meter: str
) -> None:
    ada, bo, cy = [await party(admin, name) for name in ("Ada", "Bo", "Cy")]
    await holds(admin, ada, "owner", meter, EVER, NOON + DAY)
    await holds(admin, ada, "user", meter, EVER)
    await holds(admin, cy, "owner", meter, NOON + DAY)
    before = await listed(admin, subject=meter)
    changes = await db.fetchval("select count(*) from relationship_change")
    later = next(row for row in before if row["party"] == cy)
    assert refused(await hand_over(admin, ada, bo, at=_text(NOON)), 409, "conflict")["relationship"] == later
    assert refused(await hand_over(admin, ada, bo), 409, "conflict")["relationship"] == later
    assert "relationship" not in refused(await hand_over(admin, ada, bo, at=_text(EVER - DAY)), 409, "conflict")
    for body, pointer in (
        ({"giver": ada, "taker": ada}, "/to"),
        ({"giver": ada, "taker": bo, "at": _text(EVER)}, "/at"),
        ({"giver": "crm:none", "taker": bo}, "/from"),
        ({"giver": ada, "taker": "crm:none"}, "/to"),
    ):
        answer = refused(await hand_over(admin, **body), 422, "invalid_parameters")
        assert answer["violations"][0]["pointer"] == pointer
    assert await listed(admin, subject=meter) == before
    assert await db.fetchval("select count(*) from relationship_change") == changes
    refused(await admin.post("/v1/devices/none/hand-over", json={"from": ada, "to": bo}), 404, "not_found")


async def test_linked_parties_hand_over_as_one_and_not_to_each_other(admin: httpx.AsyncClient, meter: str) -> None:
    ada, byron, bo = [await party(admin, name) for name in ("Ada", "A. Byron", "Bo")]
    await holds(admin, ada, "owner", meter, EVER)
    await holds(admin, byron, "user", meter, EVER)
    assert (await admin.post(f"/v1/parties/{ada}/links", json={"party": byron, "reason": "same"})).status_code == 201
    assert refused(await hand_over(admin, ada, byron), 422, "invalid_parameters")["violations"][0]["pointer"] == "/to"
    assert (await hand_over(admin, byron, bo, at=_text(NOON))).status_code == 201
    assert await held(admin, subject=meter) == {
        (meter, "owner", ada, _text(EVER), _text(NOON)), (meter, "user", byron, _text(EVER), _text(NOON)),
        (meter, "owner", bo, _text(NOON), None),
    }  # fmt: skip


async def test_everybody_else_stops_using_it_where_that_is_asked_for(admin: httpx.AsyncClient, meter: str) -> None:
    ada, bo, eve = [await party(admin, name) for name in ("Ada", "Bo", "Eve")]
    await holds(admin, ada, "owner", meter, EVER)
    await holds(admin, bo, "user", meter, EVER)
    await holds(admin, eve, "user", meter, EVER)
    await holds(admin, ada, "user", meter, NOON + DAY)  # planned, or learnt before the hand-over was
    body = {"at": _text(NOON), "users": "all"}
    done = await hand_over(admin, ada, bo, **body)
    assert done.json()["using"] == []
    assert await held(admin, subject=meter) == {
        (meter, "owner", ada, _text(EVER), _text(NOON)), (meter, "owner", bo, _text(NOON), None),
        (meter, "user", bo, _text(EVER), None), (meter, "user", eve, _text(EVER), _text(NOON)),
    }  # fmt: skip
    (withdrawn,) = [row for row in done.json()["ended"] if row["withdrawn_at"]]
    assert (withdrawn["party"], withdrawn["valid_from"]) == (ada, _text(NOON + DAY))


async def test_a_code_that_the_old_owner_may_have_is_dead_after_the_hand_over(
    admin: httpx.AsyncClient, meter: str
) -> None:
    ada, bo = await party(admin), await party(admin, "Bo")
    await holds(admin, ada, "owner", meter, EVER)
    code = await code_of(admin)
    begun = (await hand_over(admin, ada, bo)).json()["begun"]
    assert (await change(admin, begun, "end")).status_code == 200
    assert refused(await claim(admin, ada, code), 403, "claim_code_dead")["reason"] == "expired"


async def test_of_two_hand_overs_at_once_one_is_done(admin: httpx.AsyncClient, meter: str) -> None:
    ada, bo, cy = [await party(admin, name) for name in ("Ada", "Bo", "Cy")]
    await holds(admin, ada, "owner", meter, EVER)
    answers = await asyncio.gather(*(hand_over(admin, ada, to, at=_text(NOON)) for to in (bo, cy) * 3))
    assert sorted(answer.status_code for answer in answers) == [200, 200, 201, 409, 409, 409]
    assert len(await listed(admin, subject=meter, role="owner")) == 2


# -- replacements -----------------------------------------------------------------------------------------------------


async def household(admin: httpx.AsyncClient, attach: Attach) -> dict[str, str]:
    """Somebody's meter with all kinds of relations; events on both sides of noon, on it and on the one to come."""
    who = {name: await party(admin, name) for name in ("Ada", "Bo")}
    who["Volt"], who["Parts"] = await party(admin, "Volt", "vendor"), await party(admin, "Parts", "supplier")
    await holds(admin, who["Bo"], "owner", "meter-7", EVER, EVER + DAY)
    await holds(admin, who["Ada"], "owner", "meter-7", EVER + DAY)
    await holds(admin, who["Ada"], "user", "meter-7", EVER + DAY)
    await holds(admin, who["Bo"], "user", "meter-7", EVER, NOON + 5 * DAY)
    await holds(admin, who["Volt"], "sold_by", "meter-7", EVER)
    await holds(admin, who["Parts"], "made_by", "meter-7", None)
    await attach(
        *(Sent("meter-7", f"old-{n}", NOON + n * HOUR * 7) for n in range(-9, 3)),
        *(Sent("meter-8", f"new-{n}", NOON + n * HOUR * 7, "device.status") for n in range(-1, 9)),
    )
    return who


async def as_read(admin: httpx.AsyncClient, parties: dict[str, str]) -> dict[str, Any]:
    """What every read says of a household, but for the versions of its relations."""
    rooms = [f"/v1/parties/{who}{more}" for who in parties.values() for more in ("", "/timeline")]
    rooms += [f"/v1/devices/{name}{more}" for name in ("meter-7", "meter-8") for more in ("", "/events")]
    rooms += [f"/v1/events?subject=meter-7&id=old-{n}" for n in range(-9, 3)]
    rooms += [f"/v1/events?subject=meter-8&id=new-{n}" for n in range(-1, 9)]
    said = {room: (await admin.get(room)).text for room in rooms}
    # What differs whenever it is asked for, or with each version, is not what is restored.
    moving = r'"(version|recorded_at|read_at|reason|asserted_by|number)":("[^"]*"|\d+|null),?'
    return {room: re.sub(moving, "", text) for room, text in said.items()}


async def test_the_new_device_goes_on_where_the_old_one_ends(admin: httpx.AsyncClient, attach: Attach) -> None:
    who = await household(admin, attach)
    before = await held(admin)
    done = await replace(admin, at=_text(NOON), reason="display broken")
    assert done.status_code == 201, done.text
    now = await held(admin)
    ada, bo, volt = who["Ada"], who["Bo"], who["Volt"]
    began = {
        ("meter-8", "owner", ada, _text(NOON), None), ("meter-8", "user", ada, _text(NOON), None),
        ("meter-8", "user", bo, _text(NOON), _text(NOON + 5 * DAY)), ("meter-8", "sold_by", volt, _text(NOON), None),
    }  # fmt: skip
    assert now - before == began | {
        ("meter-7", "owner", ada, _text(EVER + DAY), _text(NOON)),
        ("meter-7", "user", ada, _text(EVER + DAY), _text(NOON)),
        ("meter-7", "user", bo, _text(EVER), _text(NOON)),
        ("meter-7", "sold_by", volt, _text(EVER), _text(NOON)),
    }
    assert ("meter-7", "made_by", who["Parts"], None, None) in now, "who made it has made that one and no other"
    moved = done.json()["relations"]
    assert {(row["role"], row["party"]) for row in moved} == {(role, party) for _, role, party, _, _ in began}

    old = {f"old-{n}" for n in range(-9, 3)}
    await attach(Sent("meter-7", "old-late", NOON - 2 * DAY), Sent("meter-7", "old-after", NOON + 2 * DAY))
    record = await get(admin, "/v1/devices/meter-8")
    assert [(row["id"], row["until"], row["reason"]) for row in record["predecessors"]] == [
        ("meter-7", _text(NOON), "display broken")
    ]
    assert record["events_by_type"] == {"device.measurement": 10, "device.status": 10}
    items = (await get(admin, "/v1/devices/meter-8/events"))["items"]
    ids = {item["id"] for item in items}
    assert ids == {f"new-{n}" for n in range(-1, 9)} | {f"old-{n}" for n in range(-9, 0)} | {"old-late"}
    assert [item["occurred_at"] for item in items] == sorted((item["occurred_at"] for item in items), reverse=True)
    assert record["first_seen"] == _text(NOON - 63 * HOUR)
    was = await get(admin, "/v1/devices/meter-7")
    assert (was["predecessors"], was["events"]) == ([], len(old) + 2)
    assert (was["replaced_by"]["id"], was["replaced_by"]["since"]) == ("meter-8", _text(NOON))
    # The record of a party is of both, each in its time.
    assert (await seen(admin, ada))[1] == {f"old-{n}" for n in range(-9, 0)} | {"old-late"} | {
        f"new-{n}" for n in range(9)
    }
    assert await attached_to(admin, "old-after") == {who["Parts"]}


async def test_undoing_a_replacement_restores_every_read_exactly(
    admin: httpx.AsyncClient, attach: Attach, db: asyncpg.Connection
) -> None:
    who = await household(admin, attach)
    held_before, read_before = await held(admin), await as_read(admin, who)
    done = (await replace(admin, at=_text(NOON))).json()
    assert await as_read(admin, who) != read_before
    undone = await undo(admin)
    assert (undone.status_code, undone.json()["undone"]) == (200, 1), undone.text
    assert undone.json()["replacement"]["id"] == done["id"]
    assert await held(admin) == held_before
    assert await as_read(admin, who) == read_before
    again = await undo(admin)
    assert (again.status_code, again.json()) == (200, {"undone": 0, "replacement": None})
    row = await db.fetchrow("select undone_by, undone_why, upper(recorded) as undone_at from device_replacement")
    assert tuple(row)[:2] == ("office", "wrong box")
    # And once more, which is another replacement.
    assert (await replace(admin, at=_text(NOON))).json()["id"] != done["id"]
    assert (await undo(admin)).json()["undone"] == 1
    assert await as_read(admin, who) == read_before


async def test_replacing_again_answers_the_same_and_another_is_refused(
    admin: httpx.AsyncClient, attach: Attach, db: asyncpg.Connection
) -> None:
    await household(admin, attach)
    first = await replace(admin, at=_text(NOON))
    changes = await db.fetchval("select count(*) from relationship_change")
    for again in (await replace(admin, at=_text(NOON), reason="once more"), await replace(admin)):
        assert (again.status_code, again.json()) == (200, first.json())
    for other in ({"by": "meter-9"}, {"by": "meter-8", "at": _text(NOON + HOUR)}):
        problem = refused(await replace(admin, **other), 409, "conflict")
        assert (problem["replacement"]["device"], problem["replacement"]["by"]) == ("meter-7", "meter-8")
    assert await db.fetchval("select count(*) from relationship_change") == changes
    assert await db.fetchval("select count(*) from device_replacement") == 1


async def test_a_line_of_replacements_is_one_history_and_never_a_circle(
    admin: httpx.AsyncClient, attach: Attach
) -> None:
    ada = await party(admin)
    await holds(admin, ada, "owner", "m-0", EVER)
    for n in range(3):
        assert (await replace(admin, f"m-{n + 1}", f"m-{n}", at=_text(NOON + n * DAY))).status_code == 201
    await attach(*(Sent(f"m-{n}", f"{n}-{day}", NOON + day * DAY - HOUR) for n in range(4) for day in range(4)))
    record = await get(admin, "/v1/devices/m-3")
    assert [row["id"] for row in record["predecessors"]] == ["m-2", "m-1", "m-0"]
    ids = {item["id"] for item in (await get(admin, "/v1/devices/m-3/events"))["items"]}
    assert ids == {f"{n}-{day}" for n in range(4) for day in range(4) if day <= n or n == 3}
    assert record["events"] == len(ids)
    assert (await seen(admin, ada))[1] == {"0-0", "1-1", "2-2", "3-3"}
    refused(await replace(admin, "m-0", "m-3"), 422, "invalid_parameters")
    refused(await replace(admin, "m-3", "m-3"), 422, "invalid_parameters")
    refused(await replace(admin, "party:x", "m-3"), 422, "invalid_parameters")
    assert (await admin.put("/v1/devices/m-9", json={})).status_code == 201
    refused(await replace(admin, "m-1", "m-9"), 409, "conflict")
    refused(await replace(admin, "m-9", "none"), 404, "not_found")
    # The first cannot be undone before the last: what it began has ended since.
    assert "relationship" in refused(await undo(admin, "m-0"), 409, "conflict")
    for n in (2, 1, 0):
        assert (await undo(admin, f"m-{n}")).json()["undone"] == 1
    assert await held(admin) == {("m-0", "owner", ada, _text(EVER), None)}


async def test_a_replacement_meets_what_is_on_the_new_device_already(
    admin: httpx.AsyncClient, attach: Attach, db: asyncpg.Connection
) -> None:
    who = await household(admin, attach)
    await holds(admin, who["Ada"], "user", "meter-8", NOON - DAY)
    await holds(admin, who["Bo"], "owner", "meter-8", NOON + DAY)
    before = await held(admin)
    problem = refused(await replace(admin, at=_text(NOON)), 409, "conflict")
    assert (problem["relationship"]["subject"], problem["relationship"]["party"]) == ("meter-8", who["Bo"])
    assert await held(admin) == before
    assert await db.fetchval("select count(*) from device_replacement") == 0
    assert (await change(admin, problem["relationship"], "withdraw")).status_code == 200
    done = await replace(admin, at=_text(NOON))
    assert done.status_code == 201, done.text
    (kept,) = [row for row in done.json()["relations"] if row["begun"] is None]
    assert (kept["role"], kept["party"]) == ("user", who["Ada"])
    assert (await undo(admin)).status_code == 200
    assert ("meter-8", "user", who["Ada"], _text(NOON - DAY), None) in await held(admin)
    just = refused(await replace(admin, at=_text(EVER + DAY)), 422, "invalid_parameters")
    assert just["violations"][0]["pointer"] == "/at"


async def test_a_replacement_whose_relations_were_changed_since_is_not_undone(
    admin: httpx.AsyncClient, attach: Attach
) -> None:
    who = await household(admin, attach)
    assert (await replace(admin, at=_text(NOON))).status_code == 201
    answer = await admin.post(
        "/v1/devices/meter-8/hand-over", json={"from": who["Ada"], "to": who["Bo"], "at": _text(NOON + DAY)}
    )
    assert answer.status_code == 201
    before = await held(admin)
    problem = refused(await undo(admin), 409, "conflict")
    assert (problem["relationship"]["subject"], problem["relationship"]["role"]) == ("meter-8", "owner")
    assert await held(admin) == before


async def test_replacements_and_changes_at_once_leave_no_circle_and_no_deadlock(
    admin: httpx.AsyncClient, attach: Attach, db: asyncpg.Connection
) -> None:
    ada = await party(admin)
    for n in range(4):
        await holds(admin, ada, "user", f"m-{n}", EVER)
    answers = await asyncio.gather(
        *(replace(admin, f"m-{(n + 1) % 4}", f"m-{n}", at=_text(NOON)) for n in range(4)),
        *(admin.post("/v1/relationships", json={"subject": f"m-{n}", "role": "owner", "party": ada,
                                                "valid_from": _text(EVER)}) for n in range(4)),
    )  # fmt: skip
    assert all(answer.status_code in (201, 409, 422) for answer in answers), [answer.text for answer in answers]
    for n in range(4):
        assert (await get(admin, f"/v1/devices/m-{n}"))["id"] == f"m-{n}"  # a circle would have no end
    assert await db.fetchval("select count(*) from device_replacement where upper_inf(recorded)") >= 1


async def test_a_replacement_waits_for_one_under_way_and_then_sees_that_it_would_close_a_circle(
    admin: httpx.AsyncClient, db: asyncpg.Connection
) -> None:
    await db.execute(
        "insert into device (subject, registered_by) select 'm-' || n, 'event' from generate_series(0, 2) n"
    )
    async with db.transaction():
        await db.execute("select pg_advisory_xact_lock($1)", REPLACEMENTS)
        await db.execute(
            "insert into device_replacement (device, by, at, asserted_by, recorded) "
            "select 'm-' || n, 'm-' || n + 1, now(), 'office', tstzrange(now(), null) from generate_series(0, 1) n"
        )
        closing = asyncio.create_task(replace(admin, "m-0", "m-2"))
        waiting = "select count(*) from pg_locks where locktype = 'advisory' and not granted"
        while not closing.done():
            if await db.fetchval(waiting):
                break
            await asyncio.sleep(0.01)
    refused(await closing, 422, "invalid_parameters")


# -- who may ----------------------------------------------------------------------------------------------------------


async def test_only_an_administrator_may_do_any_of_this(admin: httpx.AsyncClient, ask: Ask, meter: str) -> None:
    reader, sender = await ask("dashboard", "reader"), await ask("fleet", "sender")
    ada = await party(admin)
    code = await code_of(admin)
    for client in (reader, sender):
        for answer in (
            await client.post(f"{DEVICE}/claim-code"), await claim(client, ada, code),
            await hand_over(client, ada, ada), await replace(client), await undo(client),
        ):  # fmt: skip
            refused(answer, 403, "forbidden")
    assert (await reader.get("/v1/devices")).status_code == 200
    refused(await sender.get("/v1/devices"), 403, "forbidden")


async def test_a_device_with_slashes_in_its_name_is_claimed_and_replaced_too(
    admin: httpx.AsyncClient, serve_app: FastAPI
) -> None:
    ada = await party(admin)
    path = "/v1/devices/hall%2Fa%2Fclaims"
    assert (await admin.put(path, json={})).status_code == 201
    code = (await admin.post(f"{path}/claim-code")).json()["code"]
    begun = await admin.post(f"{path}/claims", json={"party": ada, "code": code})
    assert begun.json()["subject"] == "hall/a/claims"
    assert (await admin.post(f"{path}/replacement", json={"by": "hall/b"})).status_code == 201
    assert (await get(admin, "/v1/devices/hall%2Fb"))["predecessors"][0]["id"] == "hall/a/claims"
