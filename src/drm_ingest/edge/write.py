"""Write what was admitted to Kafka, and answer by what Kafka said: one request at a time in each `Writing`."""

from collections import Counter
from collections.abc import Callable
from time import perf_counter

import structlog

from drm_ingest.edge.admit import Admitted
from drm_ingest.edge.answer import Answer
from drm_ingest.edge.tally import Tally
from drm_ingest.errors import PROBLEMS, EventCode, Refusal
from drm_ingest.kafka.writer import Delivery, RefusedForGood, Writer
from drm_ingest.metrics import Metrics
from drm_ingest.settings import Settings

Reply = Callable[[Answer], None]
"""Called exactly once, in the loop, now or when Kafka has spoken; the sender may be gone by then."""

log = structlog.get_logger(__name__)


class Write:
    """The way of a request's records into the ingress topic, and the ledger of the edge.

    After each step, received = rejected + accepted + unknown + in flight.
    """

    def __init__(self, settings: Settings, writer: Writer, topic: str, metrics: Metrics, transport: str) -> None:
        """`topic` is the ingress topic; `transport` the label of `drm_requests_total`: http or websocket."""
        self.retry_after_s = settings.retry_after_s
        self.writer = writer
        self.topic = topic
        self._tally = Tally(metrics, transport)
        self._codes = {code: metrics.codes.labels(code) for code in EventCode}
        self._refusals = {code: metrics.refusals.labels(code) for code in PROBLEMS}

    def write(self, admitted: Admitted, request_id: str, started: float, reply: Reply) -> None:
        """Append the records; `reply` follows when Kafka has acknowledged all of them, or failed to.

        `started` is the `perf_counter` of the request's last byte.
        """
        records, received, tally = admitted.records, admitted.received, self._tally
        tally.received += received
        tally.request_events.append(received)
        if rejected := received - len(records):
            tally.rejected += rejected
        if admitted.results:
            for code, count in Counter([result.code for result in admitted.results]).items():
                self._codes[code].inc(count)
        writing = _Writing(self, admitted, request_id, started, reply)
        if records and not self.writer.room_for(admitted.record_bytes):
            self.settle(len(records), started, known=False)
            reply(self.refuse(self.behind(), request_id))
            return
        delivery = Delivery(writing.settled)
        append, partitions, topic = self.writer.append, self.writer.partitions, self.topic
        try:
            for key, value, headers in records:
                append(topic, partitions[key], key, value, headers, delivery)
        except Exception:  # whatever it is, events in flight must come to an outcome
            writing.broken = True
            log.exception("only a part of a request could be written", request_id=request_id)
        admitted.records = []  # the writer has its own copy; a round that waits for Kafka would double its memory
        delivery.seal()

    def settle(self, events: int, started: float, *, known: bool) -> None:
        """Move events from in flight to their outcome, and observe how long it took."""
        tally = self._tally
        if known:
            tally.accepted += events
        else:
            tally.unknown += events
        tally.observed(perf_counter() - started)

    def answer(self, admitted: Admitted, request_id: str) -> Answer:
        """Return the answer to a request each of whose events is durable or refused for good."""
        status = 200
        if admitted.all_rejected:
            status, code = (403, "forbidden") if admitted.all_forbidden else (422, "all_rejected")
            self._refusals[code].inc()
        self._tally.requests[status] += 1
        return Answer(status, request_id, admitted, None)

    def refuse(self, refusal: Refusal, request_id: str) -> Answer:
        """Count a refusal of a whole request and return its answer."""
        self._refusals[refusal.problem.code].inc()
        self._tally.requests[refusal.problem.status] += 1
        return Answer(refusal.problem.status, request_id, None, refusal.untraced())

    def overloaded(self, why: str) -> Refusal:
        """Return a 503 for what was not kept."""
        seconds = self.retry_after_s
        return Refusal("overloaded", f"{why}; send it again in {seconds} s.", retry_after_s=seconds)

    def refuse_if_behind(self, length: int) -> None:
        """Refuse a body of that many bytes before it is read, while others wait for Kafka and leave no room for it.

        Raises:
            Refusal: overloaded.
        """
        if self.writer.buffered_bytes and not self.writer.room_for(length):
            raise self.behind()

    def behind(self) -> Refusal:
        """Return a 503 for what the writer has no room for."""
        return self.overloaded("Kafka is behind and the buffer is full")

    def not_acknowledged(self, error: BaseException | None = None) -> Refusal:
        """Return a 503 for events whose fate is not known, or that Kafka refuses until somebody mends it."""
        seconds = self.retry_after_s
        detail = (
            f"Kafka did not confirm every event in time; send all of it again in {seconds} s, which is always safe."
        )
        if isinstance(error, RefusedForGood):
            detail = (
                "Kafka refuses at least one of these events, which is for whoever runs this to mend (its log says what "
                "is wrong); keep all of it and send it again later, which is always safe."
            )
        return Refusal("not_acknowledged", detail, retry_after_s=seconds)


class _Writing:
    """One request on its way to Kafka."""

    __slots__ = ("_admitted", "_reply", "_request_id", "_started", "_write", "broken")

    def __init__(self, write: Write, admitted: Admitted, request_id: str, started: float, reply: Reply) -> None:
        self._write = write
        self._admitted = admitted
        self._request_id = request_id
        self._started = started
        self._reply = reply
        self.broken = False

    def settled(self, delivery: Delivery) -> None:
        """Count and answer, whether the sender is still there or not."""
        write, admitted = self._write, self._admitted
        known = not delivery.failed and not self.broken
        write.settle(admitted.accepted, self._started, known=known)
        if known:
            self._reply(write.answer(admitted, self._request_id))
        else:
            self._reply(write.refuse(write.not_acknowledged(delivery.error), self._request_id))
