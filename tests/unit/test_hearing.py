"""A reader hangs up on a broker that owes it an answer and says nothing, and on no other."""

from collections import deque
from types import SimpleNamespace
from typing import Any, cast

from aiokafka.client import AIOKafkaClient
from aiokafka.protocol.fetch import FetchRequest
from aiokafka.protocol.group import JoinGroupRequest, SyncGroupRequest

from drm_ingest.kafka.connection import CONNECT_TIMEOUT_S, SILENT_LOOKS, Hearing


class Connection:
    """What of aiokafka's connection counts here."""

    host, port = "127.0.0.1", 9092

    def __init__(self, *owed: type) -> None:
        self._requests = deque((number, request, None) for number, request in enumerate(owed))
        self._reader = SimpleNamespace(_buffer=bytearray())
        self._request_timeout = CONNECT_TIMEOUT_S
        self.closed = False

    def close(self, reason: object) -> None:
        self.closed = True
        self._requests.clear()


class Client:
    def __init__(self, **connections: Connection) -> None:
        self._conns = connections
        self._request_timeout_ms = 20_000
        self._sync_task = None

    async def _get_conn(self, name: str) -> Connection | None:
        return self._conns.get(name)


def hearing(client: Client) -> Hearing:
    return Hearing(cast("AIOKafkaClient", client), 20)


def test_it_hangs_up_on_a_broker_that_owes_an_answer_and_says_nothing() -> None:
    silent = Connection(FetchRequest)
    heard = hearing(Client(silent=silent))
    for _ in range(SILENT_LOOKS):
        heard.look()
    assert not silent.closed
    heard.look()
    assert silent.closed
    heard.look()


def test_it_waits_for_who_sends_something_however_slowly_who_owes_nothing_and_who_waits_for_the_group() -> None:
    slow, quick, idle = Connection(FetchRequest), Connection(FetchRequest), Connection()
    joining, syncing = Connection(JoinGroupRequest), Connection(SyncGroupRequest)
    client = Client(slow=slow, quick=quick, idle=idle, joining=joining, syncing=syncing)
    heard = hearing(client)
    for look in range(5 * SILENT_LOOKS):
        heard.look()
        if not look % (SILENT_LOOKS - 1):
            slow._reader._buffer += b"?"
        quick._requests = deque([(look, FetchRequest, None)])
    assert not any(connection.closed for connection in client._conns.values())


async def test_a_broker_may_take_less_time_to_be_connected_to_than_for_an_answer() -> None:
    client: Any = Client(one=Connection())
    hearing(client)
    assert client._request_timeout_ms == 1000 * CONNECT_TIMEOUT_S
    assert (await client._get_conn("one"))._request_timeout == 20
    assert await client._get_conn("none") is None
