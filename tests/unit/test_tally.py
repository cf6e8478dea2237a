"""What the edge counts in plain numbers is in the metrics whenever somebody reads them, once."""

from drm_ingest.edge.tally import Tally
from drm_ingest.metrics import Metrics


def value(metrics: Metrics, name: str, **labels: str) -> float | None:
    return metrics.registry.get_sample_value(name, labels)


def test_whoever_reads_the_metrics_reads_what_was_counted_until_then_and_each_once() -> None:
    metrics = Metrics("edge")
    http, websocket = Tally(metrics, "http"), Tally(metrics, "websocket")
    for tally in (http, websocket):
        tally.received += 10
        tally.rejected += 1
        tally.accepted += 6
        tally.unknown += 1
        tally.requests[200] += 2
        tally.request_events += [4, 6]
        tally.observed(0.003)
    for _ in range(2):
        assert value(metrics, "drm_events_received_total") == 20
        assert [value(metrics, "drm_events_total", outcome=end) for end in ("rejected", "accepted", "unknown")] == [
            2, 12, 2,
        ]  # fmt: skip
        assert value(metrics, "drm_events_in_flight") == 4
        assert value(metrics, "drm_requests_total", transport="http", status="200") == 2
        assert (value(metrics, "drm_request_events_count"), value(metrics, "drm_request_events_sum")) == (4, 20)
        assert value(metrics, "drm_ack_seconds_bucket", le="0.002") == 0
        assert value(metrics, "drm_ack_seconds_bucket", le="0.005") == 2
    http.accepted += 2
    assert value(metrics, "drm_events_in_flight") == 2


def test_what_nobody_reads_does_not_pile_up() -> None:
    metrics = Metrics("edge")
    tally = Tally(metrics, "http")
    for _ in range(10_000):
        tally.request_events.append(1)
        tally.observed(0.1)
    assert max(len(tally.request_events), len(tally.ack_seconds)) < 2000
    assert value(metrics, "drm_ack_seconds_count") == value(metrics, "drm_request_events_count") == 10_000
