"""Read records of a consumer group: nothing is committed but what the worker says is durable."""

from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from types import TracebackType
from typing import Self

from aiokafka import ConsumerRecord, TopicPartition

from drm_ingest.metrics import Metrics
from drm_ingest.settings import Settings

Batches = dict[TopicPartition, list[ConsumerRecord]]
OnAssigned = Callable[[frozenset[TopicPartition]], Awaitable[Mapping[TopicPartition, int] | None]]
OnRevoked = Callable[[frozenset[TopicPartition]], Awaitable[None]]


class PositionLost(Exception):
    """The position to read on from is not in the topic any more: events were deleted unread, or the topic is another.

    The worker stops; a person decides (the message says how).
    """


class Reader:
    """A member of a consumer group; an async context manager.

    Two ways to use it:

    - all partitions as one batch: `async for batch in reader.batches(n)`; asking for the next batch says that the last
      one is done;
    - each partition on its own: `reader.hold(...)` the partitions of a batch, hand them to tasks, and
      `reader.release(...)` each when it is durable; held partitions are left out of the batches.

    In a rebalance the group waits (a little) for the batch under way, so that its commit still counts.
    """

    def __init__(
        self,
        settings: Settings,
        metrics: Metrics,
        group: str,
        topics: Sequence[str],
        *,
        on_assigned: OnAssigned | None = None,
        on_revoked: OnRevoked | None = None,
    ) -> None:
        """`group` gets the topic prefix in front.

        `on_assigned` is awaited before any record of those partitions is handed out, and may return positions to read
        from in place of the committed ones. `on_revoked` is awaited before they go to another.
        """

    async def __aenter__(self) -> Self:
        """Join the group; raises KafkaUnreachable."""
        raise NotImplementedError

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Leave the group, so that others take over at once."""
        raise NotImplementedError

    @property
    def assigned(self) -> frozenset[TopicPartition]:
        """The partitions that are ours now; records of others must be dropped."""
        raise NotImplementedError

    @property
    def ready(self) -> bool:
        """Whether the group has given us our share (it may be none) and Kafka answers."""
        raise NotImplementedError

    def batches(self, records_max: int) -> AsyncIterator[Batches]:
        """Yield what has arrived, at most `records_max` records at a time, in order within each partition.

        Raises:
            PositionLost: stop, and tell a person.
        """
        raise NotImplementedError

    def hold(self, partitions: Iterable[TopicPartition]) -> None:
        """Leave these out of the batches until released."""
        raise NotImplementedError

    def release(self, partitions: Iterable[TopicPartition]) -> None:
        """Hand out records of these again."""
        raise NotImplementedError

    async def commit(self, offsets: Mapping[TopicPartition, int]) -> None:
        """Commit the offsets to read on from; those of partitions no longer ours are left out."""
        raise NotImplementedError

    async def rewind(
        self,
        partitions: Iterable[TopicPartition] | None = None,
        positions: Mapping[TopicPartition, int] | None = None,
    ) -> None:
        """Read these (default: all) again from `positions`, else from the last committed offset."""
        raise NotImplementedError
