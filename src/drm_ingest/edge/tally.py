"""Count requests in plain numbers, which are added to the metrics when somebody reads those.

A counter of the metrics takes a lock and five calls to add one, and a request has nine things to count: 4 of the 40 µs
that one with a single event takes. All of it happens in the event loop, as reading does, so no lock is needed.
"""

from drm_ingest.errors import PROBLEMS
from drm_ingest.metrics import Metrics
from drm_ingest.outcome import Outcome

_OBSERVED_MAX = 1024


class Tally:
    """What one transport counted since the metrics were last read."""

    __slots__ = (
        "_metrics", "_outcomes", "_requests", "accepted", "ack_seconds", "received", "rejected", "request_events",
        "requests", "unknown",
    )  # fmt: skip

    def __init__(self, metrics: Metrics, transport: str) -> None:
        """`transport` is the label of `drm_requests_total`: http or websocket."""
        statuses = {200} | {problem.status for problem in PROBLEMS.values()}
        self._metrics = metrics
        self._requests = {status: metrics.requests.labels(transport, str(status)) for status in statuses}
        outcomes = (Outcome.REJECTED, Outcome.ACCEPTED, Outcome.UNKNOWN)
        self._outcomes = [metrics.outcomes.labels(outcome) for outcome in outcomes]
        self.received = self.rejected = self.accepted = self.unknown = 0
        """Events; those that were received and have no outcome yet are in flight."""
        self.requests = dict.fromkeys(statuses, 0)
        """By the status of their answer."""
        self.request_events: list[int] = []
        self.ack_seconds: list[float] = []
        metrics.add_before_reading(self.add_up)

    def observed(self, seconds: float) -> None:
        """Note how long an answer took."""
        self.ack_seconds.append(seconds)
        if len(self.ack_seconds) >= _OBSERVED_MAX:
            self.add_up()

    def add_up(self) -> None:
        """Add all to the metrics, and begin anew."""
        metrics = self._metrics
        counts = self.rejected, self.accepted, self.unknown
        metrics.received.inc(self.received)
        metrics.in_flight.inc(self.received - sum(counts))
        self.received = self.rejected = self.accepted = self.unknown = 0
        for outcome, events in zip(self._outcomes, counts, strict=True):
            outcome.inc(events)
        for status, count in self.requests.items():
            if count:
                self._requests[status].inc(count)
                self.requests[status] = 0
        metrics.request_events.observe_many(self.request_events)
        metrics.ack_seconds.observe_many(self.ack_seconds)
        self.request_events.clear()
        self.ack_seconds.clear()
