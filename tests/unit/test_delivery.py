"""A delivery settles exactly once, whatever the order of seal and acknowledgements."""

from time import monotonic

import pytest
from aiokafka.record.memory_records import MemoryRecords

from drm_ingest.kafka.batch import Batch, Delivery


def batch_of(*deliveries: Delivery) -> Batch:
    batch = Batch(1000, monotonic())
    for delivery in deliveries:
        batch.append(batch.records, batch.timestamp_ms, b"key", b"value", [])
        batch.records += 1
        batch.begin(delivery)
        delivery.pending += 1
    return batch


def test_a_delivery_without_records_settles_when_it_is_sealed() -> None:
    settled: list[Delivery] = []
    delivery = Delivery(settled.append)
    assert settled == []
    delivery.seal()
    assert settled == [delivery]


def test_a_delivery_waits_for_all_its_batches() -> None:
    settled: list[Delivery] = []
    delivery = Delivery(settled.append)
    batches = [batch_of(delivery, delivery), batch_of(delivery)]
    delivery.seal()
    batches[0].settle(None)
    assert settled == []
    assert delivery.pending == 1
    batches[1].settle(None)
    assert settled == [delivery]
    assert (delivery.pending, delivery.failed, delivery.error) == (0, 0, None)


def test_an_acknowledgement_before_the_seal_does_not_settle() -> None:
    settled: list[Delivery] = []
    delivery = Delivery(settled.append)
    batch_of(delivery).settle(None)
    assert settled == []
    delivery.seal()
    assert settled == [delivery]


def test_the_first_failure_is_the_reason_and_every_failed_record_counts() -> None:
    settled: list[Delivery] = []
    delivery = Delivery(settled.append)
    first, second, third = OSError("first"), OSError("second"), batch_of(delivery)
    batches = batch_of(delivery, delivery), batch_of(delivery)
    delivery.seal()
    batches[0].settle(first)
    batches[1].settle(second)
    third.settle(None)
    assert settled == [delivery]
    assert (delivery.failed, delivery.error) == (3, first)


def test_a_batch_that_missed_its_deadline_is_not_settled_again_by_a_late_acknowledgement() -> None:
    settled: list[Delivery] = []
    delivery = Delivery(settled.append)
    batch = batch_of(delivery)
    delivery.seal()
    batch.settle(TimeoutError())
    batch.settle(None)
    assert settled == [delivery]
    assert delivery.failed == 1


def test_a_callback_that_fails_keeps_no_other_delivery_waiting() -> None:
    def fail(_: Delivery) -> None:
        raise RuntimeError("on purpose")

    settled: list[Delivery] = []
    deliveries = Delivery(fail), Delivery(settled.append)
    batch = batch_of(*deliveries)
    for delivery in deliveries:
        delivery.seal()
    batch.settle(None)
    assert settled == [deliveries[1]]


@pytest.mark.parametrize("records", [1, 2, 17])
def test_a_batch_counts_the_records_of_interleaved_deliveries(records: int) -> None:
    settled: list[Delivery] = []
    one, two = Delivery(settled.append), Delivery(settled.append)
    batch = batch_of(*[one, two] * records)
    assert (one.pending, two.pending) == (records, records)
    one.seal()
    two.seal()
    batch.settle(None)
    assert settled == [one, two]


@pytest.mark.parametrize("owners", ["aa", "ab", "aab", "aabbbcca", "abcabcabcabcabc"])
def test_the_halves_of_a_batch_have_its_records_in_order_and_its_deliveries_settle_once(owners: str) -> None:
    settled: list[Delivery] = []
    deliveries = {name: Delivery(settled.append) for name in owners}
    batch = Batch(1000, born := monotonic())
    for number, name in enumerate(owners):
        batch.append(batch.records, batch.timestamp_ms, name.encode(), b"%d" % number, [("header", b"x")])
        batch.records += 1
        batch.begin(deliveries[name])
        deliveries[name].pending += 1
    batch.bytes = 1001
    for delivery in deliveries.values():
        delivery.seal()
    batch.wire()
    first, second = batch.split()
    found = [record for half in (first, second) for record in MemoryRecords(bytes(half.wire())).next_batch()]
    assert [(record.key.decode(), record.value.decode()) for record in found] == [
        (name, str(number)) for number, name in enumerate(owners)
    ]
    assert all(list(record.headers) == [("header", b"x")] for record in found)
    assert (first.records + second.records, first.bytes + second.bytes) == (len(owners), 1001)
    assert (first.born, second.born) == (born, born)
    second.settle(OSError())
    first.settle(None)
    assert len(settled) == len(deliveries)
    assert {name: deliveries[name].failed for name in deliveries} == {
        name: owners[len(owners) // 2 :].count(name) for name in deliveries
    }
