"""Every metric, its meaning, and the processes that have it, on one page; docs/metrics.md is made of it.

The unit is the last part of a name: seconds, bytes, events. A counter is exported with `_total` behind its name.
"""

from bisect import bisect_left
from collections.abc import Callable, Iterable
from typing import Any, Generic, Literal, TypeVar, cast, get_args, overload

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, disable_created_metrics
from prometheus_client.registry import Collector

Process = Literal["edge", "enrich", "attach", "serve"]
PROCESSES: tuple[Process, ...] = get_args(Process)
_EDGE, _ENRICH, _ATTACH, _SERVE = ("edge",), ("enrich",), ("attach",), ("serve",)
_WORKERS = _ENRICH + _ATTACH
_PATH = _EDGE + _WORKERS  # of an event
_ALL = _PATH + _SERVE

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


Made = TypeVar("Made", Counter, Gauge, Histogram, Distribution)


class Metric(Generic[Made]):
    """A metric as it is declared: `metrics.received` is the one that this process counts with.

    A process that does not have it raises AttributeError, at start: whoever counts often looks it up once.
    """

    attribute: str

    def __init__(
        self,
        make: Callable[..., Made],
        processes: tuple[str, ...],
        name: str,
        text: str,
        labels: tuple[str, ...] = (),
        **more: Any,
    ) -> None:
        self.processes, self.name, self.text, self.labels = processes, name, text, labels
        self.kind = "histogram" if issubclass(cast("type", make), Histogram) else cast("type", make).__name__.lower()
        self._make: Callable[..., Made] = make
        self._more = more

    def __set_name__(self, owner: type, attribute: str) -> None:
        self.attribute = attribute

    @overload
    def __get__(self, metrics: None, owner: type) -> "Metric[Made]": ...
    @overload
    def __get__(self, metrics: "Metrics", owner: type) -> Made: ...
    def __get__(self, metrics: "Metrics | None", owner: type) -> "Metric[Made] | Made":
        if metrics is None:
            return self
        raise AttributeError(f"{self.name} is no metric of {metrics.process}")

    def make(self, registry: CollectorRegistry) -> Made:
        """Return what counts."""
        made: Made = self._make(self.name, self.text, self.labels, registry=registry, **self._more)
        return made


def _counter(processes: tuple[str, ...], name: str, text: str, *labels: str) -> Metric[Counter]:
    return Metric(Counter, processes, name, text, labels)


def _gauge(processes: tuple[str, ...], name: str, text: str, *labels: str) -> Metric[Gauge]:
    return Metric(Gauge, processes, name, text, labels)


def _histogram(
    processes: tuple[str, ...], name: str, text: str, buckets: tuple[float, ...] = SECONDS
) -> Metric[Histogram]:
    return Metric(Histogram, processes, name, text, buckets=buckets)


def _distribution(
    processes: tuple[str, ...], name: str, text: str, buckets: tuple[float, ...] = SECONDS
) -> Metric[Distribution]:
    return Metric(Distribution, processes, name, text, buckets=buckets)


class Metrics:
    """What a process counts. Received = the sum of outcomes + in flight, always."""

    ready = _gauge(_ALL, "drm_ready", "1 while the process could do its work now (/health/ready), else 0.")

    tasks = _gauge(_ALL, "drm_asyncio_tasks", "Tasks of the event loop, that of the scrape among them.")

    # -- the ledger, on serve too, which no event passes: one rule holds everywhere
    received = _counter(_ALL, "drm_events_received", "Events received, before anything was decided about them.")
    outcomes = _counter(_ALL, "drm_events", "Events by what became of them (outcome.py).", "outcome")
    in_flight = _gauge(_ALL, "drm_events_in_flight", "Events received whose outcome is not known yet.")
    codes = _counter(_PATH, "drm_event_codes", "Events rejected, remarked on or dead-lettered, by code.", "code")

    # -- edge and serve
    requests = _counter(
        _EDGE + _SERVE, "drm_requests", "Requests or WebSocket messages answered, by status.", "transport", "status"
    )
    refusals = _counter(_EDGE + _SERVE, "drm_refusals", "Whole requests refused, by code.", "code")

    # -- edge
    ack_seconds = _distribution(_EDGE, "drm_ack_seconds", "Last byte of a request to its answer.")
    request_events = _distribution(_EDGE, "drm_request_events", "Events in a request.", EVENTS)
    request_bytes_in_flight = _gauge(_EDGE, "drm_request_in_flight_bytes", "Request bodies being read or checked.")
    connections = _gauge(_EDGE, "drm_connections", "Open connections.", "transport")
    quotas_in_debt = _gauge(_EDGE, "drm_quotas_in_debt", "Buckets of quotas that are not full, by whose.", "kind")
    credentials_age_seconds = _gauge(_EDGE, "drm_credentials_age_seconds", "Since the credential snapshot was read.")
    token_verifications = _counter(
        _EDGE, "drm_token_verifications", "Signatures of tokens checked: those not remembered.", "result"
    )

    # -- serve
    request_seconds = _histogram(_SERVE, "drm_request_seconds", "A request of serve from its first byte to its answer.")

    # -- Kafka
    batch_events = _histogram(_PATH, "drm_produce_batch_events", "Events in a batch written to a partition.", EVENTS)
    produce_seconds = _histogram(_PATH, "drm_produce_seconds", "A batch from sending to its acknowledgement.")
    produce_failures = _counter(_PATH, "drm_produce_failures", "Batches that Kafka did not acknowledge.", "error")
    writer_bytes = _gauge(_PATH, "drm_writer_buffered_bytes", "Events waiting for or in flight to Kafka.")
    lag = _gauge(_WORKERS, "drm_consumer_lag_events", "Records behind the end of a partition.", "topic", "partition")
    read_batch_events = _histogram(_WORKERS, "drm_read_batch_events", "Records handed to the worker at a time.", EVENTS)

    # -- pipeline
    batch_seconds = _histogram(_WORKERS, "drm_batch_seconds", "One batch from reading to durable.")
    freshness_seconds = Metric(
        Distribution, _WORKERS, "drm_freshness_seconds", "From receipt at the edge to durable here.", buckets=SECONDS
    )
    directory_lookups = _counter(_ENRICH, "drm_directory_lookups", "Device context looked up.", "result")
    braked = _gauge(_WORKERS, "drm_braked", "1 while too many events fail and the worker waits for a person, else 0.")
    identity_events = _counter(
        _ATTACH, "drm_identity_events", "Identity events derived into relations, or refused, by result.", "result"
    )
    identity_lag_seconds = _gauge(
        _ATTACH, "drm_identity_lag_seconds", "How long the oldest identity event waits to be in relations."
    )
    relayed = _counter(_ATTACH, "drm_relationship_changes_published", "Changes of relations published, repeats too.")
    relay_lag_seconds = _gauge(
        _ATTACH,
        "drm_relationship_changes_lag_seconds",
        "How long the oldest change not published waits, or none could be.",
    )
    totals_parties = _gauge(_ATTACH, "drm_totals_parties", "Parties so large that their records are read from totals.")
    totals_lag_seconds = _gauge(
        _ATTACH, "drm_totals_lag_seconds", "How old what these totals are missing is: events stored, or changes made."
    )
    totals_healed = _counter(
        _ATTACH, "drm_totals_healed_events", "Events by which totals were wrong, found when they were counted anew."
    )
    fenced = _counter(_ATTACH, "drm_fenced", "Batches rolled back because another worker owns the partition.")

    def __init__(self, process: Process) -> None:
        disable_created_metrics()  # type: ignore[no-untyped-call]  # a series for each series, that nobody asks for
        self.process = process
        registry = self.registry = CollectorRegistry(auto_describe=True)
        self._before_reading: list[Callable[[], None]] = []
        registry.register(_Before(self._before_reading))  # the first to be collected: they are in this order
        info = Gauge("drm_process_info", "Which process this is; always 1.", ["process"], registry=registry)
        info.labels(process).set(1)
        for metric in DECLARED:
            if process in metric.processes:
                vars(self)[metric.attribute] = metric.make(registry)

    def add_before_reading(self, add_up: Callable[[], None]) -> None:
        """Call this each time before the metrics are read."""
        self._before_reading.append(add_up)


class _Before(Collector):
    """Shows nothing."""

    def __init__(self, calls: list[Callable[[], None]]) -> None:
        self._calls = calls

    def collect(self) -> Iterable[Any]:
        for call in self._calls:
            call()
        return ()


DECLARED: tuple[Metric[Any], ...] = tuple(part for part in vars(Metrics).values() if isinstance(part, Metric))
