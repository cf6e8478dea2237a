"""Random histories against a naive model in plain Python: records of all kinds of parties, at any as_of and known_at.

The model asks of each event, one by one, whether a relation that was known held when it happened. It has nothing of the
product in it: no ranges, no days, no SQL.
"""

import json
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from functools import partial
from itertools import count
from typing import Any

import asyncpg
import httpx
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.integration.conftest import Attach, Sent
from tests.integration.test_records import TIMES, _text, get, holds, pages, party

WINDOW_DAYS = 2
NOW = TIMES[-1] + timedelta(days=9)
"""Every relation that ends has ended then, and no event is later."""
KINDS = {
    "ada": "customer",
    "bo": "customer",
    "volt": "vendor",
    "fixit": "partner",
    "eve": "employee",
    "parts": "supplier",
}
ROLES = [
    *((role, device, who) for role in ("owner", "user") for device in "xyz" for who in ("ada", "bo")),
    *((role, device, who) for role, who in (
        ("sold_by", "volt"), ("serviced_by", "fixit"), ("installed_by", "fixit"), ("made_by", "parts"),
        ("parts_by", "parts"),
    ) for device in "xy"),
    ("buys_from", "ada", "volt"), ("buys_from", "bo", "volt"), ("cared_for_by", "ada", "eve"),
    ("cared_for_by", "bo", "eve"), ("cared_for_by", "volt", "eve"), ("works_for", "eve", "fixit"),
]  # fmt: skip
DATA = [
    ("device.fault", {"code": "E1", "severity": "error"}),
    ("device.fault", {"code": "E1", "severity": "error", "state": "cleared"}),
    ("device.fault", {"code": "E2", "severity": "info", "state": "raised"}),
    ("feedback.rating", {"scale": "csat", "score": 4}),
    ("feedback.rating", {"scale": "csat", "score": 1.0}),
    ("feedback.rating", {"scale": "nps", "score": 9}),
    ("support.contact", {"channel": "visit"}),
    ("support.contact", {"channel": "visit", "agent": "fixit"}),
    ("support.contact", {"channel": "visit", "agent": "eve"}),
    ("support.contact", {"channel": "phone", "agent": "fixit"}),
]
bounds = st.none() | st.sampled_from(TIMES)
drawn_steps = st.tuples(
    st.sampled_from(["begin"] * 6 + ["correct", "withdraw", "link"]), st.sampled_from(ROLES), bounds, bounds,
    st.integers(0, 9), st.sampled_from([None, "b1"]),
)  # fmt: skip
drawn_events = st.tuples(st.sampled_from("xyz" * 2 + "ABV"), st.sampled_from(TIMES), st.sampled_from(DATA))
numbers = count()


@dataclass(frozen=True)
class Version:
    id: str
    subject: str
    role: str
    party: str
    batch: str | None
    start: datetime | None
    end: datetime | None
    since: datetime
    gone: datetime | None = None

    def at(self, time: datetime) -> bool:
        return (self.start is None or self.start <= time) and (self.end is None or time < self.end)


@dataclass
class Model:
    """What is known and what happened; parties and devices by their short names."""

    versions: list[Version] = field(default_factory=list)
    linked_at: datetime | None = None
    events: list[tuple[str, Sent, dict[str, Any]]] = field(default_factory=list)
    """Whom or what each is about."""


@dataclass
class Seen:
    """A model as it is seen at two times."""

    model: Model
    as_of: datetime | None
    known_at: datetime | None

    def __post_init__(self) -> None:
        then = self.known_at
        self.now = self.as_of or NOW
        known = [
            v for v in self.model.versions
            if (v.gone is None if then is None else v.since <= then and (v.gone is None or then < v.gone))
        ]  # fmt: skip
        self.known = [v for v in known if v.start is None or v.start <= self.now]
        self.events = [event for event in self.model.events if event[1].at <= self.now]
        self.linked = self.model.linked_at is not None and (then is None or self.model.linked_at <= then)
        self.moments = sorted({*(t for t in TIMES if t <= self.now), self.now})

    def group(self, who: str) -> set[str]:
        return {"ada", "bo"} if self.linked and who in ("ada", "bo") else {who}

    def about(self, version: Version) -> set[str]:
        return self.group(version.subject) if version.subject in KINDS else {version.subject}

    def held(self, group: set[str], on: str, at: datetime, *roles: str) -> bool:
        return any(
            v.party in group and on in self.about(v) and v.at(at) and (not roles or v.role in roles)
            and v.subject not in group for v in self.known
        )  # fmt: skip

    def holder(self, on: str, at: datetime, *roles: str) -> set[str]:
        """Customers with a role on a device, and those linked to them."""
        return {
            same for v in self.known if v.subject == on and v.role in roles and v.at(at) for same in self.group(v.party)
        }

    def mine(self, group: set[str]) -> list[tuple[str, Sent, dict[str, Any]]]:
        return [event for event in self.events if event[0] in group or self.held(group, event[0], event[1].at)]

    def since(self, start: datetime, end: datetime, held: Callable[[datetime], object]) -> bool:
        """It held at `start`, at `end` and all the time between."""
        return bool(held(start) and held(end)) and all(
            held(moment) for moment in self.moments if start <= moment <= end
        )

    def open(self, device: str, held: Callable[[datetime], object]) -> set[str]:
        """Codes open on a device since it is held."""
        last: dict[str, tuple[Any, str]] = {}
        for on, sent, data in self.events:
            if on == device and sent.type == "device.fault" and self.since(sent.at, self.now, held):
                key = (sent.at, sent.hash)
                if data["code"] not in last or last[data["code"]][0] < key:
                    last[data["code"]] = (key, data.get("state", "raised"))
        return {code for code, (_, state) in last.items() if state == "raised"}

    def answers(self, wanted: Callable[[str, datetime], bool]) -> dict[str, dict[str, int]]:
        found: dict[str, dict[str, int]] = {}
        for on, sent, data in self.events:
            if sent.type == "feedback.rating" and wanted(on, sent.at):
                scores = found.setdefault(data["scale"], {})
                scores[f"{data['score']:g}"] = scores.get(f"{data['score']:g}", 0) + 1
        return found


def scores(satisfaction: dict[str, Any]) -> dict[str, dict[str, int]]:
    for answers in satisfaction.values():
        assert answers["answers"] == sum(answers["by_score"].values())
        assert datetime.fromisoformat(answers["first_at"]) <= datetime.fromisoformat(answers["last_at"])
    return {scale: answers["by_score"] for scale, answers in satisfaction.items()}


@given(steps=st.lists(drawn_steps, min_size=4, max_size=16), events=st.lists(drawn_events, min_size=15, max_size=40))
@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
async def test_the_records_of_all_kinds_equal_a_plain_models_at_any_two_times(
    admin: httpx.AsyncClient,
    attach: Attach,
    db: asyncpg.Connection,
    steps: list[tuple[str, tuple[str, str, str], datetime | None, datetime | None, int, str | None]],
    events: list[tuple[str, datetime, tuple[str, dict[str, Any]]]],
) -> None:
    run = next(numbers)
    ids = {name: await party(admin, name, kind, crm=f"{run}-{name}") for name, kind in KINDS.items()}
    called = {name: f"{name}-{run}" for name in "xyz"} | {name: f"party:{id_}" for name, id_ in ids.items()}
    names = {text: name for name, text in called.items()}
    await holds(admin, ids["ada"], "owner", called["z"], TIMES[0], TIMES[1])  # or nobody knows the device
    model, knew = Model(), []
    model.versions += [
        Version(row["id"], "z", "owner", "ada", None, TIMES[0], TIMES[1], datetime.fromisoformat(row["recorded_at"]))
        for row in (await get(admin, "/v1/relationships", subject=called["z"]))["items"]
    ]

    for verb, (role, subject, who), start, end, pick, batch in steps:
        knew.append(await db.fetchval("select clock_timestamp()"))
        open_ = [v for v in model.versions if v.gone is None]
        if verb == "begin":
            relation = {"subject": called[subject], "role": role, "party": ids[who], "valid_from": _text(start),
                        "valid_to": _text(end)} | ({"batch": batch} if who == "parts" and batch else {})  # fmt: skip
            answer = await admin.post("/v1/relationships", json=relation)
        elif verb == "link":
            answer = await admin.post(f"/v1/parties/{ids['ada']}/links", json={"party": ids["bo"], "reason": "same"})
            model.linked_at = model.linked_at or datetime.fromisoformat(answer.json()["linked_at"])
            continue
        else:
            path = f"/v1/relationships/{open_[pick % len(open_)].id}/{verb}" if open_ else ""
            times = {"valid_from": _text(start), "valid_to": _text(end)} if verb == "correct" else {}
            answer = await admin.post(path, json=times)
        if answer.status_code not in (200, 201):
            continue  # refused: 409, 422
        row = answer.json()
        recorded = datetime.fromisoformat(row["withdrawn_at"] or row["recorded_at"])
        if any(v.id == row["id"] and v.since == recorded for v in model.versions):
            continue  # it was so already
        model.versions = [
            replace(v, gone=recorded) if v.id == row["id"] and v.gone is None else v for v in model.versions
        ]
        if row["withdrawn_at"] is None:
            since, until = (datetime.fromisoformat(at) if at else None for at in (row["valid_from"], row["valid_to"]))
            holder = next(name for name in ids if ids[name] == row["party"])
            model.versions.append(
                Version(row["id"], names[row["subject"]], row["role"], holder, row["batch"], since, until, recorded)
            )

    short = {"A": "ada", "B": "bo", "V": "volt"}
    for number, (drawn, at, (type_, data)) in enumerate(events):
        told = data | ({"agent": f"crm:{run}-{data['agent']}"} if "agent" in data else {})
        # By its id or by its reference.
        on = short.get(drawn, drawn)
        subject = f"party:crm:{run}-{on}" if number % 2 and on in KINDS else called[on]
        model.events.append((on, Sent(subject, f"e{number}", at, type_, json.dumps(told)), data))
    for batch_ in (model.events[::2], model.events[1::2]):
        await attach(*(sent for _, sent, _ in batch_))

    for as_of, known_at in ((None, None), (TIMES[9], None), (None, knew[-1]), (TIMES[13], knew[len(knew) // 2])):
        seen = Seen(model, as_of, known_at)
        times = {name: _text(at) for name, at in (("as_of", as_of), ("known_at", known_at)) if at is not None}
        for who, id_ in ids.items():
            record = await get(admin, f"/v1/parties/{id_}", around_visit_days=WINDOW_DAYS, **times)
            _compare(record, seen, who, called)
            if who in PARTS:
                PARTS[who](record, seen, ids, called)
            await _compare_timeline(admin, id_, seen, who, called, times)
        await _compare_device(admin, seen, called, ids, times)


def _compare(record: dict[str, Any], seen: Seen, who: str, called: dict[str, str]) -> None:
    group = seen.group(who)
    mine = seen.mine(group)
    assert record["events_by_type"] == Counter(sent.type for _, sent, _ in mine)
    assert {
        (day["day"], type_): n for day in record["by_day"] for type_, n in day["events_by_type"].items()
    } == Counter((sent.at.date().isoformat(), sent.type) for _, sent, _ in mine)
    assert scores(record["satisfaction"]) == seen.answers(lambda on, at: on in group or seen.held(group, on, at))
    faults = {(device, code) for device in "xyz" for code in seen.open(device, partial(seen.held, group, device))}
    assert {(item["device"], item["code"]) for item in record["faults"]["items"]} == {
        (called[device], code) for device, code in faults
    }
    assert record["faults"]["open"] == len(faults)
    relations = {
        (v.id, "now" if v.at(seen.now) else "before") for v in seen.known if (v.party in group) != (v.subject in group)
    }
    assert {(item["id"], item["holds"]) for item in record["relations"]["items"]} == relations
    assert (record["relations"]["now"], record["relations"]["before"]) == tuple(
        sum(holds_ == wanted for _, holds_ in relations) for wanted in ("now", "before")
    )
    held = [device for device in "xyz" if seen.held(group, device, seen.now)]
    assert [device["id"] for device in record["devices"]] == [called[device] for device in held]
    assert record["devices_now"] == len(held)


def _vendor(record: dict[str, Any], seen: Seen, ids: dict[str, str], called: dict[str, str]) -> None:
    def owners(device: str, at: datetime) -> set[str]:
        return seen.holder(device, at, "owner") if seen.held({"volt"}, device, at, "sold_by") else set()

    def customers(at: datetime) -> set[str]:
        buying = {c for v in seen.known if v.role == "buys_from" and v.at(at) for c in seen.group(v.subject)}
        return buying | {c for device in "xy" for c in owners(device, at)}

    def persons(at: set[str]) -> int:
        return len({min(seen.group(c)) for c in at})

    moments = [TIMES[0] - timedelta(days=9), *seen.moments]
    sales = record["sales"]
    assert sales["devices_sold"] == len({v.subject for v in seen.known if v.role == "sold_by"})
    assert sales["devices_now"] == sum(seen.held({"volt"}, device, seen.now, "sold_by") for device in "xy")
    assert sales["customers_reached"] == persons({c for at in moments for c in customers(at)})
    assert sales["customers_now"] == persons(customers(seen.now))
    assert scores(sales["satisfaction"]) == seen.answers(
        lambda on, at: on in customers(at) if on in KINDS else bool(owners(on, at))
    )
    open_ = [(d, code) for d in "xy" for code in seen.open(d, partial(owners, d))]
    assert {code["code"]: code["devices"] for code in sales["faults"]["by_code"]} == Counter(code for _, code in open_)
    assert (sales["faults"]["open"], sales["faults"]["devices"]) == (len(open_), len({d for d, _ in open_}))


def _partner(record: dict[str, Any], seen: Seen, ids: dict[str, str], called: dict[str, str]) -> None:
    def serviced(device: str, at: datetime) -> bool:
        return seen.held({"fixit"}, device, at, "serviced_by", "installed_by")

    def said(around: Callable[[datetime], str | None], device: str, phase: str, on: str, at: datetime) -> bool:
        return around(at) == phase and (on == device or on in seen.holder(device, at, "owner", "user"))

    agents = {"fixit"} | {"eve" for v in seen.known if v.role == "works_for"}
    width, instant = timedelta(days=WINDOW_DAYS), timedelta(0)
    expected = {}
    for device in "xyz":
        for on, sent, data in seen.events:
            agent = data.get("agent")
            if sent.type != "support.contact" or data["channel"] != "visit" or not serviced(device, sent.at):
                continue
            if on == device:
                concerned = agent is None or agent in agents
            else:
                concerned = agent in agents and on in seen.holder(device, sent.at, "owner", "user")
            if not concerned:
                continue

            def around(at: datetime, visit: datetime = sent.at, device: str = device) -> str | None:
                first, last = min(at, visit), max(at, visit)
                if not seen.since(first, last, partial(serviced, device)):
                    return None
                return (
                    "before" if -width <= at - visit < instant else "after" if instant <= at - visit < width else None
                )

            expected[called[device], sent.id] = {
                phase: (
                    sum(
                        o == device and s.type == "device.fault" and around(s.at) == phase
                        for o, s, d in seen.events
                        if d.get("state") != "cleared"
                    ),
                    seen.answers(partial(said, around, device, phase)),
                )
                for phase in ("before", "after")
            }
    service = record["service"]
    assert {
        (item["device"], item["id"]): {
            phase: (item[phase]["faults"], scores(item[phase]["satisfaction"])) for phase in ("before", "after")
        }
        for item in service["items"]
    } == expected
    assert service["visits"] == len(service["items"]) == len(expected)
    for phase in ("before", "after"):
        assert service[phase]["faults"] == sum(visit[phase][0] for visit in expected.values())
        assert all(0 <= item[phase]["days"] <= WINDOW_DAYS for item in service["items"])
    assert service["devices_now"] == sum(serviced(device, seen.now) for device in "xy")


def _employee(record: dict[str, Any], seen: Seen, ids: dict[str, str], called: dict[str, str]) -> None:
    def cared(at: datetime) -> set[str]:
        return {same for v in seen.known if v.role == "cared_for_by" and v.at(at) for same in seen.group(v.subject)}

    def theirs(person: str, device: str, at: datetime) -> bool:
        return person in cared(at) and seen.held(seen.group(person), device, at, "owner", "user")

    def said(person: str, on: str, at: datetime) -> bool:
        return theirs(person, on, at) if on in "xyz" else person in cared(at) and on in seen.group(person)

    expected = {
        ids[person]: (
            seen.answers(partial(said, person)),
            sum(len(seen.open(d, partial(theirs, person, d))) for d in "xyz"),
        )
        for person in cared(seen.now) if person == min(seen.group(person))
    }  # fmt: skip
    care = record["care"]
    assert {item["party"]: (scores(item["satisfaction"]), item["open_faults"]) for item in care["items"]} == expected
    assert care["cared_for"] == len(expected)


def _supplier(record: dict[str, Any], seen: Seen, ids: dict[str, str], called: dict[str, str]) -> None:
    batches = {(v.role, v.batch) for v in seen.known if v.party == "parts"}

    def has(batch: tuple[str, str | None], device: str, at: datetime) -> bool:
        return any((v.role, v.batch) == batch and v.subject == device and v.at(at) for v in seen.known)

    expected = {}
    for batch in batches:
        raised = [
            on for on, sent, data in seen.events
            if sent.type == "device.fault" and data.get("state") != "cleared" and has(batch, on, sent.at)
        ]  # fmt: skip
        open_ = [code for d in "xy" for code in seen.open(d, partial(has, batch, d))]
        ever = {v.subject for v in seen.known if (v.role, v.batch) == batch}
        now = sum(has(batch, device, seen.now) for device in "xy")
        expected[batch] = (len(ever), now, len(set(raised)), len(raised), len(open_), Counter(open_))
    supply = record["supply"]
    figures = ("devices", "devices_now", "devices_with_faults", "faults_raised", "faults_open", "open_by_code")
    assert {(item["role"], item["batch"]): tuple(item[f] for f in figures) for item in supply["items"]} == expected
    assert supply["devices"] == len({v.subject for v in seen.known if v.party == "parts"})


PARTS = {"volt": _vendor, "fixit": _partner, "eve": _employee, "parts": _supplier}


async def _compare_timeline(
    admin: httpx.AsyncClient, id_: str, seen: Seen, who: str, called: dict[str, str], view: dict[str, Any]
) -> None:
    group = seen.group(who)
    changes = [
        (at, rank, called[v.subject], v.id)
        for v in seen.known if (v.party in group) != (v.subject in group)
        for at, rank in ((v.start, 1), (v.end, 0)) if at is not None and at <= seen.now
    ]  # fmt: skip
    happened = [(sent.at, 2, sent.subject, sent.id) for _, sent, _ in seen.mine(group)]
    kinds = {0: "relationship.ended", 1: "relationship.begun"}
    for types in ([], ["relationship.begun", "device.fault"], ["relationship.ended"]):
        items = await pages(admin, f"/v1/parties/{id_}/timeline", 3, **view, type=types)
        found = [
            (
                datetime.fromisoformat(item["occurred_at"]),
                2 if item["event"] else int(item["type"] == kinds[1]),
                (item["event"] or item["relationship"])["subject"],
                (item["event"] or item["relationship"])["id"],
            )
            for item in items
        ]
        of_type = {sent.id: sent.type for _, sent, _ in seen.events}
        expected = [
            item for item in changes + happened
            if not types or (kinds.get(item[1]) or of_type[item[3]]) in types
        ]  # fmt: skip
        assert found == sorted(expected, key=lambda item: (*item[:2], item[2].encode(), item[3]), reverse=True)


async def _compare_device(
    admin: httpx.AsyncClient, seen: Seen, called: dict[str, str], ids: dict[str, str], view: dict[str, Any]
) -> None:
    device = await get(admin, f"/v1/devices/{called['z']}", **view)
    on_it = [v for v in seen.known if v.subject == "z"]
    for shown, now in (("related", True), ("related_before", False)):
        assert {(row["relationship"], row["party"], row["role"]) for row in device[shown]} == {
            (v.id, ids[v.party], v.role) for v in on_it if v.at(seen.now) == now
        }
    assert device["claimed"] == any(v.at(seen.now) for v in on_it)
    assert device["events_by_type"] == Counter(sent.type for on, sent, _ in seen.events if on == "z")
