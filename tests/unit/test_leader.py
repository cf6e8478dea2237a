"""The rounds to one broker, with a broker made up for the test."""

import asyncio
import random
from collections import Counter
from collections.abc import Mapping, Sequence
from time import monotonic
from typing import Any

import uvloop

from drm_ingest.kafka.batch import Batch, Delivery, Lane
from drm_ingest.kafka.leader import Leader
from drm_ingest.metrics import Metrics
from drm_ingest.settings import Settings

NOT_LEADER = 6
LANES = 40


class Broker:
    """The cluster and a connection to its only broker, which refuses the first batch of each partition."""

    def __init__(self, *, reachable: bool = True) -> None:
        self.reachable = reachable
        self.asked = 0
        self._produced: Counter[int] = Counter()

    def refresh_soon(self) -> None: ...

    async def connect(self, node: int) -> "Broker":
        self.asked += 1
        if not self.reachable:
            raise ConnectionError("nobody there")
        return self

    def connected(self) -> bool:
        return True

    def close(self) -> None: ...

    async def produce(
        self, topics: Mapping[str, Sequence[tuple[int, bytes]]], timeout_ms: int
    ) -> list[tuple[str, int, int]]:
        await asyncio.sleep(0.001)
        answer = []
        for topic, batches in topics.items():
            for partition, _ in batches:
                self._produced[partition] += 1
                answer.append((topic, partition, NOT_LEADER if self._produced[partition] == 1 else 0))
        return answer


def a_lane(partition: int, delivery: Delivery) -> Lane:
    lane, batch = Lane("t", partition), Batch(1000, monotonic())
    batch.append(0, batch.timestamp_ms, b"key", b"value", [])
    batch.begin(delivery)
    delivery.pending += 1
    lane.waiting.append(batch)
    return lane


def a_leader(broker: Any) -> Leader:
    def done(lane: Lane, batch: Batch, error: BaseException | None) -> None:
        batch.settle(error)

    def free(lane: Lane) -> None:
        leader.add(lane)

    leader = Leader(1, broker, Settings(), Metrics("edge"), done, free)
    return leader


def test_a_partition_refused_for_a_moment_is_sent_again_though_nothing_else_happens() -> None:
    """On uvloop as in production: its timers are up to a millisecond early."""

    async def send_all() -> None:
        leader, settled = a_leader(Broker()), asyncio.Event()
        delivery = Delivery(lambda _: settled.set())
        running = asyncio.create_task(leader.run())
        for partition in range(LANES):
            leader.add(a_lane(partition, delivery))
            await asyncio.sleep(random.uniform(0, 0.01))
        delivery.seal()
        try:
            await asyncio.wait_for(settled.wait(), 2)
        except TimeoutError:
            raise AssertionError(f"{delivery.pending} of {LANES} partitions are never sent again") from None
        finally:
            running.cancel()
        assert delivery.failed == 0

    uvloop.run(send_all())


async def test_a_broker_that_leads_nothing_any_more_is_left_alone() -> None:
    broker = Broker(reachable=False)
    leader = a_leader(broker)
    lane = a_lane(0, Delivery(lambda _: None))
    leader.add(lane)
    running = asyncio.create_task(leader.run())
    while not broker.asked:  # noqa: ASYNC110 - there is no event for it
        await asyncio.sleep(0)
    del leader.lanes[lane]  # as the writer does when another broker leads it
    asked = broker.asked
    await asyncio.sleep(0.5)
    running.cancel()
    assert broker.asked == asked
