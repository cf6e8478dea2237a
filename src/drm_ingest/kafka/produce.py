"""One produce request, laid out by hand: the hot path of every byte that goes to Kafka.

aiokafka's own `send` puts a request together in six copies of all its bytes, half a microsecond an event of 400 bytes;
here the batches go to the socket as they are. Layout: Kafka protocol guide, Produce v7 (Kafka 2.1 and later).
"""

import asyncio
from collections.abc import Mapping, Sequence
from io import BytesIO
from struct import Struct
from typing import Any

from aiokafka.conn import AIOKafkaConnection
from aiokafka.errors import IncompatibleBrokerVersion, KafkaConnectionError
from aiokafka.protocol.api import ResponseHeader_v0

API_KEY = 0
API_VERSION = 7
ACKS_ALL = -1

_HEAD = Struct(">ihhih")  # length of the rest, API key, API version, correlation id, length of the client id
_BODY = Struct(">hhii")  # transactional id (null), acks, timeout in ms, number of topics
_INT16 = Struct(">h")
_INT32 = Struct(">i")
_PARTITION = Struct(">ii")  # number, length of its batch
_ANSWER = Struct(">ihqqq")  # partition, error code, base offset, time of append, log start offset

Answer = list[tuple[str, int, int]]
"""Topic, partition and error code, 0 where the batch is durable."""


class BrokerConnection(AIOKafkaConnection):  # type: ignore[misc]  # aiokafka has no types
    """A connection to one broker; `connect` and `close` are aiokafka's."""

    async def produce(self, topics: Mapping[str, Sequence[tuple[int, bytes]]], timeout_ms: int) -> Answer:
        """Send batches, one a partition, and return what became of each; the broker waits `timeout_ms` for replicas.

        Raises:
            TimeoutError: no answer; close the connection, or it would be taken for the next request's.
            KafkaError, OSError: the connection broke, or the broker is too old.
        """
        if self._writer is None:
            raise KafkaConnectionError(f"no connection to {self.host}:{self.port}")
        least, most = self._versions.get(API_KEY, (0, 0))
        if not least <= API_VERSION <= most:
            raise IncompatibleBrokerVersion(
                f"the broker takes Produce v{least} to v{most}; Kafka 2.1 or later is needed"
            )
        correlation_id = self._next_correlation_id()
        answered = self._loop.create_future()
        self._requests.append((correlation_id, _Expected, answered))
        self._writer.writelines(_lay_out(topics, timeout_ms, correlation_id, self._client_id.encode()))
        async with asyncio.timeout(self._request_timeout):
            answer: Answer = await answered
            return answer


def _lay_out(
    topics: Mapping[str, Sequence[tuple[int, bytes]]], timeout_ms: int, correlation_id: int, client_id: bytes
) -> list[bytes]:
    parts = [b"", client_id, _BODY.pack(-1, ACKS_ALL, timeout_ms, len(topics))]
    for topic, partitions in topics.items():
        name = topic.encode()
        parts += (_INT16.pack(len(name)), name, _INT32.pack(len(partitions)))
        for partition, batch in partitions:
            parts += (_PARTITION.pack(partition, len(batch)), batch)
    length = sum(map(len, parts)) + _HEAD.size - 4
    parts[0] = _HEAD.pack(length, API_KEY, API_VERSION, correlation_id, len(client_id))
    return parts


class _Expected:
    """What aiokafka's connection needs to know of a request to read its answer."""

    @staticmethod
    def parse_response_header(frame: BytesIO) -> Any:
        return ResponseHeader_v0.decode(frame)

    class RESPONSE_TYPE:  # noqa: N801 - aiokafka's name
        @staticmethod
        def decode(frame: BytesIO) -> Answer:
            (topics,) = _INT32.unpack(frame.read(4))
            answer = []
            for _ in range(topics):
                (length,) = _INT16.unpack(frame.read(2))
                topic = frame.read(length).decode()
                (partitions,) = _INT32.unpack(frame.read(4))
                for _ in range(partitions):
                    partition, code, *_rest = _ANSWER.unpack(frame.read(_ANSWER.size))
                    answer.append((topic, partition, code))
            return answer
