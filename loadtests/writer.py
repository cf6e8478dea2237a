"""The writer alone: what an event costs from `append` to its acknowledgement, against aiokafka's own producer.

    python -m loadtests.writer

Starts a Kafka of its own, one node, 6 partitions, acks=all. Deliveries of 100 records (16 at a time) and of 1 (64 at a
time), each record 290 bytes with a key and two headers, as the edge writes them. Prints CPU microseconds of this
process an event, the load itself taken off; events a second; and p50 and p99 from the first append to settling.

"send_batch" is AIOKafkaProducer fed with ready-made batches, flushed in the same way: at once while nothing is in
flight, and what has collected when a round is done.
"""

import asyncio
import multiprocessing
import os
import tempfile
import time
from collections.abc import Awaitable, Callable, Coroutine
from pathlib import Path
from typing import Annotated, Any

import typer
import uvloop
from aiokafka import AIOKafkaProducer
from rich.console import Console
from rich.table import Table

from drm_ingest.kafka import topics
from drm_ingest.kafka.partition import Partitions
from drm_ingest.kafka.topics import Topics
from drm_ingest.kafka.writer import Delivery, Writer
from drm_ingest.metrics import Metrics
from drm_ingest.settings import Settings
from drm_ingest.up.kafka import Kafka

PARTITIONS = Partitions(6)
KEYS = [b"device-%06d" % number for number in range(500)]
VALUE, RECEIPT, HASH = os.urandom(290), os.urandom(110), os.urandom(16)

Append = Callable[[int, bytes, list[tuple[str, bytes]], Delivery], None]
Run = Callable[[Settings, int, int, int], Coroutine[Any, Any, list[str]]]


def main(events: Annotated[int, typer.Option(help="Of each run.")] = 300_000) -> None:
    """Measure and print."""
    alone = multiprocessing.get_context("spawn")
    table = Table("writer", "records a delivery", "CPU µs/event", "events/s", "p50 ms", "p99 ms")
    with tempfile.TemporaryDirectory() as directory:
        kafka = Kafka(Path(directory))
        kafka.start()
        try:
            settings = Settings(
                kafka_bootstrap=kafka.bootstrap, topic_replication_factor=1, topic_min_insync_replicas=1
            )
            asyncio.run(topics.create(settings, []))
            for name, run in (("ours", with_ours), ("send_batch", with_send_batch)):
                for records, at_once in ((100, 16), (1, 64)):
                    with alone.Pool(1) as process:  # or one run would find the memory of the other warm
                        figures = process.apply(measure_one, (run, settings, records, at_once, events))
                    table.add_row(name, str(records), *figures)
        finally:
            kafka.stop()
    Console().print(table)


def measure_one(run: Run, settings: Settings, records: int, at_once: int, events: int) -> list[str]:
    """Return the figures of one run; in a process of its own."""
    return uvloop.run(run(settings, records, at_once, events))


async def with_ours(settings: Settings, records: int, at_once: int, events: int) -> list[str]:
    """Append to our writer."""
    writer = Writer(settings, Metrics("edge"))
    await writer.start()
    topic = Topics.of(settings).ingress

    def append(partition: int, key: bytes, headers: list[tuple[str, bytes]], delivery: Delivery) -> None:
        writer.append(topic, partition, key, VALUE, headers, delivery)

    try:
        return await measure(append, records, at_once, events)
    finally:
        await writer.stop(5)


async def with_send_batch(settings: Settings, records: int, at_once: int, events: int) -> list[str]:
    """Append to batches for aiokafka's producer."""
    producer = AIOKafkaProducer(
        bootstrap_servers=settings.kafka_bootstrap, acks="all", max_batch_size=settings.writer_batch_bytes_max
    )
    await producer.start()
    topic = Topics.of(settings).ingress
    await producer.partitions_for(topic)
    rounds = _Rounds(lambda partition, batch: _acknowledged(producer, topic, partition, batch), producer.create_batch)
    try:
        return await measure(rounds.append, records, at_once, events)
    finally:
        await producer.stop()


async def _acknowledged(producer: AIOKafkaProducer, topic: str, partition: int, batch: Any) -> None:
    await (await producer.send_batch(batch, topic, partition=partition))


class _Rounds:
    def __init__(self, send: Callable[[int, Any], Awaitable[None]], new_batch: Callable[[], Any]) -> None:
        self._send = send
        self._new_batch = new_batch
        self._open: dict[int, tuple[Any, list[Delivery], list[int]]] = {}
        self._in_flight: set[asyncio.Task[None]] = set()
        self._scheduled = False

    def append(self, partition: int, key: bytes, headers: list[tuple[str, bytes]], delivery: Delivery) -> None:
        if partition not in self._open:
            self._open[partition] = (self._new_batch(), [], [])
        batch, deliveries, counts = self._open[partition]
        assert batch.append(timestamp=1_700_000_000_000, key=key, value=VALUE, headers=headers) is not None
        if deliveries and deliveries[-1] is delivery:
            counts[-1] += 1
        else:
            deliveries.append(delivery)
            counts.append(1)
        delivery.pending += 1
        if not self._in_flight and not self._scheduled:
            self._scheduled = True
            asyncio.get_running_loop().call_soon(self._flush)

    def _flush(self) -> None:
        self._scheduled = False
        collected, self._open = self._open, {}
        for partition, (batch, deliveries, counts) in collected.items():
            batch.close()
            self._in_flight.add(asyncio.create_task(self._deliver(partition, batch, deliveries, counts)))

    async def _deliver(self, partition: int, batch: Any, deliveries: list[Delivery], counts: list[int]) -> None:
        await self._send(partition, batch)
        task = asyncio.current_task()
        assert task is not None
        self._in_flight.discard(task)
        for delivery, count in zip(deliveries, counts, strict=True):
            delivery._settle(count, None)
        if not self._in_flight:
            self._flush()


async def measure(append: Append, records: int, at_once: int, events: int) -> list[str]:
    """Keep that many deliveries going until all events are settled."""
    loop = asyncio.get_running_loop()
    finished: asyncio.Future[None] = loop.create_future()
    took: list[float] = []
    started = going = 0

    def start() -> None:
        nonlocal started, going
        started, going = started + 1, going + 1
        began = time.perf_counter()
        delivery = Delivery(lambda settled: settle(settled, began))
        fill(append, started, records, delivery)
        delivery.seal()

    def settle(delivery: Delivery, began: float) -> None:
        nonlocal going
        if delivery.failed:
            finished.set_exception(delivery.error or RuntimeError("not acknowledged"))
        going -= 1
        took.append(time.perf_counter() - began)
        if started * records < events:
            loop.call_soon(start)
        elif not going:
            finished.set_result(None)

    cpu, wall = time.process_time(), time.perf_counter()
    for _ in range(at_once):
        start()
    await finished
    cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
    sent = started * records
    load = _cost_of_the_load(records)
    took.sort()
    p50, p99 = (took[int(len(took) * part)] * 1000 for part in (0.5, 0.99))
    return [f"{cpu / sent * 1e6 - load:.2f}", f"{sent / wall:,.0f}", f"{p50:.1f}", f"{p99:.1f}"]


def fill(append: Append, number: int, records: int, delivery: Delivery) -> None:
    """Append the records of one delivery."""
    for offset in range(records):
        key = KEYS[(number * 7 + offset) % len(KEYS)]
        append(PARTITIONS[key], key, [("receipt", RECEIPT), ("content-hash", HASH)], delivery)


def _cost_of_the_load(records: int) -> float:
    """Return CPU microseconds a record of making the load, without any writer."""
    delivery = Delivery(lambda _: None)
    runs = 200_000 // records
    began = time.process_time()
    for number in range(runs):
        fill(lambda *_: None, number, records, delivery)
    return (time.process_time() - began) / (runs * records) * 1e6


if __name__ == "__main__":
    typer.run(main)
