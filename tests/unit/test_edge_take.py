"""What the edge takes while Kafka is silent: as much as it may hold, over a WebSocket too."""

import contextlib
from types import SimpleNamespace
from typing import cast

import pytest
from tests.unit.admitting import SENDER, admit, event

from drm_ingest.edge.answer import Answer
from drm_ingest.edge.credentials import Credentials
from drm_ingest.edge.identify import Identify
from drm_ingest.edge.limits import Limits
from drm_ingest.edge.quotas import Quotas, quota_memory
from drm_ingest.edge.take import Take
from drm_ingest.edge.tell import Tell
from drm_ingest.edge.write import Write
from drm_ingest.errors import Refusal
from drm_ingest.kafka.writer import Delivery, Headers, Writer
from drm_ingest.metrics import Metrics
from drm_ingest.settings import MiB, Settings


class Silent(Writer):
    """A writer whose Kafka acknowledges when it is told to."""

    def append(
        self, topic: str, partition: int, key: bytes, value: bytes, headers: Headers, delivery: Delivery
    ) -> None:
        delivery.pending += 1
        self.waiting = [*getattr(self, "waiting", []), delivery]

    waiting: list[Delivery]

    def acknowledge(self) -> None:
        for delivery in self.waiting:
            delivery._settle(1, None)


def taking() -> tuple[Take, Silent]:
    settings = Settings(request_in_flight_bytes_max=MiB)
    metrics = Metrics("edge")
    writer = Silent(settings, metrics)
    identify = Identify.__new__(Identify)
    identify.credentials = cast("Credentials", SimpleNamespace(find=lambda _: SENDER, in_force=lambda _: True))
    quotas = Quotas(settings, bytearray(quota_memory(settings)))
    write = Write(settings, writer, "ingress", metrics, "http")
    return Take(settings, Limits(settings), identify, quotas, admit(), write, cast("Tell", None)), writer


MANY = [event(), *[b"{}"] * 999]
"""In 4 KB; what is wrong with each takes a hundred times that."""


def test_small_messages_whose_results_wait_for_kafka_are_bounded() -> None:
    take, writer = taking()
    answers: list[Answer] = []

    def send() -> None:
        take.events({}, MANY, 4000, SENDER, 0, "request-1", answers.append)

    sent = 0
    while not answers:
        send()
        sent += 1
        assert sent < 10
    assert [answer.status for answer in answers] == [503]
    assert take.limits.body_bytes < 2 * MiB
    writer.acknowledge()
    assert [answer.status for answer in answers] == [503, *[200] * (sent - 1)]
    assert take.limits.body_bytes == 0
    send()
    assert len(answers) == sent  # taken again: it waits


@pytest.mark.parametrize("framing", [{b"content-length": b"4000"}, {b"transfer-encoding": b"chunked"}])
def test_small_requests_whose_results_wait_for_kafka_are_bounded(framing: dict[bytes, bytes]) -> None:
    take, writer = taking()
    headers = {b"content-type": b"application/json"} | framing
    answers: list[Answer] = []

    def send() -> None:
        credential = take.enter(headers, lambda: None)
        take.body(headers, b"[%b]" % b",".join(MANY), credential, 0, "request-1", answers.append)

    with contextlib.suppress(Refusal):
        for _ in range(10):
            send()
    assert MiB < take.limits.body_bytes < 2 * MiB
    with pytest.raises(Refusal, match="Too many bodies"):
        send()
    writer.acknowledge()
    assert {answer.status for answer in answers} == {200}
    assert take.limits.body_bytes == 0
    send()
