"""What arrives must follow on from where a partition was read to, or it does not count."""

import pytest
from aiokafka import ConsumerRecord, TopicPartition

from drm_ingest.pipeline.attach.follow import Followed, OutOfStep
from drm_ingest.postgres.store.positions import UNTOUCHED, Move

A, B = TopicPartition("t", 0), TopicPartition("t", 1)


def records(*offsets: int) -> "list[ConsumerRecord[bytes, bytes]]":
    return [ConsumerRecord("t", 0, offset, 0, 0, b"", b"", None, 0, 0, ()) for offset in offsets]


def offsets(followed: Followed, arrived: "dict[TopicPartition, list[ConsumerRecord[bytes, bytes]]]") -> list[int]:
    return [record.offset for record in followed.follow(arrived)[1]]


def test_each_batch_moves_its_partition_on_from_where_the_last_one_left_it() -> None:
    followed = Followed()
    followed.claim({A: 5, B: UNTOUCHED})
    moves, taken = followed.follow({A: records(5, 6), B: records(100)})
    assert moves == {A: Move(5, 7), B: Move(UNTOUCHED, 101)}
    assert [record.offset for record in taken] == [5, 6, 100]
    assert followed.follow({A: records(7)})[0] == {A: Move(7, 8)}


def test_what_comes_of_a_partition_that_is_not_claimed_asks_for_a_claim_and_nothing_counts() -> None:
    followed = Followed()
    followed.claim({A: 5})
    with pytest.raises(OutOfStep, match="t/1: not claimed yet"):
        followed.follow({A: records(5), B: records(1)})
    assert offsets(followed, {A: records(5)}) == [5]
    followed.leave([A])
    assert followed.partitions == frozenset()
    with pytest.raises(OutOfStep):
        followed.follow({A: records(6)})


def test_what_is_stored_already_is_passed_over() -> None:
    followed = Followed()
    followed.claim({A: 5})
    assert offsets(followed, {A: records(3, 4, 5, 6)}) == [5, 6]
    assert offsets(followed, {A: records(3, 4)}) == []
    assert offsets(followed, {A: records(7)}) == [7]


def test_after_a_gap_nothing_counts_until_it_was_sought_again_and_came_again() -> None:
    followed = Followed()
    followed.claim({A: 5, B: 0})
    with pytest.raises(OutOfStep, match="t/0: 8 came where 5 was due"):
        followed.follow({B: records(0), A: records(8)})
    assert offsets(followed, {B: records(0)}) == [0], "of the batch before, nothing counted"
    assert followed.follow({A: records(8, 9)})[0] == {A: Move(5, 10)}, "Kafka holds nothing between"
    with pytest.raises(OutOfStep):
        followed.follow({A: records(12)})
