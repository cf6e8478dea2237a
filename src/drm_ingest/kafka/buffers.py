"""What was fetched and not handed out yet, partition by partition."""

from collections.abc import Collection, Iterable, Mapping
from time import monotonic

from aiokafka import ConsumerRecord, TopicPartition

Batches = dict[TopicPartition, list[ConsumerRecord]]


class Buffers:
    """Records in the order of their partition; partitions that are held give none."""

    def __init__(self) -> None:
        self.held: dict[TopicPartition, float] = {}  # since when, monotonic seconds
        self._records: Batches = {}

    def fill(self, batches: Mapping[TopicPartition, list[ConsumerRecord]]) -> None:
        """Add what was fetched."""
        for partition, records in batches.items():
            self._records.setdefault(partition, []).extend(records)

    def roomy(self, partitions: Collection[TopicPartition], records_max: int) -> list[TopicPartition]:
        """Return those to fetch more of, so that all together hold about four batches, and each at least one."""
        room = max(records_max, 4 * records_max // max(1, len(partitions)))
        return [partition for partition in partitions if len(self._records.get(partition, ())) < room]

    def take(self, records_max: int) -> Batches:
        """Take a fair share of every partition, the fuller ones what the others leave; empty when there is nothing."""
        filled = [(part, records) for part, records in self._records.items() if records and part not in self.held]
        filled.sort(key=lambda item: len(item[1]))
        batch: Batches = {}
        for index, (partition, records) in enumerate(filled):
            share = min(len(records), max(1, records_max // (len(filled) - index)))
            batch[partition] = records[:share]
            del records[:share]
            records_max -= share
            if not records_max:
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

    def clear(self) -> None:
        """Drop all: other partitions are ours now, or none."""
        self._records.clear()
        self.held.clear()
