"""Random histories of everything that makes a record, told by the product as plain Python tells them.

A history is a list of steps: relations begun, ended, corrected and withdrawn, devices sold, claimed, handed over and
replaced, parties linked, people signed in and out, and each undone; with every step events arrive, in any order, on two
connections at once and some of them again, while relations change on others. What each step is answered with, which
rows it leaves and which events it says it moved is said in advance by plain_model.py; in the end all records, timelines
and lists are compared at random pairs of times. TEST_SEED repeats one, TEST_HISTORIES
makes the long run longer, and TEST_SHRINK=1 looks for the shortest history that fails.
"""

import asyncio
import json
import os
import secrets
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from functools import partial
from itertools import count
from random import Random
from typing import Any

import asyncpg
import httpx
import pytest
from tests.integration import plain_records as plain
from tests.integration.conftest import Attach, Sent, storing
from tests.integration.plain_model import DEVICES, EVER, INSTANT, KINDS, Bound, Happened, Joined, Model, Seen, Version
from tests.integration.plain_records import Says, text
from tests.integration.test_records import get, pages, party
from tests.integration.test_totals import Keeper

from drm_ingest.metrics import Metrics
from drm_ingest.pipeline.attach.link import Linker
from drm_ingest.pipeline.attach.total import PLANNER
from drm_ingest.postgres.pool import Pool, open_pool
from drm_ingest.settings import Settings

SEED = int(os.environ.get("TEST_SEED") or secrets.randbits(32))
HISTORIES = int(os.environ.get("TEST_HISTORIES") or 100)
SHRINK = bool(os.environ.get("TEST_SHRINK"))
FUTURE = datetime(2100, 1, 1, tzinfo=UTC)
# Days, parts of days, and the instants beside midnight: where whole days end and single events begin to count.
TIMES = sorted(
    datetime(2024, 3, 1 + day, tzinfo=UTC) + part
    for day in range(4)
    for part in (-INSTANT, timedelta(0), INSTANT, timedelta(hours=7), timedelta(hours=19))
)
PEOPLE = ("ada", "bo", "cy")
BUSY = "xxxxyyyzzw"
"""Devices, by how much happens on them."""
BETWEEN = [
    *(("cared_for_by", cared_for, "eve") for cared_for in (*PEOPLE, "volt")), ("works_for", "eve", "fixit"),
    ("buys_from", "ada", "volt"), ("buys_from", "bo", "volt"), ("buys_from", "bo", "watt"),
    ("supplies", "nuts", "parts"), ("supplies", "parts", "cy"),
]  # fmt: skip
HOLDERS = {
    "owner": PEOPLE, "user": PEOPLE, "sold_by": ("volt", "watt"), "serviced_by": ("fixit", "fixit", "volt"),
    "installed_by": ("fixit",), "made_by": ("parts",), "parts_by": ("parts", "nuts"),
}  # fmt: skip
ROLES = ["owner"] * 4 + ["user"] * 3 + ["sold_by", "sold_by", "serviced_by", "serviced_by", *HOLDERS]
LINKABLE = [("ada", "bo"), ("bo", "cy"), ("ada", "cy"), ("volt", "watt"), ("parts", "nuts"), ("ada", "volt")]
PLAIN = ("begin", "end", "correct", "withdraw")
VERBS = [
    *["begin"] * 11, "end", "correct", "correct", "withdraw", *["hand-over"] * 3, "replace", "replace", "undo",
    "link", "link", "link", "unlink", "code", "code", "claim", "claim", *["derive"] * 4,
]  # fmt: skip


@dataclass(frozen=True)
class Step:
    """As drawn: what to do, of what, when. Whatever does not fit it has no use for."""

    verb: str
    of: tuple[str, str, str]
    start: Bound
    end: Bound
    pick: int
    beside: bool
    """At once with the step before, if the two touch different devices."""


@dataclass(frozen=True)
class Drawn:
    """An event: of identity, or another; `form` says by which name, and whether it is an earlier one again."""

    on: str
    at: datetime
    told: tuple[str, dict[str, Any]]
    who: str | None
    form: int
    sequence: str | None


@dataclass(frozen=True)
class History:
    """What is done, what happens meanwhile, and at which pairs of times it is looked at: as of; known at (-1: now)."""

    steps: list[Step]
    events: list[Drawn]
    views: list[tuple[Bound, int]]
    claim_hours: int
    totals: bool
    """What is large is counted beforehand, all the while."""


def draw(from_: Random) -> History:
    one = from_.choice

    def step(verb: str) -> Step:
        device = (one(ROLES), one(BUSY))
        of = one(BETWEEN) if from_.random() < 0.25 else (*device, one(HOLDERS[device[0]]))
        early, late = one([None, *TIMES[:12]]), one([None, None, None, FUTURE, *TIMES[8:]])
        start, end = (early, late) if from_.random() < 0.9 else (late, early)
        return Step(verb, of, start, end, from_.randrange(1000), from_.random() < 0.5)

    def event() -> Drawn:
        sequence, form = one([None, None, "2", "10"]), from_.randrange(12)
        kind = from_.choices(["fault", "said", "contact", "sign", "else"], [36, 22, 14, 22, 6])[0]
        if kind == "sign":
            linked = from_.random() < 0.6
            role = "user" if from_.random() < 0.8 else one(["owner", "sold_by"])
            who = one([*PEOPLE, *PEOPLE, "null" if linked else None])
            return Drawn(one(BUSY), one(TIMES), (SIGNED[linked], {"role": role}), who, form, sequence)
        on = one(BUSY) if kind == "fault" or from_.random() < 0.5 else one([*PEOPLE * 2, *KINDS])
        return Drawn(on, one(TIMES), one(DATA[kind]), None, form, sequence)

    return History(
        [step(verb) for verb in ["begin"] * 14 + [one(VERBS) for _ in range(30)]], [event() for _ in range(90)],
        [(one([None, *TIMES[4:]]), from_.randrange(1000)) for _ in range(3)] + [(one(TIMES[4:]), -1)],
        one([0, 0, 30, -1]), from_.random() < 0.6,
    )  # fmt: skip


runs, told = count(), Counter[str]()
SIGNED = {True: "identity.linked", False: "identity.unlinked"}
DATA: dict[str, list[tuple[str, dict[str, Any]]]] = {
    "fault": [("device.fault", {"code": code, "severity": "error"} | state)
              for code in ("E1", "E1", "E2") for state in ({}, {"state": "raised"}, {"state": "cleared"})],
    "said": [("feedback.rating", {"scale": scale, "score": score}) for scale, score in (
        ("csat", 4), ("csat", 1.0), ("nps", 9))],
    "contact": [("support.contact", {"channel": channel} | agent) for channel, agent in (
        ("visit", {}), ("visit", {"agent": "fixit"}), ("visit", {"agent": "eve"}), ("phone", {"agent": "fixit"}))],
    "else": [("device.measurement", {"temperature": 21.5}), ("commerce.purchase", {"amount": 7})],
}  # fmt: skip


@dataclass
class Asked:
    """A request, what the model says of it, and the devices and parties whose relations it is about."""

    verb: str
    path: str
    body: dict[str, Any] | None
    then: Callable[[dict[str, Any]], int]
    about: frozenset[str] = frozenset()
    method: str = "POST"
    giver: str = ""


@dataclass
class World:
    """A few parties and devices of its own, and all that is asked of the product about them."""

    admin: httpx.AsyncClient
    db: asyncpg.Connection
    stores: Sequence[Attach]
    linker: Callable[[], Linker]
    claim: timedelta | None
    keeper: Keeper | None
    run: int
    model: Model = field(default_factory=Model)
    called: dict[str, str] = field(default_factory=dict)
    codes: dict[str, str] = field(default_factory=dict)
    knew: list[datetime] = field(default_factory=list)

    async def settle(self) -> None:
        for name, kind in KINDS.items():
            self.called[name] = "party:" + await party(self.admin, name, kind, crm=f"{self.run}-{name}")
        for device in DEVICES:
            self.called[device] = f"{device}-{self.run}"
            assert (await self.admin.put(f"/v1/devices/{device}-{self.run}", json={})).status_code == 201

    def id(self, who: str) -> str:
        return self.called[who].removeprefix("party:")

    # -- what is asked for -------------------------------------------------------------------------------------------

    def asked(self, step: Step) -> Asked | None:
        """Return the request that a step comes to, as things stand; None: there is nothing to do it to."""
        if step.verb in ("end", "correct", "withdraw"):
            ever = sorted({version.id for version in self.model.versions if version.id})
            return self._revised(step.verb, self.model.latest(ever[step.pick % len(ever)]), step) if ever else None
        device, at = DEVICES[step.pick % 4], step.start or TIMES[step.pick % 20]
        asked: dict[str, Callable[[], Asked]] = {
            "begin": lambda: self._begun(step),
            "hand-over": lambda: self._handed_over(device, at, step.pick),
            "replace": lambda: self._replaced(device, DEVICES[step.pick // 4 % 4], at),
            "undo": lambda: self._undone(device, step.pick),
            "link": lambda: self._linked("link", *LINKABLE[step.pick % len(LINKABLE)]),
            "unlink": lambda: self._linked("unlink", *LINKABLE[step.pick % len(LINKABLE)]),
            "code": lambda: self._code(device),
            "claim": lambda: self._claimed(device, step.pick),
        }
        return asked[step.verb]() if step.verb in asked else None

    def _begun(self, step: Step) -> Asked:
        role, subject, who = step.of
        batch = "b1" if role in ("made_by", "parts_by") and step.pick % 2 else None
        new = Version(None, subject, role, who, batch, step.start, step.end)
        body = {"subject": self.called[subject], "role": role, "party": self.id(who), "batch": batch,
                "valid_from": text(step.start), "valid_to": text(step.end)}  # fmt: skip
        return Asked("begin", "/v1/relationships", body, lambda _: self.model.begin(new), frozenset({subject}))

    def _handed_over(self, device: str, at: datetime, pick: int) -> Asked:
        model, everybody = self.model, bool(pick % 2)
        owners = [v for v in model.open() if v.role == "owner"]
        giver, taker = "cy", ("ada", "bo", "cy", "volt")[pick % 4]
        if owners and pick % 7:
            owner = owners[pick % len(owners)]
            within = [time for time in TIMES if owner.at(time) and time != owner.start]
            device, giver, at = owner.subject, owner.party, within[pick % len(within)] if within else at
        body = {"from": self.id(giver), "to": self.id(taker), "at": text(at), "users": ("owner", "all")[everybody]}

        def handed_over(answer: dict[str, Any]) -> int:
            status = model.hand_over(device, giver, taker, at, everybody)
            begun = answer.get("begun", {}).get("id")
            model.words = [replace(w, while_begun=begun) if w.while_begun == "new" else w for w in model.words]
            return status

        path = f"/v1/devices/{self.called[device]}/hand-over"
        return Asked("hand-over", path, body, handed_over, frozenset({device}), giver=giver)

    def _replaced(self, device: str, by: str, at: datetime) -> Asked:
        model = self.model

        def replaced(answer: dict[str, Any]) -> int:
            if (status := model.replace(device, by, at)) == 201:
                begun = {relation["ended"]: relation["begun"] for relation in answer["relations"]}
                made = model.replacements.pop()
                assert begun.keys() == {was.id for was, _ in made.relations}
                relations = tuple((was, begun[was.id or ""]) for was, _ in made.relations)
                model.replacements.append(replace(made, relations=relations))
            return status

        path, body = f"/v1/devices/{self.called[device]}/replacement", {"by": self.called[by], "at": text(at)}
        return Asked("replace", path, body, replaced, frozenset({device, by}))

    def _undone(self, device: str, pick: int) -> Asked:
        standing = [each.pair[0] for each in self.model.replacements if each.gone is None] or [device]
        device = standing[pick % len(standing)]
        path = f"/v1/devices/{self.called[device]}/replacement"
        return Asked("undo", path, None, lambda _: self.model.undo(device), frozenset(DEVICES), "DELETE")

    def _linked(self, verb: str, one: str, other: str) -> Asked:
        path, model = f"/v1/parties/{self.id(one)}/links", self.model
        if verb == "link":
            return Asked(verb, path, {"party": self.id(other), "reason": "same"}, lambda _: model.link(one, other))
        return Asked(verb, f"{path}/{self.id(other)}", None, lambda _: model.unlink(one, other), method="DELETE")

    def _code(self, device: str) -> Asked:
        def made(answer: dict[str, Any]) -> int:
            self.model.codes[device], self.codes[device] = None, answer["code"]
            return 201

        return Asked("code", f"/v1/devices/{self.called[device]}/claim-code", None, made)

    def _claimed(self, device: str, pick: int) -> Asked:
        model = self.model
        device = [*model.codes, device][pick % 3 % (len(model.codes) + 1)]
        wrong, who = pick % 7 == 0, ("ada", "bo", "cy")[pick % 3]

        def claimed(answer: dict[str, Any]) -> int:
            now = datetime.fromisoformat(answer["valid_from"]) if answer.get("valid_from") else datetime.now(UTC)
            if (status := model.claim(device, who, not wrong, now)) == 201:
                assert abs(now - datetime.now(UTC)) < timedelta(minutes=1)
                model.codes[device] = answer["id"]
            return status

        body = {"party": self.id(who), "code": "wrong" if wrong else self.codes.get(device, "none")}
        return Asked("claim", f"/v1/devices/{self.called[device]}/claims", body, claimed, frozenset({device}))

    def _revised(self, verb: str, was: Version, step: Step) -> Asked:
        start, end = step.start, step.end
        body: dict[str, Any] = {"valid_from": text(start), "valid_to": text(end)}
        if verb == "end":
            start, end = was.start, end or TIMES[-1]
            body = {"at": text(end)}
        elif verb == "withdraw":
            body = {}
        elif step.pick % 3 == 1:
            del body["valid_to"]
            end = was.end
        elif step.pick % 3 == 2:
            del body["valid_from"]
            start = was.start

        def revised(_: dict[str, Any]) -> int:
            return self.model.withdraw(was) if verb == "withdraw" else self.model.revise(was, start, end)

        return Asked(verb, f"/v1/relationships/{was.id}/{verb}", body, revised, frozenset({was.subject}))

    # -- a step ------------------------------------------------------------------------------------------------------

    async def do(self, asked: Sequence[Asked], arriving: Sequence[Drawn], derive: bool) -> None:
        """Ask for all of it at once, with events arriving, and see that what came of it is what the model says."""
        began = datetime.now(UTC)
        before, happened, due = self.model.open(), len(self.model.events), frozenset(self.model.due if derive else ())
        last = await self.db.fetchval("select coalesce(max(number), 0) from relationship_change")
        async with asyncio.timeout(100), asyncio.TaskGroup() as at_once:
            asking = [at_once.create_task(self.admin.request(each.method, each.path, json=each.body)) for each in asked]
            at_once.create_task(self._arrive(arriving))
            if derive:
                at_once.create_task(self._derive())
            if self.keeper:
                at_once.create_task(self.keeper.step())
        answers = [each.result() for each in asking]
        for each, answer in zip(asked, answers, strict=True):
            status = self.model.attempt(each.then, answer.json())
            assert answer.status_code == status, (each, answer.text)
            told[f"{each.verb} {status}"] += 1
        await self._learn(began, due)
        await self._see_moves(last, before, happened, len(asked) < 2)
        for each, answer in zip(asked, answers, strict=True):
            if each.verb == "hand-over" and answer.status_code == 201:
                await self._see_hand_over(answer.json(), before, KINDS[each.giver])
        self.knew.append(datetime.now(UTC))

    async def _arrive(self, drawn: Sequence[Drawn]) -> None:
        new: list[Happened] = []
        repeated: list[Sent] = []
        expected: Counter[str] = Counter()
        for each in drawn:
            type_, data = each.told
            number, stored = len(self.model.events) + len(new), self.model.events
            earlier = stored[each.form * 7 % len(stored)].sent if stored and each.form > 8 else None
            if earlier and earlier.id not in {sent.id for sent in repeated}:
                repeated.append(replace(earlier, data='{"else": 1}') if each.form == 11 else earlier)
                expected["dead" if each.form == 11 else "duplicates"] += 1
            else:
                name = each.on in KINDS and each.form % 2
                subject = f"party:crm:{self.run}-{each.on}" if name else self.called[each.on]
                data, said, who = dict(data), dict(data), each.who
                if "agent" in data:
                    said["agent"] = f"crm:{self.run}-{data['agent']}"
                if type_.startswith("identity."):
                    if who:
                        said["party"] = self.id(who) if each.form % 2 and who in KINDS else f"crm:{self._ref(who)}"
                    if who == "null" or (who is None and type_ == "identity.linked") or data["role"] == "sold_by":
                        del data["role"]  # refused
                one = Sent(subject, f"e{number:03}", each.at, type_, json.dumps(said), sequence=each.sequence)
                new.append(Happened(each.on, one, data, who if who in KINDS else None))
        sent = [event.sent for event in new]
        of_two = [*sent[::2], *repeated[::2]], [*sent[1::2], *sent[:2:2], *repeated[1::2]]
        expected["duplicates"] += len(sent[:2:2])
        stored_ = await asyncio.gather(*(store(*of) for store, of in zip(self.stores, of_two, strict=True)))
        found = {"attached": sum(len(each.attached) for each in stored_),
                 "duplicates": sum(each.duplicates for each in stored_),
                 "dead": sum(len(each.dead) for each in stored_)}  # fmt: skip
        assert found == {"attached": len(new), "duplicates": expected["duplicates"], "dead": expected["dead"]}
        self.model.events += new
        self.model.due |= {event.on for event in new if event.sent.type.startswith("identity.")}

    def _ref(self, who: str) -> str:
        return f"{self.run}-{who}" if who in KINDS else who

    async def _derive(self) -> None:
        """Let the linker of attach run until nothing is due."""
        running = asyncio.create_task(self.linker().work())
        try:
            while await self.db.fetchval("select exists (select from identity_event where due)"):  # noqa: ASYNC110
                await asyncio.sleep(0.01)  # the other end is a database
        finally:
            running.cancel()
            await asyncio.wait([running])
        self.model.due.clear()
        told["derive"] += 1

    async def _learn(self, began: datetime, derived: frozenset[str]) -> None:
        """Compare the tables with what the model says is there; learn from them when it was recorded, and as what."""
        names, model = {called: name for name, called in self.called.items()}, self.model
        there = [
            Version(str(row[0]), names[row[1]], row[2], names[f"party:{row[3]}"], *row[4:])
            for row in await self.db.fetch(
                "select id, subject, role, party, batch, lower(valid), upper(valid), derived, lower(recorded), "
                "upper(recorded) from relationship where subject = any ($1) order by id, version", list(names)
            )
        ]  # fmt: skip
        until, open_ = datetime.now(UTC), {version for version in there if version.gone is None}
        assert {v for v in model.versions if v.gone} <= set(there), "what was known stays as it was"
        recorded = {time for v in set(there) - set(model.versions) for time in (v.gone or v.since,) if time}
        assert all(began <= time <= until + 9 * INSTANT for time in recorded)
        said = [v for v in model.open() if v.subject not in derived or not v.derived]
        assert {v for v in said if v.since} <= open_, "what was not changed stays as it was"
        ids = {v.id for v in said}
        assert Counter((v.id, v.says) for v in said) == Counter(
            (v.id if v.id in ids else None, v.says) for v in open_ if v.subject not in derived or not v.derived
        )
        for device in derived:
            holds, moments = model.signed_in(device, self.claim)
            rows = {v for v in open_ if v.subject == device and v.derived}
            for at in {*moments, *(bound for v in rows for bound in (v.start, v.end) if bound)}:
                assert {(v.role, v.party) for v in rows if v.at(at)} == {
                    (role, who) for role in ("user", "owner") for who in KINDS if holds(role, who, at)
                }, (device, at)
            kept = {v.says: v for v in model.versions if v.subject == device and v.gone is None and v.derived}
            assert all(kept.get(v.says, v) == v for v in rows), "what goes on is left"
        model.versions = there
        model.links = await self._joined(
            "select party, other, null, lower(recorded), upper(recorded) from party_link "
            "where party = any ($1::uuid[]) order by id", model.links, {self.id(who): who for who in KINDS}
        )  # fmt: skip
        model.replacements = await self._joined(
            "select device, by, at, lower(recorded), upper(recorded) from device_replacement where device = any ($1) "
            "order by id", model.replacements, {self.called[device]: device for device in DEVICES}
        )  # fmt: skip

    async def _joined(self, sql: str, said: list[Joined], names: dict[str, str]) -> list[Joined]:
        relations = {(each.pair, each.at): each.relations for each in said}
        there = [
            Joined((names[str(one)], names[str(other)]), at, since, gone)
            for one, other, at, since, gone in await self.db.fetch(sql, list(names))
        ]
        there = [replace(each, relations=relations.get((each.pair, each.at), ())) for each in there]
        assert {(each.pair, each.at) for each in said if each.gone is None} == {
            (each.pair, each.at) for each in there if each.gone is None
        }
        assert {each for each in said if each.gone} <= set(there)
        return there

    # -- what it moved -----------------------------------------------------------------------------------------------

    def _joint(self, one: str, other: str, happened: int) -> list[str]:
        """Return types of the events that are on the record of one if it is linked with the other, and not if not."""
        links = [
            link for link in self.model.links if link.gone is None and link.pair not in ((one, other), (other, one))
        ]
        linked = replace(self.model, links=[*links, Joined((one, other))], events=self.model.events[:happened])
        records = []
        for model in (linked, replace(linked, links=links)):
            seen = Seen(model, None, None, TIMES)
            records.append([event.sent.id for event in seen.mine(seen.group(one))])
        return [e.sent.type for e in self.model.events[:happened] if e.sent.id in set(records[0]) - set(records[1])]

    async def _see_moves(self, last: int, before: Sequence[Version], happened: int, alone: bool) -> None:
        """What changes say they moved is the difference of what the relations brought before and bring now."""
        rows = await self.db.fetch(
            "select subject, change.party, change, direction, starts, ends, types from relationship_change change "
            "left join relationship_move using (number) where number > $1 order by number, starts", last,
        )  # fmt: skip
        changed = [v.says for v in before] != [v.says for v in self.model.open()]
        assert not changed or rows
        links = [row for row in rows if row["change"] in ("linked", "unlinked")]
        if links and not alone:
            return  # whose record a relation moved it onto depends on which came first
        names = {called: name for name, called in self.called.items()}
        moves: dict[tuple[frozenset[str], frozenset[str]], list[tuple[int, Version]]] = {}
        for row in rows:
            subject, who = names[row["subject"]], names[f"party:{row['party']}"]
            about, range_ = self._same(subject), Version(None, subject, "", who, None, row["starts"], row["ends"])
            inside = [[e.sent.type for e in known if e.on in about and range_.at(e.sent.at)]
                      for known in (self.model.events[:happened], self.model.events)]  # fmt: skip
            if row in links:
                inside = [self._joint(who, subject, known) for known in (happened, len(self.model.events))]
            elif row["direction"]:
                moved = (1 if row["direction"] == "gained" else -1, range_)
                moves.setdefault((about, self._same(who)), []).append(moved)
            if row in links or row["direction"]:
                types = Counter(json.loads(row["types"] or "{}"))
                assert Counter(inside[0]) <= types <= Counter(inside[1]), row
                told[f"{row['change']} {row['direction']}"] += 1
        for about in {self._same(subject) for subject in self.called}:
            for group in {self._same(who) for who in KINDS} - {about}:
                was, is_ = (
                    [v for v in known if v.subject in about and v.party in group]
                    for known in (before, self.model.open())
                )
                for at in {EVER, *TIMES, FUTURE, *(b for v in (*was, *is_) for b in (v.start, v.end) if b)}:
                    net = sum(sign for sign, range_ in moves.get((about, group), ()) if range_.at(at))
                    assert net == any(v.at(at) for v in is_) - any(v.at(at) for v in was), (about, group, at, moves)
        assert not any(about == group for about, group in moves)

    def _same(self, on: str) -> frozenset[str]:
        return frozenset(self.model.group(on) if on in KINDS else {on})

    async def _see_hand_over(self, done: dict[str, Any], before: Sequence[Version], kind: str) -> None:
        """Neither sees what was the other's: but a vendor sees what it sold."""
        device, at = done["begun"]["subject"], datetime.fromisoformat(done["begun"]["valid_from"])
        names = {called: name for name, called in self.called.items()}
        taker = done["begun"]["party"]
        takers = self.model.group(names[f"party:{taker}"])
        strangers = not any(v.subject == names[device] and v.party in takers for v in before)
        for who, alone in ((done["ended"][0]["party"], kind == "customer"), (taker, strangers)):
            items = await pages(self.admin, f"/v1/parties/{who}/timeline", 100)
            times = [datetime.fromisoformat(i["occurred_at"]) for i in items if i["event"] and i["device"] == device]
            assert not alone or all((time >= at) == (who == taker) for time in times)
            told["hand-over seen"] += alone

    # -- in the end --------------------------------------------------------------------------------------------------

    async def compare(self, as_of: Bound, known: int) -> None:
        facts: list[Version | Joined] = [*self.model.versions, *self.model.links, *self.model.replacements]
        moments = sorted({*self.knew, *(time for fact in facts for time in (fact.since, fact.gone) if time)})
        known_at = None if known < 0 else moments[known % len(moments)] - INSTANT * (known % 3 == 0)
        seen = Seen(self.model, as_of, known_at, TIMES)
        view = {name: text(at) for name, at in (("as_of", as_of), ("known_at", known_at)) if at is not None}

        async def record(who: str) -> Says:
            name = f"crm:{self.run}-{who}" if known % 2 else self.id(who)
            found = await get(
                self.admin, f"/v1/parties/{name}", relations=1000, around_visit_days=plain.WINDOW_DAYS, **view
            )
            then = "" if as_of is None else ", as of then"
            told[f"records from totals{then}"] += found["freshness"]["totals_through"] is not None
            return plain.record(found, seen, who, self.called)

        async def timeline(who: str, *types: str, since: Bound = None, until: Bound = None) -> Says:
            within = {name: text(at) for name, at in (("since", since), ("until", until)) if at}
            path = f"/v1/parties/{self.id(who)}/timeline"
            items = await pages(self.admin, path, 3 + known % 5, **view, **within, type=list(types))
            return plain.timeline(items, seen, who, self.called, list(types), since, until)

        async def device(name: str) -> Says:
            return plain.device(
                await get(self.admin, f"/v1/devices/{self.called[name]}", **view), seen, name, self.called
            )

        async def listed(**wanted: str) -> Says:
            params = {
                name: self.id(value) if name == "party" else self.called.get(value, value)
                for name, value in wanted.items()
            }
            return plain.listed(
                await pages(self.admin, "/v1/relationships", 7, **view, **params), seen, self.called, **wanted
            )

        async def why(event: Happened) -> Says:
            params = {"subject": event.sent.subject, "source": "", "id": event.sent.id}
            return plain.why(await get(self.admin, "/v1/events", **params), seen, event, self.called)

        everybody, turn = list(KINDS), (known + 1) % 9
        some = (everybody + everybody)[turn : turn + 4]
        asked: dict[str, Any] = {f"record of {who}": record(who) for who in KINDS}
        asked |= {f"timeline of {who}": timeline(who) for who in some}
        for who, types in zip(some, (["relationship.begun", "device.fault"], ["relationship.ended"]), strict=False):
            asked[f"some of {who}"] = timeline(who, *types)
        asked[f"days of {some[2]}"] = timeline(some[2], since=TIMES[turn], until=TIMES[turn + 9])
        asked |= {f"device {name}": device(name) for name in DEVICES}
        asked |= {f"list of {name}": listed(subject=name) for name in (*DEVICES, some[0])}
        asked |= {f"list of {who}": listed(party=who, **({"role": "owner"} if turn % 2 else {})) for who in some[1:]}
        if not view:
            asked |= {f"why {event.sent}": why(event) for event in self.model.events[turn::5]}
        says = dict(zip(asked, await asyncio.gather(*asked.values()), strict=True))
        for what, expected_of in says.items():
            for figure, found, expected in expected_of:
                assert found == expected, (what, figure, view)
                told[f"{figure} of {what.split()[0]}s, not empty"] += bool(expected)


# -- the test ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def serve_settings(serve_settings: Settings) -> Settings:
    return serve_settings.model_copy(update={
        "postgres_lock_timeout_s": 30, "postgres_acquire_timeout_s": 60, "postgres_statement_timeout_s": 60,
    })  # fmt: skip


@pytest.fixture
async def stores(serve_settings: Settings) -> AsyncIterator[list[Attach]]:
    """Two workers' connections."""
    async with AsyncExitStack() as stack:
        yield [await stack.enter_async_context(storing(serve_settings)) for _ in range(2)]


@pytest.fixture(scope="module", autouse=True)
def what_they_were_made_of() -> Iterator[None]:
    yield
    print(f"TEST_SEED={SEED} repeats it; there were: {dict(sorted(told.items()))}")


@dataclass
class Bench:
    """Real parts of the product, on one database for all histories."""

    admin: httpx.AsyncClient
    db: asyncpg.Connection
    stores: Sequence[Attach]
    settings: Settings
    pool: Pool
    keeper: Keeper

    async def live(self, history: History) -> None:
        """Live a history with a world of its own, and compare what is told of it."""
        hours = history.claim_hours
        changed, claim = {"anonymous_claim_hours": hours}, None if hours < 0 else timedelta(hours=hours)
        linker = partial(Linker, self.settings.model_copy(update=changed), Metrics("attach"), self.pool)
        keeper = self.keeper if history.totals else None
        world = World(self.admin, self.db, self.stores, linker, claim, keeper, next(runs))
        await world.settle()
        waiting, events = list(history.steps), history.events
        share = -(-len(events) // max(1, len(waiting)))
        while waiting:
            step = waiting.pop(0)
            asked = [each] if (each := world.asked(step)) else []
            if waiting and waiting[0].beside and step.verb in (*PLAIN, "link", "code") and waiting[0].verb in PLAIN:
                other = world.asked(waiting[0])
                if other and asked and not other.about & asked[0].about:
                    waiting.pop(0)
                    asked.append(other)
            # What an identity event changes while relations are derived is not to be said in advance.
            now = [each for each in events[:share] if step.verb != "derive" or "identity" not in each.told[0]]
            events = [*[each for each in events[:share] if each not in now], *events[share:]]
            await world.do(asked, now, step.verb == "derive")
        await world.do([], events, False)
        await world.do([], [], True)
        if keeper:
            await keeper.catch_up()
        for as_of, known in ((None, -1), *history.views):
            await world.compare(as_of, known)

    async def fails(self, history: History) -> bool:
        try:
            await self.live(history)
        except (AssertionError, ExceptionGroup):
            return True
        return False

    async def shortest(self, history: History) -> History:
        """Leave out whatever it fails without."""
        for name in ("steps", "events", "views"):
            size = len(getattr(history, name))
            while size := size // 2:
                at = 0
                while at < len(items := getattr(history, name)):
                    fewer = replace(history, **{name: items[:at] + items[at + size :]})
                    if await self.fails(fewer):
                        history = fewer
                    else:
                        at += size
        return history


@pytest.fixture
async def lived(
    admin: httpx.AsyncClient, db: asyncpg.Connection, stores: list[Attach], serve_settings: Settings
) -> AsyncIterator[Bench]:
    dsn = serve_settings.postgres_dsn.get_secret_value()
    counting = await asyncpg.connect(dsn, server_settings={"timezone": "UTC"})
    await counting.execute(PLANNER)
    async with open_pool(serve_settings, "drm link", connections_max=1) as pool:
        yield Bench(admin, db, stores, serve_settings, pool, Keeper(dsn, counting))
    await counting.close()


async def _live(bench: Bench, number: int) -> None:
    for each in range(SEED, SEED + number):
        history = draw(Random(each))
        try:
            await bench.live(history)
        except (AssertionError, ExceptionGroup) as wrong:
            wrong.add_note(f"TEST_SEED={each} repeats it, with TEST_SHRINK=1 as short as it gets")
            if SHRINK:
                wrong.add_note(str(await bench.shortest(history)))
            raise


@pytest.mark.timeout(600)
async def test_any_history_is_told_as_plain_python_tells_it(lived: Bench) -> None:
    await _live(lived, 7)


@pytest.mark.slow
@pytest.mark.timeout(7200)
async def test_a_long_run_of_histories_is_told_as_plain_python_tells_it(lived: Bench) -> None:
    await _live(lived, HISTORIES)
