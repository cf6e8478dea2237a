"""What changes in records is published: each change, in order, by one worker at a time, whoever dies."""

import asyncio
import signal
import sys
from asyncio.subprocess import DEVNULL, PIPE, Process
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import timedelta
from typing import Any
from uuid import UUID

import asyncpg
import orjson
import pytest
from aiokafka import AIOKafkaConsumer, ConsumerRecord, TopicPartition
from tests.attaching import NOON, Bench, bench, event
from tests.conftest import make_environment

from drm_ingest.postgres.registry.parties import create
from drm_ingest.postgres.relations import link, relate, revise
from drm_ingest.postgres.relations.changes import Claim, Say
from drm_ingest.settings import Settings
from drm_ingest.up.ports import free_port

HOUR = timedelta(hours=1)


@pytest.fixture
async def attached(settings: Settings) -> AsyncIterator[Bench]:
    async with bench(settings) as made:
        yield made


async def begin(db: asyncpg.Connection, subject: str, party: UUID, start: int | None, role: str = "owner") -> UUID:
    since = None if start is None else NOON + start * HOUR
    row, _ = await relate.begin(db, Claim(subject, role, party, since, None, "office", "sale 4711"))
    id_: UUID = row["id"]
    return id_


async def a_party(db: asyncpg.Connection, ref: str) -> UUID:
    return await create(db, "customer", ref, [("crm", ref)], 50)


async def published(bench: Bench, last: int) -> list[ConsumerRecord]:
    """Wait until the change of that number is published, and return all that is there then, by time of writing."""
    topic = bench.topics.relationship_changes
    found: list[ConsumerRecord] = []
    await bench.until("select exists (select from relay_position where number >= $1)", last, timeout_s=60)
    async with AIOKafkaConsumer(bootstrap_servers=bench.settings.kafka_bootstrap) as consumer:
        partitions = [TopicPartition(topic, number) for number in range(bench.settings.topic_partitions)]
        consumer.assign(partitions)
        ends = await consumer.end_offsets(partitions)
        for partition in partitions:
            consumer.seek(partition, 0)
        while len(found) < sum(ends.values()):
            for records in (await consumer.getmany(timeout_ms=500)).values():
                found += records
    return sorted(found, key=lambda record: (record.timestamp, record.partition, record.offset))


def data(record: ConsumerRecord) -> dict[str, Any]:
    assert record.value is not None
    of: dict[str, Any] = orjson.loads(record.value)["data"]
    return of


def numbers(records: list[ConsumerRecord]) -> list[int]:
    return [data(record)["number"] for record in records]


async def last_number(bench: Bench) -> int:
    number: int = await bench.value("select max(number) from relationship_change")
    return number


async def test_each_change_is_a_cloud_event_of_its_party_with_what_was_what_is_and_what_moved(attached: Bench) -> None:
    db = attached.connection
    ada, other = await a_party(db, "1"), await a_party(db, "2")
    async with attached.attaching() as worker:
        await attached.put(event("m", "meter-1", NOON + HOUR))
        await attached.until("select exists (select from event)")
        id_ = await begin(db, "meter-1", ada, 0)
        await revise.end(db, id_, NOON + HOUR, Say("office", "returned"))
        await revise.withdraw(db, id_, Say("office", None))
        await link.link(db, link.Claim(ada, other, "office", "the same person"), 20)
        records = await published(attached, 5)
        await worker.until(lambda: worker.sample("drm_relationship_changes_published_total") == 5)
    assert sorted(numbers(records)) == [1, 2, 3, 4, 5]
    of_ada = [record for record in records if record.key == str(ada).encode()]
    assert numbers(of_ada) == [1, 2, 3, 4]
    assert all(("content-type", b"application/cloudevents+json") in record.headers for record in records)
    whole = orjson.loads(of_ada[1].value or b"")
    assert {name: whole[name] for name in whole if name not in ("data", "time")} == {
        "specversion": "1.0", "id": "2", "source": "/drm-ingest/relationship-changes",
        "type": "drm.relationship.changed", "subject": f"party:{ada}", "datacontenttype": "application/json",
    }  # fmt: skip
    ended = whole["data"]
    assert ended["after"]["recorded_at"] == whole["time"]
    assert {name: ended[name] for name in ended if name not in ("before", "after")} == {
        "number": 2, "change": "ended", "relationship": str(id_), "subject": "meter-1", "role": "owner",
        "party": str(ada), "asserted_by": "office", "reason": "returned",
        "moved": [{
            "party": str(ada), "direction": "lost", "starts": "2026-11-20T13:00:00Z", "ends": None, "events": 1,
            "events_by_type": {"device.measurement": 1},
        }],
    }  # fmt: skip
    versions = [(each["version"], each["valid_from"], each["valid_to"]) for each in (ended["before"], ended["after"])]
    assert versions == [(1, "2026-11-20T12:00:00Z", None), (2, "2026-11-20T12:00:00Z", "2026-11-20T13:00:00Z")]
    begun, _, withdrawn, joined = (data(record) for record in of_ada)
    assert (begun["before"], begun["after"]["version"], begun["moved"][0]["direction"]) == (None, 1, "gained")
    assert (withdrawn["before"]["version"], withdrawn["after"]) == (2, None)
    assert (joined["change"], joined["subject"], joined["relationship"]) == ("linked", f"party:{other}", None)
    assert joined["moved"] == []  # nothing was on the other's record


async def test_of_several_workers_one_publishes_each_change_once(attached: Bench) -> None:
    db = attached.connection
    parties = [await a_party(db, str(number)) for number in range(4)]
    async with attached.attaching(), attached.attaching(attach_port=free_port()):
        for number in range(40):
            await begin(db, f"meter-{number}", parties[number % 4], 0)
        records = await published(attached, await last_number(attached))
        assert await attached.value("select count(*) from relay_position") == 1
    assert sorted(numbers(records)) == list(range(1, 41))
    for party in parties:
        own = numbers([record for record in records if record.key == str(party).encode()])
        assert own == sorted(own)


@asynccontextmanager
async def workers(settings: Settings, count: int) -> AsyncIterator[dict[int, Process]]:
    """Run that many as processes; by pid."""
    async with AsyncExitStack() as stack:
        running = {}
        for _ in range(count):
            own = settings.model_copy(update={"attach_port": free_port()})
            process = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "drm_ingest", "attach", env=make_environment(own), stderr=DEVNULL
            )
            stack.push_async_callback(process.wait)
            stack.callback(_kill, process)
            running[process.pid] = process
        yield running


def _kill(process: Process) -> None:
    if process.returncode is None:
        process.kill()


async def the_relay(bench: Bench, among: dict[int, Process]) -> Process:
    """Wait until one of them is, and return it."""
    held = (
        "select application_name from pg_stat_activity join pg_locks using (pid) "
        "where locktype = 'advisory' and granted and application_name like 'drm relay %' "
        "and datname = current_database()"
    )
    async with asyncio.timeout(60):
        while True:
            names = [row["application_name"] for row in await bench.fetch(held)]
            for pid in (int(name.rsplit(" ", 1)[1]) for name in names):
                if pid in among:
                    return among.pop(pid)
            await asyncio.sleep(0.1)


@pytest.mark.parametrize("sent", [signal.SIGKILL, signal.SIGSTOP])
async def test_when_the_relay_is_killed_or_hangs_another_goes_on_and_no_change_is_left_out(
    attached: Bench, sent: signal.Signals
) -> None:
    db = attached.connection
    parties = [await a_party(db, str(number)) for number in range(4)]
    settings = attached.settings.model_copy(update={"produce_deadline_s": 2.0, "produce_request_timeout_s": 1.0})
    async with workers(settings, 2) as running:
        first = await the_relay(attached, running)
        changing = asyncio.create_task(_change(attached.settings, parties))
        await attached.until("select exists (select from relay_position where number > 5)")
        first.send_signal(sent)
        await changing
        second = await the_relay(attached, running)
        records = await published(attached, await last_number(attached))
        if sent is signal.SIGSTOP:  # it comes back and thinks that it still is the relay
            first.send_signal(signal.SIGCONT)
            await begin(db, "meter-last", parties[0], 0)
            records = await published(attached, await last_number(attached))
            assert first.returncode is None
        assert second.returncode is None
    assert set(numbers(records)) == set(range(1, await last_number(attached) + 1))
    for partition in range(attached.settings.topic_partitions):
        own = numbers([record for record in records if record.partition == partition])
        firsts = [number for at, number in enumerate(own) if number not in own[:at]]
        assert firsts == sorted(firsts)  # whoever drops what is not above the highest seen, sees all in order


async def _change(settings: Settings, parties: list[UUID]) -> None:
    db = await asyncpg.connect(settings.postgres_dsn.get_secret_value())
    for number in range(60):
        await begin(db, f"meter-{number}", parties[number % 4], 0)
        await asyncio.sleep(0.01)
    await db.close()


async def test_while_nothing_can_be_published_the_worker_is_not_ready_says_why_and_shows_the_lag(
    attached: Bench,
) -> None:
    db = attached.connection
    ada = await a_party(db, "1")
    async with attached.attaching(produce_deadline_s=2, produce_request_timeout_s=1) as worker:
        await worker.until_ready()
        await db.execute("alter table relay_position rename to gone")
        await begin(db, "meter-1", ada, 0)
        reason = await worker.until_ready(False, "changes of relations are not published")
        assert "relay_position" in reason
        assert worker.sample("drm_relationship_changes_lag_seconds") > 1
        await attached.put(event("m", "meter-1"))
        await attached.until("select exists (select from event)")  # events are attached all the same
        await db.execute("alter table gone rename to relay_position")
        await worker.until_ready()
        await published(attached, 1)
        await worker.until(lambda: worker.sample("drm_relationship_changes_lag_seconds") == 0)


async def test_people_and_programs_see_changes_with_tail(attached: Bench, environment: dict[str, str]) -> None:
    db = attached.connection
    ada, bo = await a_party(db, "1"), await a_party(db, "2")
    async with attached.attaching():
        await attached.put(event("m", "meter-1", NOON))
        await attached.until("select exists (select from event)")
        await begin(db, "meter-1", ada, None)
        await begin(db, "meter-2", bo, 0)
        await published(attached, 2)

    async def seen(*arguments: str) -> list[str]:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "drm_ingest", "tail", "relationship-changes", "--from-beginning", *arguments,
            env=environment, stdout=PIPE, stderr=DEVNULL,
        )  # fmt: skip
        output, _ = await process.communicate()
        return output.decode().splitlines()

    line, *rest = await seen("--pretty", "--subject", "meter-1", "--limit", "1")
    assert line.split("  ", 1)[1] == "meter-1  owner begun"
    assert rest[:2] == ["  since ever on", "  gained 1 event, since ever on  device.measurement=1"]
    assert f"number=1  party={ada}" in rest[2]
    assert "asserted_by=office  reason=sale 4711" in rest[2]
    (of_bo,) = await seen("--ndjson", "--subject", f"party:{bo}", "--limit", "1")
    assert orjson.loads(of_bo)["data"]["subject"] == "meter-2"
    assert len(await seen("--ndjson", "--limit", "2")) == 2
