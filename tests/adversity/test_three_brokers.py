"""Three brokers, two of which must have an event before its 200: one may die, two may not, and nobody is told a lie."""

import asyncio
import signal
import time
from collections.abc import Callable, Iterator

import pytest
from aiokafka.admin import AIOKafkaAdminClient
from tests.adversity.parts import Parts
from tests.adversity.posting import Post, Posts, posting, slowest_s, statuses
from tests.adversity.separate import swallowed
from tests.conftest import make_settings
from tests.integration.brokers import Cluster, Node, strike

from drm_ingest.kafka.partition import murmur2
from drm_ingest.kafka.topics import Topics
from drm_ingest.settings import Settings

BACK_WITHIN_S = 15.0

Seen = Callable[[str], None]

pytestmark = pytest.mark.timeout(600)  # brokers take long to start on a busy machine


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Three brokers for all tests that leave them running."""
    made = Cluster(tmp_path_factory.mktemp("cluster"))
    try:
        made.start()
        yield made
    finally:
        made.kill()


@pytest.fixture
async def parts(cluster: Cluster, database: str, start_parts: Callable[[Settings], Parts]) -> Parts:
    for node in cluster.nodes:  # whatever a test that failed has left
        node.signal(signal.SIGCONT)
    await asyncio.to_thread(cluster.start)
    settings = make_settings(cluster.nodes[0], database).model_copy(
        update={
            "kafka_bootstrap": cluster.bootstrap, "topic_replication_factor": 3, "topic_min_insync_replicas": 2,
            "produce_deadline_s": 4, "produce_request_timeout_s": 2,
        }
    )  # fmt: skip
    return await asyncio.to_thread(start_parts, settings)


async def partitions_of_all_topics(settings: Settings) -> dict[tuple[str, int], tuple[int, int]]:
    """Return the leader of each partition and how many replicas are in sync."""
    admin = AIOKafkaAdminClient(bootstrap_servers=settings.kafka_bootstrap)
    await admin.start()
    try:
        names = [name for name in await admin.list_topics() if name.startswith((settings.topic_prefix, "__consumer"))]
        return {
            (topic["topic"], part["partition"]): (part["leader"], len(part["isr"]))
            for topic in await admin.describe_topics(names)
            for part in topic["partitions"]
        }
    finally:
        await admin.close()


async def leader_of_ingress(cluster: Cluster, settings: Settings) -> Node:
    found = await partitions_of_all_topics(settings)
    return cluster.nodes[found[Topics.of(settings).ingress, 0][0] - 1]


async def in_sync(settings: Settings, within_s: float = 60.0) -> None:
    """Wait until every partition has all its replicas."""
    async with asyncio.timeout(within_s):
        while any(replicas < 3 for _, replicas in (await partitions_of_all_topics(settings)).values()):  # noqa: ASYNC110
            await asyncio.sleep(0.2)


async def acknowledged_after(posts: Posts, since: float, partitions: int, within_s: float = 60.0) -> list[Post]:
    """Wait until a request sent after `since` is acknowledged on each partition; return the first of each."""
    while True:
        first: dict[int, Post] = {}
        for post in posts.all:
            if post.sent_at > since and post.status == 200:
                first.setdefault(murmur2(post.subject.encode()) % partitions, post)
        if len(first) == partitions:
            return list(first.values())
        assert time.monotonic() - since < within_s, f"no 200 on some partitions: {first}"
        await asyncio.sleep(0.1)


async def back_after(posts: Posts, since: float, partitions: int) -> float:
    """Wait until each partition acknowledges what is sent after `since`; return the seconds to the last."""
    return max(post.answered_at for post in await acknowledged_after(posts, since, partitions)) - since


@pytest.mark.row("three-brokers")
async def test_one_may_die_and_is_replaced_within_15_s_and_when_two_are_dead_all_is_answered_503(
    cluster: Cluster, parts: Parts, seed: int, seen: Seen
) -> None:
    settings = parts.settings
    async with parts.ledger(events=3000, seed=seed, rate=500), posting(parts) as posts:
        await back_after(posts, time.monotonic(), settings.topic_partitions)
        await strike(await leader_of_ingress(cluster, settings), signal.SIGKILL)
        gone_at = time.monotonic()
        replaced_s = await back_after(posts, gone_at, settings.topic_partitions)
        workers_s = [await parts.ready(worker) + replaced_s for worker in ("enrich", "attach")]
    await posts.check_stored()

    async with posting(parts) as without_two:
        await without_two.acknowledged(time.monotonic(), 10)
        await strike(await leader_of_ingress(cluster, settings), signal.SIGKILL)
        gone_at = time.monotonic()
        await asyncio.sleep(settings.produce_deadline_s + 1)
        gone = without_two.answered(gone_at + 1, time.monotonic())

    seen(
        f"one killed, back after {replaced_s:.1f} s (workers {max(workers_s):.1f} s); two killed, "
        f"{len(gone)} posts answered {dict(statuses(gone))}"
    )
    assert replaced_s < BACK_WITHIN_S
    assert max(workers_s) < BACK_WITHIN_S
    assert set(statuses(gone)) == {503}
    for answered in (posts, without_two):
        answered.check_in_time(settings.produce_deadline_s)


@pytest.mark.row("three-brokers")
@pytest.mark.slow
@pytest.mark.parametrize("what", [signal.SIGKILL, signal.SIGSTOP], ids=["killed", "frozen"])
async def test_one_may_go_and_is_replaced_within_15_s_but_without_two_nothing_is_acknowledged(
    cluster: Cluster, parts: Parts, seed: int, seen: Seen, what: signal.Signals
) -> None:
    settings = parts.settings
    async with parts.ledger(events=8000, seed=seed, rate=1500) as ledger, posting(parts) as posts:
        await back_after(posts, time.monotonic(), settings.topic_partitions)
        leader = await leader_of_ingress(cluster, settings)
        await strike(leader, what)
        one_gone_at = time.monotonic()
        replaced_s = await back_after(posts, one_gone_at, settings.topic_partitions)
        workers_s = [await parts.ready(worker) + replaced_s for worker in ("enrich", "attach")]

        next_leader = await leader_of_ingress(cluster, settings)
        assert next_leader is not leader
        await strike(next_leader, what)
        two_gone_at = time.monotonic()
        await asyncio.sleep(settings.produce_deadline_s + 3)
        gone = posts.answered(two_gone_at + 1, time.monotonic())
        if what is signal.SIGSTOP:
            leader.signal(signal.SIGCONT)
            next_leader.signal(signal.SIGCONT)
        else:
            await asyncio.to_thread(cluster.start)
        back_at = time.monotonic()
        back_s = await back_after(posts, back_at, settings.topic_partitions)
    await posts.check_stored()
    await in_sync(settings)

    seen(
        f"{what.name}: one gone, back after {replaced_s:.1f} s (workers {max(workers_s):.1f} s); two gone, "
        f"{len(gone)} posts answered {dict(statuses(gone))}, back {back_s:.1f} s after they were"
    )
    assert replaced_s < BACK_WITHIN_S
    assert max(workers_s) < BACK_WITHIN_S
    assert set(statuses(gone)) == {503}
    assert back_s < BACK_WITHIN_S
    posts.check_in_time(settings.produce_deadline_s)
    assert ledger.resent


@pytest.mark.row("three-brokers")
@pytest.mark.slow
async def test_one_that_is_gone_without_a_word_as_a_machine_without_power_is_replaced_within_15_s_too(
    cluster: Cluster, parts: Parts, seed: int, seen: Seen
) -> None:
    settings = parts.settings
    async with parts.ledger(events=8000, seed=seed, rate=500), posting(parts) as posts:
        await back_after(posts, time.monotonic(), settings.topic_partitions)
        leader = await leader_of_ingress(cluster, settings)
        with swallowed(leader.port, leader.controller_port):
            await strike(leader, signal.SIGKILL)
            gone_at = time.monotonic()
            first = await acknowledged_after(posts, gone_at, settings.topic_partitions)
            replaced_s = max(post.answered_at for post in first) - gone_at
            async with asyncio.timeout(90):
                while len(await posts.stored(first)) < len(first):  # noqa: ASYNC110
                    await asyncio.sleep(0.2)
            stored_s = time.monotonic() - gone_at
        await asyncio.to_thread(cluster.start)
    await posts.check_stored()
    await in_sync(settings)

    seen(f"one gone without a word: back after {replaced_s:.1f} s, what was sent then stored after {stored_s:.1f} s")
    assert replaced_s < BACK_WITHIN_S
    assert stored_s < BACK_WITHIN_S
    posts.check_in_time(settings.produce_deadline_s)


@pytest.mark.row("three-brokers")
@pytest.mark.slow
async def test_brokers_restarted_one_after_another_as_by_an_operator_are_not_noticed_by_senders(
    cluster: Cluster, parts: Parts, seed: int, seen: Seen
) -> None:
    async with parts.ledger(events=60_000, seed=seed, rate=1500) as ledger, posting(parts) as posts:
        await back_after(posts, time.monotonic(), parts.settings.topic_partitions)
        for node in cluster.nodes:
            assert await asyncio.to_thread(node.stop)
            await asyncio.to_thread(node.start)
            await in_sync(parts.settings)
            await asyncio.sleep(2)
        rolled = posts.all.copy()
    await posts.check_stored()
    seen(f"rolling: {dict(statuses(rolled))}, the slowest {slowest_s(rolled):.1f} s")
    assert set(statuses(posts.all)) == {200}
    assert not ledger.resent
