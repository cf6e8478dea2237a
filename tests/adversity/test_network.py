"""The network between the parts goes bad, for one of them or for all; when it heals, everything goes on by itself."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from dataclasses import dataclass
from urllib.parse import urlsplit

import asyncpg
import httpx
import psutil
import pytest
from tests.adversity.doors import BrokerWithDoors, PostgresAt, doors_for
from tests.adversity.parts import KEY, Parts, Place
from tests.adversity.relay import Fault, Relay
from tests.adversity.separate import Network, swallowed
from tests.conftest import make_settings, run_aside
from tests.integration.edge import an_event

from drm_ingest.kafka.connection import SILENT_LOOKS
from drm_ingest.postgres.migrate import migrate
from drm_ingest.settings import Settings
from drm_ingest.up.kafka import Kafka
from drm_ingest.up.postgres import Postgres

HEALTHY_WITHIN_S = 15.0
IDLE_WITHIN_S = 5.0
EVENTS_AT_LEAST = 1200
RATE = 400.0
PROCESSES = ("edge", "enrich", "attach", "serve")
LINKS = (
    ("edge", "kafka"), ("enrich", "kafka"), ("attach", "kafka"),
    ("edge", "postgres"), ("enrich", "postgres"), ("attach", "postgres"), ("serve", "postgres"),
)  # fmt: skip

SERVERS = ("kafka", "postgres")

Link = tuple[str, str]
Seen = Callable[[str], None]


@dataclass
class Net:
    """The parts, and how to hurt what is between them."""

    parts: Parts
    hurt: Callable[[Link, Fault], None]
    heal: Callable[[], None]


def patient(settings: Settings) -> Settings:
    """What the parts have in production, where the tests have shorter ones."""
    return settings.model_copy(update={"produce_deadline_s": 10, "produce_request_timeout_s": 5, "attach_pace_s": 0.05})


# -- connections relayed, for everybody --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def relayed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Net]:
    """Each process reaches each server through a relay of its own."""
    folder = tmp_path_factory.mktemp("relayed")
    relays = {link: Relay() for link in LINKS}
    to_kafka = [process for process, server in LINKS if server == "kafka"]
    doors = doors_for(to_kafka, "127.0.0.1", {name: f"127.0.0.1:{relays[name, 'kafka'].port}" for name in to_kafka})
    kafka = BrokerWithDoors(folder / "kafka", doors)
    server = Postgres(folder / "postgres")
    with contextlib.ExitStack() as stack:
        for relay in relays.values():
            stack.callback(relay.close)
        for each in (server, kafka):
            stack.callback(each.kill)
            each.start()
        run_aside(_migrate(server.dsn))
        places = {}
        for name in PROCESSES:
            relays[name, "postgres"].open(server.port)
            address = f"127.0.0.1:{relays[name, 'postgres'].port}"
            environment = {"DRM_POSTGRES_DSN": server.dsn.replace(f"127.0.0.1:{server.port}", address)}
            if name in to_kafka:
                relays[name, "kafka"].open(doors[name.upper()].port)
                environment["DRM_KAFKA_BOOTSTRAP"] = f"127.0.0.1:{relays[name, 'kafka'].port}"
            places[name] = Place(environment=environment)
        parts = Parts(patient(make_settings(kafka, server.dsn)), folder, PROCESSES, places)
        stack.callback(parts.end)
        parts.start()

        def heal() -> None:
            for relay in relays.values():
                relay.heal()

        yield Net(parts, lambda link, fault: relays[link].hurt(fault), heal)


@pytest.mark.row("network")
@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    ("fault", "links"),
    [
        pytest.param(Fault.DROPPED, LINKS, id="dropped between all"),
        pytest.param(Fault.RESET, LINKS, id="reset between all"),
        *(  # What only slows a link down hurts nobody more alone than with all others.
            pytest.param(
                fault, [link], marks=pytest.mark.slow, id=f"{fault.name.lower()} between {link[0]} and {link[1]}"
            )
            for fault in (Fault.DROPPED, Fault.MUTE)
            for link in LINKS
        ),
        pytest.param(Fault.MUTE, LINKS, marks=pytest.mark.slow, id="one-way between all"),
        pytest.param(Fault.DEAF, LINKS, marks=pytest.mark.slow, id="one-way between all, the other way"),
        pytest.param(Fault.SLOW, LINKS, marks=pytest.mark.slow, id="+200 ms between all"),
        pytest.param(Fault.NARROW, LINKS, marks=pytest.mark.slow, id="1 Mbit between all"),
        pytest.param(Fault.LOSSY, LINKS, marks=pytest.mark.slow, id="5 % loss between all"),
    ],
)
async def test_the_ledger_is_exact_and_nothing_is_wedged_after_a_connection_was_hurt(
    relayed: Net, seed: int, seen: Seen, fault: Fault, links: Sequence[Link]
) -> None:
    where = "–".join(links[0]) if len(links) == 1 else "all"
    await suffer(relayed, fault, links, 2.0, seed, seen, where)


# -- packets, in network namespaces ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def separate(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Net]:
    """Each process in a network namespace of its own; Kafka and Postgres are on the machine."""
    folder = tmp_path_factory.mktemp("separate")
    with contextlib.ExitStack() as stack:
        network = stack.enter_context(Network(PROCESSES).up())
        door = doors_for(["net"], network.address, {})
        kafka = BrokerWithDoors(folder / "kafka", door)
        server = PostgresAt(folder / "postgres", network.address, network.network)
        for each in (server, kafka):
            stack.callback(each.kill)
            each.start()
        run_aside(_migrate(server.dsn))
        ports = {"kafka": door["NET"].port, "postgres": server.port}
        environment = {
            "DRM_POSTGRES_DSN": server.dsn.replace("127.0.0.1", network.address),
            "DRM_KAFKA_BOOTSTRAP": f"{network.address}:{ports['kafka']}",
            "DRM_EDGE_HOST": "0.0.0.0",
            "DRM_WORKER_HOST": "0.0.0.0",
            "DRM_SERVE_HOST": "0.0.0.0",
        }
        places = {
            name: Place(network.addresses[name], network.prefix(name), environment) for name in PROCESSES
        }  # fmt: skip
        settings = patient(make_settings(kafka, server.dsn))
        # No statement gives up while a fault lasts: that nobody answers is told by the silence of the connection alone.
        settings = settings.model_copy(update={"postgres_statement_timeout_s": 90})
        parts = Parts(settings, folder, PROCESSES, places)
        stack.callback(parts.end)
        parts.start()
        yield Net(parts, lambda link, fault: network.hurt(link[0], ports[link[1]], fault), network.heal)


@pytest.mark.row("network")
@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    ("server", "fault", "for_s"),
    [
        # Longer than a request to Kafka may take, and TCP would send the lost again only 51 s after it was.
        *((server, fault, 30) for server in SERVERS for fault in (Fault.DROPPED, Fault.DEAF, Fault.MUTE)),
        *((server, fault, 10) for server in SERVERS for fault in (Fault.DROPPED, Fault.RESET, Fault.LOSSY)),
        # A narrow link is narrow for both. None is slow: a kernel without netem cannot delay.
        ("all", Fault.NARROW, 10),
    ],
    ids=lambda value: value.name.lower() if isinstance(value, Fault) else str(value),
)
async def test_the_ledger_is_exact_and_nothing_is_wedged_after_packets_were_lost(
    separate: Net, seed: int, seen: Seen, server: str, fault: Fault, for_s: float
) -> None:
    links = (
        [(name, "kafka") for name in PROCESSES] if server == "all" else [link for link in LINKS if link[1] == server]
    )
    await suffer(separate, fault, links, for_s, seed, seen, f"packets of all with {server}")


# -- connections forgotten ---------------------------------------------------------------------------------------------


@pytest.mark.row("network")
@pytest.mark.slow
@pytest.mark.parametrize("server", SERVERS)
async def test_what_a_firewall_forgot_while_it_was_idle_keeps_nobody_waiting_when_there_is_something_to_do(
    kafka: Kafka, database: str, start_parts: Callable[..., Parts], seen: Seen, server: str
) -> None:
    patience = {"produce_deadline_s": 20, "produce_request_timeout_s": 10, "postgres_statement_timeout_s": 20}
    settings = make_settings(kafka, database).model_copy(update={"connection_silent_max_s": 2, **patience})
    parts = await asyncio.to_thread(start_parts, settings, PROCESSES)
    await healthy(parts, 60)
    port = kafka.port if server == "kafka" else urlsplit(database).port
    forgotten = [
        at.laddr.port
        for name in PROCESSES
        for at in psutil.Process(parts[name].pid).net_connections("tcp")
        if at.raddr and at.raddr.port == port
    ]
    assert len(forgotten) >= len([link for link in LINKS if link[1] == server])
    with swallowed(*forgotten):  # others can be made
        await asyncio.sleep(SILENT_LOOKS + 4)  # readers are never idle: they hang up
        took_s = await healthy(parts, 60)
    seen(f"{len(forgotten)} connections with {server} forgotten: an event then stored after {took_s:.1f} s")
    assert took_s < IDLE_WITHIN_S


# -- what both do ------------------------------------------------------------------------------------------------------


async def suffer(
    net: Net, fault: Fault, links: Sequence[Link], for_s: float, seed: int, seen: Seen, where: str
) -> None:
    """Hurt these links under load, heal them, and hold the ledger and the bound."""
    events = max(EVENTS_AT_LEAST, int(RATE * for_s))
    await healthy(net.parts, 60)
    async with net.parts.ledger(events=events, seed=seed, rate=RATE):
        await asyncio.sleep(0.5)
        async with hurting(net, fault, links):
            await asyncio.sleep(for_s)
        took_s = await healthy(net.parts, 60)
    seen(f"{fault.name.lower()} {for_s:g} s, {where}: healthy after {took_s:.1f} s")
    assert took_s < HEALTHY_WITHIN_S


@contextlib.asynccontextmanager
async def hurting(net: Net, fault: Fault, links: Sequence[Link]) -> AsyncIterator[None]:
    """Hurt while the body runs, and heal whatever happens."""
    try:
        for link in links:
            await asyncio.to_thread(net.hurt, link, fault)
        yield
    finally:
        await asyncio.to_thread(net.heal)


async def healthy(parts: Parts, within_s: float) -> float:
    """Return the seconds until all processes are ready at once and an event goes all the way."""
    began = time.monotonic()
    sentinel = an_event(id=f"sentinel-{began}")
    query = {"subject": sentinel["subject"], "id": sentinel["id"]}
    pending: list[str] = []
    async with httpx.AsyncClient(timeout=2) as client:
        while True:
            with contextlib.suppress(httpx.TransportError):
                answer = await client.post(
                    parts.url("edge") + "/v1/events", json=[sentinel], headers={"authorization": f"Bearer {KEY}"}
                )
                pending = [name for name in PROCESSES if not await is_ready(client, parts.url(name))]
                if answer.status_code == 200 and not pending and await attached(parts, query):
                    return time.monotonic() - began
                pending = pending or [answer.text]
            assert time.monotonic() - began < within_s, f"after {within_s} s not healthy: {pending}"
            await asyncio.sleep(0.1)


async def is_ready(client: httpx.AsyncClient, url: str) -> bool:
    return (await client.get(url + "/health/ready")).status_code == 200


async def attached(parts: Parts, query: dict[str, str]) -> bool:
    connection = await asyncpg.connect(parts.where["postgres_dsn"])
    try:
        return bool(
            await connection.fetchval(
                "select exists (select from event where subject = $1 and id = $2)", query["subject"], query["id"]
            )
        )
    finally:
        await connection.close()


async def _migrate(dsn: str) -> None:
    assert await migrate(dsn)
