"""What comes bit by bit, and is changed by people in between, is in the end what is derived from all of it at once."""

import asyncio
import os
import secrets
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from random import Random
from typing import Any

import asyncpg
import httpx
import pytest
from tests.integration.test_records import party

from drm_ingest.metrics import Metrics
from drm_ingest.pipeline.attach.link import Linker, derived
from drm_ingest.postgres.pool import Pool, open_pool
from drm_ingest.postgres.relations import evidence
from drm_ingest.settings import Settings

SEED = int(os.environ.get("TEST_SEED") or secrets.randbits(32))
NOON = datetime(2026, 11, 20, 12, tzinfo=UTC)
HOUR = timedelta(hours=1)
STEPS = 60
KIOSK = "kiosk"
TABLES = (
    "identity_event, hand_over, device_replacement_relation, device_replacement, relationship_move, "
    "relationship_change, relationship"
)


@pytest.fixture
async def pool(serve_settings: Settings) -> AsyncIterator[Pool]:
    async with open_pool(serve_settings, "drm link", connections_max=1) as made:
        yield made


class Life:
    """A device on which people sign in and out, in the order of time but for what is late."""

    def __init__(self, random: Random, admin: httpx.AsyncClient, db: asyncpg.Connection, people: list[str]) -> None:
        self.random, self.admin, self.db, self.people = random, admin, db, people
        self.now = datetime.now(UTC).replace(minute=0, second=0, microsecond=0) - STEPS // 2 * HOUR

    def _time(self, late: int) -> datetime:
        return self.now - self.random.randrange(late) * HOUR / 2

    async def sign(self) -> None:
        """Let one or two be linked or unlinked, mostly now."""
        one = self.random.choice
        for _ in range(one((1, 1, 2))):
            linked = self.random.random() < 0.6
            who = one(["a", "b", "c", "d", *([] if linked else [None, None])])
            await said(
                self.db, linked, who, self._time(one((1, 1, 1, 40))), one(["user"] * 5 + ["owner"]),
                one((None, None, "2", "10")), self._uuid(),
            )  # fmt: skip

    def _uuid(self) -> str:
        return f"{self.random.getrandbits(128):032x}"

    async def change(self) -> str:
        """Let a person change something; return what came of it."""
        one = self.random.choice
        at, role = self._time(30), one(("user", "owner"))
        body: dict[str, Any] = {}
        match one(("begin", "end", "correct", "withdraw", "hand-over", "replace", "rename")):
            case "begin" as verb:
                path = "/v1/relationships"
                until = one((None, (at + one((1, 5, 40)) * HOUR).isoformat()))
                body = {"subject": KIOSK, "role": role, "party": one(self.people), "valid_from": at.isoformat(),
                        "valid_to": until}  # fmt: skip
            case "hand-over" as verb:
                path = f"/v1/devices/{KIOSK}/hand-over"
                owner, since = await self.db.fetchrow(
                    "select party, lower(valid) from relationship where subject = $1 and role = 'owner' "
                    "and upper_inf(recorded) order by lower(valid) desc nulls last limit 1", KIOSK,
                ) or (None, None)  # fmt: skip
                at = since + HOUR / 4 if since else at
                body = {"from": str(owner or one(self.people)), "to": one(self.people), "at": at.isoformat(),
                        "users": one(("owner", "all"))}  # fmt: skip
            case "replace" as verb:
                path = f"/v1/devices/{KIOSK}/replacement"
                if self.random.random() < 0.6:
                    return f"undo {(await self.admin.delete(path)).status_code}"
                body = {"by": "kiosk-2", "at": at.isoformat()}
            case "rename" as verb:
                await self.db.execute(
                    "with gone as (delete from party_ref where ref = $1 returning ref) select from gone",
                    ref := one("abcd"),
                )
                await self.db.execute("insert into party_ref values ('crm', $1, $2)", ref, one(self.people))
                return verb
            case verb:
                id_ = await self.db.fetchval(
                    "select id from relationship where subject = $1 and upper_inf(recorded) "
                    "order by md5(id || $2) limit 1", KIOSK, str(self.now),
                )  # fmt: skip
                path = f"/v1/relationships/{id_}/{verb}"
                body = {"end": {"at": at.isoformat()}, "correct": {"valid_from": at.isoformat()}}.get(verb, {})
        return f"{verb} {(await self.admin.post(path, json=body)).status_code}"


async def said(
    db: asyncpg.Connection,
    linked: bool,
    who: str | None,
    at: datetime,
    role: str = "user",
    sequence: str | None = None,
    key: str | None = None,
) -> None:
    """Store an identity event about crm:`who`, or about everybody."""
    await db.execute(
        "insert into identity_event (key, subject, linked, namespace, ref, role, method, occurred_at, sequence, "
        "content_hash, sender, usable) values ($1, $2, $3, $4, $5, $6, 'door', $7, $8, $1, 'tests', true)",
        key or secrets.token_hex(16), KIOSK, linked, who and "crm", who, role, at, sequence,
    )  # fmt: skip


async def link(db: asyncpg.Connection, linker: Linker) -> None:
    """Let the linker of attach run until nothing is due."""
    running = asyncio.create_task(linker.work())
    try:
        async with asyncio.timeout(60):
            while await db.fetchval("select exists (select from identity_event where due)"):  # noqa: ASYNC110
                await asyncio.sleep(0.01)  # the other end is a database
    finally:
        running.cancel()
        await asyncio.wait([running])


@pytest.mark.timeout(300)
@pytest.mark.parametrize("hours", [0, 2, -1])
async def test_relations_of_what_came_bit_by_bit_are_those_derived_from_all_of_it_at_once(
    admin: httpx.AsyncClient,
    db: asyncpg.Connection,
    pool: Pool,
    serve_settings: Settings,
    monkeypatch: pytest.MonkeyPatch,
    hours: int,
) -> None:
    told, read = Counter[str](), evidence.known

    async def counted(db: asyncpg.Connection, subject: str, settled: evidence.SettledUntil | None) -> evidence.Known:
        told["a part read" if settled else "all read"] += 1
        return await read(db, subject, settled)

    monkeypatch.setattr(evidence, "known", counted)
    random, claim = Random(SEED), None if hours < 0 else hours * HOUR
    settings = serve_settings.model_copy(update={"anonymous_claim_hours": hours})
    people = [await party(admin, name, crm=name) for name in "abcd"]
    for device in (KIOSK, "kiosk-2"):
        assert (await admin.put(f"/v1/devices/{device}", json={})).status_code == 201
    for run in range(3):
        await db.execute(f"truncate {TABLES}")
        life = Life(random, admin, db, people)
        for step in range(STEPS):
            life.now += HOUR
            if random.random() < 0.2 * run:
                told[await life.change()] += 1
            await life.sign()
            await link(db, Linker(settings, Metrics("attach"), pool))
            all_ = await read(db, KIOSK, None)
            expected = {(each.role, each.party, each.starts, each.ends) for each in derived(all_, claim) or ()}
            found = [tuple(row[name] for name in ("role", "party", "valid_from", "valid_to"))
                     for row in all_.open if row["derived"]]  # fmt: skip
            assert set(found) == expected, f"TEST_SEED={SEED}, {hours=}, {run=}, {step=}"
            assert len(found) == len(expected)
    print(f"TEST_SEED={SEED}: {dict(sorted(told.items()))}")
    assert told["a part read"] > STEPS


@pytest.fixture
async def kiosk(admin: httpx.AsyncClient, db: asyncpg.Connection, pool: Pool, serve_settings: Settings) -> "Kiosk":
    """With an unlimited claim, and two people."""
    settings = serve_settings.model_copy(update={"anonymous_claim_hours": -1, "identity_sweep_s": 0.05})
    people = {name: await party(admin, name, crm=name) for name in "ab"}
    return Kiosk(admin, db, Linker(settings, Metrics("attach"), pool), people)


@dataclass
class Kiosk:
    admin: httpx.AsyncClient
    db: asyncpg.Connection
    linker: Linker
    people: dict[str, str]

    async def hears(self, linked: bool, who: str | None, at: float, role: str = "user") -> None:
        await said(self.db, linked, who, NOON + at * HOUR, role)
        await link(self.db, self.linker)

    async def begin(self, role: str, who: str, start: float, end: float) -> str:
        body = {"subject": KIOSK, "role": role, "party": self.people[who]}
        for name, at in (("valid_from", start), ("valid_to", end)):
            body[name] = (NOON + at * HOUR).isoformat()
        answer = await self.admin.post("/v1/relationships", json=body)
        assert answer.status_code == 201, answer.text
        return str(answer.json()["id"])

    async def users(self) -> set[tuple[str, float | None, float | None]]:
        names = {uuid: name for name, uuid in self.people.items()}
        rows = await self.db.fetch(
            "select party, lower(valid) as starts, upper(valid) as ends from relationship "
            "where role = 'user' and upper_inf(recorded)"
        )
        return {
            (names[str(row["party"])], *(bound and (bound - NOON) / HOUR for bound in (row["starts"], row["ends"])))
            for row in rows
        }


async def test_where_a_person_took_back_what_relations_were_cut_around_the_next_event_makes_them_whole(
    kiosk: Kiosk,
) -> None:
    stated = await kiosk.begin("user", "a", 2, 4)
    await kiosk.hears(True, "a", 1)
    assert await kiosk.users() == {("a", None, 2), ("a", 2, 4), ("a", 4, None)}
    assert (await kiosk.admin.post(f"/v1/relationships/{stated}/withdraw", json={})).status_code == 200
    await kiosk.hears(True, "b", 6)
    assert await kiosk.users() == {("a", None, None), ("b", 6, None)}


async def test_where_a_person_said_who_had_a_device_before_the_next_event_makes_the_claim_end_there(
    kiosk: Kiosk,
) -> None:
    await kiosk.hears(True, "a", 1)
    assert await kiosk.users() == {("a", None, None)}
    await kiosk.begin("owner", "b", -9, -5)
    await kiosk.hears(True, "b", 6)
    assert await kiosk.users() == {("a", -5, None), ("b", 6, None)}


async def test_the_first_sign_in_claims_what_was_before_it_also_after_events_of_another_role(kiosk: Kiosk) -> None:
    await kiosk.hears(True, "a", 0, "owner")
    await kiosk.hears(False, "a", 1, "owner")
    await kiosk.hears(True, "b", 3)
    assert await kiosk.users() == {("b", 1, None)}


async def test_who_is_signed_in_behind_what_a_person_stated_is_so_again_where_that_ends(kiosk: Kiosk) -> None:
    await kiosk.begin("user", "a", 2, 8)
    await kiosk.hears(True, "a", 1)
    for at in (3, 8):
        await kiosk.hears(True, "b", at)
        assert await kiosk.users() == {("a", None, 2), ("a", 2, 8), ("a", 8, None), ("b", 3, None)}
    await kiosk.hears(False, None, 8)
    # At one moment who leaves does so before the next comes.
    assert await kiosk.users() == {("a", None, 2), ("a", 2, 8), ("b", 3, 8), ("b", 8, None)}
