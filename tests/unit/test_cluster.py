"""Who leads what, by brokers made up for the test."""

import asyncio
from typing import Any

import pytest
from aiokafka.protocol.metadata import MetadataResponse_v1

from drm_ingest.kafka.cluster import Cluster
from drm_ingest.settings import Settings

BROKERS = [(node, "kafka", 9000 + node, None) for node in (1, 2, 3)]
CUT_OFF = 1


class Connection:
    """To a broker that takes itself for the leader, or to one that knows better."""

    def __init__(self, host: str, port: int) -> None:
        self.host, self.port = host, port
        self._open = True

    def connected(self) -> bool:
        return self._open

    def close(self) -> None:
        self._open = False

    async def send(self, _: object) -> MetadataResponse_v1:
        leader = CUT_OFF if self.port == 9000 + CUT_OFF else 2
        return MetadataResponse_v1(BROKERS, 2, [(0, "t", False, [(0, 0, leader, [1, 2, 3], [1, 2, 3])])])


async def test_a_broker_that_is_cut_off_is_not_believed_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    """It still answers us, and takes itself for the leader: only another broker knows who leads now."""

    async def connect(self: Cluster, host: str, port: int, timeout_s: float) -> Any:
        return Connection(host, port)

    monkeypatch.setattr(Cluster, "_open", connect)
    cluster = Cluster(Settings(kafka_bootstrap=f"kafka:{9000 + CUT_OFF}"), lambda: None)
    await cluster.start("t", 1)
    assert cluster.leader("t", 0) == CUT_OFF
    running = asyncio.create_task(cluster.run())
    cluster.refresh_soon()  # what was sent there was not acknowledged
    await asyncio.sleep(0.1)
    running.cancel()
    assert cluster.leader("t", 0) == 2
