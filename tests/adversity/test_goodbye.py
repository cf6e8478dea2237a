"""SIGTERM, whatever is going on: not ready, finish what is in flight, flush, commit, and end with 0 in time."""

import asyncio
import signal
import time
from collections.abc import Callable, Iterable

import asyncpg
import orjson
import pytest
from pydantic import SecretStr
from tests.adversity.parts import PROCESSES, Parts
from tests.adversity.stored import value
from tests.integration.edge import until
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed

from drm_ingest.settings import Settings
from drm_ingest.up.child import Child
from drm_ingest.up.kafka import Kafka
from drm_ingest.up.postgres import Postgres

ALL = (*PROCESSES, "serve")
CONNECTIONS = {
    "edge": ["drm edge%"],
    "enrich": ["drm enrich%"],
    "attach": ["drm attach%", "drm keeper%"],
    "serve": ["drm serve%"],
}
HELD = "select count(*) from consumer_position where holder <> ''"
ENDED_AFTER_DRAIN_S = 5.0  # with the 15 s of DRM_DRAIN_TIMEOUT_S: 20 s
BAD_SIGNS = ("was destroyed", "ResourceWarning", "never retrieved", "never awaited", "Traceback", '"level":"critical"')


@pytest.fixture(autouse=True)
def _warn_of_leaks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONWARNINGS", "always::ResourceWarning,always::RuntimeWarning")


async def ended(child: Child, since: float, within_s: float) -> float:
    """Wait for the end of a process that was asked to; return how long it took."""
    left_s = since + within_s - time.monotonic()
    assert await asyncio.to_thread(child.wait, left_s), f"{child.name} runs after {within_s} s:\n{child.last_lines(20)}"
    assert child.exit_code == 0, child.last_lines(20)
    return time.monotonic() - since


def check_log(child: Child) -> None:
    # aiokafka shields a commit that Kafka does not answer, so nobody is left to hear how it failed.
    said = "\n".join(line for line in child.log_file.read_text().splitlines() if "_do_commit_offsets" not in line)
    assert not [sign for sign in BAD_SIGNS if sign in said], f"{child.name}:\n{child.last_lines(40)}"


async def check_no_connection(dsn: str, processes: Iterable[str]) -> None:
    """Wait until Postgres has no connection of these: a backend notices the end of its client a moment later."""
    names = [name for process in processes for name in CONNECTIONS[process]]
    connection = await asyncpg.connect(dsn)

    async def none() -> bool:
        query = (
            "select count(*) from pg_stat_activity where datname = current_database() and application_name like any($1)"
        )
        return not await connection.fetchval(query, names)

    try:
        await until(none)
    finally:
        await connection.close()


@pytest.mark.row("edge-killed")
@pytest.mark.parametrize(
    "rounds", [1, pytest.param(4, marks=[pytest.mark.slow, pytest.mark.timeout(400)])], ids=["once", "4 times"]
)
async def test_each_process_told_to_stop_under_load_ends_with_0_and_leaves_nothing(
    settings: Settings, start_parts: Callable[..., Parts], rounds: int, seed: int, seen: Callable[[str], None]
) -> None:
    parts = await asyncio.to_thread(start_parts, settings, ALL)
    dsn = settings.postgres_dsn.get_secret_value()
    took: dict[str, float] = {}
    async with parts.ledger(events=8000 * rounds, seed=seed, rate=1000) as ledger:
        for process in ALL * rounds:
            await asyncio.sleep(0.5)
            since = time.monotonic()
            parts[process].ask_to_stop()
            took_s = await ended(parts[process], since, settings.drain_timeout_s + ENDED_AFTER_DRAIN_S)
            took[process] = max(took_s, took.get(process, 0))
            await check_no_connection(dsn, [process])
            if process == "attach":
                assert await value(dsn, HELD) == 0, "it left without giving its partitions up"
            parts[process].start()
            await parts.ready(process)
    for process in ALL:
        check_log(parts[process])
    assert "unknown" not in {entry.answer for entry in ledger.entries}
    seen(f"SIGTERM under load: {', '.join(f'{process} {took_s:.1f} s' for process, took_s in took.items())}")


@pytest.mark.slow
@pytest.mark.row("edge-killed")
async def test_an_edge_of_several_workers_told_to_stop_under_load_ends_with_0_and_leaves_nothing(
    settings: Settings, start_parts: Callable[..., Parts], seed: int
) -> None:
    parts = await asyncio.to_thread(start_parts, settings)
    edge = parts["edge"]
    edge.kill()
    edge.argv = [*edge.argv, "--workers", "2"]
    edge.start()
    await parts.ready("edge")
    async with parts.ledger(events=6000, seed=seed, rate=2000):
        await asyncio.sleep(1)
        since = time.monotonic()
        edge.ask_to_stop()
        await ended(edge, since, settings.drain_timeout_s + ENDED_AFTER_DRAIN_S)
        await check_no_connection(settings.postgres_dsn.get_secret_value(), ["edge"])
        edge.start()
        await parts.ready("edge")
    check_log(edge)


@pytest.mark.row("edge-killed")
@pytest.mark.timeout(300)
@pytest.mark.parametrize("away", ["kafka", "postgres"])
@pytest.mark.parametrize(
    ("how", "drain_s"),
    [
        pytest.param(signal.SIGSTOP, 3.0, id="frozen", marks=pytest.mark.slow),
        pytest.param(signal.SIGKILL, 3.0, id="killed", marks=pytest.mark.slow),
        pytest.param(signal.SIGSTOP, 15.0, id="frozen-as-in-production", marks=pytest.mark.slow),
    ],
)
async def test_all_told_to_stop_while_a_server_is_away_end_with_0_in_time_and_lose_nothing(
    settings: Settings,
    private_kafka: Callable[[], Kafka],
    private_postgres: Callable[[], Postgres],
    start_parts: Callable[..., Parts],
    away: str,
    how: signal.Signals,
    drain_s: float,
    seed: int,
    seen: Callable[[str], None],
) -> None:
    kafka, postgres = await asyncio.to_thread(private_kafka), await asyncio.to_thread(private_postgres)
    changed: dict[str, object] = {"kafka_bootstrap": kafka.bootstrap, "drain_timeout_s": drain_s}
    if drain_s > 10:
        changed |= {"produce_deadline_s": 10, "produce_request_timeout_s": 5}
    settings = settings.model_copy(update=changed | {"postgres_dsn": SecretStr(postgres.dsn)})
    server = kafka if away == "kafka" else postgres
    parts = await asyncio.to_thread(start_parts, settings, ALL)
    async with parts.ledger(events=6000, seed=seed, rate=2000):
        await asyncio.sleep(1)
        server.signal(how)
        await asyncio.sleep(1)
        since = time.monotonic()
        for process in ALL:
            parts[process].ask_to_stop()
        within_s = drain_s + ENDED_AFTER_DRAIN_S
        took = {process: await ended(parts[process], since, within_s) for process in ALL}
        if how == signal.SIGSTOP:
            server.signal(signal.SIGCONT)
        else:
            await asyncio.to_thread(server.start)
        for process in ALL:
            parts[process].start()
        for process in ALL:
            await parts.ready(process)
    slowest = max(took, key=lambda process: took[process])
    seen(
        f"SIGTERM with {away} {'frozen' if how == signal.SIGSTOP else 'killed'}: all ended after {took[slowest]:.1f} s"
    )
    for process in ALL:
        check_log(parts[process])
    await check_no_connection(postgres.dsn, [])


async def test_clients_of_a_websocket_are_told_to_come_back_at_different_moments(
    settings: Settings, start_parts: Callable[..., Parts]
) -> None:
    spread_s = 20.0
    settings = settings.model_copy(update={"websocket_reconnect_spread_s": spread_s})
    parts = await asyncio.to_thread(start_parts, settings, ("edge",))
    where = parts.where
    url, headers = (
        where["edge_url"].replace("http", "ws") + "/v1/events",
        {"authorization": f"Bearer {where['sender_key']}"},
    )
    sockets = [await connect(url, additional_headers=headers) for _ in range(60)]
    parts["edge"].ask_to_stop()
    told = await asyncio.gather(*(last_words(socket) for socket in sockets))
    assert {socket.close_code for socket in sockets} == {1012}
    assert all(0 < after_ms <= 1000 * spread_s + 100 for after_ms in told)
    # Of 60 drawn evenly, none in the first or none in the last quarter has a chance of less than 1 in 10 million.
    assert min(told) < 250 * spread_s < 750 * spread_s < max(told)
    assert await asyncio.to_thread(parts["edge"].wait, settings.drain_timeout_s + ENDED_AFTER_DRAIN_S)


async def last_words(socket: ClientConnection) -> int:
    """Return when the server wants the client back, in milliseconds."""
    after_ms = 0
    try:
        async with asyncio.timeout(20):
            while True:
                message = orjson.loads(await socket.recv())
                after_ms = message.get("goaway", {}).get("reconnect_after_ms", after_ms)
    except ConnectionClosed:
        return after_ms
