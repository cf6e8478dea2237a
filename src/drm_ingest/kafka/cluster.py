"""Which broker leads which partition: asked every few seconds, and at once when something failed.

Own connections rather than aiokafka's client: that one opens them all under one lock, so a broker that hangs while it
is connected to keeps every other waiting, and it never goes back to the bootstrap servers.
"""

import asyncio
import contextlib
import random
from collections.abc import Callable, Iterator

import structlog
from aiokafka.cluster import ClusterMetadata
from aiokafka.conn import collect_hosts
from aiokafka.errors import KafkaError
from aiokafka.protocol.metadata import MetadataRequest
from aiokafka.structs import TopicPartition

from drm_ingest.kafka.connection import KafkaUnreachable, end_silence, security
from drm_ingest.kafka.produce import BrokerConnection
from drm_ingest.settings import Settings

log = structlog.get_logger(__name__)

REFRESH_S = 5.0  # also tells an idle process that Kafka is gone, and that it is back
UNREACHABLE_PAUSE_S = 0.5
REFRESH_PAUSE_S = 0.2  # between two refreshes, however many ask for one
BROKER_TIMEOUT_S = 2.0  # one broker that hangs must not keep us from asking the next


class Cluster:
    """The brokers and the leaders of the topics asked for."""

    def __init__(self, settings: Settings, on_change: Callable[[], None]) -> None:
        """`on_change` is called after every answer."""
        self.reachable = False
        self._settings = settings
        self._security = security(settings)
        self._on_change = on_change
        self._topics: set[str] = set()
        self._metadata = ClusterMetadata()
        self._connection: BrokerConnection | None = None
        self._told_by: tuple[str, int] | None = None  # the one to ask last
        self._wanted = asyncio.Event()
        self._error: BaseException | None = None

    async def start(self, topic: str, timeout_s: float) -> None:
        """Learn the brokers and the leaders of a first topic.

        Raises:
            KafkaUnreachable: nobody answered within that time.
        """
        self._topics.add(topic)
        deadline = asyncio.get_running_loop().time() + timeout_s
        while not await self._refresh():
            if asyncio.get_running_loop().time() > deadline:
                raise KafkaUnreachable(self._settings, self._error)
            await asyncio.sleep(REFRESH_PAUSE_S)

    async def run(self) -> None:
        """Keep what is known fresh, until cancelled."""
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(REFRESH_S if self.reachable else UNREACHABLE_PAUSE_S):
                    await self._wanted.wait()
            if self._wanted.is_set():
                self._ask_another()
            self._wanted.clear()
            try:
                await self._refresh()
            except Exception:
                log.exception("asking for metadata failed in a way nobody foresaw")
                self.reachable = False
            await asyncio.sleep(REFRESH_PAUSE_S)

    def refresh_soon(self) -> None:
        """Something failed, or a leader is missing."""
        self._wanted.set()

    def leader(self, topic: str, partition: int) -> int | None:
        """Return the broker that leads a partition, None if it is not known or there is none; asks for new topics."""
        if topic not in self._topics:
            self._topics.add(topic)
            self._wanted.set()
        node: int | None = self._metadata.leader_for_partition(TopicPartition(topic, partition))
        return None if node == -1 else node

    async def connect(self, node: int) -> BrokerConnection:
        """Return a new connection to a broker.

        Raises:
            OSError, KafkaError: no connection, or not let in.
        """
        broker = self._metadata.broker_metadata(node)
        if broker is None:
            raise ConnectionError(f"broker {node} is not in the cluster now")
        return await self._open(broker.host, broker.port, self._settings.produce_request_timeout_s)

    async def close(self) -> None:
        """Close the connection for metadata."""
        if self._connection is not None:
            await self._connection.close()

    async def _open(self, host: str, port: int, timeout_s: float) -> BrokerConnection:
        opened = BrokerConnection(host, port, request_timeout_ms=round(timeout_s * 1000), **self._security)
        async with asyncio.timeout(timeout_s):  # aiokafka's own counts anew for each step of connecting
            await opened.connect()
        end_silence(opened, self._settings)
        return opened

    def _ask_another(self) -> None:
        """Something failed, perhaps for what the broker told us: one that is cut off tells of the past."""
        if self._connection is not None:
            self._told_by = self._connection.host, self._connection.port
            self._connection.close()
            self._connection = None

    async def _refresh(self) -> bool:
        request = MetadataRequest(sorted(self._topics), allow_auto_topic_creation=False)
        for host, port in self._candidates():
            try:
                if self._connection is None or not self._connection.connected():
                    self._connection = await self._open(host, port, BROKER_TIMEOUT_S)
                async with asyncio.timeout(BROKER_TIMEOUT_S):
                    answer = await self._connection.send(request)
                if not answer.brokers:
                    raise ConnectionError("the broker knows no brokers yet")
            except (OSError, KafkaError) as error:
                if self._connection is not None:
                    self._connection.close()
                    self._connection = None
                self._error = error
                continue
            self._metadata.update_metadata(answer)
            if not self.reachable:
                log.info("Kafka answers", brokers=len(answer.brokers))
            self.reachable = True
            self._on_change()
            return True
        if self.reachable:
            log.warning("no Kafka broker answers", error=repr(self._error))
        self.reachable = False
        return False

    def _candidates(self) -> Iterator[tuple[str, int]]:
        """Yield the brokers known last, then the bootstrap servers, since all brokers may have moved."""
        known = [(broker.host, broker.port) for broker in self._metadata.brokers()]
        random.shuffle(known)
        known.sort(key=lambda address: address == self._told_by)
        bootstrap = [(host, port) for host, port, _ in collect_hosts(self._settings.kafka_bootstrap)]
        yield from dict.fromkeys(known + bootstrap)
