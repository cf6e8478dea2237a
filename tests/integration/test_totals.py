"""Totals of large parties: counted beforehand, and at any time equal to what was put together live."""

import asyncio
import json
import os
import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from random import Random
from time import monotonic
from typing import Any
from uuid import UUID

import asyncpg
import httpx
import pytest
from tests.integration.conftest import Attach, Sent
from tests.integration.test_records import DAY, HOUR, INSTANT, NOON, get, holds, pages, party

from drm_ingest.event import identity_key
from drm_ingest.metrics import Metrics
from drm_ingest.pipeline.attach.total import PLANNER, Totaller
from drm_ingest.postgres.totals.find import Sizes
from drm_ingest.postgres.totals.horizon import Horizon
from drm_ingest.postgres.totals.step import Done, Paces, _step, step
from drm_ingest.settings import Settings

SIZES = Sizes(large=2, linked_max=20)
PACES = Paces(sweep_s=3600, recount_s=3600, add_up_s=0)
STALE = "select count(*) from large_party where stale and built_at is not null"
BUILDING = "select count(*) from large_party where built_at is null"


class Keeper:
    """A keeper of totals that does a step when it is told to."""

    def __init__(self, dsn: str, db: asyncpg.Connection, sizes: Sizes = SIZES) -> None:
        self.dsn = dsn
        self.db = db
        self.sizes = sizes
        self.horizon = Horizon()

    async def step(self, paces: Paces = PACES) -> Done:
        done = await step(self.db, self.horizon, self.sizes, paces)
        assert done is not None
        return done

    async def catch_up(self, paces: Paces = PACES) -> None:
        """Go on until everything stored by now is in the totals."""
        now = await self.db.fetchval("select clock_timestamp()")
        while True:
            done = await self.step(paces)
            if not done.more and done.through > now and not await self.db.fetchval(STALE):
                return


@asynccontextmanager
async def connected(database: str) -> AsyncIterator[asyncpg.Connection]:
    db = await asyncpg.connect(database, server_settings={"timezone": "UTC"})
    await db.execute(PLANNER)
    yield db
    await db.close()


@pytest.fixture
async def keeper(database: str) -> AsyncIterator[Keeper]:
    async with connected(database) as db:
        yield Keeper(database, db)


async def test_a_large_party_is_read_from_totals_that_tell_their_freshness(
    admin: httpx.AsyncClient, attach: Attach, keeper: Keeper
) -> None:
    volt = await party(admin, "Volt", "vendor")
    for number in range(3):
        await holds(admin, volt, "sold_by", f"meter-{number}", NOON)
    events = [Sent(f"meter-{n % 3}", f"e{n}", NOON + (n - 5) * 7 * HOUR) for n in range(40)]
    await attach(*events[:30])
    live = await get(admin, f"/v1/parties/{volt}")
    assert live["freshness"]["totals_through"] is None
    await keeper.catch_up()
    counted = await get(admin, f"/v1/parties/{volt}")
    assert counted["freshness"]["totals_through"] > live["freshness"]["read_at"]
    assert _comparable(counted) == _comparable(live)
    assert counted["events"] == 25
    await attach(*events[30:])
    await keeper.catch_up()
    assert (await get(admin, f"/v1/parties/{volt}"))["events"] == 35


async def test_what_a_clock_that_was_never_set_has_left_is_counted_as_it_is_put_together(
    admin: httpx.AsyncClient, attach: Attach, keeper: Keeper
) -> None:
    volt, fixit = await party(admin, "Volt", "vendor"), await party(admin, "Fixit", "partner")
    for number in range(3):
        await holds(admin, volt, "sold_by", f"meter-{number}")
        await holds(admin, fixit, "serviced_by", f"meter-{number}")
    first = datetime(1, 1, 2, tzinfo=UTC)
    await attach(
        *(Sent(f"meter-{n}", f"e{n}", first + n * DAY) for n in range(3)),
        Sent("meter-0", "fault", first, "device.fault", '{"code": "E4", "severity": "error", "state": "raised"}'),
        Sent("meter-0", "visit", first, "support.contact", '{"channel": "visit"}'),
        Sent("meter-0", "answer", first + HOUR, "feedback.rating", '{"scale": "csat", "score": 4}'),
    )
    paths = [f"/v1/parties/{who}" for who in (volt, fixit)]
    views: list[dict[str, Any]] = [{"days": 1}, {"days": 366}, {"days": 366, "as_of": NOON.isoformat()}]
    live = [await get(admin, path, **view) for path in paths for view in views]
    timelines = [await pages(admin, f"{path}/timeline", 2) for path in paths]
    await keeper.catch_up()
    counted = [await get(admin, path, **view) for path in paths for view in views]
    assert all(record["freshness"]["totals_through"] for record in counted)
    assert [_comparable(record) for record in counted] == [_comparable(record) for record in live]
    assert [await pages(admin, f"{path}/timeline", 2) for path in paths] == timelines


async def test_figures_of_a_large_party_as_of_another_time_are_those_of_then(
    admin: httpx.AsyncClient, attach: Attach, keeper: Keeper
) -> None:
    volt, cells = await party(admin, "Volt", "vendor"), await party(admin, "Cells", "supplier")
    ada, bo = await party(admin, "Ada", ref="ada"), await party(admin, "Bo", ref="bo")
    for number in range(3):
        await holds(admin, volt, "sold_by", f"meter-{number}", NOON)
        await holds(admin, cells, "parts_by", f"meter-{number}", NOON)
    await holds(admin, ada, "owner", "meter-0", NOON, NOON + 3 * DAY)
    await holds(admin, bo, "owner", "meter-0", NOON + 3 * DAY)
    await holds(admin, bo, "owner", "meter-1", NOON + 3 * DAY)

    def fault(device: int, days: int, state: str) -> Sent:
        at, data = NOON + days * DAY, f'{{"code": "E4", "severity": "error", "state": "{state}"}}'
        return Sent(f"meter-{device}", f"{device} {days}", at, "device.fault", data)

    def answered(subject: str, days: int, score: int) -> Sent:
        data = f'{{"scale": "csat", "score": {score}}}'
        return Sent(subject, f"answer {days}", NOON + days * DAY, "feedback.rating", data)

    await attach(
        fault(0, 1, "raised"), fault(0, 4, "cleared"), fault(1, 5, "raised"), fault(2, 1, "raised"),
        fault(2, 1 + 1, "cleared"), answered("party:ref:ada", 1, 5), answered("meter-0", 2, 4),
        answered("party:ref:bo", 4, 1), answered("meter-1", 5, 2),
    )  # fmt: skip
    views = [{"as_of": (NOON + days * DAY + HOUR).isoformat()} for days in (1, 2, 3, 4, 5)]
    live = [await get(admin, f"/v1/parties/{who}", **view) for who in (volt, cells) for view in views]
    await keeper.catch_up()
    then = [await get(admin, f"/v1/parties/{who}", **view) for who in (volt, cells) for view in views]
    assert all(record["freshness"]["totals_through"] for record in then)
    assert [_comparable(record) for record in then] == [_comparable(record) for record in live]
    of_volt, of_cells = then[1], then[len(views) + 1]
    assert of_volt["sales"]["customers_reached"] == of_volt["sales"]["customers_now"] == 1
    assert (then[3]["sales"]["customers_reached"], then[3]["sales"]["customers_now"]) == (2, 1)
    assert of_volt["sales"]["faults"]["by_code"] == [{"code": "E4", "devices": 1}]
    assert of_volt["sales"]["satisfaction"]["csat"]["by_score"] == {"4": 1, "5": 1}
    assert of_volt["satisfaction"]["csat"]["by_score"] == {"4": 1}
    assert of_volt["faults"]["open"] == of_cells["faults"]["open"] == 1
    (batch,) = of_cells["supply"]["items"]
    assert (batch["faults_raised"], batch["faults_open"], batch["open_by_code"]) == (2, 1, {"E4": 1})


async def test_a_keeper_that_begins_while_others_write_does_not_count_from_long_before(
    admin: httpx.AsyncClient, database: str, keeper: Keeper
) -> None:
    volt = await party(admin, "Volt", "vendor")
    for number in range(3):
        await holds(admin, volt, "sold_by", f"meter-{number}", NOON)
    began = await keeper.db.fetchval("select clock_timestamp()")
    async with connected(database) as other, other.transaction():
        await other.execute("select pg_current_xact_id()")
        assert (await keeper.step()).large == 0
    while (done := await keeper.step()).through < began:  # others write in other databases
        assert done.large == 0
    assert (await keeper.step()).large == 1


async def test_years_in_which_nothing_was_recorded_are_caught_up_in_few_steps(
    admin: httpx.AsyncClient, attach: Attach, keeper: Keeper
) -> None:
    volt = await party(admin, "Volt", "vendor")
    for number in range(3):
        await holds(admin, volt, "sold_by", f"meter-{number}", NOON)
    await keeper.catch_up()
    await keeper.db.execute("update totals_position set through = through - interval '10 years'")
    await attach(*(Sent(f"meter-{n % 3}", f"e{n}", NOON + n * HOUR) for n in range(10)))
    steps, more = 0, True
    while more and steps < 100:
        steps, more = steps + 1, (await keeper.step()).more
    record = await get(admin, f"/v1/parties/{volt}")
    assert record["freshness"]["totals_through"] is not None
    assert (record["events"], more) == (10, False), f"after {steps} steps"


def _comparable(record: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in record.items() if name != "freshness"}


# -- any history ------------------------------------------------------------------------------------------------------

SEED = int(os.environ.get("TEST_SEED") or secrets.randbits(32))
KINDS = {
    "ada": "customer", "bo": "customer", "cy": "customer", "volt": "vendor", "ampere": "vendor", "fixit": "partner",
    "eve": "employee", "parts": "supplier",
}  # fmt: skip
DEVICES = [f"d{n}" for n in range(5)]
ROLES = [
    *((role, device, who) for role in ("owner", "user") for device in DEVICES for who in ("ada", "bo", "cy")),
    *((role, device, who) for role, who in (
        ("sold_by", "volt"), ("sold_by", "volt"), ("sold_by", "ampere"), ("serviced_by", "fixit"),
        ("installed_by", "fixit"), ("made_by", "parts"), ("parts_by", "parts"),
    ) for device in DEVICES),
    ("buys_from", "ada", "volt"), ("buys_from", "bo", "volt"), ("cared_for_by", "ada", "eve"),
    ("cared_for_by", "bo", "eve"), ("cared_for_by", "volt", "eve"), ("works_for", "eve", "fixit"),
]  # fmt: skip
LINKS = [("ada", "bo"), ("bo", "cy"), ("volt", "ampere")]
DATA = [
    ("device.measurement", {"temperature": 20}),
    ("device.measurement", {"temperature": 21}),
    ("device.status", {"online": True}),
    ("device.fault", {"code": "E1", "severity": "error"}),
    ("device.fault", {"code": "E1", "state": "cleared"}),
    ("device.fault", {"code": "E2", "message": "hot"}),
    ("feedback.rating", {"scale": "csat", "score": 4}),
    ("feedback.rating", {"scale": "nps", "score": 9}),
    ("support.contact", {"channel": "visit"}),
    ("support.contact", {"channel": "visit", "agent": "crm:eve"}),
    ("support.contact", {"channel": "visit", "agent": "crm:fixit"}),
    ("support.contact", {"channel": "visit", "agent": "crm:fixit"}),
    ("support.contact", {"channel": "visit", "agent": "shop:s1"}),
]
MOMENTS = [
    NOON + day * DAY + part for day in range(4) for part in (-12 * HOUR, -12 * HOUR + INSTANT, 0 * HOUR, 7 * HOUR)
]


class History:
    """Does one thing after the other, as chance has it, to parties that are all large."""

    def __init__(self, admin: httpx.AsyncClient, attach: Attach, keeper: Keeper, seed: int) -> None:
        self.admin, self.attach, self.keeper = admin, attach, keeper
        self.chance = Random(seed)
        self.ids: dict[str, str] = {}
        self.relations: list[str] = []
        self.sent: list[Sent] = []
        self.last = NOON
        """Beginning or end of a relation: until then what holds changes by itself."""

    async def begin(self) -> None:
        for name, kind in KINDS.items():
            self.ids[name] = await party(self.admin, name, kind, crm=name)

    def bound(self) -> str | None:
        if self.chance.random() < 0.3:
            return None
        if self.chance.random() < 0.1:  # it begins or ends while we look
            at = datetime.now(UTC) + timedelta(seconds=self.chance.uniform(-1, 3))
            self.last = max(self.last, at)
            return at.isoformat()
        return self.chance.choice(MOMENTS).isoformat()

    async def relate(self) -> None:
        role, on, who = self.chance.choice(ROLES)
        subject = f"party:{self.ids[on]}" if on in KINDS else on
        relation = {"subject": subject, "role": role, "party": self.ids[who], "valid_from": self.bound()}
        relation |= {"valid_to": self.bound()} if self.chance.random() < 0.4 else {}
        if who == "parts" and self.chance.random() < 0.7:
            relation["batch"] = self.chance.choice(["b1", "b2"])
        answer = await self.admin.post("/v1/relationships", json=relation)
        if answer.status_code == 201:
            self.relations.append(answer.json()["id"])

    async def revise(self) -> None:
        verb = self.chance.choice(["correct", "correct", "end", "withdraw"])
        if not self.relations:
            return
        told: dict[str, Any] = {"reason": "chance"}
        if verb == "correct":
            told |= {"valid_from": self.bound(), "valid_to": self.bound()}
        elif verb == "end":
            told |= {"at": self.chance.choice(MOMENTS).isoformat()}
        await self.admin.post(f"/v1/relationships/{self.chance.choice(self.relations)}/{verb}", json=told)

    async def link(self) -> None:
        one, other = (self.ids[name] for name in self.chance.choice(LINKS))
        if self.chance.random() < 0.5:
            await self.admin.post(f"/v1/parties/{one}/links", json={"party": other, "reason": "same"})
        else:
            await self.admin.request("DELETE", f"/v1/parties/{one}/links/{other}", json={"reason": "not the same"})

    async def rename(self) -> None:
        """Let a reference mean another party, or none."""
        shop = self.chance.choice(["s1", "s2", "s3"])
        may = ["ada", "bo", "cy", "volt", "eve", "fixit"]
        for who in may:
            await self.admin.delete(f"/v1/parties/{self.ids[who]}/refs/shop:{shop}")
        if self.chance.random() < 0.8:
            who = self.chance.choice(may)
            await self.admin.post(f"/v1/parties/{self.ids[who]}/refs", json={"refs": {"shop": shop}})

    async def hand_over(self) -> None:
        one, other = self.chance.sample(["ada", "bo", "cy"], 2)
        told = {"from": self.ids[one], "to": self.ids[other], "at": self.chance.choice(MOMENTS).isoformat()}
        await self.admin.post(f"/v1/devices/{self.chance.choice(DEVICES)}/hand-over", json=told)

    async def replace(self) -> None:
        old, new = self.chance.sample(DEVICES, 2)
        if self.chance.random() < 0.3:
            await self.admin.request("DELETE", f"/v1/devices/{old}/replacement", json={"reason": "not so"})
        else:
            told = {"by": new, "at": self.chance.choice(MOMENTS).isoformat()}
            await self.admin.post(f"/v1/devices/{old}/replacement", json=told)

    def events(self) -> list[Sent]:
        drawn: list[Sent] = []
        for _ in range(self.chance.randint(1, 12)):
            type_, data = self.chance.choice(DATA)
            on = self.chance.choice([*DEVICES, *DEVICES, *KINDS])
            names = [f"party:crm:{on}", f"party:{self.ids.get(on)}", f"party:shop:s{self.chance.randint(1, 3)}"]
            subject = on if on in DEVICES else self.chance.choice(names)
            at = self.chance.choice(MOMENTS) + self.chance.randint(0, 2) * INSTANT
            drawn.append(Sent(subject, f"e{len(self.sent) + len(drawn)}", at, type_, json.dumps(data)))
        self.sent += drawn
        return drawn + self.chance.sample(self.sent, min(2, len(self.sent)))[:1]

    async def happen(self) -> None:
        events = list({(sent.subject, sent.id): sent for sent in self.events()}.values())
        await self.attach(*events)

    async def happen_slowly(self) -> None:
        """Events that were recorded a while ago when they are committed; a keeper works meanwhile."""
        other = await asyncpg.connect(self.keeper.dsn)
        async with other.transaction():
            await other.execute("select pg_current_xact_id()")  # as positions and identities are written first
            before = len(self.sent)
            self.events()
            for sent in self.sent[before : before + 3]:
                key = identity_key(sent.subject, sent.source, f"slow-{sent.id}")
                await other.execute(
                    "insert into event_identity values ($1, $2, $3)", UUID(bytes=key), UUID(bytes=sent.hash), sent.at
                )
                await other.execute(
                    "insert into event (occurred_at, received_at, content_hash, subject, source, id, type, "
                    "time_quality, sender, data) values ($1, $1, $2, $3, '', $4, $5, 'sent', 'fleet', $6)",
                    sent.at, UUID(bytes=sent.hash), sent.subject, f"slow-{sent.id}", sent.type, sent.data,
                )  # fmt: skip
                await other.execute(
                    "insert into subject_day as old (day, events, last_at, last_hash, subject, type, last_data) "
                    "values (($1::timestamptz at time zone 'UTC')::date, 1, $1, $2, $3, $4, $5) "
                    "on conflict (subject, day, type) do update set events = old.events + 1, "
                    "last_at = greatest(old.last_at, excluded.last_at), "
                    "last_data = case when (excluded.last_at, excluded.last_hash) > (old.last_at, old.last_hash) "
                    "then excluded.last_data else old.last_data end, "
                    "last_hash = case when (excluded.last_at, excluded.last_hash) > (old.last_at, old.last_hash) "
                    "then excluded.last_hash else old.last_hash end",
                    sent.at, UUID(bytes=sent.hash), sent.subject, sent.type, sent.data,
                )  # fmt: skip
            for _ in range(self.chance.randint(1, 3)):
                await self.keeper.step()
        await other.close()

    async def keep(self) -> None:
        await self.keeper.step()

    async def keep_beside_others(self) -> None:
        events = list({(sent.subject, sent.id): sent for sent in self.events()}.values())
        await asyncio.gather(self.keeper.step(), self.attach(*events), self.relate(), self.revise())

    async def anything(self) -> None:
        does = [self.relate] * 8 + [self.revise] * 5 + [self.link, self.hand_over, self.replace, self.rename]
        does += [self.happen] * 3 + [self.happen_slowly] + [self.keep] * 4 + [self.keep_beside_others] * 2
        await self.chance.choice(does)()

    async def compare(self) -> int:
        """See that every total equals what it is a total of; return how many records were read from totals."""
        await self.keeper.db.fetchval("select pg_sleep_until($1)", self.last)
        await self.keeper.catch_up()
        for large in await self.keeper.db.fetch("select id, members from large_party"):
            counted = await self.keeper.db.fetch(
                "select day, type, events from large_party_day where large = $1 order by 1, 2", large["id"]
            )
            assert counted == await self.keeper.db.fetch(RECOUNT, large["members"])
        from_totals = 0
        for id_ in self.ids.values():
            record = await get(self.admin, f"/v1/parties/{id_}")
            now = await self.keeper.db.fetchval("select clock_timestamp()")
            live = await get(self.admin, f"/v1/parties/{id_}", known_at=now.isoformat())
            assert live["freshness"]["totals_through"] is None
            one, other = _comparable(record), _comparable(live)
            assert {name: one[name] for name in one if one[name] != other[name]} == {
                name: other[name] for name in one if one[name] != other[name]
            }
            for types in ([], ["device.fault", "relationship.begun"], ["device.status"], ["relationship.ended"]):
                timeline = f"/v1/parties/{id_}/timeline"
                told = await pages(self.admin, timeline, self.chance.randint(3, 40), type=types)
                assert told == await pages(self.admin, timeline, 40, type=types, known_at=now.isoformat())
            has_totals = record["freshness"]["totals_through"] is not None
            assert has_totals or await self.keeper.db.fetchval(HELD, UUID(id_)) <= self.keeper.sizes.large
            from_totals += has_totals
        return from_totals


RECOUNT = """
with recursive alike (party, same) as (
    select id, id from party
    union
    select alike.party, case when link.party = alike.same then link.other else link.party end
    from alike join party_link as link on alike.same in (link.party, link.other) and upper_inf(recorded)
),
name (party, subject) as (
    select party, 'party:' || same from alike
    union select alike.party, 'party:' || namespace || ':' || ref from alike join party_ref on party_ref.party = same
)
select (occurred_at at time zone 'UTC')::date as day, type, count(*) as events from event
where subject in (select name.subject from name where party = any ($1))
   or exists (
       select from relationship
       where upper_inf(recorded) and party = any ($1) and valid @> occurred_at
         and coalesce(subject_party <> all ($1), true)
         and (relationship.subject = event.subject
              or subject_party in (select name.party from name where name.subject = event.subject))
   )
group by 1, 2 order by 1, 2"""
"""Event by event, from the relations that hold and nothing else."""
HELD = """
with recursive alike (id) as (
    select $1::uuid
    union
    select case when link.party = alike.id then link.other else link.party end
    from alike join party_link as link on alike.id in (link.party, link.other) and upper_inf(recorded)
)
select count(distinct subject) from relationship where party in (select id from alike) and upper_inf(recorded)"""
"""How many subjects a party and those linked to it hold, held or will hold."""


@pytest.mark.parametrize("run", range(3))
async def test_totals_equal_what_they_are_totals_of_whatever_happens(
    admin: httpx.AsyncClient, attach: Attach, keeper: Keeper, monkeypatch: pytest.MonkeyPatch, run: int
) -> None:
    print(f"TEST_SEED={SEED} [{run}]")
    if run == 2:  # in very small steps
        bounds = {"RARE_MAX": 1, "SLICE_SUBJECTS": 3, "SLICES_MAX": 2, "SWEEP_PARTIES": 3, "ADD_UPS_MAX": 1}
        for name, value in bounds.items():
            monkeypatch.setattr(f"drm_ingest.postgres.totals.step.{name}", value)
    history = History(admin, attach, keeper, SEED + run)
    await history.begin()
    from_totals = 0
    for _ in range(4):
        for _ in range(25):
            await history.anything()
        from_totals += await history.compare()
    assert from_totals > 0


# -- one after the other ----------------------------------------------------------------------------------------------


async def vendor_of(admin: httpx.AsyncClient, devices: int) -> str:
    volt = await party(admin, "Volt", "vendor")
    for number in range(devices):
        await holds(admin, volt, "sold_by", f"meter-{number}", NOON)
    return volt


async def test_customers_that_are_taken_apart_say_nothing_for_each_other_any_more(
    admin: httpx.AsyncClient, attach: Attach, keeper: Keeper
) -> None:
    volt, ada, bo = await vendor_of(admin, 3), await party(admin, "Ada"), await party(admin, "Bo")
    await holds(admin, ada, "owner", "meter-0", NOON)
    await attach(Sent(f"party:{bo}", "r1", NOON + HOUR, "feedback.rating", '{"scale": "csat", "score": 4}'))
    for linked in (0, 1, 0):
        if linked:
            await admin.post(f"/v1/parties/{ada}/links", json={"party": bo, "reason": "same"})
        else:
            await admin.request("DELETE", f"/v1/parties/{ada}/links/{bo}", json={"reason": "not the same"})
        await keeper.catch_up()
        sales = (await get(admin, f"/v1/parties/{volt}"))["sales"]
        assert sales["satisfaction"].get("csat", {}).get("answers", 0) == linked


async def test_a_reference_that_comes_and_goes_takes_what_is_said_under_it_along(
    admin: httpx.AsyncClient, attach: Attach, keeper: Keeper
) -> None:
    volt, ada = await vendor_of(admin, 3), await party(admin, "Ada", shop="a9")
    relation = {"subject": f"party:{ada}", "role": "buys_from", "party": volt, "valid_from": NOON.isoformat()}
    assert (await admin.post("/v1/relationships", json=relation)).status_code == 201
    await attach(
        Sent("party:crm:778", "r1", NOON + HOUR, "feedback.rating", '{"scale": "csat", "score": 4}'),
        Sent("party:crm:779", "r2", NOON + HOUR, "feedback.rating", '{"scale": "csat", "score": 4}'),
        Sent("meter-0", "m1", NOON + HOUR),
    )
    await keeper.catch_up()
    for refs, said in (("778",), 1), (("778", "779"), 2), (("779",), 1), ((), 0):
        there = (await get(admin, f"/v1/parties/{ada}"))["refs"].get("crm", [])
        for ref in set(refs) - set(there):
            assert (await admin.post(f"/v1/parties/{ada}/refs", json={"refs": {"crm": ref}})).is_success
        for ref in set(there) - set(refs):
            assert (await admin.delete(f"/v1/parties/{ada}/refs/crm:{ref}")).is_success
        await keeper.catch_up()
        record = await get(admin, f"/v1/parties/{volt}")
        assert record["freshness"]["totals_through"] is not None
        assert record["events"] == 1 + said
        assert record["sales"]["satisfaction"].get("csat", {}).get("answers", 0) == said


async def partner_of(admin: httpx.AsyncClient, devices: int) -> str:
    fixit = await party(admin, "Fixit", "partner")
    for number in range(devices):
        await holds(admin, fixit, "serviced_by", f"meter-{number}", NOON)
    return fixit


def visit(subject: str, id_: str, agent: str) -> Sent:
    return Sent(subject, id_, NOON + HOUR, "support.contact", json.dumps({"channel": "visit", "agent": agent}))


async def visits_counted(admin: httpx.AsyncClient, keeper: Keeper, partner: str) -> int:
    """See that the totals of a partner have the visits that its record has."""
    await keeper.catch_up()
    record = await get(admin, f"/v1/parties/{partner}")
    now = await keeper.db.fetchval("select clock_timestamp()")
    live = await get(admin, f"/v1/parties/{partner}", known_at=now.isoformat())
    assert record["freshness"]["totals_through"] is not None
    assert _comparable(record) == _comparable(live)
    counted: int = record["service"]["visits"]
    return counted


@pytest.mark.parametrize("between", [False, True])
async def test_a_visit_to_one_linked_with_the_owner_counts_while_they_are_linked(
    admin: httpx.AsyncClient, attach: Attach, keeper: Keeper, between: bool
) -> None:
    fixit = await partner_of(admin, 3)
    ada, bo, cy = [await party(admin, name) for name in ("Ada", "Bo", "Cy")]
    await holds(admin, ada, "owner", "meter-0", NOON)
    if between:
        await admin.post(f"/v1/parties/{cy}/links", json={"party": bo, "reason": "same"})
    await attach(visit(f"party:{cy if between else bo}", "v1", fixit))
    for linked in (0, 1, 0, 1):
        if linked:
            await admin.post(f"/v1/parties/{ada}/links", json={"party": bo, "reason": "same"})
        else:
            await admin.request("DELETE", f"/v1/parties/{ada}/links/{bo}", json={"reason": "not the same"})
        assert await visits_counted(admin, keeper, fixit) == linked


@pytest.mark.parametrize("whose", ["owner", "linked"])
async def test_a_visit_counts_while_the_name_it_was_to_is_that_of_an_owner_or_of_one_linked_with_it(
    admin: httpx.AsyncClient, attach: Attach, keeper: Keeper, whose: str
) -> None:
    fixit, ada, bo = await partner_of(admin, 3), await party(admin, "Ada"), await party(admin, "Bo")
    await holds(admin, ada, "owner", "meter-0", NOON)
    await admin.post(f"/v1/parties/{ada}/links", json={"party": bo, "reason": "same"})
    await attach(visit("party:crm:778", "v1", fixit))
    called = ada if whose == "owner" else bo
    for there in (0, 1, 0):
        if there:
            assert (await admin.post(f"/v1/parties/{called}/refs", json={"refs": {"crm": "778"}})).is_success
        else:
            await admin.delete(f"/v1/parties/{called}/refs/crm:778")
        assert await visits_counted(admin, keeper, fixit) == there


@pytest.mark.parametrize("whose", ["partner", "employee"])
async def test_a_visit_counts_while_the_agent_is_a_name_of_the_partner_or_of_one_who_works_for_it(
    admin: httpx.AsyncClient, attach: Attach, keeper: Keeper, whose: str
) -> None:
    fixit, eve, ada = await partner_of(admin, 3), await party(admin, "Eve", "employee"), await party(admin, "Ada")
    relation = {"subject": f"party:{eve}", "role": "works_for", "party": fixit, "valid_from": NOON.isoformat()}
    assert (await admin.post("/v1/relationships", json=relation)).status_code == 201
    await holds(admin, ada, "owner", "meter-0", NOON)
    await attach(visit("meter-1", "v1", "crm:e5"), visit(f"party:{ada}", "v2", "crm:e5"))
    called = fixit if whose == "partner" else eve
    for there in (0, 2, 0):
        if there:
            assert (await admin.post(f"/v1/parties/{called}/refs", json={"refs": {"crm": "e5"}})).is_success
        else:
            await admin.delete(f"/v1/parties/{called}/refs/crm:e5")
        assert await visits_counted(admin, keeper, fixit) == there


async def test_an_answer_under_a_name_of_one_linked_with_a_customer_counts_while_it_is_that_ones(
    admin: httpx.AsyncClient, attach: Attach, keeper: Keeper
) -> None:
    volt, ada, bo = await vendor_of(admin, 3), await party(admin, "Ada"), await party(admin, "Bo")
    await holds(admin, ada, "owner", "meter-0", NOON)
    await admin.post(f"/v1/parties/{ada}/links", json={"party": bo, "reason": "same"})
    await attach(Sent("party:crm:778", "r1", NOON + HOUR, "feedback.rating", '{"scale": "csat", "score": 4}'))
    await keeper.catch_up()
    for there in (1, 0):
        if there:
            assert (await admin.post(f"/v1/parties/{bo}/refs", json={"refs": {"crm": "778"}})).is_success
        else:
            assert (await admin.delete(f"/v1/parties/{bo}/refs/crm:778")).is_success
        await keeper.catch_up()
        sales = (await get(admin, f"/v1/parties/{volt}"))["sales"]
        assert sales["satisfaction"].get("csat", {}).get("answers", 0) == there


async def test_who_dies_in_a_step_has_done_nothing(admin: httpx.AsyncClient, attach: Attach, keeper: Keeper) -> None:
    volt = await vendor_of(admin, 3)
    await keeper.catch_up()
    for number in range(5):
        await attach(*(Sent(f"meter-{n % 3}", f"e{number}-{n}", NOON + n * HOUR) for n in range(10)))
        await holds(admin, volt, "sold_by", f"late-{number}", NOON)
        dying = keeper.db.transaction(isolation="repeatable_read")
        await dying.start()
        done = await _step(keeper.db, keeper.horizon, SIZES, PACES)
        assert done.compared or done.more
        await dying.rollback()
        await keeper.catch_up()
        assert (await get(admin, f"/v1/parties/{volt}"))["events"] == 10 * (number + 1)


async def test_two_keepers_count_nothing_twice(
    admin: httpx.AsyncClient, attach: Attach, keeper: Keeper, database: str
) -> None:
    volt = await vendor_of(admin, 3)
    async with connected(database) as db:
        other = Horizon()
        did = 0
        for number in range(10):
            await attach(*(Sent(f"meter-{n % 3}", f"e{number}-{n}", NOON + n * HOUR) for n in range(10)))
            both = await asyncio.gather(
                step(keeper.db, keeper.horizon, SIZES, PACES), step(db, other, SIZES, PACES),
                step_of_a_third(database), return_exceptions=True,
            )  # fmt: skip
            assert not [done for done in both if isinstance(done, BaseException)]
            did += sum(done is not None for done in both)
        assert did >= 10  # one of them at least, each time
    await keeper.catch_up()
    record = await get(admin, f"/v1/parties/{volt}")
    assert record["freshness"]["totals_through"] is not None
    assert record["events"] == 100


async def step_of_a_third(database: str) -> Done | None:
    async with connected(database) as db:
        return await step(db, Horizon(), SIZES, PACES)


async def test_a_party_that_is_not_large_any_more_is_read_live(admin: httpx.AsyncClient, keeper: Keeper) -> None:
    volt = await vendor_of(admin, 3)
    await keeper.catch_up()
    assert (await get(admin, f"/v1/parties/{volt}"))["freshness"]["totals_through"] is not None
    for relation in (await get(admin, "/v1/relationships", party=volt))["items"]:
        await admin.post(f"/v1/relationships/{relation['id']}/withdraw", json={"reason": "never"})
    await keeper.catch_up(Paces(sweep_s=0, recount_s=3600, add_up_s=0))
    assert (await get(admin, f"/v1/parties/{volt}"))["freshness"]["totals_through"] is None
    assert await keeper.db.fetchval("select count(*) from large_party_span") == 0


async def test_parties_that_are_large_together_alone_are_read_live_once_they_are_taken_apart(
    admin: httpx.AsyncClient, keeper: Keeper
) -> None:
    one, other = await party(admin, "Volt", "vendor"), await party(admin, "Ampere", "vendor")
    for number in range(4):
        await holds(admin, one if number % 2 else other, "sold_by", f"meter-{number}", NOON)
    await admin.post(f"/v1/parties/{one}/links", json={"party": other, "reason": "same"})
    await keeper.catch_up()
    assert (await get(admin, f"/v1/parties/{one}"))["freshness"]["totals_through"] is not None
    await admin.request("DELETE", f"/v1/parties/{one}/links/{other}", json={"reason": "not the same"})
    await keeper.catch_up()
    assert await keeper.db.fetchval("select count(*) from large_party") == 0
    for vendor in (one, other):
        record = await get(admin, f"/v1/parties/{vendor}")
        assert (record["freshness"]["totals_through"], record["devices_now"]) == (None, 2)


async def test_counting_anew_mends_what_is_wrong_and_tells_how_much(
    admin: httpx.AsyncClient, attach: Attach, keeper: Keeper
) -> None:
    volt = await vendor_of(admin, 3)
    await attach(*(Sent(f"meter-{n % 3}", f"e{n}", NOON + n * HOUR) for n in range(30)))
    await keeper.catch_up()
    await keeper.db.execute("update large_party_day set events = events + 7")
    days = await keeper.db.fetchval("select count(*) from large_party_day")
    assert (await get(admin, f"/v1/parties/{volt}"))["events"] == 30 + 7 * days
    healed = 0
    while not healed:
        healed = (await keeper.step(Paces(sweep_s=3600, recount_s=0, add_up_s=0))).healed
    assert healed == 7 * days
    assert (await get(admin, f"/v1/parties/{volt}"))["events"] == 30


# -- thousands of large parties ---------------------------------------------------------------------------------------


def bound(monkeypatch: pytest.MonkeyPatch, name: str, value: int) -> None:
    monkeypatch.setattr(f"drm_ingest.postgres.totals.step.{name}", value)


async def vendors_of_3(admin: httpx.AsyncClient, count: int) -> list[str]:
    """Return large parties, each with three devices of its own."""
    vendors = [await party(admin, f"Volt {number}", "vendor") for number in range(count)]
    for number, vendor in enumerate(vendors):
        for device in range(3):
            await holds(admin, vendor, "sold_by", f"meter-{number}-{device}", NOON)
    return vendors


def answers(vendors: int, id_: str) -> list[Sent]:
    score = '{"scale": "csat", "score": 4}'
    return [
        Sent(f"meter-{number}-0", f"{id_}-{number}", NOON + HOUR, "feedback.rating", score) for number in range(vendors)
    ]


async def test_a_step_asks_as_many_questions_of_many_large_parties_as_of_few(
    admin: httpx.AsyncClient, attach: Attach, keeper: Keeper
) -> None:
    """Not one by one: of each question there is one, whatever happens to however many."""
    await vendors_of_3(admin, 8)
    other, ada, bo = [await party(admin, name) for name in ("Cy", "Ada", "Bo")]
    await keeper.catch_up()
    asked: list[str] = []

    async def happens(to: int, id_: str) -> int:
        """Let something of everything happen to so many; return how many questions a step asked at most."""
        for number in range(to):
            await holds(admin, ada, "owner", f"meter-{number}-{id_}", NOON)
        await admin.post(f"/v1/parties/{ada}/links", json={"party": bo if id_ == "0" else other, "reason": "same"})
        await attach(*answers(to, id_))
        now, most, through = await keeper.db.fetchval("select clock_timestamp()"), 0, NOON
        with keeper.db.query_logger(lambda query: asked.append(query.query)):
            while through < now:
                asked.clear()
                through = (await keeper.step()).through
                most = max(most, len(asked))
        return most

    assert await happens(8, "1") <= await happens(1, "0")


async def test_figures_are_added_up_of_some_large_parties_at_a_time_and_say_how_old_they_are(
    admin: httpx.AsyncClient, attach: Attach, keeper: Keeper, monkeypatch: pytest.MonkeyPatch
) -> None:
    vendors = await vendors_of_3(admin, 6)
    await keeper.catch_up()
    bound(monkeypatch, "ADD_UPS_MAX", 2)
    await keeper.db.execute("update large_party set shown_at = shown_at - interval '1 hour'")  # and right until now
    before = await keeper.db.fetchval("select clock_timestamp()")
    await attach(*answers(6, "e"))
    stored = await keeper.db.fetchval("select min(recorded_at) from event")
    while (await keeper.step()).through < stored or not await keeper.db.fetchval(STALE):
        pass
    left = [await keeper.db.fetchval(STALE)]
    for vendor in vendors:
        record = await get(admin, f"/v1/parties/{vendor}")
        fresh = bool(record["satisfaction"])
        through = datetime.fromisoformat(record["freshness"]["totals_through"])
        assert (through >= stored) is fresh
        assert fresh or through > before - timedelta(seconds=60)  # as it was, and not as of when it was last added up
    while left[-1]:
        await keeper.step()
        left.append(await keeper.db.fetchval(STALE))
    assert left == [4, 2, 0]
    assert all([(await get(admin, f"/v1/parties/{vendor}"))["satisfaction"] for vendor in vendors])


async def test_figures_that_wait_to_be_added_up_are_told_as_lag(
    admin: httpx.AsyncClient, keeper: Keeper, monkeypatch: pytest.MonkeyPatch
) -> None:
    await vendors_of_3(admin, 2)
    await keeper.catch_up()
    assert (await keeper.step()).behind_s < 1800
    bound(monkeypatch, "ADD_UPS_MAX", 1)
    await keeper.db.execute("update large_party set stale = true, shown_at = shown_at - interval '1 hour'")
    assert (await keeper.step()).behind_s > 1800
    assert (await keeper.step()).behind_s < 1800


async def test_what_a_change_touched_is_added_up_at_once_and_nobody_waits_for_ever(
    admin: httpx.AsyncClient, attach: Attach, keeper: Keeper, monkeypatch: pytest.MonkeyPatch
) -> None:
    *vendors, last = await vendors_of_3(admin, 6)
    await keeper.catch_up()
    bound(monkeypatch, "ADD_UPS_MAX", 1)  # one that changes touched, one other
    for number in range(6):
        await attach(*answers(6, f"e{number}"))  # each time on all of them
        await holds(admin, last, "sold_by", f"late-{number}", NOON)
        now = await keeper.db.fetchval("select clock_timestamp()")
        while (done := await keeper.step()).more or done.through < now:
            pass
        assert (await get(admin, f"/v1/parties/{last}"))["sales"]["devices_sold"] == 4 + number
    said = [(await get(admin, f"/v1/parties/{vendor}"))["satisfaction"] for vendor in vendors]
    assert all(said)


async def test_what_is_last_on_a_record_is_known_though_its_figures_are_not_added_up_yet(
    admin: httpx.AsyncClient, attach: Attach, keeper: Keeper, monkeypatch: pytest.MonkeyPatch
) -> None:
    vendors = await vendors_of_3(admin, 3)
    await attach(
        *(Sent(f"meter-{n}-0", f"last-{n}", NOON + 2 * HOUR) for n in range(3)),
        *(Sent(f"meter-{n}-1", f"but-one-{n}", NOON + HOUR) for n in range(3)),
    )
    await keeper.catch_up()
    bound(monkeypatch, "ADD_UPS_MAX", 0)  # no record is put together live for want of it
    for number, vendor in enumerate(vendors):
        (relation,) = (await get(admin, "/v1/relationships", party=vendor, subject=f"meter-{number}-0"))["items"]
        await admin.post(f"/v1/relationships/{relation['id']}/withdraw", json={"reason": "never"})
    while not (await keeper.step()).compared:
        pass
    days = await keeper.db.fetch("select last_at, last_subject from large_party_day order by 2")
    assert [tuple(day) for day in days] == [(NOON + HOUR, f"meter-{number}-1") for number in range(3)]


async def test_large_parties_are_counted_anew_one_at_a_time_and_in_no_hurry(
    admin: httpx.AsyncClient, keeper: Keeper, monkeypatch: pytest.MonkeyPatch
) -> None:
    await vendors_of_3(admin, 4)
    await keeper.catch_up()
    bound(monkeypatch, "SLICE_SUBJECTS", 2)  # two steps for each of them
    began = await keeper.db.fetchval("select clock_timestamp()")
    anew = "select count(*) from large_party where built_at > $1"
    paces = Paces(sweep_s=3600, recount_s=0, add_up_s=0)
    steps = 0
    while await keeper.db.fetchval(anew, began) < 4:
        done = await keeper.step(paces)
        steps += 1
        assert await keeper.db.fetchval(BUILDING) <= 1
        assert not done.more
        assert steps < 50
    assert steps >= 8


async def test_a_party_that_was_found_to_be_large_does_not_wait_for_those_counted_anew(
    admin: httpx.AsyncClient, keeper: Keeper, monkeypatch: pytest.MonkeyPatch
) -> None:
    await vendors_of_3(admin, 1)
    await keeper.catch_up()
    bound(monkeypatch, "SLICE_SUBJECTS", 1)
    anew = Paces(sweep_s=3600, recount_s=0, add_up_s=0)
    await keeper.step(anew)
    assert await keeper.db.fetchval(BUILDING) == 1
    volt = await party(admin, "Ampere", "vendor")
    for number in range(3):
        await holds(admin, volt, "sold_by", f"other-{number}", NOON)
    while not (await keeper.step(anew)).more:
        pass  # until the changes are seen
    while (await keeper.step(anew)).more:
        pass
    assert (await get(admin, f"/v1/parties/{volt}"))["freshness"]["totals_through"] is not None
    assert await keeper.db.fetchval(BUILDING) == 1


async def test_of_many_rare_events_some_are_taken_at_a_time(
    admin: httpx.AsyncClient, attach: Attach, keeper: Keeper, monkeypatch: pytest.MonkeyPatch
) -> None:
    volt, *_ = await vendors_of_3(admin, 3)
    await keeper.catch_up()
    bound(monkeypatch, "RARE_MAX", 3)
    for number in range(4):
        await attach(*answers(3, f"e{number}"))
    counted = [0]
    while counted[-1] < 12:
        await keeper.step()
        counted.append(await keeper.db.fetchval("select sum(events)::int from large_party_day") or 0)
    assert max(later - earlier for earlier, later in pairwise(counted)) <= 6
    await keeper.catch_up()
    assert (await get(admin, f"/v1/parties/{volt}"))["satisfaction"]["csat"]["answers"] == 4


async def test_a_sweep_forgets_what_is_not_large_any_more_a_slice_at_a_time(
    admin: httpx.AsyncClient, keeper: Keeper, monkeypatch: pytest.MonkeyPatch
) -> None:
    for vendor in await vendors_of_3(admin, 4):
        for relation in (await get(admin, "/v1/relationships", party=vendor))["items"]:
            await admin.post(f"/v1/relationships/{relation['id']}/withdraw", json={"reason": "never"})
    await vendors_of_3(admin, 1)
    await keeper.db.execute(
        "insert into large_party (party, members, kind, built_at) select id, array[id], kind, now() from party"
    )
    bound(monkeypatch, "SWEEP_PARTIES", 1)
    left = [5]
    while (await keeper.step(Paces(sweep_s=0, recount_s=3600, add_up_s=0))).more:
        left.append(await keeper.db.fetchval("select count(*) from large_party"))
    assert left[:5] == [5, 4, 3, 2, 1]


async def test_a_change_of_10000_events_is_in_the_totals_within_5_seconds(
    admin: httpx.AsyncClient, attach: Attach, serve_settings: Settings
) -> None:
    volt = await vendor_of(admin, 3)
    await attach(*(Sent("meter-0", f"e{n}", NOON + n * timedelta(minutes=5)) for n in range(3000)))
    await attach(*(Sent("meter-9", f"e{n}", NOON - n * timedelta(minutes=5)) for n in range(10_000)))
    metrics = Metrics("attach")
    totaller = Totaller(serve_settings.model_copy(update={"live_record_devices_max": 2}), metrics)
    working = asyncio.create_task(totaller.work())
    try:
        async with asyncio.timeout(60):
            while (await get(admin, f"/v1/parties/{volt}"))["freshness"]["totals_through"] is None:  # noqa: ASYNC110
                await asyncio.sleep(0.1)
        await holds(admin, volt, "sold_by", "meter-9", NOON - 100 * DAY)
        began = monotonic()
        async with asyncio.timeout(60):
            while (record := await get(admin, f"/v1/parties/{volt}"))["events"] != 13_000:  # noqa: ASYNC110
                await asyncio.sleep(0.05)
        assert monotonic() - began < 5
        assert record["freshness"]["totals_through"] is not None
    finally:
        working.cancel()
        await asyncio.wait([working])
    value = metrics.registry.get_sample_value
    assert value("drm_totals_parties") == 1
    assert (value("drm_totals_lag_seconds") or 0) < 5
    assert value("drm_totals_healed_events_total") == 0
