"""Identity through events: who signed in where, posted through the edge or put into the topic, read as relations."""

import asyncio
import contextlib
import json
import random
import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import asyncpg
import httpx
import pytest
from pydantic import SecretStr
from tests.attaching import NOON, Bench, bench, event
from tests.integration.edge import Edge

from drm_ingest.metrics import Metrics
from drm_ingest.pipeline.enrich import worker as enrich
from drm_ingest.postgres.credentials import ensure_key, new_key
from drm_ingest.postgres.relations import identities
from drm_ingest.postgres.relations.recheck import Recheck
from drm_ingest.serve.app import build
from drm_ingest.settings import Settings
from drm_ingest.up.ports import free_port

HOUR = timedelta(hours=1)
WAITS_FOR_A_DEVICE = (
    "select exists (select from pg_locks where locktype = 'advisory' and not granted and database = "
    "(select oid from pg_database where datname = current_database()))"
)
Relations = Callable[..., Awaitable[list[tuple[Any, ...]]]]


@pytest.fixture
async def attached(settings: Settings) -> AsyncIterator[Bench]:
    async with bench(settings) as made:
        yield made


@pytest.fixture
async def office(settings: Settings, attached: Bench) -> AsyncIterator[httpx.AsyncClient]:
    """A person at serve, who may do everything."""
    key = new_key()[0]
    await ensure_key(attached.connection, "office", "admin", key)
    app = build(settings, Metrics("serve"))
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(
            transport=httpx.ASGITransport(app),
            base_url="http://serve",
            headers={"authorization": f"Bearer {key}"},
        ) as client,
    ):
        yield client


def linked(at: datetime, party: str, subject: str = "tablet-1", role: str | None = None, **more: Any) -> bytes:
    data = {"party": party, "method": "sign_in"} | ({"role": role} if role else {})
    return event(f"in {party} {role} {at}", subject, at, "identity.linked", json.dumps(data), **more)


def unlinked(at: datetime, party: str | None, subject: str = "tablet-1", role: str | None = None) -> bytes:
    data = {"method": "sign_out"} | ({"party": party} if party else {}) | ({"role": role} if role else {})
    return event(f"out {party} {role} {at}", subject, at, "identity.unlinked", json.dumps(data))


async def nothing_due(bench: Bench, events: int) -> None:
    """Wait until so many identity events are stored, and relations have all of them in them."""
    await bench.until("select count(*) = $1 and not bool_or(due) from identity_event", events)


def hours(time: str | None) -> float | None:
    """Since noon."""
    return None if time is None else (datetime.fromisoformat(time) - NOON) / HOUR


async def relations(office: httpx.AsyncClient, subject: str = "tablet-1", **query: str) -> list[tuple[Any, ...]]:
    """Return (role, reference, from, to), in hours since noon, as the door of serve shows them."""
    answer = await office.get("/v1/relationships", params={"subject": subject, **query})
    assert answer.status_code == 200, answer.text
    found = []
    for item in answer.json()["items"]:
        party = (await office.get(f"/v1/parties/{item['party']}")).json()
        references = [f"{namespace}:{ref}" for namespace, refs in party["refs"].items() for ref in refs]
        found.append((item["role"], *references, hours(item["valid_from"]), hours(item["valid_to"])))
    return sorted(found, key=str)


async def related(office: httpx.AsyncClient, *expected: tuple[Any, ...]) -> None:
    """Wait until these are the relations."""
    async with asyncio.timeout(40):
        while await relations(office) != list(expected):  # noqa: ASYNC110  # the other end is a server
            await asyncio.sleep(0.05)


async def register(office: httpx.AsyncClient, reference: str, kind: str = "customer") -> str:
    namespace, _, ref = reference.partition(":")
    answer = await office.post("/v1/parties", json={"kind": kind, "name": reference, "refs": {namespace: ref}})
    assert answer.status_code == 201, answer.text
    return str(answer.json()["id"])


async def begin(office: httpx.AsyncClient, party: str, role: str, start: float | None, end: float | None) -> str:
    body: dict[str, str | None] = {"subject": "tablet-1", "role": role, "party": party}
    for name, at in (("valid_from", start), ("valid_to", end)):
        body[name] = None if at is None else (NOON + at * HOUR).isoformat()
    answer = await office.post("/v1/relationships", json=body)
    assert answer.status_code == 201, answer.text
    return str(answer.json()["id"])


# -- from the edge to the door of serve --


async def test_who_signs_in_at_the_edge_is_the_user_until_they_sign_out(
    settings: Settings, start_edge: Callable[..., Edge], attached: Bench, office: httpx.AsyncClient
) -> None:
    edge, stop = start_edge(), asyncio.Event()
    enriching = asyncio.create_task(enrich.run(settings, stop))
    try:
        async with attached.attaching():
            at = datetime.now(UTC).replace(microsecond=0) - 2 * HOUR
            sent = [
                {"id": "1", "type": "identity.linked", "subject": "tablet-1", "time": at.isoformat(),
                 "data": {"party": "crm:778", "method": "sign_in"}},
                {"id": "2", "type": "device.measurement", "subject": "tablet-1", "time": (at + HOUR / 2).isoformat(),
                 "data": {"temperature": 21.5}},
                {"id": "3", "type": "identity.unlinked", "subject": "tablet-1", "time": (at + HOUR).isoformat()},
            ]  # fmt: skip
            answer = await edge.post(sent)
            assert (answer.status_code, answer.json()["accepted"]) == (200, 3), answer.text
            await nothing_due(attached, 2)
            await attached.until("select count(*) = 3 from event")
    finally:
        stop.set()
        await enriching
    (found,) = (await office.get("/v1/relationships?subject=tablet-1")).json()["items"]
    assert found["role"] == "user"
    assert datetime.fromisoformat(found["valid_from"]) == at
    assert datetime.fromisoformat(found["valid_to"]) == at + HOUR
    assert (found["asserted_by"], found["reason"]) == ("tests", None)
    ada = (await office.get("/v1/parties/crm:778")).json()
    assert (ada["kind"], ada["id"]) == ("customer", found["party"])
    assert ada["events_by_type"]["device.measurement"] == 1
    fate = (await office.get("/v1/events?subject=tablet-1&id=1")).json()
    assert fate["attached_to"][0]["party"] == ada["id"]


# -- whatever the order --


async def test_several_people_on_one_device_and_arrivals_in_any_order_at_two_workers_end_in_the_same(
    attached: Bench, office: httpx.AsyncClient
) -> None:
    """Half of what comes, comes twice; the two subjects have the same events, in orders of their own."""
    for subject in ("tablet-1", "tablet-2"):
        said = [
            linked(NOON, "crm:1", subject), linked(NOON + HOUR, "crm:2", subject),
            unlinked(NOON + 2 * HOUR, "crm:1", subject), linked(NOON + 3 * HOUR, "crm:1", subject),
            unlinked(NOON + 5 * HOUR, None, subject), linked(NOON + 6 * HOUR, "crm:3", subject),
            linked(NOON, "crm:1", subject, "owner"), linked(NOON + 4 * HOUR, "crm:2", subject, "owner"),
        ]  # fmt: skip
        said += random.sample(said, 4)
        random.shuffle(said)
        for number, value in enumerate(said):
            await attached.put(value, family="identity", partition=number % attached.settings.topic_partitions)
    async with attached.attaching(), attached.attaching(attach_port=free_port()):
        await attached.passed("identity")
        await nothing_due(attached, 16)
    for subject in ("tablet-1", "tablet-2"):
        assert await relations(office, subject) == [
            ("owner", "crm:1", 0, 4), ("owner", "crm:2", 4, None),
            ("user", "crm:1", 0, 2), ("user", "crm:1", 3, 5), ("user", "crm:2", 1, 5), ("user", "crm:3", 6, None),
        ]  # fmt: skip


async def test_what_comes_late_corrects_and_what_we_knew_before_stays_known(
    attached: Bench, office: httpx.AsyncClient
) -> None:
    async with attached.attaching():
        await attached.put(linked(NOON, "crm:1"), family="identity")
        await nothing_due(attached, 1)
        (before,) = (await office.get("/v1/relationships?subject=tablet-1")).json()["items"]
        await attached.put(event("m", "tablet-1", NOON + HOUR / 2))
        await attached.put(event("n", "tablet-1", NOON + 3 * HOUR))
        await attached.until("select count(*) = 3 from event")
        known_at = (await attached.value("select clock_timestamp()")).isoformat()
        await attached.put(unlinked(NOON + 2 * HOUR, "crm:1"), family="identity")
        await nothing_due(attached, 2)
        await attached.put(linked(NOON - HOUR, "crm:1"), family="identity")
        await nothing_due(attached, 3)
    assert await relations(office) == [("user", "crm:1", -1, 2)]
    assert await relations(office, known_at=known_at) == [("user", "crm:1", 0, None)]
    versions = (await office.get(f"/v1/relationships/{before['id']}/versions")).json()["items"]
    assert [(each["change"], hours(each["valid_from"]), hours(each["valid_to"])) for each in versions] == [
        ("begun", 0, None), ("ended", 0, 2), ("corrected", -1, 2),
    ]  # fmt: skip
    assert [(move["direction"], hours(move["starts"]), move["events_by_type"]) for move in versions[1]["moves"]] == [
        ("lost", 2, {"device.measurement": 1, "identity.unlinked": 1})
    ]


# -- who they are --


async def test_what_an_unknown_user_did_is_claimed_as_far_as_the_policy_says_and_nobody_elses(
    attached: Bench, office: httpx.AsyncClient
) -> None:
    await register(office, "crm:9")
    await begin(office, "crm:9", "owner", -50, -20)
    async with attached.attaching(anonymous_claim_hours=-1):
        await attached.put(linked(NOON, "crm:1"), linked(NOON + HOUR, "crm:2"), family="identity")
        await attached.put(linked(NOON, "crm:1", "tablet-2"), family="identity")
        await nothing_due(attached, 3)
    assert await relations(office, role="user") == [("user", "crm:1", -20, None), ("user", "crm:2", 1, None)]
    assert await relations(office, "tablet-2") == [("user", "crm:1", None, None)]
    async with attached.attaching(anonymous_claim_hours=3):
        await attached.put(linked(NOON - HOUR, "crm:2", "tablet-2"), family="identity")
        await nothing_due(attached, 4)
    assert await relations(office, "tablet-2") == [("user", "crm:1", 0, None), ("user", "crm:2", -4, None)]


async def test_a_party_is_not_made_where_policy_forbids_and_once_registered_is_linked_from_when_it_signed_in(
    attached: Bench, office: httpx.AsyncClient
) -> None:
    async with attached.attaching(identity_creates_parties=False, identity_sweep_s=0.2):
        await attached.put(linked(NOON, "crm:1"), unlinked(NOON + HOUR, "crm:1"), family="identity")
        await nothing_due(attached, 2)
        assert await relations(office) == []
        assert await attached.value("select count(*) from party") == 0
        fate = (await office.get("/v1/events", params={"subject": "tablet-1", "id": f"in crm:1 None {NOON}"})).json()
        assert fate["fate"] == "attached"
        assert fate["identity"] == {"state": "refused", "detail": "It names a party that is not there."}
        await register(office, "crm:1")
        await related(office, ("user", "crm:1", 0, 1))


async def test_a_sign_in_that_comes_while_its_party_is_being_registered_is_linked_once_that_is_committed(
    attached: Bench, office: httpx.AsyncClient
) -> None:
    """Neither transaction sees the other: the reference is not there yet, and the event was not when that came."""
    other = await asyncpg.connect(attached.settings.postgres_dsn.get_secret_value())
    try:
        async with attached.attaching(identity_creates_parties=False, identity_sweep_s=0.1):
            async with other.transaction():
                await registered(other, "1")
                await attached.put(linked(NOON, "crm:1"), family="identity")
                await nothing_due(attached, 1)
                # Swept again, and another device has been through it: nothing is known of crm:1 yet.
                await attached.put(linked(NOON, "crm:2", "tablet-2"), family="identity")
                await nothing_due(attached, 2)
                assert await relations(office) == []
            await related(office, ("user", "crm:1", 0, None))
            await attached.until("select not exists (select from identity_event where settled_in is not null)")
    finally:
        await other.close()


async def test_a_sign_in_that_comes_while_its_reference_is_being_removed_is_no_relation_of_who_had_it(
    attached: Bench, office: httpx.AsyncClient
) -> None:
    await register(office, "crm:1")
    other = await asyncpg.connect(attached.settings.postgres_dsn.get_secret_value())
    try:
        async with attached.attaching(identity_creates_parties=False, identity_sweep_s=0.1):
            async with other.transaction():
                await other.execute("delete from party_ref")
                await attached.put(linked(NOON, "crm:1"), family="identity")
                await nothing_due(attached, 1)
                assert await relations(office) == [("user", "crm:1", 0, None)]
            await related(office)
    finally:
        await other.close()


async def registered(db: asyncpg.Connection, ref: str) -> UUID:
    party: UUID = await db.fetchval("insert into party (kind, name) values ('customer', 'Ada') returning id")
    await db.execute("insert into party_ref (namespace, ref, party) values ('crm', $1, $2)", ref, party)
    return party


async def test_whoever_draws_a_number_after_an_event_was_settled_does_not_hide_what_changed_before_that(
    attached: Bench,
) -> None:
    """The settling transaction has the lower number of the two, and ends while the other is in flight."""
    dsn = attached.settings.postgres_dsn.get_secret_value()
    settling, registering = await asyncpg.connect(dsn), await asyncpg.connect(dsn)
    key, recheck = uuid4(), Recheck()
    try:
        await attached.connection.execute(
            "insert into identity_event (key, subject, linked, namespace, ref, role, occurred_at, content_hash, "
            "sender, usable) values ($1, 'tablet-1', true, 'crm', '1', 'user', $2, $1, 'tests', true)",
            key, NOON,
        )  # fmt: skip
        due = "select due from identity_event where key = $1"
        settle, register_ = settling.transaction(), registering.transaction()
        await settle.start()
        await identities.settle(settling, identities.Settled([key], ["nobody"], [None]))
        await register_.start()
        await registered(registering, "1")
        await settle.commit()
        await recheck.begin(attached.connection)
        await recheck.look_again(attached.connection)
        assert not await attached.value(due, key)
        await register_.commit()
        async with asyncio.timeout(40):
            while not await attached.value(due, key):  # anybody else's transaction on this server may be in flight
                await recheck.look_again(attached.connection)
    finally:
        await settling.close()
        await registering.close()


async def test_who_signs_in_while_the_device_is_being_changed_becomes_a_party_all_the_same(
    attached: Bench, office: httpx.AsyncClient
) -> None:
    """Parties are made before the device is locked, and events are stored while that is waited for."""
    locker = await asyncpg.connect(attached.settings.postgres_dsn.get_secret_value())
    try:
        async with attached.attaching():
            async with locker.transaction():
                await locker.execute("select pg_advisory_xact_lock(hashtextextended('tablet-1', 0))")
                await attached.put(linked(NOON, "crm:1"), family="identity")
                await attached.until(WAITS_FOR_A_DEVICE)
                await attached.put(linked(NOON, "crm:2"), family="identity")
                await attached.until("select count(*) = 2 from identity_event")
            await nothing_due(attached, 2)
        assert await relations(office) == [("user", "crm:1", 0, None), ("user", "crm:2", 0, None)]
    finally:
        await locker.close()


async def test_a_reference_that_is_another_partys_takes_what_it_signed_in_with_it(
    attached: Bench, office: httpx.AsyncClient
) -> None:
    async with attached.attaching(identity_sweep_s=0.2):
        await attached.put(linked(NOON, "crm:1"), family="identity")
        await nothing_due(attached, 1)
        wrong = (await office.get("/v1/parties/crm:1")).json()["id"]
        right = await register(office, "shop:a9")
        assert (await office.delete(f"/v1/parties/{wrong}/refs/crm:1")).is_success
        refs = {"refs": {"crm": "1"}}
        while (answer := await office.post(f"/v1/parties/{right}/refs", json=refs)).status_code == 409:
            # The sweep was quicker, and has made another party of what nobody was called.
            assert (await office.delete(f"/v1/parties/{answer.json()['party']}/refs/crm:1")).is_success
        assert answer.is_success
        await related(office, ("user", "crm:1", "shop:a9", 0, None))


async def test_what_identifies_nobody_begins_nothing_and_the_event_stays_an_event_that_says_why(
    attached: Bench, office: httpx.AsyncClient
) -> None:
    await register(office, "erp:v-1", "vendor")
    refused = [
        linked(NOON, "crm:null"), linked(NOON, "app:anonymous"), linked(NOON, "crm:1", role="no_such_role"),
        linked(NOON, "erp:v-1", role="made_by"), linked(NOON, "crm:1", role="sold_by"),
        linked(NOON, "crm:1", "party:crm:7"), linked(NOON, "email:ada@acme.se"),
        event("odd", "tablet-1", NOON, "identity.linked", '{"party": 5}'),
        event("none", "tablet-1", NOON, "identity.linked"),
        linked(NOON, "0199f3a2-6c1e-7b60-9d3f-2a4c5e6f7a8b"),
    ]  # fmt: skip
    async with attached.attaching() as worker:
        await attached.put(*refused, linked(NOON, "crm:1"), family="identity")
        await nothing_due(attached, len(refused) + 1)
        await worker.until(lambda: worker.sample("drm_identity_events_total", result="linked") == 1)
        assert worker.sample("drm_identity_events_total", result="refused") == len(refused)
        await worker.counted({"attached": len(refused) + 1})
    assert await relations(office) == [("user", "crm:1", 0, None)]
    assert await attached.value("select count(*) from party_ref where namespace in ('app', 'email', 'email-hmac')") == 0
    assert await attached.value("select count(*) from identity_event where ref like '%acme%'") == 0
    fate = (await office.get("/v1/events", params={"subject": "tablet-1", "id": f"in crm:null None {NOON}"})).json()
    assert fate["fate"] == "attached"
    assert fate["identity"]["state"] == "refused"
    assert "'null'" in fate["identity"]["detail"]
    fate = (await office.get("/v1/events", params={"subject": "tablet-1", "id": f"in crm:1 None {NOON}"})).json()
    assert fate["identity"] == {"state": "linked", "detail": None}


async def test_a_mail_address_is_kept_as_its_keyed_hash_and_is_the_party_that_serve_knows_by_it(
    settings: Settings, attached: Bench
) -> None:
    key = SecretStr("k" * 32)
    async with attached.attaching(reference_hmac_key=key):
        await attached.put(linked(NOON, "email:Ada@Acme.se"), family="identity")
        await nothing_due(attached, 1)
    assert await attached.value("select count(*) from party_ref where namespace = 'email-hmac'") == 1
    assert await attached.value("select count(*) from relationship where upper_inf(recorded)") == 1
    assert await attached.value("select count(*) from party where name ilike '%acme%'") == 0


# -- what people say --


async def test_around_what_a_person_said_what_events_say_is_cut(attached: Bench, office: httpx.AsyncClient) -> None:
    await register(office, "crm:1")
    await register(office, "crm:2")
    theirs = [await begin(office, "crm:1", "user", 2, 4), await begin(office, "crm:2", "owner", 3, None)]
    async with attached.attaching():
        await attached.put(
            linked(NOON, "crm:1"), linked(NOON, "crm:1", role="owner"), unlinked(NOON + 6 * HOUR, "crm:1"),
            family="identity",
        )  # fmt: skip
        await nothing_due(attached, 3)
    assert await relations(office) == [
        ("owner", "crm:1", 0, 3), ("owner", "crm:2", 3, None),
        ("user", "crm:1", 0, 2), ("user", "crm:1", 2, 4), ("user", "crm:1", 4, 6),
    ]  # fmt: skip
    for id_ in theirs:
        relation = (await office.get(f"/v1/relationships/{id_}")).json()
        assert (relation["version"], relation["asserted_by"]) == (1, "office")


@pytest.mark.parametrize(
    ("verb", "body", "left"),
    [
        ("end", {"at": (NOON + HOUR).isoformat()}, [("user", "crm:1", 0, 1)]),
        ("correct", {"valid_from": (NOON - HOUR).isoformat()}, [("user", "crm:1", -1, None)]),
        ("withdraw", {}, []),
    ],
)
async def test_what_a_person_changed_stays_as_they_said_whatever_comes_late_and_a_new_sign_in_counts(
    attached: Bench, office: httpx.AsyncClient, verb: str, body: dict[str, str], left: list[tuple[Any, ...]]
) -> None:
    async with attached.attaching():
        await attached.put(linked(NOON, "crm:1"), family="identity")
        await nothing_due(attached, 1)
        (relation,) = (await office.get("/v1/relationships?subject=tablet-1")).json()["items"]
        assert (await office.post(f"/v1/relationships/{relation['id']}/{verb}", json=body)).status_code == 200
        await attached.put(
            linked(NOON + 2 * HOUR, "crm:1"), unlinked(NOON + 3 * HOUR, "crm:1"), linked(NOON, "crm:2"),
            family="identity",
        )  # fmt: skip
        await nothing_due(attached, 4)
        others = [("user", "crm:2", 0, None)]
        assert await relations(office) == sorted(left + others, key=str)
        later = datetime.now(UTC) + 2 * HOUR
        await attached.put(linked(later, "crm:1"), family="identity")
        await nothing_due(attached, 5)
    if verb != "correct":  # there they hold the role still
        left = [*left, ("user", "crm:1", hours(later.isoformat()), None)]
    assert await relations(office) == sorted(left + others, key=str)


async def test_what_a_person_says_as_events_have_said_it_is_theirs_and_stays_whatever_comes_late(
    attached: Bench, office: httpx.AsyncClient
) -> None:
    async with attached.attaching():
        await attached.put(
            linked(NOON, "crm:1"), linked(NOON, "crm:1", "tablet-2"), unlinked(NOON + 2 * HOUR, "crm:1", "tablet-2"),
            family="identity",
        )  # fmt: skip
        await nothing_due(attached, 3)
        for subject, verb, body in (
            ("tablet-1", "correct", {"valid_from": NOON.isoformat(), "valid_to": None}),
            ("tablet-2", "end", {"at": (NOON + 2 * HOUR).isoformat()}),
        ):
            (relation,) = (await office.get(f"/v1/relationships?subject={subject}")).json()["items"]
            for _ in ("said", "and said again, which changes nothing"):
                answer = await office.post(f"/v1/relationships/{relation['id']}/{verb}", json=body)
                assert answer.status_code == 200, answer.text
                assert (answer.json()["version"], answer.json()["asserted_by"]) == (2, "office")
        await attached.put(
            unlinked(NOON + HOUR, "crm:1"), unlinked(NOON + HOUR, "crm:1", "tablet-2"), family="identity"
        )
        await nothing_due(attached, 5)
    assert await relations(office) == [("user", "crm:1", 0, None)]
    assert await relations(office, "tablet-2") == [("user", "crm:1", 0, 2)]


@pytest.mark.parametrize(("users", "third"), [("owner", None), ("all", 4)])
async def test_a_sign_in_of_before_a_hand_over_ends_with_it_however_late_it_comes(
    attached: Bench, office: httpx.AsyncClient, users: str, third: float | None
) -> None:
    ada, bo, _ = [await register(office, name) for name in ("crm:1", "crm:2", "crm:3")]
    await begin(office, ada, "owner", -9, None)
    body = {"from": ada, "to": bo, "at": (NOON + 4 * HOUR).isoformat(), "users": users}
    assert (await office.post("/v1/devices/tablet-1/hand-over", json=body)).status_code == 201
    later = datetime.now(UTC) + 2 * HOUR
    async with attached.attaching():
        await attached.put(
            linked(NOON, "crm:1"), linked(NOON + 5 * HOUR, "crm:1"), linked(NOON, "crm:2"), linked(NOON, "crm:3"),
            linked(later, "crm:1"), family="identity",
        )  # fmt: skip
        await nothing_due(attached, 5)
    users_of = [row for row in await relations(office) if row[0] == "user"]
    assert users_of == sorted([
        ("user", "crm:1", 0, 4), ("user", "crm:1", hours(later.isoformat()), None), ("user", "crm:2", 0, None),
        ("user", "crm:3", 0, third),
    ], key=str)  # fmt: skip


async def test_who_signed_in_on_a_device_is_its_user_until_it_is_replaced_however_late_we_hear_of_it(
    attached: Bench, office: httpx.AsyncClient
) -> None:
    ada, _, _ = [await register(office, name) for name in ("crm:1", "crm:2", "crm:3")]
    await begin(office, ada, "owner", -9, None)
    replaced = NOON + 4 * HOUR
    async with attached.attaching(identity_sweep_s=0.2):
        await attached.put(linked(NOON, "crm:1"), family="identity")
        await nothing_due(attached, 1)
        body = {"by": "tablet-2", "at": replaced.isoformat()}
        answer = await office.post("/v1/devices/tablet-1/replacement", json=body)
        assert answer.status_code == 201, answer.text
        await nothing_due(attached, 1)
        assert await relations(office) == sorted([("owner", "crm:1", -9, 4), ("user", "crm:1", 0, 4)], key=str)
        assert await relations(office, "tablet-2") == [("owner", "crm:1", 4, None)]
        # Late: Bo signed in before it was replaced, Ada signed out before that; and on the new one Ada comes and goes.
        await attached.put(
            linked(NOON, "crm:2"), unlinked(NOON + HOUR, "crm:1"), linked(replaced + HOUR, "crm:1", "tablet-2"),
            unlinked(replaced + 2 * HOUR, "crm:1", "tablet-2"), family="identity",
        )  # fmt: skip
        await nothing_due(attached, 5)
        assert await relations(office) == sorted(
            [("owner", "crm:1", -9, 4), ("user", "crm:1", 0, 1), ("user", "crm:2", 0, 4)], key=str
        )
        assert await relations(office, "tablet-2") == sorted(
            [("owner", "crm:1", 4, None), ("user", "crm:1", 5, 6)], key=str
        )
        assert (await office.delete("/v1/devices/tablet-1/replacement")).status_code == 200
        await nothing_due(attached, 5)
        assert await relations(office) == sorted(
            [("owner", "crm:1", -9, None), ("user", "crm:1", 0, 1), ("user", "crm:2", 0, None)], key=str
        )


# -- bad days --


@contextlib.asynccontextmanager
async def process(environment: dict[str, str]) -> AsyncIterator[asyncio.subprocess.Process]:
    running = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "drm_ingest", "attach", env=environment, stderr=asyncio.subprocess.DEVNULL
    )
    try:
        yield running
    finally:
        if running.returncode is None:
            running.kill()
        await running.wait()


async def test_what_attach_had_stored_and_not_linked_when_it_was_killed_is_linked_at_its_next_start(
    attached: Bench, office: httpx.AsyncClient, environment: dict[str, str]
) -> None:
    locker = await asyncpg.connect(attached.settings.postgres_dsn.get_secret_value())
    await locker.execute("select pg_advisory_lock(hashtextextended('tablet-1', 0))")  # of whoever changes its relations
    try:
        async with process(environment) as attach:
            await attached.put(linked(NOON, "crm:1"), family="identity")
            await attached.until("select exists (select from identity_event where due)")
            await attached.until(WAITS_FOR_A_DEVICE)
            attach.send_signal(signal.SIGKILL)
            await attach.wait()
    finally:
        await locker.close()
    assert await relations(office) == []
    async with process(environment):
        await nothing_due(attached, 1)
    assert await relations(office) == [("user", "crm:1", 0, None)]


async def test_a_device_that_cannot_be_linked_holds_back_no_other_and_no_event(attached: Bench) -> None:
    await attached.connection.execute("alter table relationship add constraint not_this check (subject <> 'tablet-1')")
    async with attached.attaching() as worker:
        await attached.put(linked(NOON, "crm:1"), linked(NOON, "crm:1", "tablet-2"), family="identity")
        await attached.put(event("m", "tablet-1"))
        await attached.until("select exists (select from relationship where subject = 'tablet-2')")
        await worker.counted({"attached": 3})
        assert await attached.value("select due from identity_event where subject = 'tablet-1'")
        await attached.connection.execute("alter table relationship drop constraint not_this")
        await nothing_due(attached, 2)


# -- many --


async def test_one_more_of_five_thousand_sign_ins_is_linked_by_reading_a_few_rows_and_all_end_as_read_anew(
    attached: Bench, office: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A kiosk that a hundred people used one after the other, with one of them signed in all the time."""
    people = [await registered(attached.connection, str(number)) for number in range(100)]
    await attached.connection.execute(_VISITED, people, NOON - 10_002 * HOUR)
    rows: list[int] = []
    fetch = asyncpg.Connection.fetch

    async def counted(db: asyncpg.Connection, *asked: Any, **how: Any) -> list[asyncpg.Record]:
        found: list[asyncpg.Record] = await fetch(db, *asked, **how)
        rows.append(len(found))
        return found

    monkeypatch.setattr(asyncpg.Connection, "fetch", counted)
    came = [
        linked(NOON, "crm:7", "kiosk"), unlinked(NOON + HOUR, "crm:7", "kiosk"), linked(NOON + HOUR, "crm:8", "kiosk"),
        unlinked(NOON - 3.5 * HOUR, "crm:50", "kiosk"), unlinked(NOON + 2 * HOUR, None, "kiosk"),
        linked(NOON + 3 * HOUR, "crm:new", "kiosk"),
    ]  # fmt: skip
    async with attached.attaching(anonymous_claim_hours=-1):
        for number, value in enumerate(came, 1):
            rows.clear()
            await attached.put(value, family="identity")
            await nothing_due(attached, 10_001 + number)
            assert 0 < sum(rows) < 200, f"{sum(rows)} rows for {value!r}"
        open_ = "select id, version, valid from relationship where upper_inf(recorded) order by id"
        before = await attached.fetch(open_)
        await attached.connection.execute("update identity_event set due = true")
        await nothing_due(attached, 10_001 + len(came))
        assert await attached.fetch(open_) == before
    assert len(before) == 5_004
    seven, eight = people[7], people[8]
    held = "select party, lower(valid), upper(valid) from relationship where upper_inf(recorded) and upper(valid) > $1"
    assert {tuple(row) for row in await attached.fetch(held, NOON)} == {
        (seven, NOON, NOON + HOUR), (eight, NOON + HOUR, NOON + 2 * HOUR), (people[0], None, NOON + 2 * HOUR),
    }  # fmt: skip


# Two hours from one to the next, each is there for one; who comes first stays. It is as attach has derived it.
_VISITED = """
with visit as (
    select number, 1 + number % 99 as who, $2::timestamptz + number * interval '2 hours' as at
    from generate_series(1, 5000) as number
), event as (
    insert into identity_event
        (key, subject, linked, namespace, ref, role, method, occurred_at, content_hash, sender, usable, due)
    select gen_random_uuid(), 'kiosk', said.linked, 'crm', said.who, 'user', 'door', said.at, gen_random_uuid(),
           'tests', true, false
    from (
        select true, who::text, at from visit
        union all
        select false, who::text, at + interval '1 hour' from visit
        union all
        select true, '0', $2
    ) as said (linked, who, at)
)
insert into relationship
    (subject, role, party, exclusive, subject_kind, party_kind, valid, asserted_by, reason, derived)
select 'kiosk', 'user', ($1::uuid[])[held.who + 1], false, 'device', 'customer', held.valid, 'tests', 'door', true
from (
    select who, tstzrange(at, at + interval '1 hour') from visit
    union all
    select 0, tstzrange(null, null)
) as held (who, valid)
"""
