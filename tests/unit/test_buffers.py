"""How records are shared out to the worker."""

from aiokafka import ConsumerRecord, TopicPartition

from drm_ingest.kafka.buffers import Buffers

A, B, C = (TopicPartition("t", number) for number in range(3))


def records(partition: TopicPartition, count: int, begin: int = 0, value: bytes = b"") -> list[ConsumerRecord]:
    return [
        ConsumerRecord(partition.topic, partition.partition, offset, 0, 1, b"", value, None, 0, 0, ())
        for offset in range(begin, begin + count)
    ]


def offsets(batch: dict[TopicPartition, list[ConsumerRecord]]) -> dict[TopicPartition, list[int]]:
    return {partition: [record.offset for record in records] for partition, records in batch.items()}


def test_a_batch_goes_on_where_the_last_ended_in_the_order_of_the_partition() -> None:
    buffers = Buffers(1 << 30)
    buffers.fill({A: records(A, 3)})
    buffers.fill({A: records(A, 3, begin=3)})
    assert offsets(buffers.take(4)) == {A: [0, 1, 2, 3]}
    assert offsets(buffers.take(4)) == {A: [4, 5]}
    assert buffers.take(4) == {}


def test_a_small_partition_is_not_kept_waiting_by_a_large_one_and_leaves_it_the_rest() -> None:
    buffers = Buffers(1 << 30)
    buffers.fill({A: records(A, 1000), B: records(B, 2), C: records(C, 1000)})
    assert {partition: len(taken) for partition, taken in buffers.take(100).items()} == {B: 2, A: 49, C: 49}


def test_fewer_records_than_partitions_are_asked_for() -> None:
    buffers = Buffers(1 << 30)
    buffers.fill({part: records(part, 5) for part in (A, B, C)})
    assert sum(map(len, buffers.take(2).values())) == 2


def test_a_held_partition_gives_none_until_released() -> None:
    buffers = Buffers(1 << 30)
    buffers.fill({A: records(A, 2), B: records(B, 2)})
    buffers.hold([A])
    assert offsets(buffers.take(10)) == {B: [0, 1]}
    assert buffers.take(10) == {}
    buffers.release([A])
    assert offsets(buffers.take(10)) == {A: [0, 1]}


def test_what_is_forgotten_is_not_given_and_clearing_releases() -> None:
    buffers = Buffers(1 << 30)
    buffers.fill({A: records(A, 2), B: records(B, 2)})
    buffers.forget(A)
    assert offsets(buffers.take(1)) == {B: [0]}
    buffers.hold([B])
    buffers.clear()
    assert buffers.take(10) == {}
    assert buffers.held == {}


def test_a_full_partition_is_not_fetched_and_the_others_are() -> None:
    buffers = Buffers(1 << 30)
    buffers.fill({A: records(A, 40)})
    assert buffers.roomy([A, B, C], 10) == [B, C]
    assert buffers.roomy([A], 10) == []
    assert buffers.roomy([A], 11) == [A]


def test_of_large_records_fewer_are_held_and_given() -> None:
    large = b"x" * 256 * 1024
    buffers = Buffers(8 * 1024 * 1024)
    at = 0
    while buffers.roomy([A, B], 2000) == [A, B]:
        buffers.fill({A: records(A, 4, at, large), B: records(B, 4, at, large)})
        at += 4
    assert at == 16  # of each: 4 MiB
    taken = buffers.take(2000)
    assert offsets(taken) == {A: [0, 1, 2, 3], B: [0, 1, 2, 3]}  # together a quarter of 8 MiB
    assert buffers.roomy([A, B], 2000) == [A, B]
    buffers.hold([A])
    assert offsets(buffers.take(2000)) == {B: [*range(4, 12)]}
    buffers.forget(A)
    assert buffers.roomy([A], 2000) == [A]


def test_a_record_larger_than_a_batch_is_given_alone() -> None:
    buffers = Buffers(1000)
    buffers.fill({A: records(A, 2, value=b"x" * 600)})
    assert offsets(buffers.take(10)) == {A: [0]}
    assert offsets(buffers.take(10)) == {A: [1]}
    assert buffers.take(10) == {}
