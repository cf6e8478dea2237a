"""What the edge takes while Kafka is silent: as much as it may hold, over a WebSocket too."""

from types import SimpleNamespace
from typing import cast

from msgspec import Raw
from tests.unit.admitting import SENDER, admit, event

from drm_ingest.edge.answer import Answer
from drm_ingest.edge.buckets import shared_memory
from drm_ingest.edge.credentials import Credentials
from drm_ingest.edge.identify import Identify
from drm_ingest.edge.limits import Limits
from drm_ingest.edge.quotas import Quotas, quota_memory
from drm_ingest.edge.take import Take
from drm_ingest.edge.tell import Tell
from drm_ingest.edge.write import Write
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


def test_small_messages_whose_results_wait_for_kafka_are_bounded() -> None:
    settings = Settings(request_in_flight_bytes_max=MiB)
    metrics, limits = Metrics("edge"), Limits(settings)
    writer = Silent(settings, metrics)
    find = Identify.__new__(Identify)
    find.credentials = cast("Credentials", SimpleNamespace(find=None))  # whose they are is known
    take = Take(
        settings, limits, find, Quotas(settings, shared_memory(quota_memory(settings))), admit(),
        Write(settings, writer, "ingress", metrics, "websocket"), cast("Tell", None),
    )  # fmt: skip
    events = [Raw(event()), *[Raw(b"{}")] * 999]  # 4 KB
    answers: list[Answer] = []

    def send() -> None:
        take.events({}, events, 4000, SENDER, 0, "request-1", answers.append)

    sent = 0
    while not answers:
        send()
        sent += 1
        assert sent < 10
    assert [answer.status for answer in answers] == [503]
    assert limits.body_bytes < 2 * MiB
    writer.acknowledge()
    assert [answer.status for answer in answers] == [503, *[200] * (sent - 1)]
    assert limits.body_bytes == 0
    send()
    assert len(answers) == sent  # taken again: it waits
