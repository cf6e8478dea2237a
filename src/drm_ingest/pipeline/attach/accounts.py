"""The accounts of attach: received = the sum of outcomes + in flight, at any moment."""

from time import monotonic, time

from drm_ingest.metrics import Metrics
from drm_ingest.outcome import Outcome
from drm_ingest.pipeline.attach.decode import Decoded
from drm_ingest.postgres.store.events import Stored
from drm_ingest.postgres.store.rows import EPOCH

EPOCH_S = EPOCH.timestamp()


class Accounts:
    """Counts events in, and out."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self._in_flight = 0

    def receive(self, events: int) -> None:
        self._in_flight += events
        self._metrics.received.inc(events)
        self._metrics.in_flight.inc(events)

    def give_back(self, events: int | None = None) -> None:
        """Count events (None: all in flight) that are to be read again."""
        self._settle(Outcome.RETRIED, self._in_flight if events is None else events)

    def store(self, decoded: Decoded, stored: Stored, began: float) -> None:
        """Count what became of a batch that was read at `began` (monotonic seconds)."""
        now = time() - EPOCH_S
        self._settle(Outcome.ATTACHED, len(stored.attached))
        self._settle(Outcome.DUPLICATE, stored.duplicates + decoded.duplicates)
        self._settle(Outcome.DEAD_LETTER, len(stored.dead))
        for letter in stored.dead:
            self._metrics.codes.labels(letter.code.value).inc()
        self._metrics.freshness_seconds.observe_many(
            [max(0.0, now - row.received_us / 1e6) for row in stored.attached]  # clocks differ, and are set back
        )
        self._metrics.batch_seconds.observe(monotonic() - began)

    def _settle(self, outcome: Outcome, events: int) -> None:
        if events:
            self._in_flight -= events
            self._metrics.outcomes.labels(outcome.value).inc(events)
            self._metrics.in_flight.dec(events)
