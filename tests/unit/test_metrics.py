"""Each process shows its own metrics and no others, and every metric that its code uses is there."""

import re
from pathlib import Path

import pytest
from prometheus_client import generate_latest

from drm_ingest.metrics import DECLARED, PROCESSES, Metrics, Process

SOURCE = Path(__file__).parents[2] / "src/drm_ingest"
WORKERS: tuple[Process, ...] = ("enrich", "attach")
RUN_BY: dict[str, tuple[Process, ...]] = {
    "edge/": ("edge",),
    "serve/": ("serve",),
    "health.py": PROCESSES,
    "kafka/leader.py": ("edge", *WORKERS),
    "kafka/writer.py": ("edge", *WORKERS),
    "kafka/reader.py": WORKERS,
    "pipeline/attach/accounts.py": ("attach",),
    "pipeline/attach/link.py": ("attach",),
    "pipeline/attach/relay.py": ("attach",),
    "pipeline/attach/total.py": ("attach",),
    "pipeline/attach/worker.py": ("attach",),
    "pipeline/enrich/directory.py": ("enrich",),
    "pipeline/enrich/worker.py": ("enrich",),
}


def uses() -> list[tuple[str, str]]:
    """Return each file of ours with each metric that it uses."""
    return sorted(
        (path.relative_to(SOURCE).as_posix(), name)
        for path in SOURCE.rglob("*.py")
        if path.name not in ("__init__.py", "metrics.py") and path.parent.name != "up"
        for name in set(re.findall(r"\b_?metrics\.([a-z_]+)\b(?!\.py)", path.read_text()))
        if name not in ("registry", "add_before_reading")
    )


@pytest.mark.parametrize(("file", "name"), uses())
def test_what_a_file_counts_is_declared_for_every_process_that_runs_it(file: str, name: str) -> None:
    [processes] = [processes for begin, processes in RUN_BY.items() if file.startswith(begin)]
    for process in processes:
        assert getattr(Metrics(process), name)


def test_every_metric_is_used() -> None:
    assert {metric.attribute for metric in DECLARED} == {name for _, name in uses()}


@pytest.mark.parametrize("process", PROCESSES)
def test_a_process_shows_its_own_metrics_and_no_others(process: Process) -> None:
    shown = {family.name for family in Metrics(process).registry.collect()}
    assert shown == {"drm_process_info"} | {metric.name for metric in DECLARED if process in metric.processes}


def test_what_only_the_edge_does_is_not_counted_by_the_others() -> None:
    assert not hasattr(Metrics("enrich"), "ack_seconds")
    assert not hasattr(Metrics("serve"), "codes")
    with pytest.raises(AttributeError, match="drm_ack_seconds is no metric of attach"):
        _ = Metrics("attach").ack_seconds


def test_the_ledger_is_the_same_in_every_process() -> None:
    for process in PROCESSES:
        metrics = Metrics(process)
        metrics.received.inc(3)
        metrics.outcomes.labels("duplicate").inc(2)
        metrics.in_flight.inc(1)
        text = generate_latest(metrics.registry).decode()
        for line in (
            "drm_events_received_total 3.0", 'drm_events_total{outcome="duplicate"} 2.0', "drm_events_in_flight 1.0",
        ):  # fmt: skip
            assert line in text.splitlines()


def test_no_series_tells_when_another_was_made() -> None:
    metrics = Metrics("edge")
    metrics.ack_seconds.observe(0.1)
    metrics.received.inc()
    assert "_created" not in generate_latest(metrics.registry).decode()
