"""Every metric, its unit and its meaning, on one page; each process makes its own set on a registry of its own."""

from bisect import bisect_left
from collections.abc import Iterable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

SECONDS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 60)
EVENTS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10_000)


class Distribution(Histogram):
    """A histogram that takes a whole batch of values at once, for a tenth of what as many `observe` cost."""

    def observe_many(self, values: Iterable[float]) -> None:
        """Observe each value."""
        counts = [0] * len(self._upper_bounds)
        total = 0.0
        for value in values:
            counts[bisect_left(self._upper_bounds, value)] += 1
            total += value
        for bucket, count in zip(self._buckets, counts, strict=True):
            if count:
                bucket.inc(count)
        self._sum.inc(total)


class Metrics:
    """What a process counts. Received = the sum of outcomes + in flight, always."""

    def __init__(self, process: str) -> None:
        """`process` is edge, enrich, attach or serve."""
        registry = self.registry = CollectorRegistry(auto_describe=True)

        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(name, text, labels, registry=registry)

        def gauge(name: str, text: str, *labels: str) -> Gauge:
            return Gauge(name, text, labels, registry=registry)

        def histogram(name: str, text: str, buckets: tuple[float, ...] = SECONDS) -> Histogram:
            return Histogram(name, text, buckets=buckets, registry=registry)

        gauge("drm_process_info", "Which process this is; always 1.", "process").labels(process).set(1)

        # -- the ledger of every process
        self.received = counter("drm_events_received", "Events received, before anything was decided about them.")
        self.outcomes = counter("drm_events", "Events by what became of them (outcome.py).", "outcome")
        self.in_flight = gauge("drm_events_in_flight", "Events received whose outcome is not known yet.")
        self.codes = counter("drm_event_codes", "Events rejected, remarked on or dead-lettered, by code.", "code")

        # -- edge
        self.requests = counter(
            "drm_requests", "Requests or WebSocket messages answered, by status.", "transport", "status"
        )
        self.refusals = counter("drm_refusals", "Whole requests refused, by code.", "code")
        self.ack_seconds = histogram("drm_ack_seconds", "Last byte of a request to its answer.")
        self.request_events = histogram("drm_request_events", "Events in a request.", EVENTS)
        self.request_bytes_in_flight = gauge("drm_request_in_flight_bytes", "Request bodies being read or checked.")
        self.connections = gauge("drm_connections", "Open connections.", "transport")
        self.credentials_age_seconds = gauge("drm_credentials_age_seconds", "Since the credential snapshot was read.")

        # -- serve
        self.request_seconds = histogram("drm_request_seconds", "A request of serve from its first byte to its answer.")

        # -- Kafka
        self.batch_events = histogram("drm_produce_batch_events", "Events in a batch written to a partition.", EVENTS)
        self.produce_seconds = histogram("drm_produce_seconds", "A batch from sending to its acknowledgement.")
        self.produce_failures = counter("drm_produce_failures", "Batches that Kafka did not acknowledge.", "error")
        self.writer_bytes = gauge("drm_writer_buffered_bytes", "Events waiting for or in flight to Kafka.")
        self.lag = gauge("drm_consumer_lag_events", "Records behind the end of a partition.", "topic", "partition")
        self.read_batch_events = histogram("drm_read_batch_events", "Records handed to the worker at a time.", EVENTS)

        # -- pipeline
        self.step_seconds = histogram("drm_batch_seconds", "One batch from reading to durable.")
        self.freshness_seconds = Distribution(
            "drm_freshness_seconds", "From receipt at the edge to durable here.", buckets=SECONDS, registry=registry
        )
        self.context = counter("drm_directory_lookups", "Device context looked up.", "result")
        self.fenced = counter("drm_fenced", "Batches rolled back because another worker owns the partition.")
