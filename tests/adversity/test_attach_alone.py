"""The bad days of attach: whatever dies or hangs, and at whichever point, each event is stored exactly once."""

import asyncio
import contextlib
import random
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from uuid import uuid4

import asyncpg
import pytest
from aiokafka import ConsumerRecord, TopicPartition
from pydantic import SecretStr
from tests.attaching import NOON, Bench, bench, event

from drm_ingest.errors import EventCode
from drm_ingest.kafka.writer import NotAcknowledged
from drm_ingest.pipeline.attach.decode import Decoder
from drm_ingest.postgres.store.dead import Dead
from drm_ingest.postgres.store.events import Batch, EventStore
from drm_ingest.postgres.store.positions import UNTOUCHED, Fenced, Move, Owner
from drm_ingest.settings import Settings
from drm_ingest.up.postgres import Postgres

EXACT = """
select (select count(*) from event) = $1 and (select count(distinct id) from event) = $1
    and (select count(*) from event_identity) = $1 and (select sum(events) from subject_day) = $1
"""

# Its rows are in, its day counts wait for a table that the test has locked.
STUCK = """
(select pid from pg_locks join pg_stat_activity using (pid) where not granted
    and relation = 'subject_day'::regclass and application_name like 'drm attach%')
"""
IN_MID_TRANSACTION = "select exists " + STUCK


@pytest.fixture
async def attached(settings: Settings) -> AsyncIterator[Bench]:
    async with bench(settings) as made:
        yield made


@contextlib.asynccontextmanager
async def process(environment: dict[str, str], log: Path) -> AsyncIterator[asyncio.subprocess.Process]:
    """`drm-ingest attach`, as an operator starts it."""
    with log.open("ab") as output:
        started = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "drm_ingest", "attach", env=environment, stdout=output, stderr=output
        )
        try:
            yield started
        finally:
            with contextlib.suppress(ProcessLookupError):
                started.kill()
            await started.wait()


def record(partition: TopicPartition, offset: int, value: bytes) -> "ConsumerRecord[bytes, bytes]":
    return ConsumerRecord(partition.topic, partition.partition, offset, 0, 0, b"meter-1", value, None, 0, 0, ())


async def some(bench: Bench, count: int, subjects: int = 40) -> None:
    await bench.put(*(event(f"e-{number}", f"meter-{number % subjects}") for number in range(count)))


# -- the worker dies --


@pytest.mark.slow
@pytest.mark.row("worker-killed")
async def test_killed_again_and_again_under_load_it_stores_each_once(
    attached: Bench, environment: dict[str, str], tmp_path: Path
) -> None:
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    draw = random.Random(seed)
    putting = asyncio.create_task(some(attached, 30_000))
    environment["DRM_ATTACH_BATCH_RECORDS_MAX"] = "200"
    for _ in range(4):
        async with process(environment, tmp_path / "log"):
            before = await attached.value("select count(*) from event")
            await attached.until("select count(*) > $1 from event", before)
            await asyncio.sleep(draw.uniform(0, 0.3))
    await putting
    async with process(environment, tmp_path / "log"):
        await attached.until(EXACT, 30_000)


# -- Postgres dies --


@pytest.mark.row("postgres-down")
async def test_when_its_backend_is_ended_in_mid_transaction_it_reads_on_from_the_position(attached: Bench) -> None:
    blocker = await asyncpg.connect(attached.settings.postgres_dsn.get_secret_value())
    async with attached.attaching(attach_batch_records_max=100) as worker:
        await attached.until("select exists (select from consumer_position)")
        retried = 0.0
        for number in range(3):
            await blocker.execute("begin; lock table subject_day in access exclusive mode")
            await attached.put(*(event(f"e-{number}-{n}", f"meter-{n % 40}") for n in range(1000)))
            await attached.until(IN_MID_TRANSACTION)
            await attached.value("select count(pg_terminate_backend(pid)) from pg_stat_activity where pid in " + STUCK)
            await blocker.execute("commit")
            await attached.until(EXACT, 1000 * (number + 1))
            assert worker.outcomes()["retried"] > retried, "no batch was in hand when its backend ended"
            retried = worker.outcomes()["retried"]
        await worker.settled()
        assert worker.outcomes()["attached"] == 3000
    await blocker.close()


@pytest.mark.slow
@pytest.mark.row("postgres-down")
async def test_while_postgres_is_gone_it_is_not_ready_and_when_it_is_back_nothing_is_missing(
    settings: Settings, private_postgres: Callable[[], Postgres]
) -> None:
    server = private_postgres()
    async with bench(settings.model_copy(update={"postgres_dsn": SecretStr(server.dsn)})) as attached:
        await attached.put(event("before"))
        async with attached.attaching() as worker:
            await worker.until_ready()
            await attached.until("select count(*) = 1 from event")
            await attached.connection.close()
            await asyncio.to_thread(server.kill)
            await attached.put(*(event(f"e-{number}") for number in range(500)))
            assert await worker.until_ready(False)
            await asyncio.to_thread(server.start)
            attached.connection = await asyncpg.connect(server.dsn)
            await attached.until(EXACT, 501)
            await worker.until_ready()
            await worker.settled()


@pytest.mark.row("postgres-down")
async def test_when_postgres_dies_it_says_what_happened_and_what_to_do_and_nothing_of_its_libraries(
    settings: Settings, private_postgres: Callable[[], Postgres]
) -> None:
    server = await asyncio.to_thread(private_postgres)
    there = settings.model_copy(update={"postgres_dsn": SecretStr(server.dsn)})
    async with bench(there) as attached, attached.attaching() as worker:
        await worker.until_ready()
        await attached.connection.close()
        await asyncio.to_thread(server.kill)
        for reason in (await worker.until_ready(False), await worker.until_ready(False, reason="cannot be reached")):
            what, _, to_do = reason.partition(" · ")
            assert what.startswith("Postgres cannot be used: it ")
            assert to_do.startswith("start it")
            assert not [words for words in ("connection is closed", "asyncpg", "Error", "None") if words in reason]
        await asyncio.to_thread(server.start)
        attached.connection = await asyncpg.connect(server.dsn)
        await worker.until_ready()


@pytest.mark.row("postgres-down")
async def test_a_lock_that_does_not_come_free_delays_and_loses_nothing(attached: Bench) -> None:
    blocker = await asyncpg.connect(attached.settings.postgres_dsn.get_secret_value())
    await blocker.execute("begin; lock table event_identity in share mode")
    await some(attached, 50)
    async with attached.attaching(postgres_lock_timeout_s=0.2) as worker:
        await worker.until(lambda: worker.outcomes().get("retried", 0) > 0)
        await worker.until_ready(False, reason="lock timeout")
        await blocker.execute("commit")
        await attached.until(EXACT, 50)
        await worker.until_ready()
    await blocker.close()


async def test_partitions_that_could_not_be_claimed_when_they_came_are_claimed_later(attached: Bench) -> None:
    blocker = await asyncpg.connect(attached.settings.postgres_dsn.get_secret_value())
    await blocker.execute("begin; lock table consumer_position in access exclusive mode")
    await some(attached, 50)
    async with attached.attaching(postgres_lock_timeout_s=0.2) as worker:
        await worker.until_ready(False, reason="lock timeout")
        await blocker.execute("commit")
        await attached.until(EXACT, 50)
        await worker.until_ready()
        await worker.counted({"attached": 50})
    await blocker.close()


async def test_a_table_that_is_missing_sends_nothing_to_the_dead_letters(attached: Bench) -> None:
    await attached.connection.execute("alter table device rename to hidden")
    await some(attached, 50)
    async with attached.attaching() as worker:
        await worker.until(lambda: worker.outcomes().get("retried", 0) > 0)
        await attached.connection.execute("alter table hidden rename to device")
        await attached.until(EXACT, 50)
        assert "dead_letter" not in worker.outcomes()


# -- Kafka is not what it was --


async def test_a_dead_letter_that_kafka_does_not_acknowledge_holds_its_batch_back(attached: Bench) -> None:
    partition = TopicPartition(attached.topics.events("measurement"), 0)
    owner = Owner(f"{attached.settings.topic_prefix}.attach", "drm attach test")
    acknowledged = False

    async def bury(_: object) -> None:
        if not acknowledged:
            raise NotAcknowledged("the broker is away")

    batch = Batch(
        {partition: Move(UNTOUCHED, 2)},
        [Decoder().row(record(partition, 0, event("e-1")))],
        [Dead(record(partition, 1, b"{"), EventCode.UNREADABLE, "truncated")],
    )
    async with EventStore(attached.settings, owner, bury) as store:
        await store.claim([partition])
        with pytest.raises(NotAcknowledged):
            await store.store(batch)
        assert await attached.value("select count(*) from event") == 0
        assert await attached.value("select next_offset from consumer_position") == UNTOUCHED
        acknowledged = True
        stored = await store.store(batch)
    assert (len(stored.attached), len(stored.dead)) == (1, 1)
    assert await attached.value("select next_offset from consumer_position") == 2
    assert await attached.value("select count(*) from dead_letter") == 1


async def test_events_deleted_unread_stop_it_and_it_says_what_to_do(
    attached: Bench, environment: dict[str, str], tmp_path: Path
) -> None:
    await attached.put(event("e-1"), partition=0)
    async with attached.attaching():
        await attached.until(EXACT, 1)
    await attached.connection.execute("update consumer_position set next_offset = 1000 where next_offset > 0")
    async with process(environment, tmp_path / "log") as worker:
        assert await asyncio.wait_for(worker.wait(), 30) == 1
    assert "delete the partition's row of consumer_position" in (tmp_path / "log").read_text()
    await attached.connection.execute("delete from consumer_position where next_offset = 1000")
    async with attached.attaching() as again:
        await attached.put(event("e-2"), partition=0)
        await attached.until(EXACT, 2)
        await again.counted({"attached": 1, "duplicate": 1})


# -- two workers --


@pytest.mark.slow
@pytest.mark.row("rebalance")
async def test_two_workers_share_the_partitions_and_the_one_that_stays_takes_them_all_back(attached: Bench) -> None:
    async with attached.attaching(attach_port=0) as first:
        await some(attached, 3000)
        await attached.until(EXACT, 3000)
        async with attached.attaching(attach_port=0):
            await attached.until("select count(distinct holder) = 2 from consumer_position")
            await attached.put(*(event(f"both-{number}", f"meter-{number % 40}") for number in range(3000)))
            await attached.until(EXACT, 6000)
            assert first.outcomes()["attached"] < 6000, "the second had its share"
        await attached.put(*(event(f"one-{number}", f"meter-{number % 40}") for number in range(3000)))
        await attached.until(EXACT, 9000)
        assert first.sample("drm_fenced_total") == 0


@pytest.mark.row("zombie")
async def test_a_zombie_stuck_in_its_transaction_is_ended_by_its_successor_and_can_store_nothing_more(
    attached: Bench,
) -> None:
    await attached.put(event("e-1"), event("e-2"), partition=0)
    partition = TopicPartition(attached.topics.events("measurement"), 0)
    stuck, go_on = asyncio.Event(), asyncio.Event()

    async def bury(_: object) -> None:
        stuck.set()
        await go_on.wait()

    rows = [Decoder().row(record(partition, 0, event("e-1"))), Decoder().row(record(partition, 1, event("e-2")))]
    dead = [Dead(record(partition, 2, b""), EventCode.UNREADABLE, "")]
    owner = Owner(f"{attached.settings.topic_prefix}.attach", f"drm attach zombie {uuid4().hex[:8]}")
    batch = Batch({partition: Move(UNTOUCHED, 2)}, rows, dead)
    async with EventStore(attached.settings, owner, bury) as zombie:
        assert await zombie.claim([partition]) == {partition: UNTOUCHED}
        storing = asyncio.create_task(zombie.store(batch))
        await stuck.wait()  # it holds the position and both keys, and will not let go
        async with attached.attaching() as worker:
            await attached.until(EXACT, 2)
            go_on.set()
            with pytest.raises((asyncpg.PostgresError, asyncpg.InterfaceError, OSError)):
                await storing
            with pytest.raises(Fenced):
                await zombie.store(batch)
            await worker.counted({"attached": 2})
            await attached.put(event("e-3"), partition=0)
            await attached.until(EXACT, 3)


@pytest.mark.row("zombie")
async def test_a_worker_whose_position_moved_under_it_rolls_back_and_goes_on_from_the_truth(attached: Bench) -> None:
    await some(attached, 300)
    async with attached.attaching() as worker:
        await attached.until(EXACT, 300)
        await attached.connection.execute(
            "update consumer_position set next_offset = next_offset - 10 where next_offset > 50"
        )
        await attached.put(*(event(f"later-{number}", f"meter-{number}") for number in range(100)))
        await attached.until(EXACT, 400)
        await worker.settled()
        assert worker.sample("drm_fenced_total") >= 1
        assert worker.outcomes()["attached"] == 400
        assert worker.outcomes()["duplicate"] == 10 * await attached.value(
            "select count(*) from consumer_position where next_offset > 50"
        )


# -- at the start --


async def test_without_migrations_it_waits_and_says_what_to_do(
    settings: Settings, private_postgres: Callable[[], Postgres]
) -> None:
    from drm_ingest.postgres.migrate import migrate

    server = private_postgres()
    admin = await asyncpg.connect(server.dsn)
    await admin.execute("create database empty")
    dsn = server.dsn.rpartition("/")[0] + "/empty"
    async with bench(settings.model_copy(update={"postgres_dsn": SecretStr(dsn)})) as attached:
        await attached.put(event("e-1", at=NOON))
        async with attached.attaching() as worker:
            await worker.until_ready(False, reason="drm-ingest migrate")
            await migrate(dsn)
            await worker.until_ready()
            await attached.until("select count(*) = 1 from event")
    await admin.close()
