"""`drm-ingest dead-letters`, as a person runs it, on letters that attach made."""

import asyncio
import json
import signal
from collections.abc import AsyncIterator
from typing import Any

import asyncpg
import httpx
import pytest
from aiokafka import AIOKafkaConsumer, TopicPartition
from tests.adversity.test_poison import dead_letters, letters_of, start_dead_letters
from tests.attaching import NOON, Bench, bench, event

from drm_ingest.event import content_hash
from drm_ingest.kafka.connection import STOP_TIMEOUT_S, connection, stop
from drm_ingest.metrics import Metrics
from drm_ingest.postgres.credentials import ensure_key, new_key
from drm_ingest.serve.app import build
from drm_ingest.settings import Settings

pytestmark = pytest.mark.timeout(400)  # a dozen processes, one after the other

EVENTS = 150  # half a minute of a replay
DEPLOY = "alter table event add constraint deploy check (id not like 'e-%') not valid"
MENDED = "alter table event drop constraint deploy"


@pytest.fixture
async def attached(settings: Settings) -> AsyncIterator[Bench]:
    async with bench(settings) as made:
        yield made


async def refused(attached: Bench, count: int) -> None:
    """Have so many events set aside by attach, for a reason that is mended afterwards."""
    await attached.connection.execute(DEPLOY)
    await attached.put(*(event(f"e-{number}", f"meter-{number % 7}") for number in range(count)))
    async with attached.attaching(brake_share_max=1) as worker:
        await worker.counted({"dead_letter": count})
    await attached.connection.execute(MENDED)


async def fate(settings: Settings, db: asyncpg.Connection, subject: str, id_: str) -> dict[str, Any]:
    key = new_key()[0]
    await ensure_key(db, "office", "admin", key)
    app = build(settings, Metrics("serve"))
    async with app.router.lifespan_context(app):
        client = httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://serve")
        async with client:
            answer = await client.get(
                "/v1/events", params={"subject": subject, "id": id_}, headers={"authorization": f"Bearer {key}"}
            )
    found: dict[str, Any] = answer.raise_for_status().json()
    return found


async def test_letters_are_listed_shown_and_replayed_and_then_their_fate_is_attached(
    attached: Bench, environment: dict[str, str]
) -> None:
    await refused(attached, 3)
    before = await fate(attached.settings, attached.connection, "meter-1", "e-1")
    assert (before["fate"], len(before["dead_letters"])) == ("dead_letter", 1)

    code, out, _ = await dead_letters(environment, "list", "--stage", "attach", "--subject", "meter-1")
    assert (code, b"row_refused" in out, b"meter-1" in out, b"meter-2" in out) == (0, True, True, False)
    (letter,) = [letter for letter in await letters_of(environment) if letter["key"] == "meter-1"]
    assert letter["value"].encode() == event("e-1", "meter-1")
    code, raw, _ = await dead_letters(environment, "show", letter["letter"], "--raw")
    assert (code, raw) == (0, event("e-1", "meter-1"))
    code, out, _ = await dead_letters(environment, "show", "meter-1")
    assert b"violates check constraint" in out
    assert letter["origin"].encode() in out

    code, out, told = await dead_letters(environment, "replay", "--code", "row_refused", "--dry-run")
    assert (code, len(out.splitlines()), "3 would be written" in told) == (0, 3, True), told
    code, _, told = await dead_letters(environment, "replay")
    assert (code, "--all" in told) == (1, True)
    code, _, told = await dead_letters(environment, "replay", letter["letter"], "0:99", "--dry-run")
    assert (code, "0:99: no such" in told, "1 would be written; 1 not there" in told) == (1, True, True), told
    async with attached.attaching() as worker:
        code, _, told = await dead_letters(environment, "replay", "--code", "row_refused", "--wait-s", "60")
        assert (code, "3 written again" in told, "3 stored" in told) == (0, True, True), told
        await worker.counted({"attached": 3})
    rows = await attached.fetch("select received_at, occurred_at_raw, content_hash from event where id = 'e-1'")
    ((received_at, raw_time, hash_),) = [tuple(row) for row in rows]
    assert (received_at - NOON).total_seconds() == 1, "that of the first receipt"
    assert raw_time == NOON.isoformat()
    assert hash_.bytes == content_hash("device.measurement", NOON.isoformat(), b'{"temperature": 21.5}')
    after = await fate(attached.settings, attached.connection, "meter-1", "e-1")
    assert (after["fate"], after["dead_letters"]) == ("attached", [])
    assert all(letter["replayed"] for letter in await letters_of(environment))


async def test_a_replay_that_is_killed_goes_on_where_it_stopped_and_each_is_stored_once(
    attached: Bench, environment: dict[str, str]
) -> None:
    await refused(attached, EVENTS)
    first = await start_dead_letters(environment, "replay", "--all", "--rate", "5", "--wait-s", "0")
    async with asyncio.timeout(60):
        while not (noted := sum(letter["replayed"] for letter in await letters_of(environment))):
            assert first.returncode is None, (await first.communicate())[1]
    first.send_signal(signal.SIGKILL)
    await first.wait()
    noted = sum(letter["replayed"] for letter in await letters_of(environment))
    assert 0 < noted < EVENTS, "it was killed on its way"
    code, _, told = await dead_letters(environment, "replay", "--all", "--wait-s", "0")
    assert (code, told.strip()) == (
        0, f"{EVENTS - noted} written again; {noted} left out, replayed before (--again)"
    )  # fmt: skip
    async with attached.attaching():
        await attached.passed()
    assert await attached.value("select count(*) from event where id like 'e-%'") == EVENTS
    assert await attached.value("select count(distinct id) from event where id like 'e-%'") == EVENTS


async def test_a_consumer_that_is_stopped_while_its_partitions_change_ends(attached: Bench) -> None:
    consumer = AIOKafkaConsumer(auto_offset_reset="none", enable_auto_commit=False, **connection(attached.settings))
    await consumer.start()
    for number in (0, 1):
        partition = TopicPartition(attached.topics.dead_letters, number)
        consumer.assign([partition])
        consumer.seek(partition, 0)
        if number == 0:
            await consumer.getmany(partition, timeout_ms=300)
    stopping = asyncio.ensure_future(stop(consumer))
    _, going = await asyncio.wait([stopping], timeout=5 * STOP_TIMEOUT_S)
    stopping.cancel()
    assert not going, "it does not end by itself"


async def test_a_conflict_is_left_out_unless_named_stays_one_and_is_stored_under_another_id(
    attached: Bench, environment: dict[str, str]
) -> None:
    await attached.put(event("e-1"), event("e-1", data="{}"))
    async with attached.attaching() as worker:
        await worker.counted({"attached": 1, "dead_letter": 1})
        code, _, told = await dead_letters(environment, "replay", "--all")
        assert (code, "0 written again; 1 left out, id_conflict" in told) == (0, True), told
        code, _, told = await dead_letters(environment, "replay", "--code", "id_conflict", "--wait-s", "60")
        assert (code, "1 not stored, another event has their identity" in told) == (1, True), told
        await worker.counted({"attached": 1, "dead_letter": 2})
        letter = (await letters_of(environment))[-1]
        letter["value"] = letter["value"].replace('"e-1"', '"e-2"')
        line = json.dumps(letter).encode()
        code, _, told = await dead_letters(environment, "replay", "--mended", "-", "--wait-s", "60", given=line)
        assert (code, "1 stored" in told) == (0, True), told
        await worker.counted({"attached": 2, "dead_letter": 2})


async def test_what_would_be_set_aside_again_is_refused_before_it_is_written(
    attached: Bench, environment: dict[str, str]
) -> None:
    await refused(attached, 1)
    (letter,) = await letters_of(environment)
    for value, why in (("{", "truncated"), (letter["value"].replace("occurredat", "occurred"), "occurredat")):
        line = json.dumps({"letter": letter["letter"], "value": value}).encode()
        code, _, told = await dead_letters(environment, "replay", "--mended", "-", given=line)
        assert (code, why in told, "0 written again; 1 cannot be replayed" in told) == (1, True, True), told
    assert not (await letters_of(environment))[0]["replayed"]
