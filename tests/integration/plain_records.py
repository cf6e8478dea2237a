"""What the doors of serve must say of a plain model: each function yields names of figures, found and expected."""

import json
from collections import Counter
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta
from functools import partial
from typing import Any

from tests.integration.plain_model import DEVICES, EVER, KINDS, Bound, Happened, Seen, Version

WINDOW_DAYS = 2
Says = Iterator[tuple[str, object, object]]
Called = dict[str, str]
"""What devices and parties are called as subjects, by their short names."""


def text(at: Bound) -> str | None:
    return at.isoformat().replace("+00:00", "Z") if at else None


def _by_type(events: list[Happened]) -> Counter[str]:
    return Counter(event.sent.type for event in events)


def _states(latest: dict[str, Any]) -> dict[str, Any]:
    return {type_: (state["subject"], state["occurred_at"], state["data"]) for type_, state in latest.items()}


def _latest(events: list[Happened]) -> dict[str, Any]:
    """By type: the last to happen, of several the one of the first subject, then by sequence and hash."""
    latest: dict[str, Happened] = {}
    for event in sorted(events, key=lambda event: event.order):
        last = latest.get(event.sent.type)
        if last is None or last.sent.at < event.sent.at or event.sent.subject.encode() <= last.sent.subject.encode():
            latest[event.sent.type] = event
    return {
        type_: (event.sent.subject, text(event.sent.at), json.loads(event.sent.data or "null"))
        for type_, event in latest.items()
    }


def _scores(satisfaction: dict[str, Any]) -> dict[str, dict[str, int]]:
    for answers in satisfaction.values():
        assert answers["answers"] == sum(answers["by_score"].values())
        assert datetime.fromisoformat(answers["first_at"]) <= datetime.fromisoformat(answers["last_at"])
    return {scale: answers["by_score"] for scale, answers in satisfaction.items()}


def _holds(version: Version, seen: Seen) -> str:
    later = version.start is not None and version.start > seen.now
    return "now" if version.at(seen.now) else "later" if later else "before"


def record(found: dict[str, Any], seen: Seen, who: str, called: Called) -> Says:
    group = seen.group(who)
    mine = seen.mine(group)
    times = sorted(event.sent.at for event in mine)
    yield (
        "parties",
        {party["id"] for party in found["parties"]},
        {called[same].removeprefix("party:") for same in group},
    )
    yield "events by type", found["events_by_type"], _by_type(mine)
    yield "first and last", (found["first_seen"], found["last_seen"]), (
        (text(times[0]), text(times[-1])) if times else (None, None)
    )  # fmt: skip
    by_day = {(day["day"], type_): n for day in found["by_day"] for type_, n in day["events_by_type"].items()}
    yield "by day", by_day, Counter((event.sent.at.date().isoformat(), event.sent.type) for event in mine)
    yield "latest", _states(found["latest"]), _latest(mine)
    yield "satisfaction", _scores(found["satisfaction"]), seen.answers(
        lambda on, at: on in group or seen.held(group, on, at)
    )  # fmt: skip
    open_ = {
        (called[device], code) for device in DEVICES for code in seen.open(device, partial(seen.held, group, device))
    }
    yield "open faults", {(item["device"], item["code"]) for item in found["faults"]["items"]}, open_
    yield "number of open faults", found["faults"]["open"], len(open_)
    relations = [
        (v.id, called[v.subject], v.role, called[v.party][6:], v.batch, text(v.start), text(v.end), text(v.since),
         _holds(v, seen)) for v in seen.known if (v.party in group) != (v.subject in group)
    ]  # fmt: skip
    shown = ("id", "subject", "role", "party", "batch", "valid_from", "valid_to", "recorded_at", "holds")
    yield (
        "relations",
        sorted(tuple(item[name] for name in shown) for item in found["relations"]["items"]),
        sorted(relations),
    )
    yield "number of relations", [found["relations"][name] for name in ("now", "later", "before")], [
        sum(relation[-1] == name for relation in relations) for name in ("now", "later", "before")
    ]  # fmt: skip
    held = [device for device in DEVICES if seen.held(group, device, seen.now)]
    yield "devices", {device["id"]: _states(device["latest"]) for device in found["devices"]}, {
        called[device]: _latest([event for event in mine if event.on == device]) for device in held
    }  # fmt: skip
    roles = {
        (device["id"], role["role"], role["relationship"]) for device in found["devices"] for role in device["roles"]
    }
    yield "roles", roles, {
        (called[device], v.role, v.id) for device in held for v in seen.through(group, device, seen.now)
    }  # fmt: skip
    yield "number of devices", found["devices_now"], len(held)
    yield from _PARTS[KINDS[who]](found, seen, group, called)


def _customer(found: dict[str, Any], seen: Seen, group: frozenset[str], called: Called) -> Says:
    yield "parts", [found[part] for part in ("sales", "service", "care", "supply")], [None] * 4


def _vendor(found: dict[str, Any], seen: Seen, group: frozenset[str], called: Called) -> Says:
    def owners(device: str, at: datetime) -> set[str]:
        sold = seen.held(group, device, at, "sold_by")
        return seen.holder(device, at, "owner", kind="customer") if sold else set()

    def customers(at: datetime) -> set[str]:
        buying = {
            customer for v in seen.known if v.role == "buys_from" and v.party in group and v.at(at)
            for customer in seen.group(v.subject)
        }  # fmt: skip
        return buying | {customer for device in DEVICES for customer in owners(device, at)}

    def persons(customers: set[str]) -> int:
        return len({min(seen.group(customer)) for customer in customers})

    sales = found["sales"]
    bounds = {bound for v in seen.known for bound in (v.start, v.end) if bound}
    moments = {EVER, seen.now, *(bound for bound in bounds if seen.as_of is None or bound <= seen.as_of)}
    sold = [v for v in seen.known if v.role == "sold_by" and v.party in group]
    yield "devices sold", sales["devices_sold"], len({v.subject for v in sold})
    yield "devices sold now", sales["devices_now"], len({v.subject for v in sold if v.at(seen.now)})
    yield "customers reached", sales["customers_reached"], persons({c for at in moments for c in customers(at)})
    yield "customers now", sales["customers_now"], persons(customers(seen.now))
    yield "customers' satisfaction", _scores(sales["satisfaction"]), seen.answers(
        lambda on, at: on in customers(at) if on in KINDS else owners(on, at)
    )  # fmt: skip
    open_ = [(device, code) for device in DEVICES for code in seen.open(device, partial(owners, device))]
    by_code = {code["code"]: code["devices"] for code in sales["faults"]["by_code"]}
    yield "customers' faults", by_code, Counter(code for _, code in open_)
    yield "their number", (sales["faults"]["open"], sales["faults"]["devices"]), (
        len(open_), len({device for device, _ in open_})
    )  # fmt: skip


def _partner(found: dict[str, Any], seen: Seen, group: frozenset[str], called: Called) -> Says:
    def serviced(device: str, at: datetime) -> bool:
        return seen.held(group, device, at, "serviced_by", "installed_by")

    def said(around: Callable[[datetime], str | None], device: str, phase: str, on: str, at: datetime) -> bool:
        return around(at) == phase and (on == device or on in seen.holder(device, at, "owner", "user"))

    agents = group | {v.subject for v in seen.known if v.role == "works_for" and v.party in group}
    width, instant = timedelta(days=WINDOW_DAYS), timedelta(0)
    expected = {}
    for device in DEVICES:
        for event in seen.events:
            on, visit, agent = event.on, event.sent.at, event.data.get("agent")
            if event.data.get("channel") != "visit" or not serviced(device, visit):
                continue
            if on == device:
                concerned = agent is None or agent in agents
            else:
                concerned = agent in agents and on in seen.holder(device, visit, "owner", "user")
            if not concerned:
                continue

            def around(at: datetime, visit: datetime = visit, device: str = device) -> str | None:
                if not seen.since(min(at, visit), max(at, visit), partial(serviced, device)):
                    return None
                return (
                    "before" if -width <= at - visit < instant else "after" if instant <= at - visit < width else None
                )

            raised = [
                around(e.sent.at) for e in seen.events
                if e.on == device and e.sent.type == "device.fault" and e.data.get("state") != "cleared"
            ]  # fmt: skip
            expected[called[device], event.sent.id] = {
                phase: (raised.count(phase), seen.answers(partial(said, around, device, phase)))
                for phase in ("before", "after")
            }
    service = found["service"]
    yield "visits", {
        (item["device"], item["id"]): {
            phase: (item[phase]["faults"], _scores(item[phase]["satisfaction"])) for phase in ("before", "after")
        }
        for item in service["items"]
    }, expected  # fmt: skip
    yield "number of visits", (service["visits"], len(service["items"])), (len(expected), len(expected))
    for phase in ("before", "after"):
        yield f"faults {phase} visits", service[phase]["faults"], sum(visit[phase][0] for visit in expected.values())
    yield "devices serviced now", service["devices_now"], sum(serviced(device, seen.now) for device in DEVICES)


def _employee(found: dict[str, Any], seen: Seen, group: frozenset[str], called: Called) -> Says:
    def cared(at: datetime) -> set[str]:
        return {
            person for v in seen.known if v.role == "cared_for_by" and v.party in group and v.at(at)
            for person in seen.group(v.subject)
        }  # fmt: skip

    def theirs(person: str, device: str, at: datetime) -> bool:
        return person in cared(at) and seen.held(seen.group(person), device, at, "owner", "user")

    def said(person: str, on: str, at: datetime) -> bool:
        return theirs(person, on, at) if on in DEVICES else person in cared(at) and on in seen.group(person)

    yield "cared for", {
        item["party"]: (_scores(item["satisfaction"]), item["open_faults"]) for item in found["care"]["items"]
    }, {
        called[person][6:]: (
            seen.answers(partial(said, person)),
            sum(len([*seen.open(device, partial(theirs, person, device))]) for device in DEVICES),
        )
        for person in cared(seen.now) if person == min(seen.group(person), key=list(KINDS).index)
    }  # fmt: skip


def _supplier(found: dict[str, Any], seen: Seen, group: frozenset[str], called: Called) -> Says:
    theirs = [v for v in seen.known if v.party in group and v.role in ("made_by", "parts_by")]

    def has(batch: tuple[str, str | None], device: str, at: datetime) -> bool:
        return any((v.role, v.batch, v.subject) == (*batch, device) and v.at(at) for v in theirs)

    expected = {}
    for batch in {(v.role, v.batch) for v in theirs}:
        raised = [
            event.on for event in seen.events if event.sent.type == "device.fault"
            and event.data.get("state") != "cleared" and has(batch, event.on, event.sent.at)
        ]  # fmt: skip
        open_ = [code for device in DEVICES for code in seen.open(device, partial(has, batch, device))]
        ever = {v.subject for v in theirs if (v.role, v.batch) == batch}
        now = sum(has(batch, device, seen.now) for device in DEVICES)
        expected[batch] = (len(ever), now, len(set(raised)), len(raised), len(open_), Counter(open_))
    supply = found["supply"]
    figures = ("devices", "devices_now", "devices_with_faults", "faults_raised", "faults_open", "open_by_code")
    batches = {(item["role"], item["batch"]): tuple(item[name] for name in figures) for item in supply["items"]}
    yield "batches", batches, expected
    yield "devices with parts", supply["devices"], len({v.subject for v in theirs})


_PARTS = {
    "customer": _customer, "vendor": _vendor, "partner": _partner, "employee": _employee, "supplier": _supplier,
}  # fmt: skip


def timeline(
    items: list[dict[str, Any]], seen: Seen, who: str, called: Called, types: list[str], since: Bound, until: Bound
) -> Says:
    group = seen.group(who)
    kinds = {0: "relationship.ended", 1: "relationship.begun"}
    expected: list[tuple[Any, ...]] = [
        (at, rank, called[v.subject], v.id, kinds[rank], [v.role])
        for v in seen.known if (v.party in group) != (v.subject in group)
        for at, rank in ((v.start, 1), (v.end, 0)) if at is not None and at <= seen.now
    ] + [
        (e.sent.at, 2, e.sent.subject, e.sent.id, e.sent.type, roles or ["self"]) for e in seen.mine(group)
        for roles in [sorted({v.role for v in seen.through(group, e.on, e.sent.at)})]
    ]  # fmt: skip
    expected = [
        item for item in expected if (not types or item[4] in types)
        and (since is None or since <= item[0]) and (until is None or item[0] < until)
    ]  # fmt: skip
    yield "timeline", [
        (
            datetime.fromisoformat(item["occurred_at"]),
            2 if item["event"] else int(item["type"] == kinds[1]),
            (item["event"] or item["relationship"])["subject"],
            (item["event"] or item["relationship"])["id"],
            item["type"],
            item["roles"],
        )
        for item in items
    ], sorted(expected, key=lambda item: (*item[:2], item[2].encode(), item[3]), reverse=True)  # fmt: skip


def device(found: dict[str, Any], seen: Seen, of: str, called: Called) -> Says:
    on_it = [v for v in seen.known if v.subject == of]
    for shown, holds in (("related", "now"), ("related_later", "later"), ("related_before", "before")):
        yield shown, sorted((row["relationship"], row["party"], row["role"]) for row in found[shown]), sorted(
            (v.id, called[v.party][6:], v.role) for v in on_it if _holds(v, seen) == holds
        )  # fmt: skip
    yield "claimed", found["claimed"], any(v.at(seen.now) for v in on_it)
    yield "events of the device and those before it", found["events_by_type"], _by_type(seen.line(of))


def why(fate: dict[str, Any], seen: Seen, event: Happened, called: Called) -> Says:
    """To whom an event belongs as we know it now, and through which relations."""
    on = seen.group(event.on) if event.on in KINDS else {event.on}
    holders = [v for v in seen.known if v.subject in on and v.party not in on and v.at(event.sent.at)]
    yield "why", sorted(
        (each["party"], each["roles"], sorted(relation["relationship"] for relation in each["relations"]))
        for each in fate["attached_to"]
    ), sorted([(called[who][6:], ["self"], list[str]()) for who in on & KINDS.keys()] + [
        (called[who][6:], sorted({v.role for v in theirs}), sorted(v.id or "" for v in theirs))
        for who in {v.party for v in holders} for theirs in [[v for v in holders if v.party == who]]
    ])  # fmt: skip


def listed(items: list[dict[str, Any]], seen: Seen, called: Called, **wanted: str) -> Says:
    """The list of relations: unlike in records those of a time are those that held then."""
    shown = ("id", "valid_from", "valid_to", "recorded_at")
    yield "list", sorted(tuple(item[name] for name in shown) for item in items), sorted(
        (v.id, text(v.start), text(v.end), text(v.since)) for v in seen.known
        if all(getattr(v, name) == value for name, value in wanted.items())
        and (seen.as_of is None or v.at(seen.as_of))
    )  # fmt: skip
