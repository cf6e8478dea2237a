"""What was fetched and not handed out yet, partition by partition."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from itertools import islice
from time import monotonic

from aiokafka import ConsumerRecord, TopicPartition

Batches = dict[TopicPartition, list[ConsumerRecord]]

BATCHES = 4  # that all partitions together may hold
PARTITION_BYTES_MIN = 1024 * 1024  # room for a fetch or so, however many partitions there are


class Buffers:
    """Records in the order of their partition; partitions that are held give none."""

    def __init__(self, bytes_max: int) -> None:
        """`bytes_max` is for the values of all together, give or take a fetch for each partition."""
        self.held: dict[TopicPartition, float] = {}  # since when, monotonic seconds
        self._records: Batches = {}
        self._bytes: dict[TopicPartition, int] = {}
        self._bytes_max = bytes_max

    def fill(self, batches: Mapping[TopicPartition, list[ConsumerRecord]]) -> None:
        """Add what was fetched."""
        for partition, records in batches.items():
            self._records.setdefault(partition, []).extend(records)
            self._bytes[partition] = self._bytes.get(partition, 0) + sum(map(_bytes, records))

    def roomy(self, partitions: Collection[TopicPartition], records_max: int) -> list[TopicPartition]:
        """Return those to fetch more of, so that all together hold about four batches, and each at least one.

        Where events are large, all together hold four batches in bytes.
        """
        among = max(1, len(partitions))
        room, room_bytes = max(records_max, BATCHES * records_max // among), self._bytes_max // among
        return [
            partition
            for partition in partitions
            if len(self._records.get(partition, ())) < room
            and self._bytes.get(partition, 0) < max(PARTITION_BYTES_MIN, room_bytes)
        ]

    def take(self, records_max: int) -> Batches:
        """Take a fair share of every partition, the fuller ones what the others leave; empty when there is nothing."""
        filled = [(part, records) for part, records in self._records.items() if records and part not in self.held]
        filled.sort(key=lambda item: len(item[1]))
        batch: Batches = {}
        bytes_max = self._bytes_max // BATCHES
        for index, (partition, records) in enumerate(filled):
            left = len(filled) - index
            share, bytes_ = _within(records, max(1, records_max // left), bytes_max // left)
            batch[partition] = records[:share]
            del records[:share]
            self._bytes[partition] -= bytes_
            records_max -= share
            bytes_max -= bytes_
            if records_max <= 0 or bytes_max <= 0:
                break
        return batch

    def hold(self, partitions: Iterable[TopicPartition]) -> None:
        """Leave these out until released."""
        self.held.update(dict.fromkeys(partitions, monotonic()))

    def release(self, partitions: Iterable[TopicPartition]) -> None:
        """Give records of these again."""
        for partition in partitions:
            self.held.pop(partition, None)

    def forget(self, partition: TopicPartition) -> None:
        """Drop what was fetched of one: it is read again."""
        self._records.pop(partition, None)
        self._bytes.pop(partition, None)

    def clear(self) -> None:
        """Drop all: other partitions are ours now, or none."""
        self._records.clear()
        self._bytes.clear()
        self.held.clear()


def _bytes(record: ConsumerRecord) -> int:
    return len(record.value or b"")


def _within(records: Sequence[ConsumerRecord], records_max: int, bytes_max: int) -> tuple[int, int]:
    """Return how many of the first are within both, though at least one, and their bytes."""
    count = bytes_ = 0
    for record in islice(records, records_max):
        count += 1
        bytes_ += _bytes(record)
        if bytes_ >= bytes_max:
            break
    return count, bytes_
