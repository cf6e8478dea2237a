"""Parties found to be the same: one joint record while they are linked, and both as before once they are not."""

import asyncio
import json
from collections import Counter
from datetime import UTC, datetime
from itertools import count
from typing import Any
from uuid import UUID

import asyncpg
import httpx
import pytest
from tests.integration.conftest import Attach, Sent
from tests.integration.test_records import DAY, HOUR, NOON, get, happened, holds, pages, party
from tests.integration.test_registry import refused

from drm_ingest.postgres.relations import link as linking
from drm_ingest.postgres.relations import links
from drm_ingest.settings import Settings


@pytest.fixture
def serve_settings(serve_settings: Settings) -> Settings:
    return serve_settings.model_copy(
        update={"linked_parties_max": 4, "postgres_lock_timeout_s": 20, "postgres_acquire_timeout_s": 20}
    )


async def link(admin: httpx.AsyncClient, one: str, other: str, status: int = 201, **params: Any) -> Any:
    body = {"party": other, "reason": "same card"}
    answer = await admin.post(f"/v1/parties/{one}/links", json=body, params=params)
    assert answer.status_code == status, answer.text
    return answer.json()


async def unlink(admin: httpx.AsyncClient, one: str, other: str, unlinked: int = 1) -> list[str]:
    answer = await admin.delete(f"/v1/parties/{one}/links/{other}")
    assert (answer.status_code, answer.json()["unlinked"]) == (200, unlinked), answer.text
    parties: list[str] = answer.json()["parties"]
    return parties


async def everything(db: asyncpg.Connection) -> dict[str, list[str]]:
    """Every row of every table, and where every sequence stands."""
    tables = await db.fetch("select tablename from pg_tables where schemaname = 'public' order by 1")
    found = {
        table: [row[0] for row in await db.fetch(f"select t::text from {table} t order by 1")] for (table,) in tables
    }
    sequences = await db.fetch("select sequencename || ' ' || coalesce(last_value, 0) from pg_sequences order by 1")
    return found | {"": [text for (text,) in sequences]}


async def household(admin: httpx.AsyncClient, attach: Attach) -> tuple[str, str]:
    """Two customers who are one person: a device of each, one that passed from one to the other, and purchases."""
    shop, desk = await party(admin, "A. Byron", shop="a9"), await party(admin, "Ada Byron", crm="778", shop="b2")
    await holds(admin, shop, "owner", "meter-1", NOON - 9 * DAY, NOON)
    await holds(admin, desk, "owner", "meter-1", NOON)
    await holds(admin, desk, "user", "meter-1", NOON - DAY, NOON + DAY)
    await holds(admin, shop, "owner", "phone-1", NOON)
    await attach(
        *(Sent("meter-1", f"m{n}", NOON + n * HOUR * 12) for n in range(-4, 5)),
        Sent("phone-1", "p1", NOON + HOUR, "device.status"),
        Sent("party:shop:a9", "b1", NOON + DAY, "commerce.purchase", source="shop"),
        Sent("party:crm:778", "b2", NOON + 2 * DAY, "commerce.purchase", source="shop"),
    )
    await admin.put(f"/v1/parties/{shop}/attributes/shop", json={"attributes": {"city": "Lund"}})
    await admin.put(f"/v1/parties/{desk}/attributes/crm", json={"attributes": {"city": "Ystad", "tier": 1}})
    return shop, desk


async def as_read(admin: httpx.AsyncClient, *parties: str) -> list[Any]:
    """What every read says of these parties, to the byte; of a record its ETag, because it says when it was read."""
    rooms = [room for who in parties for room in (f"/v1/parties/{who}", f"/v1/parties/{who}/timeline")]
    rooms += ["/v1/parties", "/v1/relationships", "/v1/devices/meter-1", "/v1/parties?ref=crm:778"]
    answers = [await admin.get(room) for room in rooms]
    return [answer.headers.get("etag") or answer.content for answer in answers]


async def test_either_id_answers_with_the_joint_record_and_unlinking_restores_both_exactly(
    admin: httpx.AsyncClient, attach: Attach
) -> None:
    shop, desk = await household(admin, attach)
    before = await as_read(admin, shop, desk)
    made = await link(admin, desk, "shop:a9")
    assert {"party": shop, "other": desk, "reason": "same card", "asserted_by": "office"}.items() <= made.items()
    assert made["parties"] == [shop, desk]

    records = [(await admin.get(f"/v1/parties/{name}")).headers["etag"] for name in (shop, desk, "crm:778", "shop:a9")]
    assert len(set(records)) == 1
    joint = await get(admin, f"/v1/parties/{desk}")
    assert (joint["id"], joint["name"]) == (shop, "A. Byron")
    assert joint["refs"] == {"crm": ["778"], "shop": ["a9", "b2"]}
    assert [(member["id"], member["refs"]) for member in joint["parties"]] == [
        (shop, {"shop": ["a9"]}), (desk, {"crm": ["778"], "shop": ["b2"]}),
    ]  # fmt: skip
    assert joint["links"] == [{name: value for name, value in made.items() if name != "parties"}]
    # Nine of the meter, each once, though two of them were of both; both purchases; the phone's.
    assert joint["events_by_type"] == {"device.measurement": 9, "device.status": 1, "commerce.purchase": 2}
    held_by = {device["id"]: [(held["role"], held["party"]) for held in device["roles"]] for device in joint["devices"]}
    assert held_by == {"meter-1": [("owner", desk)], "phone-1": [("owner", shop)]}
    assert joint["attributes"]["city"]["value"] == "Ystad"  # the later word, of whichever of them
    assert {word["party"] for word in joint["attributes"]["city"]["words"]} == {shop, desk}
    items = await pages(admin, f"/v1/parties/{shop}/timeline", 5)
    assert items == (await get(admin, f"/v1/parties/{desk}/timeline"))["items"]
    assert {item["event"]["id"]: item["roles"] for item in items if item["event"]} == {
        "m-4": ["owner"], "m-3": ["owner"], "m-2": ["owner", "user"], "m-1": ["owner", "user"], "m0": ["owner", "user"],
        "m1": ["owner", "user"], "m2": ["owner"], "m3": ["owner"], "m4": ["owner"], "p1": ["owner"], "b1": ["self"],
        "b2": ["self"],
    }  # fmt: skip

    assert await unlink(admin, shop, "crm:778") == [shop]
    assert await as_read(admin, shop, desk) == before


async def test_a_preview_says_what_would_change_in_counts_and_changes_nothing(
    admin: httpx.AsyncClient, attach: Attach, db: asyncpg.Connection
) -> None:
    shop, desk = await household(admin, attach)
    before = await everything(db)
    said = await link(admin, desk, shop, 200, preview=True)
    assert await everything(db) == before
    assert said == {
        "party": {"parties": [desk], "relations": 2, "devices": 1, "events": 8,
                  "events_by_type": {"commerce.purchase": 1, "device.measurement": 7}},
        "other": {"parties": [shop], "relations": 2, "devices": 1, "events": 6,
                  "events_by_type": {"commerce.purchase": 1, "device.measurement": 4, "device.status": 1}},
        "joint": {"parties": [shop, desk], "relations": 4, "devices": 2, "events": 12,
                  "events_by_type": {"commerce.purchase": 2, "device.measurement": 9, "device.status": 1}},
    }  # fmt: skip
    await link(admin, desk, shop)
    joint = await get(admin, f"/v1/parties/{desk}")
    assert (joint["events_by_type"], joint["devices_now"]) == (said["joint"]["events_by_type"], 2)
    assert (await link(admin, shop, desk, 200, preview=True))["party"] == said["joint"]


async def test_repeats_change_nothing_and_each_change_is_written_down_once(
    admin: httpx.AsyncClient, db: asyncpg.Connection
) -> None:
    one, other = await party(admin, crm="1"), await party(admin, "Bo", crm="2")
    assert await unlink(admin, one, other, 0) == [one]
    answers = await asyncio.gather(
        *(
            admin.post(f"/v1/parties/{a}/links", json={"party": b, "reason": "same"})
            for a, b in [(one, other), (other, one)] * 3
        )
    )
    assert sorted(answer.status_code for answer in answers) == [200] * 5 + [201]
    assert len({answer.content for answer in answers}) == 1
    assert await unlink(admin, "crm:2", "crm:1") == [other]
    assert await unlink(admin, one, other, 0) == [one]
    assert await unlink(admin, one, one, 0) == [one]
    again = await link(admin, one, other)
    assert again["id"] != answers[0].json()["id"]

    changes = await db.fetch("select * from relationship_change order by number")
    ids = {UUID(one): f"party:{other}", UUID(other): f"party:{one}"}
    assert Counter(row["change"] for row in changes) == {"linked": 4, "unlinked": 2}
    assert [row["change"] for row in changes] == ["linked"] * 2 + ["unlinked"] * 2 + ["linked"] * 2
    assert all(row["subject"] == ids[row["party"]] and row["role"] is None for row in changes)
    times = await db.fetch("select lower(recorded) as since, upper(recorded) as until from party_link order by since")
    assert [row["recorded_at"] for row in changes[::2]] == [times[0]["since"], times[0]["until"], times[1]["since"]]
    assert times[1]["until"] is None


async def test_linking_tells_what_came_onto_each_record_and_unlinking_what_went(
    admin: httpx.AsyncClient, attach: Attach, db: asyncpg.Connection
) -> None:
    one, other = await household(admin, attach)
    third = await party(admin, "Ada B.", crm="779")
    apart = {id_: Counter((await get(admin, f"/v1/parties/{id_}"))["events_by_type"]) for id_ in (one, other)}
    await link(admin, one, other)
    joint = Counter((await get(admin, f"/v1/parties/{one}"))["events_by_type"])
    more = {id_: joint - apart[id_] for id_ in (one, other)}
    assert all(more.values())
    assert sum(joint.values()) < sum(map(Counter.total, apart.values()))  # some events are on both
    assert await moves_of(db) == [("linked", id_, "gained", None, None, more[id_]) for id_ in (one, other)]

    await link(admin, other, third)
    assert [row[:2] for row in await moves_of(db)] == [("linked", third)]  # and nothing came of it
    await link(admin, one, third)
    await unlink(admin, one, other)
    assert await moves_of(db) == []  # the third still joins them
    await unlink(admin, one, third)
    assert await moves_of(db) == [
        ("unlinked", one, "lost", None, None, more[one]),
        ("unlinked", third, "lost", None, None, more[other]),  # with the other it stays
    ]


async def moves_of(db: asyncpg.Connection) -> list[tuple[Any, ...]]:
    """What was moved since this was asked the last time: change, party, direction, from, to, by type."""
    rows = await db.fetch(
        "delete from relationship_move using relationship_change change where change.number = relationship_move.number "
        "and change.relationship is null "
        "returning change, change.party::text, direction, starts, ends, events, types, change.number"
    )
    assert all(row["events"] == sum(json.loads(row["types"]).values()) for row in rows)
    return [(*tuple(row)[:5], Counter(json.loads(row["types"]))) for row in sorted(rows, key=lambda row: row["number"])]


async def test_linking_very_large_records_counts_nothing_and_says_so(
    admin: httpx.AsyncClient, attach: Attach, db: asyncpg.Connection
) -> None:
    one, other = map(UUID, await household(admin, attach))
    await linking.link(db, linking.Claim(one, other, "office", "same card"), 4, relations_counted_max=2)
    await linking.unlink(db, linking.Claim(one, other, "office", None), relations_counted_max=2)
    changes = await db.fetch("select detail from relationship_change where relationship is null order by number")
    assert [json.loads(row["detail"])["counted"] for row in changes] == [False] * 4
    assert await moves_of(db) == []


async def test_only_parties_of_one_kind_are_linked_and_none_with_itself(
    admin: httpx.AsyncClient, db: asyncpg.Connection
) -> None:
    ada, volt = await party(admin, crm="1"), await party(admin, "Volt", "vendor")
    before = await everything(db)
    for other, words in (
        (volt, "vendor cannot be the same as a customer"),
        (ada, "same party already"),
        ("crm:9", "no party"),
    ):
        for preview in (False, True):
            answer = await admin.post(
                f"/v1/parties/{ada}/links", json={"party": other, "reason": "x"}, params={"preview": preview}
            )
            problem = refused(answer, 422, "invalid_parameters")
            assert words in problem["detail"]
            assert problem["violations"][0]["pointer"] == "/party"
    refused(await admin.post(f"/v1/parties/{ada}/links", json={"party": volt}), 422, "invalid_parameters")
    assert await everything(db) == before
    with pytest.raises(asyncpg.ForeignKeyViolationError):  # and Postgres holds it too
        await db.execute(
            "insert into party_link (party, other, kind, reason, asserted_by, recorded) "
            "values ($1, $2, 'customer', 'x', 'x', tstzrange(now(), null))", *sorted([UUID(ada), UUID(volt)]),
        )  # fmt: skip


async def test_links_lead_over_links_and_a_group_is_bounded(admin: httpx.AsyncClient) -> None:
    a, b, c, d, e = [await party(admin, name) for name in "ABCDE"]
    await link(admin, a, b)
    assert (await link(admin, c, b))["parties"] == [a, b, c]
    assert (await link(admin, a, c))["parties"] == [a, b, c]  # a circle
    assert (await link(admin, d, b))["parties"] == [a, b, c, d]
    problem = refused(
        await admin.post(f"/v1/parties/{e}/links", json={"party": a, "reason": "x"}), 422, "invalid_parameters"
    )
    assert "5 parties would share one record; at most 4" in problem["detail"]
    assert problem["violations"][0]["pointer"] == "/party"
    assert await unlink(admin, a, b) == [a, b, c, d]  # by way of c still
    assert await unlink(admin, b, c) == [b, d]
    for who, same in ((a, [a, c]), (b, [b, d]), (c, [a, c]), (d, [b, d]), (e, [e])):
        assert [member["id"] for member in (await get(admin, f"/v1/parties/{who}"))["parties"]] == same


async def test_who_was_linked_is_known_as_of_any_time_of_knowing(
    admin: httpx.AsyncClient, db: asyncpg.Connection
) -> None:
    a, b = [await party(admin, name) for name in "AB"]
    times = [await db.fetchval("select clock_timestamp()")]
    for change in (link, unlink, link, unlink):
        await change(admin, a, b)
        times.append(await db.fetchval("select clock_timestamp()"))
    both, alone = [UUID(a), UUID(b)], [UUID(a)]
    assert [await links.group(db, UUID(a), at) for at in times] == [alone, both, alone, both, alone]
    assert await links.group(db, UUID(a), datetime(1999, 1, 1, tzinfo=UTC)) == alone


async def test_what_is_said_of_one_is_on_the_record_of_who_serves_the_other(
    admin: httpx.AsyncClient, attach: Attach
) -> None:
    ada, same, volt = await party(admin, crm="1"), await party(admin, "A", crm="2"), await party(admin, "V", "vendor")
    await holds(admin, volt, "buys_from", "party:crm:1", NOON - DAY, NOON + DAY)
    await attach(*(Sent("party:crm:2", f"e{n}", NOON + n * DAY, "commerce.purchase", source="s") for n in range(-2, 3)))
    assert (await get(admin, f"/v1/parties/{volt}"))["events"] == 0
    await link(admin, ada, same)
    assert (await get(admin, f"/v1/parties/{volt}"))["events"] == 2
    items = await happened(admin, volt)
    assert [(item["event"]["id"], item["roles"]) for item in items] == [("e0", ["buys_from"]), ("e-1", ["buys_from"])]
    fate = await get(admin, "/v1/events", subject="party:crm:2", id="e0", source="s")
    assert [(on["party"], on["roles"]) for on in fate["attached_to"]] == [
        (ada, ["self"]), (same, ["self"]), (volt, ["buys_from"]),
    ]  # fmt: skip
    await unlink(admin, same, ada)
    assert (await get(admin, f"/v1/parties/{volt}"))["events"] == 0
    fate = await get(admin, "/v1/events", subject="party:crm:2", id="e0", source="s")
    assert [(on["party"], on["roles"]) for on in fate["attached_to"]] == [(same, ["self"])]


async def test_a_relation_to_one_of_linked_parties_moves_what_is_about_all_of_them(
    admin: httpx.AsyncClient, attach: Attach, db: asyncpg.Connection
) -> None:
    volt, ada, same = await party(admin, "Volt", "vendor"), await party(admin, crm="1"), await party(admin, crm="2")
    await attach(*(Sent(f"party:crm:{n}", f"e{n}", NOON, "commerce.purchase") for n in (1, 2)))
    await link(admin, ada, same)
    moved = "select direction, events from relationship_move where party = $1::uuid order by number"
    await holds(admin, volt, "buys_from", f"party:{ada}", NOON - DAY)
    assert (await get(admin, f"/v1/parties/{volt}"))["events"] == 2
    assert [tuple(row) for row in await db.fetch(moved, volt)] == [("gained", 2)]
    # What is there by the one relation does not come once more by the other.
    await holds(admin, volt, "buys_from", f"party:{same}", NOON - DAY)
    assert [tuple(row) for row in await db.fetch(moved, volt)] == [("gained", 2)]
    for relation in (await get(admin, "/v1/relationships", party=volt))["items"]:
        assert (await admin.post(f"/v1/relationships/{relation['id']}/withdraw", json={})).status_code == 200
    assert [tuple(row) for row in await db.fetch(moved, volt)] == [("gained", 2), ("lost", 2)]


async def test_a_relation_between_two_that_are_linked_moves_nothing(
    admin: httpx.AsyncClient, attach: Attach, db: asyncpg.Connection
) -> None:
    one, other = await party(admin, "Parts", "supplier", crm="1"), await party(admin, "Nuts", "supplier")
    await attach(Sent("party:crm:1", "e", NOON, "support.contact"))
    await link(admin, one, other)
    moves = await db.fetchval("select count(*) from relationship_move")
    await holds(admin, other, "supplies", f"party:{one}", NOON - DAY)
    assert await db.fetchval("select count(*) from relationship_move") == moves


async def test_what_a_link_moves_is_counted_at_one_time_though_events_arrive(
    admin: httpx.AsyncClient, attach: Attach, db: asyncpg.Connection
) -> None:
    ada, bo = await party(admin, "Ada"), await party(admin, "Bo")
    await holds(admin, ada, "owner", "meter-1")
    await holds(admin, bo, "owner", "meter-2")
    await attach(*(Sent("meter-2", f"e{n}", NOON) for n in range(5)))
    linking = asyncio.Event()

    async def arrive() -> None:
        arrived = count()
        while not linking.is_set():
            await attach(*(Sent("meter-1", f"e{next(arrived)}", NOON) for _ in range(3)))

    async with asyncio.TaskGroup() as at_once:
        at_once.create_task(arrive())
        for _ in range(15):
            await link(admin, ada, bo)
            await unlink(admin, ada, bo)
        linking.set()
    moved = await db.fetch("select direction, events from relationship_move where party = $1::uuid and starts is null "
                           "and ends is null and events > 0", ada)  # fmt: skip
    assert Counter(tuple(row) for row in moved) == {("gained", 5): 15, ("lost", 5): 15}
