"""What waits for Kafka: deliveries (who waits), batches (what goes out together), lanes (one a partition)."""

from collections import deque
from collections.abc import Callable, Sequence
from time import time
from typing import Any

import structlog
from aiokafka.record.default_records import DefaultRecordBatchBuilder
from aiokafka.record.memory_records import MemoryRecords

log = structlog.get_logger(__name__)

Headers = Sequence[tuple[str, bytes]]


class RecordTooLarge(Exception):
    """One record is larger than `writer_batch_bytes_max`; nothing was appended, and no retry helps."""


class RefusedForGood(Exception):
    """Kafka refuses a record, and no retry of ours changes that: somebody has to mend the topic, or our rights."""


class Delivery:
    """One caller's set of records in flight: settles once, when every record is acknowledged or failed.

    `pending` and `failed` count records; `error` is the first failure's reason.
    """

    __slots__ = ("_on_settled", "_sealed", "error", "failed", "pending")

    def __init__(self, on_settled: Callable[["Delivery"], None]) -> None:
        """`on_settled` is called exactly once, synchronously in the loop; it must not raise."""
        self.pending = 0
        self.failed = 0
        self.error: BaseException | None = None
        self._sealed = False
        self._on_settled = on_settled

    def seal(self) -> None:
        """Append no more: `on_settled` is called once pending reaches 0, at once if it is 0 already."""
        self._sealed = True
        if not self.pending:
            self._on_settled(self)

    def _settle(self, records: int, error: BaseException | None) -> None:
        if error is not None:
            self.failed += records
            self.error = self.error or error
        self.pending -= records
        if self._sealed and not self.pending:
            self._on_settled(self)


class Batch:
    """Records of one partition that go out together, and the deliveries they belong to."""

    # The builder is aiokafka's in Cython, without the layers of its producer: 0.4 µs a record with two headers,
    # where its BatchBuilder takes 0.55 and records put together in Python 0.7.
    __slots__ = (
        "_builder", "_bytes_max", "_deliveries", "_wire", "append", "born", "bytes", "counts", "newest", "records",
        "settled", "timestamp_ms",
    )  # fmt: skip

    def __init__(self, bytes_max: int, born: float) -> None:
        self._builder = DefaultRecordBatchBuilder(
            magic=2, compression_type=0, is_transactional=0,
            producer_id=-1, producer_epoch=-1, base_sequence=-1, batch_size=bytes_max,
        )  # fmt: skip
        self.append: Callable[[int, int, bytes, bytes, Any], Any] = self._builder.append
        self._bytes_max = bytes_max
        self.born = born  # monotonic seconds; the deadline of all its records counts from here
        self.timestamp_ms = int(time() * 1000)  # one for all: the topics are LogAppendTime, the broker puts its own
        self.bytes = 0
        self.records = 0
        self.settled = False
        self._wire: bytes | None = None
        self.newest: Delivery | None = None
        self.counts: list[int] = []  # records of each delivery, in turn
        self._deliveries: list[Delivery] = []

    def begin(self, delivery: Delivery) -> None:
        """Its first record here was appended; for those that follow, count on in `counts`."""
        self.newest = delivery
        self._deliveries.append(delivery)
        self.counts.append(1)

    def wire(self) -> bytes:
        """Return the batch in the broker's format; takes no record after that."""
        if self._wire is None:
            self._wire = self._builder.build()  # it can be asked only once, and a retry needs it again
        return self._wire

    def split(self) -> tuple["Batch", "Batch"]:
        """Return its records in two halves, as old as it is, which take its place; it must have two at least."""
        halves = Batch(self._bytes_max, self.born), Batch(self._bytes_max, self.born)
        owners = (owner for owner, count in zip(self._deliveries, self.counts, strict=True) for _ in range(count))
        middle = self.records // 2
        records = MemoryRecords(bytes(self.wire())).next_batch()
        for number, (record, owner) in enumerate(zip(records, owners, strict=True)):
            half = halves[number >= middle]
            half.append(half.records, self.timestamp_ms, record.key, record.value, list(record.headers))
            half.records += 1
            if half.newest is owner:
                half.counts[-1] += 1
            else:
                half.begin(owner)
        halves[0].bytes = self.bytes * middle // self.records  # together what it was: bytes are counted by these
        halves[1].bytes = self.bytes - halves[0].bytes
        return halves

    def settle(self, error: BaseException | None) -> None:
        """Tell every delivery what became of its records; the first call counts."""
        if self.settled:
            return
        self.settled = True
        for delivery, records in zip(self._deliveries, self.counts, strict=True):
            try:
                delivery._settle(records, error)
            except Exception:
                log.exception("a delivery's callback failed")  # its fault must not keep the others waiting
        self._deliveries.clear()
        self.newest = None


class Lane:
    """One partition: its batches waiting, oldest first, and the one in flight; never two, so order holds."""

    __slots__ = ("blocked", "error", "in_flight", "key", "leader", "open", "partition", "topic", "waiting")

    def __init__(self, topic: str, partition: int) -> None:
        self.topic = topic
        self.partition = partition
        self.key = (topic, partition)
        self.waiting: deque[Batch] = deque()
        self.open: Batch | None = None  # the last of those waiting, while it takes more records
        self.in_flight: Batch | None = None
        self.leader: int | None = None  # the broker it is queued at
        self.blocked = False  # for a moment after a failure
        self.error: BaseException | None = None  # the last one

    def take(self) -> Batch:
        """Move the oldest waiting batch into flight."""
        batch = self.in_flight = self.waiting.popleft()
        if batch is self.open:
            self.open = None
        return batch
