"""A real Kafka and a real Postgres for the whole session; topics and a database of its own for each test.

`kafka`, `postgres`                   the session's; do not stop them
`private_kafka`, `private_postgres`   make one that a test may stop, kill, freeze and start again
`spare_kafka`                         the same without the wait: one for all that need no more than topics of their own
`database`                            the DSN of a fresh, migrated database
`settings`                            what a process needs to work on `kafka` and `database`, with its own topic prefix
`environment`                         the same for a process started from its command line

None of it is for tests/unit: those run in memory.
"""

import asyncio
import contextlib
import os
import signal
import uuid
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import asyncpg
import pytest
from aiokafka.admin import AIOKafkaAdminClient
from pydantic import SecretStr

from drm_ingest.postgres.migrate import migrate
from drm_ingest.settings import Settings
from drm_ingest.up.kafka import Kafka
from drm_ingest.up.ports import free_port
from drm_ingest.up.postgres import Postgres

pytest_plugins = ["tests.adversity.rows"]

REAL = {"kafka", "postgres", "private_kafka", "private_postgres", "spare_kafka"}
TEMPLATE = "migrated_template"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Hold tests/unit to its promise."""
    unit = Path(__file__).parent / "unit"
    for item in items:
        if item.path.is_relative_to(unit) and (used := REAL.intersection(getattr(item, "fixturenames", ()))):
            raise pytest.UsageError(f"{item.nodeid} is a unit test and may not use {', '.join(sorted(used))}")


def run_aside(work: Coroutine[Any, Any, object]) -> None:
    """Run a coroutine to its end in a thread with a loop of its own, away from the loop of the tests."""
    with ThreadPoolExecutor(1) as aside:
        aside.submit(asyncio.run, work).result()


@pytest.fixture(scope="session")
def kafka(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Kafka]:
    broker = Kafka(tmp_path_factory.mktemp("kafka"))
    broker.start()
    yield broker
    broker.stop()


@pytest.fixture(scope="session")
def postgres(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Postgres]:
    # It outlives no machine. Copies of files that need not reach the disk make databases that come and go ten times
    # cheaper, and a run makes hundreds.
    server = Postgres(tmp_path_factory.mktemp("postgres"), configuration={"fsync": "off"})
    server.start()
    yield server
    server.stop()


@pytest.fixture
def private_kafka(tmp_path: Path) -> Iterator[Callable[[], Kafka]]:
    """Return a function that starts one more broker; all of them end with the test."""
    started: list[Kafka] = []

    def start() -> Kafka:
        started.append(Kafka(tmp_path / f"kafka-{len(started)}"))
        started[-1].start()
        return started[-1]

    yield start
    for broker in started:
        broker.kill()


@pytest.fixture(scope="session")
def second_kafka(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Kafka]:
    broker = Kafka(tmp_path_factory.mktemp("second-kafka"))
    yield broker
    broker.kill()


@pytest.fixture
def spare_kafka(second_kafka: Kafka) -> Callable[[], Kafka]:
    """Return a function that makes sure that the session's other broker runs, whatever was done to it before."""

    def running() -> Kafka:
        if second_kafka.child.alive:
            second_kafka.signal(signal.SIGCONT)
        if not (second_kafka.child.alive and second_kafka.ready()):
            second_kafka.kill()
            second_kafka.start()
        return second_kafka

    return running


@pytest.fixture
def private_postgres(tmp_path: Path) -> Iterator[Callable[[], Postgres]]:
    """Return a function that starts one more server, its database `drm` migrated; all of them end with the test."""
    started: list[Postgres] = []

    def start() -> Postgres:
        started.append(Postgres(tmp_path / f"postgres-{len(started)}"))
        started[-1].start()
        run_aside(_migrate(started[-1].dsn))
        return started[-1]

    yield start
    for server in started:
        server.kill()


@pytest.fixture(scope="session")
def migrated(postgres: Postgres) -> Postgres:
    """The session's server, holding a migrated database to copy from."""

    async def make() -> None:
        await _execute(postgres.dsn, f"CREATE DATABASE {TEMPLATE}")
        await migrate(_on(postgres, TEMPLATE))

    run_aside(make())
    return postgres


@contextlib.contextmanager
def database_on(migrated: Postgres) -> Iterator[str]:
    """Make a fresh, migrated database and drop it again; yields its DSN."""
    name = f"test_{uuid.uuid4().hex[:12]}"
    run_aside(_execute(migrated.dsn, f"CREATE DATABASE {name} TEMPLATE {TEMPLATE} STRATEGY file_copy"))
    yield _on(migrated, name)
    run_aside(drop_database(migrated.dsn, name))


@pytest.fixture
def database(migrated: Postgres) -> Iterator[str]:
    with database_on(migrated) as dsn:
        yield dsn


def make_settings(kafka: Kafka, dsn: str) -> Settings:
    """Return settings with a topic prefix and ports of their own."""
    return Settings(
        kafka_bootstrap=kafka.bootstrap,
        postgres_dsn=SecretStr(dsn),
        topic_prefix=f"test-{uuid.uuid4().hex[:12]}",
        topic_partitions=3,
        topic_replication_factor=1,
        topic_min_insync_replicas=1,
        edge_port=free_port(),
        serve_port=free_port(),
        enrich_port=free_port(),
        attach_port=free_port(),
        produce_deadline_s=5,
        produce_request_timeout_s=2,
        reader_session_timeout_s=3,
        postgres_connections_max=4,
        postgres_acquire_timeout_s=2,
        postgres_statement_timeout_s=10,
        postgres_lock_timeout_s=2,
        credential_refresh_s=0.2,
        drain_timeout_s=3,
    )


def make_environment(settings: Settings) -> dict[str, str]:
    """Return the environment of `python -m drm_ingest …` that gives it these settings."""
    own = {name: value for name, value in os.environ.items() if not name.startswith("DRM_")}
    for name, value in settings.model_dump(exclude_unset=True).items():
        own[f"DRM_{name.upper()}"] = value.get_secret_value() if isinstance(value, SecretStr) else str(value)
    return own


@pytest.fixture
def settings(kafka: Kafka, database: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Settings]:
    for name in [name for name in os.environ if name.startswith("DRM_")]:
        monkeypatch.delenv(name)
    made = make_settings(kafka, database)
    yield made
    run_aside(drop_topics(kafka.bootstrap, made.topic_prefix))


@pytest.fixture
def environment(settings: Settings) -> dict[str, str]:
    """The environment of `python -m drm_ingest …` that gives it these settings."""
    return make_environment(settings)


def _on(server: Postgres, database: str) -> str:
    return server.dsn.rpartition("/")[0] + f"/{database}"


async def _migrate(dsn: str) -> None:
    assert await migrate(dsn)


async def drop_database(dsn: str, name: str) -> None:
    """Drop it, whoever is connected; Postgres does not let an owner end autovacuum, which may be at work in it."""
    async with asyncio.timeout(60):
        while True:
            try:
                return await _execute(dsn, f"DROP DATABASE {name} WITH (FORCE)")
            except asyncpg.InsufficientPrivilegeError:
                await asyncio.sleep(0.2)


async def _execute(dsn: str, statement: str) -> None:
    connection = await asyncpg.connect(dsn)
    try:
        await connection.execute(statement)
    finally:
        await connection.close()


async def drop_topics(bootstrap: str, prefix: str) -> None:
    """Partitions cost the session's broker memory and open files, and a run has hundreds of tests."""
    admin = AIOKafkaAdminClient(bootstrap_servers=bootstrap)
    await admin.start()
    try:
        if own := [topic for topic in await admin.list_topics() if topic.startswith(prefix)]:
            await admin.delete_topics(own)
    finally:
        await admin.close()
