"""Fixtures of the edge: `edge`, shared and left healthy; `start_edge`, one of a test's own with settings of its own."""

import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.conftest import database_on, make_settings
from tests.integration.edge import Edge

from drm_ingest.settings import Settings
from drm_ingest.up.kafka import Kafka
from drm_ingest.up.postgres import Postgres

QUICK = {
    "request_header_timeout_s": 1.5,
    "request_body_timeout_s": 1.5,
    "connection_idle_timeout_s": 3,
    "refused_body_discard_timeout_s": 2,
}


@pytest.fixture(scope="session")
def edge(kafka: Kafka, migrated: Postgres, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Edge]:
    """One edge with its own topics and database, for all tests that neither stop nor starve it."""
    with database_on(migrated) as dsn:
        running = Edge.start(make_settings(kafka, dsn), tmp_path_factory.mktemp("edge") / "edge.log")
        yield running
        assert running.stop() == 0


@pytest.fixture(scope="module")
def quick_edge(kafka: Kafka, migrated: Postgres, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Edge]:
    """The same with deadlines that a test can wait for, for the tests of a file: few need it."""
    with database_on(migrated) as dsn:
        settings = make_settings(kafka, dsn).model_copy(update=QUICK)
        running = Edge.start(settings, tmp_path_factory.mktemp("edge") / "edge.log")
        yield running
        assert running.stop() == 0


@pytest.fixture
def start_edge(settings: Settings, tmp_path: Path) -> Iterator[Callable[..., Edge]]:
    """Return a function that starts an edge with changed settings, on the test's own topics and database."""
    started: list[Edge] = []
    numbers = itertools.count()

    def start(workers: int = 1, **changed: Any) -> Edge:
        log = tmp_path / f"edge-{next(numbers)}.log"
        started.append(Edge.start(settings.model_copy(update=changed), log, workers))
        return started[-1]

    yield start
    for running in started:
        running.kill()
