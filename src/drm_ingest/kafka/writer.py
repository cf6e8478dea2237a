"""Write records to Kafka in rounds: one request in flight to each broker; what collects meanwhile goes next."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from drm_ingest.metrics import Metrics
from drm_ingest.settings import Settings

Headers = Sequence[tuple[str, bytes]]


class WriterFull(Exception):
    """More than `writer_buffered_bytes_max` would wait for Kafka; nothing was appended. Try again later."""


class RecordTooLarge(Exception):
    """One record is larger than `writer_batch_bytes_max`; nothing was appended, and no retry helps."""


class NotAcknowledged(Exception):
    """Kafka did not acknowledge at least one record in time; its fate is unknown. Writing all of it again is safe."""


@dataclass(frozen=True, slots=True)
class Outgoing:
    """One record for `Writer.write`."""

    topic: str
    partition: int
    key: bytes
    value: bytes
    headers: Headers = ()


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


class Writer:
    """Writes records with acks=all; one a process, used from one event loop."""

    def __init__(self, settings: Settings, metrics: Metrics) -> None:
        """Nothing is opened before `start`."""
        self.buffered_bytes = 0

    async def start(self) -> None:
        """Connect and learn the leaders.

        Raises:
            KafkaUnreachable: no bootstrap server answered within `produce_deadline_s`.
        """
        raise NotImplementedError

    async def stop(self, deadline_s: float) -> None:
        """Write out what is buffered, at most for `deadline_s`; fail the rest; close."""
        raise NotImplementedError

    @property
    def ready(self) -> bool:
        """Whether a record appended now would be acknowledged, as far as is known."""
        raise NotImplementedError

    def room_for(self, bytes_: int) -> bool:
        """Whether that many bytes of keys, values and headers can be appended now."""
        raise NotImplementedError

    def append(
        self, topic: str, partition: int, key: bytes, value: bytes, headers: Headers, delivery: Delivery
    ) -> None:
        """Add a record to the next round; `delivery` settles within `produce_deadline_s` (+ 1 s), whatever happens.

        Raises:
            WriterFull: nothing was appended.
            RecordTooLarge: nothing was appended.
        """
        raise NotImplementedError

    def partition_for(self, topic: str, key: bytes) -> int:
        """Return the partition that Java clients choose for this key (murmur2)."""
        raise NotImplementedError

    async def write(self, records: Iterable[Outgoing]) -> None:
        """Append all and wait until all are acknowledged; waits for room rather than raise WriterFull.

        Raises:
            NotAcknowledged: at least one was not; their fate is unknown.
            RecordTooLarge: one can never be written; the fate of those before it is unknown.
        """
        raise NotImplementedError
