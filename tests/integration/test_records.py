"""Records, timelines and fates: what relations and events come to, through the real application and Postgres."""

import asyncio
import json
import re
from collections import Counter
from datetime import UTC, datetime, timedelta
from secrets import token_hex
from typing import Any
from uuid import UUID

import asyncpg
import httpx
import pytest
from tests.integration.conftest import Ask, Attach, Sent

from drm_ingest.event import identity_key
from drm_ingest.metrics import Metrics
from drm_ingest.postgres.credentials import ensure_key, new_key
from drm_ingest.postgres.record import cared_for, own, serviced, sold, supplied, tally, timeline
from drm_ingest.postgres.record.known import View
from drm_ingest.postgres.record.page import BEGUN, Position, Wanted
from drm_ingest.postgres.registry import attributes, devices
from drm_ingest.postgres.relations import links, predecessors, relationships
from drm_ingest.serve.app import PLANNER, build
from drm_ingest.settings import Settings

NOON = datetime(2026, 3, 10, 12, tzinfo=UTC)
HOUR, DAY, INSTANT = timedelta(hours=1), timedelta(days=1), timedelta(microseconds=1)


async def party(admin: httpx.AsyncClient, name: str = "Ada", kind: str = "customer", **refs: str) -> str:
    answer = await admin.post("/v1/parties", json={"kind": kind, "name": name, "refs": refs})
    assert answer.status_code == 201, answer.text
    made: str = answer.json()["id"]
    return made


async def holds(
    admin: httpx.AsyncClient,
    party: str,
    role: str,
    subject: str,
    start: datetime | None = None,
    end: datetime | None = None,
) -> None:
    relation = {"subject": subject, "role": role, "party": party, "valid_from": _text(start), "valid_to": _text(end)}
    answer = await admin.post("/v1/relationships", json=relation)
    assert answer.status_code == 201, answer.text


def _text(time: datetime | None) -> str | None:
    return None if time is None else time.isoformat().replace("+00:00", "Z")


async def get(client: httpx.AsyncClient, path: str, **params: Any) -> Any:
    answer = await client.get(path, params=params)
    assert answer.status_code == 200, answer.text
    return answer.json()


async def happened(client: httpx.AsyncClient, party: str, **params: Any) -> list[Any]:
    """Return the events on the first page of a timeline."""
    items = (await get(client, f"/v1/parties/{party}/timeline", **params))["items"]
    return [item for item in items if item["event"]]


async def pages(client: httpx.AsyncClient, path: str, limit: int, **params: Any) -> list[Any]:
    """Read a list to its end."""
    items: list[Any] = []
    cursor: dict[str, str] = {}
    while True:
        page = await get(client, path, limit=limit, **params, **cursor)
        assert len(page["items"]) <= limit
        assert page["items"] or page["next"] is None
        items += page["items"]
        if page["next"] is None:
            return items
        cursor = {"cursor": page["next"]}


# -- records ----------------------------------------------------------------------------------------------------------


async def test_a_hand_over_is_exact_to_the_microsecond(admin: httpx.AsyncClient, attach: Attach) -> None:
    ada, bo = await party(admin), await party(admin, "Bo")
    await holds(admin, ada, "owner", "meter-7", None, NOON)
    await holds(admin, bo, "owner", "meter-7", NOON)
    await attach(
        Sent("meter-7", "long-before", NOON - 40 * DAY),
        Sent("meter-7", "before", NOON - INSTANT),
        Sent("meter-7", "at", NOON),
        Sent("meter-7", "after", NOON + INSTANT),
        Sent("meter-7", "long-after", NOON + 40 * DAY, "device.status"),
    )
    his, hers = await get(admin, f"/v1/parties/{bo}"), await get(admin, f"/v1/parties/{ada}")
    assert hers["events_by_type"] == {"device.measurement": 2}
    assert (hers["first_seen"], hers["last_seen"]) == (_text(NOON - 40 * DAY), _text(NOON - INSTANT))
    assert hers["latest"]["device.measurement"]["id"] == "before"
    assert (hers["devices"], hers["devices_now"]) == ([], 0)
    assert his["events_by_type"] == {"device.measurement": 2, "device.status": 1}
    assert (his["events"], his["first_seen"], his["last_seen"]) == (3, _text(NOON), _text(NOON + 40 * DAY))
    (device,) = his["devices"]
    assert {type_: state["id"] for type_, state in device["latest"].items()} == {
        "device.measurement": "after", "device.status": "long-after",
    }  # fmt: skip
    for who, seen in ((ada, ["before", "long-before"]), (bo, ["long-after", "after", "at"])):
        items = await happened(admin, who)
        assert [item["event"]["id"] for item in items] == seen


async def test_what_a_clock_that_was_never_set_has_left_is_shown_all_the_same(
    admin: httpx.AsyncClient, attach: Attach
) -> None:
    ada, vera = await party(admin), await party(admin, "Vera", "vendor")
    await holds(admin, ada, "owner", "meter-7")
    await holds(admin, vera, "serviced_by", "meter-7")
    first = datetime(1, 1, 2, tzinfo=UTC)
    await attach(
        *(Sent("meter-7", f"e{n}", first + n * DAY) for n in range(3)),
        Sent("meter-7", "fault", first, "device.fault", '{"code": "E1", "state": "raised"}'),
        Sent("meter-7", "visit", first, "support.contact", '{"channel": "visit"}'),
        Sent("meter-7", "answer", first, "feedback.rating", '{"scale": "csat", "score": 3}'),
    )
    for days in (0, 1, 10, 366):
        for who in (ada, vera):
            record = await get(admin, f"/v1/parties/{who}", days=days, around_visit_days=7)
            assert (record["first_seen"], record["last_seen"]) == ("0001-01-02T00:00:00Z", "0001-01-04T00:00:00Z")
    assert [day["day"] for day in record["by_day"]] == ["0001-01-04", "0001-01-03", "0001-01-02"]
    for path in (f"/v1/parties/{ada}/timeline", "/v1/devices/meter-7/events"):
        assert len(await pages(admin, path, 2)) == 6
    assert (await get(admin, "/v1/devices/meter-7"))["first_seen"] == "0001-01-02T00:00:00Z"
    fate = await get(admin, "/v1/events", subject="meter-7", id="e0")
    assert fate["event"]["occurred_at"] == "0001-01-02T00:00:00Z"


async def test_an_event_counts_once_however_many_roles_are_held(admin: httpx.AsyncClient, attach: Attach) -> None:
    volt = await party(admin, "Volt", "vendor")
    await holds(admin, volt, "sold_by", "meter-7", NOON - DAY)
    await holds(admin, volt, "serviced_by", "meter-7", NOON - 3 * DAY, NOON + 3 * DAY)
    await holds(admin, volt, "serviced_by", "meter-7", NOON + 3 * DAY, NOON + 4 * DAY)
    await holds(admin, volt, "user", "meter-7", NOON, NOON + HOUR)
    await attach(*(Sent("meter-7", f"e{n}", NOON + n * DAY) for n in range(-4, 6)))
    record = await get(admin, f"/v1/parties/{volt}")
    assert record["events_by_type"] == {"device.measurement": 9}  # all but the first
    items = await happened(admin, volt)
    assert [(item["event"]["id"], item["device"], item["roles"]) for item in items] == [
        ("e5", "meter-7", ["sold_by"]),
        ("e4", "meter-7", ["sold_by"]),
        ("e3", "meter-7", ["serviced_by", "sold_by"]),
        ("e2", "meter-7", ["serviced_by", "sold_by"]),
        ("e1", "meter-7", ["serviced_by", "sold_by"]),
        ("e0", "meter-7", ["serviced_by", "sold_by", "user"]),
        ("e-1", "meter-7", ["serviced_by", "sold_by"]),
        ("e-2", "meter-7", ["serviced_by"]),
        ("e-3", "meter-7", ["serviced_by"]),
    ]


async def test_a_relation_learnt_late_is_right_at_once(admin: httpx.AsyncClient, attach: Attach) -> None:
    ada = await party(admin)
    await attach(*(Sent("meter-7", f"e{n}", NOON + n * HOUR) for n in range(100)))
    assert (await get(admin, f"/v1/parties/{ada}"))["events"] == 0
    await holds(admin, ada, "owner", "meter-7", NOON + 10 * HOUR, NOON + 90 * HOUR)
    assert (await get(admin, f"/v1/parties/{ada}"))["events"] == 80
    assert sum(item["event"] is not None for item in await pages(admin, f"/v1/parties/{ada}/timeline", 7)) == 80


async def test_what_is_said_of_a_party_by_any_of_its_names_is_on_its_record(
    admin: httpx.AsyncClient, attach: Attach
) -> None:
    ada, bo = await party(admin, crm="778", shop="a9"), await party(admin, "Bo", crm="77")
    await attach(
        Sent(f"party:{ada}", "1", NOON, "commerce.purchase", source="fleet"),
        Sent("party:crm:778", "2", NOON + HOUR, "commerce.purchase", source="fleet"),
        Sent("party:shop:a9", "3", NOON + 2 * HOUR, "feedback.rating", source="fleet"),
        Sent("party:crm:77", "4", NOON, "commerce.purchase", source="fleet"),
        Sent("party:crm:7789", "5", NOON, "commerce.purchase", source="fleet"),
    )
    record = await get(admin, "/v1/parties/crm:778")
    assert record["events_by_type"] == {"commerce.purchase": 2, "feedback.rating": 1}
    items = await happened(admin, "crm:778")
    assert [(item["event"]["id"], item["device"], item["roles"]) for item in items] == [
        ("3", None, ["self"]), ("2", None, ["self"]), ("1", None, ["self"]),
    ]  # fmt: skip
    assert (await get(admin, f"/v1/parties/{bo}"))["events"] == 1


async def test_who_cares_for_a_customer_sees_what_is_said_of_it_in_that_time(
    admin: httpx.AsyncClient, attach: Attach
) -> None:
    ada = await party(admin, crm="778")
    eve = await party(admin, "Eve", "employee")
    await holds(admin, eve, "cared_for_by", "party:crm:778", NOON, NOON + DAY)
    await attach(
        Sent(f"party:{ada}", "before", NOON - INSTANT, "support.contact", source="fleet"),
        Sent(f"party:{ada}", "by-id", NOON, "support.contact", source="fleet"),
        Sent("party:crm:778", "by-ref", NOON + DAY - INSTANT, "support.contact", source="fleet"),
        Sent("party:crm:778", "after", NOON + DAY, "support.contact", source="fleet"),
    )
    assert (await get(admin, f"/v1/parties/{eve}"))["events_by_type"] == {"support.contact": 2}
    items = await happened(admin, eve)
    assert [(item["event"]["id"], item["roles"]) for item in items] == [
        ("by-ref", ["cared_for_by"]), ("by-id", ["cared_for_by"]),
    ]  # fmt: skip
    fate = await get(admin, "/v1/events", subject="party:crm:778", id="by-ref", source="fleet")
    assert {to["party"]: to["roles"] for to in fate["attached_to"]} == {ada: ["self"], eve: ["cared_for_by"]}


async def test_data_comes_out_as_it_went_in(admin: httpx.AsyncClient, attach: Attach) -> None:
    texts = ['"5"', "5", "null", "[]", "{}", '"{\\"a\\": 1}"', "18446744073709551615", "-9223372036854775808", "1e300",
             "0.1", "true", '{"a": {"b": [1, "zwölf", null]}}']  # fmt: skip
    ada = await party(admin)
    await holds(admin, ada, "owner", "meter-7")
    await attach(*(Sent("meter-7", str(n), NOON + n * HOUR, f"t{n}", text) for n, text in enumerate(texts)))
    await attach(Sent("meter-7", "none", NOON, "t-none", None))
    expected = {f"t{n}": json.loads(text) for n, text in enumerate(texts)} | {"t-none": None}
    record = await get(admin, f"/v1/parties/{ada}")
    device = await get(admin, "/v1/devices/meter-7")
    for latest in (record["latest"], record["devices"][0]["latest"], device["latest"]):
        assert {type_: state["data"] for type_, state in latest.items()} == expected
    for item in await happened(admin, ada):
        assert item["event"]["data"] == expected[item["event"]["type"]]


async def test_a_record_outlives_its_events(admin: httpx.AsyncClient, attach: Attach, db: asyncpg.Connection) -> None:
    ada = await party(admin)
    await holds(admin, ada, "owner", "meter-7")
    await attach(Sent("meter-7", "1", NOON), Sent("meter-7", "2", NOON + HOUR, data='{"temperature": 3}'))
    await db.execute("truncate event")  # as retention does, by partition
    record = await get(admin, f"/v1/parties/{ada}")
    assert (record["events_by_type"], record["last_seen"]) == ({"device.measurement": 2}, _text(NOON + HOUR))
    assert record["first_seen"] == "2026-03-10T00:00:00Z"  # the day is all that is known
    state = record["latest"]["device.measurement"]
    assert (state["id"], state["data"]) == (None, {"temperature": 3})
    fate = await get(admin, "/v1/events", subject="meter-7", id="1")
    assert (fate["fate"], fate["event"]) == ("attached", None)
    assert "retention" in fate["detail"]


async def test_the_devices_of_a_record_are_bounded_and_counted(admin: httpx.AsyncClient, attach: Attach) -> None:
    volt = await party(admin, "Volt", "vendor")
    for n in range(5):
        await holds(admin, volt, "sold_by", f"meter-{n}", NOON)
    await holds(admin, volt, "sold_by", "meter-sold-back", NOON, NOON + DAY)
    await attach(*(Sent(f"meter-{n}", "1", NOON) for n in range(5)))
    for asked, shown in ((0, 0), (2, 2), (5, 5), (1000, 5)):
        record = await get(admin, f"/v1/parties/{volt}", devices=asked)
        assert [device["id"] for device in record["devices"]] == [f"meter-{n}" for n in range(shown)]
        assert all(device["latest"] for device in record["devices"])
        assert (record["devices_now"], record["events"]) == (5, 5)
    for n in range(21):
        await holds(admin, volt, "sold_by", f"other-{n}", NOON)
    record = await get(admin, f"/v1/parties/{volt}")
    assert (len(record["devices"]), record["devices_now"]) == (10, 26)
    assert (len(record["relations"]["items"]), record["relations"]["now"]) == (25, 26)


# -- devices ----------------------------------------------------------------------------------------------------------


async def test_a_device_shows_all_that_happened_whoever_held_it(admin: httpx.AsyncClient, attach: Attach) -> None:
    ada = await party(admin)
    await holds(admin, ada, "owner", "meter-7", NOON, NOON + DAY)
    sent = [Sent("meter-7", f"e{n:02}", NOON + n * 7 * HOUR, "a" if n % 3 else "b") for n in range(-20, 20)]
    await attach(*sent, Sent("meter-70", "other", NOON))
    device = await get(admin, "/v1/devices/meter-7")
    assert (device["claimed"], device["registered_by"]) == (False, "relationship")
    assert (device["events"], device["events_by_type"]) == (40, Counter(event.type for event in sent))
    assert (device["first_seen"], device["last_seen"]) == (_text(sent[0].at), _text(sent[-1].at))
    unheld = await get(admin, "/v1/devices/meter-70")
    assert (unheld["registered_by"], unheld["events"]) == ("event", 1)

    newest_first = [event.id for event in reversed(sent)]
    for limit in (1, 6, 39, 40, 41, 1000):
        items = await pages(admin, "/v1/devices/meter-7/events", limit)
        assert [item["id"] for item in items] == newest_first
    for wanted, expected in (
        ({"type": "b"}, [e for e in sent if e.type == "b"]),
        ({"type": ["a", "b"]}, sent),
        ({"type": "none"}, []),
        ({"since": _text(NOON)}, [e for e in sent if e.at >= NOON]),
        ({"until": _text(NOON)}, [e for e in sent if e.at < NOON]),
        (
            {"since": _text(sent[7].at), "until": _text(sent[30].at), "type": "a"},
            [e for e in sent[7:30] if e.type == "a"],
        ),
        ({"since": _text(NOON), "until": _text(NOON)}, []),
    ):
        items = await pages(admin, "/v1/devices/meter-7/events", 4, **wanted)
        assert [item["id"] for item in items] == [event.id for event in reversed(expected)], wanted


async def test_events_of_one_instant_are_paged_without_gap_or_repeat(admin: httpx.AsyncClient, attach: Attach) -> None:
    ada = await party(admin)
    subjects = ["meter-1", "meter-2", "Meter-2", "métre"]
    for subject in subjects:
        await holds(admin, ada, "owner", subject)
    sent = [Sent(s, str(n), NOON, source=source) for s in subjects for n in range(5) for source in ("", "a", "B", "ä")]
    await attach(*sent)
    whole = [_identity(item["event"]) for item in await happened(admin, ada)]
    assert Counter(whole) == Counter((event.subject, event.source, event.id) for event in sent)
    for limit in (1, 3, 79, 80):
        for types in ([], ["device.measurement"]):
            items = await pages(admin, f"/v1/parties/{ada}/timeline", limit, type=types)
            assert [_identity(item["event"]) for item in items] == whole


async def test_a_timeline_of_many_devices_is_whole_however_far_apart_its_events_lie(
    admin: httpx.AsyncClient, attach: Attach
) -> None:
    volt, now = await party(admin, "Volt", "vendor"), datetime.now(UTC)
    for n in range(12):  # of a few all is read at once
        await holds(admin, volt, "sold_by", f"meter-{n}")
    minutes = [1, 2, 3, 50, 70, 600, 1500, 1501, 9000, 12_000, 60_000, 100_000, 500_000, 800_000, 1_200_000, 30_000_000]
    minutes.append(-600)  # by a clock that is ahead
    sent = [Sent(f"meter-{n * 7 % 12}", f"e{n}", now - timedelta(minutes=each)) for n, each in enumerate(minutes)]
    await attach(*sent)
    newest_first = [event.id for event in sorted(sent, key=lambda event: event.at, reverse=True)]
    for limit in (1, 2, 3, 5, 100):
        for types in ([], ["device.measurement"]):
            items = await pages(admin, f"/v1/parties/{volt}/timeline", limit, type=types)
            assert [item["event"]["id"] for item in items if item["event"]] == newest_first
            told = await pages(admin, f"/v1/parties/{volt}/timeline", limit, type=types, since=_text(now - 9 * DAY))
            assert [item["event"]["id"] for item in told] == newest_first[:11]


async def test_a_page_of_large_events_ends_early_and_the_next_goes_on(admin: httpx.AsyncClient, attach: Attach) -> None:
    ada = await party(admin)
    await holds(admin, ada, "owner", "meter-7")
    sent = [Sent("meter-7", f"e{n:02}", NOON + n * DAY, data=f'"{token_hex(5000)}"') for n in range(20)]
    await attach(*sent, Sent("meter-7", "e99", NOON + 99 * DAY, data=f'"{token_hex(60_000)}"'))
    newest_first = ["e99", *(event.id for event in reversed(sent))]
    for path in (f"/v1/parties/{ada}/timeline", "/v1/devices/meter-7/events"):
        for limit in (3, 20, 21, 1000):
            seen: list[str] = []
            lengths: list[int] = []
            cursor: dict[str, str] | None = {}
            while cursor is not None:
                page = await get(admin, path, limit=limit, **cursor)
                ids = [item.get("event", item)["id"] for item in page["items"]]
                lengths.append(len(ids))
                seen += ids
                cursor = {"cursor": page["next"]} if page["next"] else None
            assert seen == newest_first
            assert lengths[0] == 1  # larger than a page may be, and yet it is shown
            assert max(lengths) <= min(limit, 10)


def _identity(event: dict[str, str]) -> tuple[str, str, str]:
    return event["subject"], event["source"], event["id"]


async def test_a_fault_is_open_until_its_code_is_cleared_and_only_for_who_holds_the_device(
    admin: httpx.AsyncClient, attach: Attach
) -> None:
    ada, bo = await party(admin), await party(admin, "Bo")
    await holds(admin, bo, "owner", "meter-7", None, NOON)
    await holds(admin, ada, "owner", "meter-7", NOON)
    told = [("E9", "raised", -1), ("E1", "raised", 1), ("E1", "cleared", 2), ("E1", "raised", 3), ("E1", "raised", 4),
            ("E2", "raised", 5), ("E2", "cleared", 6), ("E3", "cleared", 7)]  # fmt: skip
    for code, state, hour in reversed(told):
        data = json.dumps({"code": code, "severity": "error", "state": state, "message": f"at {hour}"})
        await attach(Sent("meter-7", f"{code}-{hour}", NOON + hour * HOUR, "device.fault", data))
    assert (await get(admin, f"/v1/parties/{ada}"))["faults"] == {"open": 1, "items": [
        {"device": "meter-7", "code": "E1", "severity": "error", "message": "at 4", "component": None,
         "since": _text(NOON + 3 * HOUR), "last_at": _text(NOON + 4 * HOUR), "raised": 2},
    ]}  # fmt: skip
    assert (await get(admin, f"/v1/parties/{bo}"))["faults"] == {"open": 0, "items": []}  # hers no more
    then = await get(admin, f"/v1/parties/{ada}", as_of=_text(NOON + 5 * HOUR))
    assert [item["code"] for item in then["faults"]["items"]] == ["E2", "E1"]


async def test_what_has_not_changed_is_not_sent_again(admin: httpx.AsyncClient, attach: Attach) -> None:
    ada = await party(admin)
    await holds(admin, ada, "owner", "meter-7", NOON)
    rooms = (f"/v1/parties/{ada}", f"/v1/parties/{ada}/timeline", "/v1/devices/meter-7")
    tags = {room: (await admin.get(room)).headers["etag"] for room in rooms}
    assert tags[rooms[0]].startswith("W/")
    for room, tag in tags.items():
        for named in (tag, f'"other", {tag.removeprefix("W/")}', "*"):
            answer = await admin.get(room, headers={"if-none-match": named})
            assert (answer.status_code, answer.content, answer.headers["etag"]) == (304, b"", tag)
        assert (await admin.get(room, headers={"if-none-match": '"other"'})).status_code == 200
    await attach(Sent("meter-8", "1", NOON))  # of nobody's concern here
    for room, tag in tags.items():
        assert (await admin.get(room, headers={"if-none-match": tag})).status_code == 304
    await attach(Sent("meter-7", "1", NOON))
    for room, tag in tags.items():
        answer = await admin.get(room, headers={"if-none-match": tag})
        assert (answer.status_code, answer.headers["etag"] != tag) == (200, True)


# -- fates ------------------------------------------------------------------------------------------------------------


async def test_a_sender_learns_what_became_of_its_events(admin: httpx.AsyncClient, attach: Attach, ask: Ask) -> None:
    ada = await party(admin, kind="vendor")
    await holds(admin, ada, "owner", "meter-7", NOON)
    await holds(admin, ada, "user", "meter-7", NOON)
    await holds(admin, ada, "sold_by", "meter-7", NOON + INSTANT)
    await attach(Sent("meter-7", "1", NOON), Sent("meter-7", "early", NOON - INSTANT))
    fleet = await ask("fleet", "sender")

    attached = await get(fleet, "/v1/events", subject="meter-7", id="1")
    assert (attached["fate"], attached["dead_letters"]) == ("attached", [])
    owns, uses = (await get(admin, "/v1/relationships", subject="meter-7"))["items"][:2]
    assert attached["attached_to"] == [
        {"party": ada, "kind": "vendor", "roles": ["owner", "user"], "relations": [
            {"relationship": relation["id"], "version": 1, "subject": "meter-7", "role": relation["role"],
             "valid_from": _text(NOON), "valid_to": None}
            for relation in (owns, uses)
        ]},
    ]  # fmt: skip
    assert {"subject": "meter-7", "source": "", "id": "1", "type": "device.measurement", "occurred_at": _text(NOON),
            "sender": "fleet", "data": {"temperature": 21.5},
            "content_hash": Sent("meter-7", "1", NOON).hash.hex()}.items() <= attached["event"].items()  # fmt: skip
    assert (await get(fleet, "/v1/events", subject="meter-7", id="early"))["attached_to"] == []
    # The source that product teams read is the same as none.
    published = await get(fleet, "/v1/events", subject="meter-7", id="1", source="/devices/meter-7")
    assert (published["fate"], published["source"]) == ("attached", "")

    pending = await get(fleet, "/v1/events", subject="meter-7", id="2")
    assert (pending["fate"], pending["event"], pending["attached_to"]) == ("pending", None, [])
    assert all(word in pending["detail"] for word in ("200", "refused", "source", "no answer"))

    repeated = await attach(Sent("meter-7", "1", NOON))
    assert repeated.duplicates == 1
    assert await get(fleet, "/v1/events", subject="meter-7", id="1") == attached


async def test_another_event_under_the_same_identity_is_told_beside_the_first(
    admin: httpx.AsyncClient, attach: Attach, ask: Ask
) -> None:
    await attach(Sent("meter-7", "1", NOON))
    conflicting = await attach(Sent("meter-7", "1", NOON, data='{"temperature": -40}'))
    assert len(conflicting.dead) == 1
    fate = await get(await ask("fleet", "sender"), "/v1/events", subject="meter-7", id="1")
    assert (fate["fate"], fate["event"]["data"]) == ("attached", {"temperature": 21.5})
    (dead,) = fate["dead_letters"]
    assert (dead["stage"], dead["code"]) == ("attach", "id_conflict")
    assert "dead_letters" in fate["detail"]


async def test_an_event_that_postgres_refused_is_a_dead_letter(
    admin: httpx.AsyncClient, ask: Ask, db: asyncpg.Connection
) -> None:
    key = UUID(bytes=identity_key("meter-7", "", "1"))
    await db.execute(
        "insert into dead_letter (topic, partition, \"offset\", key, stage, code, detail) "
        "values ('drm.events.measurement', 2, 17, $1, 'attach', 'row_refused', 'too large')", key,
    )  # fmt: skip
    fate = await get(await ask("fleet", "sender"), "/v1/events", subject="meter-7", id="1")
    assert (fate["fate"], fate["event"]) == ("dead_letter", None)
    (dead,) = fate["dead_letters"]
    assert (dead["code"], dead["detail"], dead["partition"], dead["offset"]) == ("row_refused", "too large", 2, 17)


async def test_of_anothers_event_a_sender_learns_only_that_its_own_would_be_a_repeat(
    admin: httpx.AsyncClient, attach: Attach, ask: Ask
) -> None:
    ada = await party(admin)
    await holds(admin, ada, "owner", "meter-7")
    await attach(Sent("meter-7", "1", NOON, sender="gateway-1"))
    fate = await get(await ask("gateway-2", "sender"), "/v1/events", subject="meter-7", id="1")
    assert (fate["fate"], fate["event"], fate["attached_to"]) == ("duplicate", None, [])
    assert "gateway-1" not in json.dumps(fate)
    assert ada not in json.dumps(fate)
    for role in ("admin", "reader"):
        whole = await get(await ask(f"a {role}", role), "/v1/events", subject="meter-7", id="1")
        assert (whole["fate"], whole["event"]["sender"]) == ("attached", "gateway-1")


async def test_a_key_bound_to_a_device_asks_for_no_other(admin: httpx.AsyncClient, ask: Ask) -> None:
    sender = (await admin.post("/v1/senders", json={"name": "meter-7", "device": "meter-7"})).json()["id"]
    own = await ask(key=(await admin.post(f"/v1/senders/{sender}/keys")).json()["key"])
    assert (await get(own, "/v1/events", subject="meter-7", id="1"))["fate"] == "pending"
    answer = await own.get("/v1/events", params={"subject": "meter-8", "id": "1"})
    assert (answer.status_code, answer.json()["code"]) == (403, "forbidden")


async def test_an_event_about_a_party_is_looked_for_under_the_name_of_the_asker(
    admin: httpx.AsyncClient, attach: Attach, ask: Ask
) -> None:
    ada = await party(admin, crm="778")
    await attach(Sent("party:crm:778", "1", NOON, source="shop", sender="shop"))
    shop = await ask("shop", "sender")
    fate = await get(shop, "/v1/events", subject="party:crm:778", id="1")
    assert (fate["fate"], fate["source"]) == ("attached", "shop")
    assert fate["attached_to"] == [{"party": ada, "kind": "customer", "roles": ["self"], "relations": []}]
    assert (await get(shop, "/v1/events", subject="party:crm:778", id="1", source="till-1"))["fate"] == "pending"


# -- how it is read ---------------------------------------------------------------------------------------------------

LARGE = ("event", "subject_day", "relationship", "device", "party_ref", "party_link", "party_attribute")


@pytest.fixture
async def large(db: asyncpg.Connection) -> UUID:
    """A vendor with 100 of 1,000 devices over 120 days; 240,000 events in monthly partitions."""
    for month in range(1, 7):
        await db.execute(
            f"create table event_2026_{month:02} partition of event "
            f"for values from ('2026-{month:02}-01T00:00:00Z') to ('2026-{month + 1:02}-01T00:00:00Z')"
        )
    await db.execute("""
        insert into event
            (occurred_at, received_at, content_hash, subject, source, id, type, time_quality, sender, data)
        select at, at, gen_random_uuid(), 'd' || device, '', device || '-' || day || '-' || type, 't' || type,
               'sent', 'fleet', '{"a": 1}'
        from generate_series(1, 1000) as device, generate_series(0, 119) as day, generate_series(0, 1) as type,
             lateral (select timestamptz '2026-01-10T00:00:00Z' + day * interval '1 day'
                             + (device * 37 + type * 5003) % 86400 * interval '1 second') as moment (at)
    """)
    await db.execute("""
        insert into event
            (occurred_at, received_at, content_hash, subject, source, id, type, time_quality, sender, data)
        select at, at, gen_random_uuid(), 'd' || device, '', device || '-' || type || '-' || number, type,
               'sent', 'fleet', data::jsonb
        from generate_series(1, 1000) as device, generate_series(0, 1) as number, (values
                 ('device.fault', '{"code": "E4", "severity": "error"}'),
                 ('feedback.rating', '{"scale": "csat", "score": 4}'),
                 ('support.contact', '{"channel": "visit"}')) as rare (type, data),
             lateral (select timestamptz '2026-03-01T09:00:00Z' + (device % 50 + number) * interval '20 hours')
                 as moment (at)
    """)
    await db.execute("""
        insert into subject_day (day, events, last_at, last_hash, subject, type, last_data)
        select (occurred_at at time zone 'UTC')::date, 1, occurred_at, content_hash, subject, type, data from event
        on conflict do nothing
    """)
    await db.execute(
        "insert into device (subject, registered_by) select 'd' || n, 'event' from generate_series(1, 1000) n"
    )
    await db.execute("""
        insert into device_replacement (device, by, at, asserted_by, undone_by, recorded)
        select 'd' || n, 'd' || n + 1, '2026-03-20Z', 'office', case when n % 4 = 2 then 'office' end,
               tstzrange('2026-03-01Z', case when n % 4 = 2 then '2026-03-20Z'::timestamptz end)
        from generate_series(1, 999) n where n % 4 <> 0
    """)
    vendor: UUID = await db.fetchval("insert into party (kind, name) values ('vendor', 'Volt') returning id")
    await db.execute("insert into party (kind, name) select 'customer', 'c' || n from generate_series(1, 2000) n")
    await db.execute("insert into party_ref (namespace, ref, party) select 'crm', name, id from party")
    await db.execute("""
        insert into relationship (subject, role, party, exclusive, subject_kind, party_kind, valid)
        select 'd' || n, 'sold_by', $1, true, 'device', 'vendor', tstzrange(start + n * interval '1 hour', null)
        from generate_series(1, 100) n, cast('2026-01-20T07:30:00Z' as timestamptz) start
    """, vendor)  # fmt: skip
    await db.execute("""
        insert into relationship (subject, role, party, exclusive, subject_kind, party_kind, valid)
        select 'd' || row_number() over (), 'owner', id, true, 'device', kind, '[2026-01-20T07:30:00Z,)'
        from party where kind = 'customer' limit 1000
    """)
    await db.execute("""
        insert into relationship (subject, role, party, exclusive, subject_kind, party_kind, valid)
        select 'party:' || id, 'buys_from', $1, false, kind, 'vendor', '[2026-01-20T07:30:00Z,)'
        from party where kind = 'customer' order by id limit 50
    """, vendor)  # fmt: skip
    # Of many others, so that a party's are few among them.
    await db.execute("""
        insert into relationship (subject, role, party, exclusive, subject_kind, party_kind, valid)
        select 'other-' || n, 'user', id, false, 'device', kind, '[2026-01-20T07:30:00Z,)'
        from (select *, row_number() over () as number from party where kind = 'customer') as customer
        join generate_series(1, 15000) as n on n % 2000 + 1 = number
    """)
    # Whatever joins what: one party has all parts of a record.
    await db.execute("""
        insert into role_kind (role, exclusive, subject_kind, party_kind)
        select name, exclusive, unnest(array['device', 'customer']), 'vendor' from role on conflict do nothing
    """)
    await db.execute("""
        insert into relationship (subject, role, party, exclusive, subject_kind, party_kind, valid)
        select 'd' || n, role, $1, role = 'made_by', 'device', 'vendor', '[2026-02-20T07:30:00Z,)'
        from generate_series(1, 100) n, unnest(array['made_by', 'serviced_by']) as role
    """, vendor)  # fmt: skip
    await db.execute("""
        insert into relationship (subject, role, party, exclusive, subject_kind, party_kind, valid)
        select 'party:' || id, 'cared_for_by', $1, false, kind, 'vendor', '[2026-01-20T07:30:00Z,)'
        from party where kind = 'customer' order by id limit 50
    """, vendor)  # fmt: skip
    # What was known before.
    await db.execute("""
        insert into relationship
            (id, version, subject, role, party, exclusive, subject_kind, party_kind, valid, recorded)
        select id, 2, subject, role, party, exclusive, subject_kind, party_kind, valid,
               '[2026-01-01T00:00:00Z,2026-02-01T00:00:00Z)'
        from relationship
    """)
    await db.execute("""
        insert into party_link (party, other, kind, reason, asserted_by, recorded)
        select id, next, 'customer', 'same', 'office',
               tstzrange('2026-03-01T00:00:00Z', case when number % 4 = 0 then timestamptz '2026-04-01T00:00:00Z' end)
        from (select id, lead(id) over (order by id) as next, row_number() over (order by id) as number
              from party where kind = 'customer') as p
        where number % 2 = 0 and next is not null
    """)
    await db.execute("""
        insert into party_attribute (party, name, origin, value, said_at, asserted_by)
        select id, 'city', origin, '"Lund"', '2026-03-01T00:00:00Z', 'office'
        from party, unnest(array['crm', 'shop']) as origin
    """)
    await db.execute("vacuum analyze")
    return vendor


async def test_nothing_large_is_read_whole(large: UUID, db: asyncpg.Connection, admin: httpx.AsyncClient) -> None:
    record = await get(admin, f"/v1/parties/{large}")
    assert (record["devices_now"], len(record["devices"])) == (100, 10)
    expected = await db.fetch(
        "select type, count(*) from event join relationship using (subject) "
        "where party = $1 and valid @> occurred_at and upper_inf(recorded) and role = 'sold_by' "
        "and type not like '%.%' group by type", large,
    )  # fmt: skip
    assert {type_: events for type_, events in record["events_by_type"].items() if "." not in type_} == dict(expected)
    # Not empty, so that the plans below have work to do.
    of = View().of([large])
    for statement in (own.SATISFACTION, sold.SATISFACTION):
        assert await db.fetch(statement, *of)
    for statement in (own.FAULTS, sold.FAULTS, cared_for.CUSTOMERS, supplied.BATCHES, supplied.FAULTS):
        assert await db.fetch(statement, *of, 100)
    assert await db.fetch(serviced.VISITS, *of, 100, 30)
    assert await db.fetch(serviced.SATISFACTION, *of, 100, 30)

    after = Position(datetime(2026, 5, 1, tzinfo=UTC), "d50", "", "50-1")
    beginning = Position(datetime(2026, 5, 1, tzinfo=UTC), "d50", "", str(large), 1)
    views = (
        View(),
        View(as_of=datetime(2026, 4, 1, tzinfo=UTC)),
        View(known_at=datetime(2026, 1, 15, tzinfo=UTC)),
        View(as_of=datetime(2026, 4, 1, tzinfo=UTC), known_at=datetime(2026, 1, 15, tzinfo=UTC)),
    )
    for view in views:
        for types in ([], ["t1"], [BEGUN]):
            for position in (None, after, beginning):
                wanted = Wanted(types, None, None, position, 101, 1 << 20, view)
                statement, values = timeline.party_sql(wanted)
                await _expect_indexes(db, statement, *view.of([large]), datetime(2026, 4, 1, tzinfo=UTC), *values)
                await _expect_indexes(db, statement, *view.of([large]), None, *values)
                statement, values = timeline.subject_sql(wanted)
                await _expect_indexes(db, statement, "d50", view.as_of, view.known_at, None, *values)
    linked, knew = (
        await db.fetchval("select party from party_link order by party desc limit 1"),
        datetime(2026, 3, 10, tzinfo=UTC),
    )
    await _expect_indexes(db, links.GROUP, linked)
    await _expect_indexes(db, links.GROUP_KNOWN, linked, knew)
    await _expect_indexes(db, attributes.OF_PARTIES, await links.group(db, linked, knew))
    for view in views:
        of = view.of([large])
        for statement in (
            tally.COUNTS, own.RELATIONS_COUNT, own.DEVICES_NOW, own.SATISFACTION, sold.SALES, sold.SATISFACTION,
            serviced.DEVICES, supplied.DEVICES,
        ):  # fmt: skip
            await _expect_indexes(db, statement, *of)
        for statement in (own.RELATIONS, own.DEVICES, own.FAULTS, sold.FAULTS, cared_for.CUSTOMERS, supplied.BATCHES,
                          supplied.FAULTS):  # fmt: skip
            await _expect_indexes(db, statement, *of, 100)
        for statement in (serviced.VISITS, serviced.SATISFACTION):
            await _expect_indexes(db, statement, *of, 100, 30)
        for statement in (cared_for.SATISFACTION, cared_for.FAULTS):
            await _expect_indexes(db, statement, *of, 100)
        await _expect_indexes(db, tally.RECORD, *of, [f"d{n}" for n in range(1, 101)])
        await _expect_indexes(db, tally.BY_DAY, *of, datetime(2026, 4, 1, tzinfo=UTC), datetime(2026, 4, 3, tzinfo=UTC))
        await _expect_indexes(db, tally.SUBJECT_RECORD, "d50", view.as_of, view.known_at, [])
        await _expect_indexes(db, devices.UNCLAIMED, "d3", 100, 500)
        for statement in (predecessors.PREDECESSORS, predecessors.REPLACED_BY):
            await _expect_indexes(db, statement, "d50", view.as_of, view.known_at)
        await _expect_indexes(db, relationships.RELATED, "d50", view.as_of, view.known_at, 100)


async def _expect_indexes(db: asyncpg.Connection, statement: str, *values: object) -> None:
    """Run a statement as serve does, once with a plan for any parameters, and look at what it read."""
    for name, value in PLANNER.items():
        await db.execute(f"set {name} = {value}")
    for mode in ("force_generic_plan", "force_custom_plan"):
        await db.execute(f"set plan_cache_mode = {mode}")
        (plan,) = json.loads(await db.fetchval("explain (analyze, format json) " + statement, *values))
        scans = [node for node in _nodes(plan["Plan"]) if node.get("Relation Name", "").startswith(LARGE)]
        whole = [node["Relation Name"] for node in scans if node["Node Type"] == "Seq Scan"]
        assert whole == []
        # Nor all of an index: by its name or by who holds it a relation is found, and not by when it held.
        found_by = [
            node.get("Index Cond", node["Index Name"])
            for node in _nodes(plan["Plan"])
            if "relationship" in node.get("Index Name", "")
        ]
        if statement != devices.UNCLAIMED:  # that goes along the index, beside the devices, and stops at its limit
            assert [by for by in found_by if not re.search(r"\b(subject|party|id)\b[^&@<>]*= ", by)] == []
        events_read = sum(
            node["Actual Loops"] * (node["Actual Rows"] + node.get("Rows Removed by Filter", 0))
            for node in scans
            if node["Relation Name"].startswith("event")
        )
        assert events_read < 240_000 / 10


def _nodes(node: dict[str, Any]) -> list[dict[str, Any]]:
    return [node, *(below for child in node.get("Plans", []) for below in _nodes(child))]


@pytest.mark.parametrize("bound", ["record_timeout_s", "postgres_statement_timeout_s"])
async def test_a_record_that_takes_too_long_is_refused_with_what_to_ask_instead_and_postgres_stops(
    serve_settings: Settings, db: asyncpg.Connection, bound: str
) -> None:
    key = new_key()[0]
    await ensure_key(db, "office", "admin", key)
    settings = serve_settings.model_copy(
        update={bound: 0.5, "postgres_lock_timeout_s": 60, "postgres_connections_max": 1}
    )
    app = build(settings, Metrics("serve"))
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(
            transport=httpx.ASGITransport(app), base_url="http://serve", headers={"authorization": f"Bearer {key}"}
        ) as admin,
    ):
        ada = await party(admin)
        async with db.transaction():
            await db.execute("lock table subject_day in access exclusive mode")
            for asked, told in (({}, "counted beforehand"), ({"as_of": "2026-03-15T00:00:00Z"}, "without as_of")):
                answer = await admin.get(f"/v1/parties/{ada}", params=asked)
                assert (answer.status_code, answer.json()["code"]) == (503, "took_too_long")
                assert told in answer.json()["detail"]
                assert "within 0.5 s" in answer.json()["detail"]
                assert int(answer.headers["retry-after"]) >= 1
            # The only connection is free, and waits for nothing.
            await get(admin, "/v1/parties")
            assert not await db.fetchval(
                "select exists (select from pg_locks where not granted and relation = 'subject_day'::regclass)"
            )
        async with asyncio.timeout(60):  # half a second may be too little while the machine has other work
            while (await admin.get(f"/v1/parties/{ada}", params=asked)).status_code != 200:
                pass
