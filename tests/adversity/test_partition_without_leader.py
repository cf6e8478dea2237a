"""One partition is in trouble, the others are not: only its own events wait, and it needs nobody to go on."""

import asyncio
import random
import signal
import statistics
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType
from aiokafka.errors import GroupCoordinatorNotAvailableError
from tests.adversity.parts import KEY, Parts
from tests.adversity.posting import Posts, posting, statuses
from tests.conftest import make_settings
from tests.integration.brokers import SecondBroker, strike
from tests.integration.edge import Wire, an_event, request

from drm_ingest.kafka.partition import murmur2
from drm_ingest.kafka.topics import Topics
from drm_ingest.schema import Schemas
from drm_ingest.settings import Settings
from drm_ingest.up.kafka import Kafka

LONELY = 1  # the partition that only the second broker has
AGAIN_WITHIN_S = 10.0
PHASE_S = 10.0

Seen = Callable[[str], None]

pytestmark = pytest.mark.timeout(600)  # brokers take long to start on a busy machine


@dataclass
class Lopsided:
    """Two brokers without replicas: one partition of every topic is with the second, all else with the first."""

    parts: Parts
    second: SecondBroker

    async def gone(self, what: signal.Signals) -> float:
        await strike(self.second, what)
        return time.monotonic()

    async def back(self, what: signal.Signals) -> float:
        if what is signal.SIGSTOP:
            self.second.signal(signal.SIGCONT)
        else:
            await asyncio.to_thread(self.second.start)
        return time.monotonic()

    def subject_of(self, partition: int) -> str:
        """Return a new subject of that partition."""
        while True:
            subject = f"meter-{random.getrandbits(64):x}"
            if murmur2(subject.encode()) % self.parts.settings.topic_partitions == partition:
                return subject

    def subject_of_lonely(self) -> str:
        """Return a new subject of the partition that only the second broker has."""
        return self.subject_of(LONELY)

    def subject_of_others(self) -> str:
        """Return a new subject of any other partition."""
        others = [number for number in range(self.parts.settings.topic_partitions) if number != LONELY]
        return self.subject_of(random.choice(others))


@pytest.fixture
async def lopsided(
    private_kafka: Callable[[], Kafka], tmp_path: Path, database: str, start_parts: Callable[[Settings], Parts]
) -> AsyncIterator[Lopsided]:
    first = await asyncio.to_thread(private_kafka)
    settings = make_settings(first, database).model_copy(
        update={"produce_deadline_s": 3, "produce_request_timeout_s": 1.5}
    )
    await _keep_groups_with(first, settings)
    second = SecondBroker(tmp_path / "second", first)
    await asyncio.to_thread(second.start)
    try:
        names = Topics.of(settings)
        assignment = {number: [2 if number == LONELY else 1] for number in range(settings.topic_partitions)}
        async with _admin(settings) as admin:
            answer = await admin.create_topics(
                [
                    NewTopic(name, -1, -1, assignment, names.configs(name, settings))
                    for name in names.all(Schemas.load(settings.schemas_dir).families)
                ]
            )
        assert not [error for error in answer.topic_errors if error[1]]
        yield Lopsided(await asyncio.to_thread(start_parts, settings), second)
    finally:
        second.kill()


@asynccontextmanager
async def _admin(settings: Settings) -> AsyncIterator[AIOKafkaAdminClient]:
    admin = AIOKafkaAdminClient(bootstrap_servers=settings.kafka_bootstrap)
    await admin.start()
    try:
        yield admin
    finally:
        await admin.close()


async def _keep_groups_with(first: Kafka, settings: Settings) -> None:
    """Have the topic of the offsets made while there is one broker, or half of the groups would go with the second."""
    async with _admin(settings) as admin, asyncio.timeout(30):
        while True:
            try:
                await admin.find_coordinator("anybody")
            except GroupCoordinatorNotAvailableError:
                await asyncio.sleep(0.1)
            else:
                return


@pytest.mark.row("partition-without-leader")
@pytest.mark.row("one-partition")
@pytest.mark.parametrize(
    "what", [signal.SIGKILL, pytest.param(signal.SIGSTOP, marks=pytest.mark.slow)], ids=["killed", "frozen"]
)
async def test_a_partition_without_a_leader_fails_its_own_events_in_time_and_takes_the_next_when_it_has_one_again(
    lopsided: Lopsided, seed: int, seen: Seen, what: signal.Signals
) -> None:
    parts = lopsided.parts
    pids = {name: parts[name].pid for name in ("edge", "enrich", "attach")}
    async with (
        parts.ledger(events=3000, seed=seed, rate=1000) as ledger,
        posting(parts, 8, lopsided.subject_of_lonely) as lonely,
        posting(parts, 8, lopsided.subject_of_others) as others,
    ):
        await lonely.acknowledged(time.monotonic(), 10)
        gone_at = await lopsided.gone(what)
        await asyncio.sleep(2 * parts.settings.produce_deadline_s)
        gone = lonely.answered(gone_at + 1, time.monotonic())
        await _reached_postgres(others, gone_at + 1)
        back_at = await lopsided.back(what)
        again_s = (await lonely.acknowledged(back_at, 60)).answered_at - back_at
    for posts in (lonely, others):
        await posts.check_stored()

    seen(
        f"{what.name}: its own {dict(statuses(gone))}, others {dict(statuses(others.all))}, "
        f"its next 200 {again_s:.1f} s after the broker"
    )
    assert set(statuses(gone)) == {503}
    assert set(statuses(others.all)) == {200}
    lonely.check_in_time(parts.settings.produce_deadline_s)
    assert again_s < AGAIN_WITHIN_S
    assert ledger.resent
    assert pids == {name: parts[name].pid for name in pids}, "nothing was restarted"
    assert all(parts[name].alive for name in pids)


@pytest.mark.row("partition-without-leader")
async def test_of_a_batch_over_the_limit_of_the_broker_only_the_event_that_is_too_large_fails_and_the_next_succeeds(
    kafka: Kafka, database: str, start_parts: Callable[..., Parts], seen: Seen
) -> None:
    parts = await asyncio.to_thread(start_parts, make_settings(kafka, database), ["edge"])
    settings = parts.settings
    ingress = Topics.of(settings).ingress
    async with _admin(settings) as admin:  # behind our back, while all is running
        config = {**Topics.of(settings).configs(ingress, settings), "max.message.bytes": "20000"}
        await admin.alter_configs([ConfigResource(ConfigResourceType.TOPIC, ingress, config)])
    subject = "meter-7"
    large = an_event(subject=subject, type="unknown.to.us", data={"text": "x" * 20_000})
    small = [
        an_event(subject=subject, type="unknown.to.us", data={"number": number, "text": "x" * 2000})
        for number in range(100)
    ]
    reader, writer = await asyncio.open_connection("127.0.0.1", settings.edge_port)
    wire = Wire(reader, writer)
    async with asyncio.timeout(60):
        while True:  # until the broker has heard of its new limit
            await wire.send(request([large], key=KEY))
            refused = await wire.reply()
            if refused.status != 200:
                break
        began = time.monotonic()
        await wire.send(request(small, key=KEY))  # ten times the limit when they go together
        answered = await wire.reply()
        took_s = time.monotonic() - began
    writer.close()

    seen(f"an event over the limit: {refused.status} {refused.code}; 200 KB of the next: 200 after {took_s:.2f} s")
    assert (refused.status, refused.code) == (503, "not_acknowledged")
    assert "keep all of it" in refused.json()["detail"]
    assert answered.status == 200
    assert answered.json()["accepted"] == 100
    assert "max.message.bytes" in parts["edge"].log_file.read_text()
    await parts.ready("edge")


@pytest.mark.row("one-partition")
@pytest.mark.slow
async def test_the_p99_of_the_others_at_most_doubles_while_the_broker_of_one_partition_is_stopped(
    lopsided: Lopsided, seed: int, seen: Seen
) -> None:
    parts = lopsided.parts
    up_s: list[float] = []
    down_s: list[float] = []
    async with (
        posting(parts, 4, lopsided.subject_of_lonely) as lonely,
        posting(parts, 8, lopsided.subject_of_others) as others,
    ):
        for what in (signal.SIGKILL, signal.SIGSTOP, signal.SIGKILL, signal.SIGSTOP):
            await lonely.acknowledged(time.monotonic(), 60)
            began = time.monotonic()
            await asyncio.sleep(PHASE_S)
            up_s += [post.took_s for post in others.answered(began, time.monotonic())]
            gone_at = await lopsided.gone(what)
            await asyncio.sleep(PHASE_S)
            down_s += [post.took_s for post in others.answered(gone_at, time.monotonic())]
            await lopsided.back(what)
        await lonely.acknowledged(time.monotonic(), 60)
    async with parts.ledger(events=1000, seed=seed):
        pass
    for posts in (lonely, others):
        await posts.check_stored()

    p99_up_s, p99_down_s = (statistics.quantiles(took_s, n=100)[-1] for took_s in (up_s, down_s))
    seen(f"p99 of the others {p99_up_s * 1000:.0f} ms before, {p99_down_s * 1000:.0f} ms meanwhile ({len(down_s)})")
    assert set(statuses(others.all)) == {200}
    assert p99_down_s < 2 * p99_up_s


async def _reached_postgres(others: Posts, since: float) -> None:
    """Hold that what the other partitions take meanwhile goes all the way."""
    async with asyncio.timeout(30):
        recent = [post for post in others.all if post.sent_at > since and post.status == 200][:20]
        assert recent
        while len(await others.stored(recent)) < len(recent):  # noqa: ASYNC110
            await asyncio.sleep(0.2)
