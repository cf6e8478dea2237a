"""Events from a file take the path of live ones, through the edge, in a lane that yields to them (pace.py)."""

import hashlib
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any, Protocol

import orjson

from drm_ingest.device.send import GaveUp, Line, Sender, Sent
from drm_ingest.edge.admit import Admit
from drm_ingest.edge.check import check_attributes
from drm_ingest.edge.credentials import Credential
from drm_ingest.errors import Rejected, json_pointer
from drm_ingest.event import Receipt
from drm_ingest.exchange.checkpoint import Progress
from drm_ingest.exchange.fields import Wrong
from drm_ingest.exchange.fit import READ, meant, no_source
from drm_ingest.exchange.pace import Pace
from drm_ingest.exchange.refused import LineCode, Refused, Stopped
from drm_ingest.exchange.taking import Desk, Told, next_lines, note, sort
from drm_ingest.schema import Schemas
from drm_ingest.settings import Settings

LINES = 500
Answers = list[tuple[int, Refused]]
"""Which events of a batch were refused."""


FIELDS = ("type", "subject", "time", "id", "source", "dataschema", "sequence", "traceparent", "data")


class Way(Protocol):
    """What becomes of a batch of events."""

    def __call__(self, events: list[Line]) -> Answers:
        """Return those refused; the others are durable, or would be."""


def wrong(known: Mapping[str, Any]) -> Wrong:
    """Tell what the edge refuses in every event, whatever its columns hold."""
    if "type" not in known:
        yield "/type", "Must be given."
    for name, value in known.items():
        if value is READ and name in ("specversion", "datacontenttype"):  # these have to be what they are
            continue
        try:
            check_attributes({name: value})
        except Rejected as rejected:
            if isinstance(value, dict):
                yield json_pointer(name), no_source(next(iter(value), "table"))
            else:
                hint = "" if name in FIELDS else meant(name, FIELDS)
                yield json_pointer(name), f"{rejected.detail.rstrip('.')}{hint}."


class Events:
    """Makes events of lines."""

    lines = LINES

    def read(self, fields: Any) -> Line:
        """Return the event of a line; one without an id gets one that is made of all else in it."""
        if not isinstance(fields, Mapping):
            raise Refused(LineCode.FIELD_INVALID, "An event is an object.")
        try:
            event = dict(fields)
            if "id" not in event:
                event["id"] = own_id(event)
            return Line(event, orjson.dumps(event))
        except (TypeError, ValueError) as error:  # a number or a nesting that JSON has no words for
            raise Refused(LineCode.FIELD_INVALID, f"It cannot be written as JSON: {error}.") from None


def own_id(event: Mapping[str, Any]) -> str:
    """Return the id of an event that has none: the same whenever, and from whichever line, it is read again."""
    return hashlib.blake2b(orjson.dumps(event, option=orjson.OPT_SORT_KEYS), digest_size=16).hexdigest()


def take_events(desk: Desk, way: Way, progress: Progress, on_progress: Callable[[], None]) -> None:
    """Take what is left of the file behind `progress`, bringing that up to date.

    Raises:
        Stopped: too much is refused, the file ends in the middle, or nobody takes events; what was taken stays taken.
    """
    taker = Events()
    lines = desk.file.lines(progress.line)
    while batch := next_lines(lines, taker.lines):
        wanted, refused = sort(taker, desk, batch)
        try:
            answers = way([event for _, event in wanted]) if wanted else []
        except GaveUp as error:
            raise Stopped(f"{error} · run it again, and it goes on here") from None
        refused += [(wanted[index][0].number, wanted[index][0].original, why) for index, why in answers]
        progress.made += len(wanted) - len(answers)
        note(desk, progress, batch, refused)
        on_progress()
        desk.share_max.check(progress.refused, progress.read, _example(refused))
    on_progress()  # only now the file has ended


def _example(refused: list[Told]) -> Refused | None:
    return refused[0][2] if refused else None


def through_the_edge(sender: Sender, pace: Pace) -> Way:
    """Return the way that live events take."""

    def send(events: list[Line]) -> Answers:
        sent, answers, started = Sent(), [], time.monotonic()

        def on_rejected(index: int, result: Mapping[str, Any]) -> None:
            answers.append((index, _rejected(result["code"], result.get("detail", ""), result.get("pointer"))))

        for count in sender.send(enumerate(events), sent, on_rejected=on_rejected):
            pace.answered(count, time.monotonic() - started)
            started = time.monotonic()
        return answers

    return send


def only_judged(settings: Settings) -> Way:
    """Return a way on which nothing is sent: by the rules of the edge, but for what a credential may send."""
    admit = Admit(settings, Schemas.load(settings.schemas_dir))
    sender = Credential("", "import", "sender", None)

    def judge(events: list[Line]) -> Answers:
        admitted = admit.events(
            [event.text for event in events], sender, Receipt(datetime.now(UTC), "dry-run", "import")
        )
        return [
            (result.index, _rejected(result.code.value, result.detail, result.pointer))
            for result in admitted.results
            if result.status == "rejected"
        ]

    return judge


def _rejected(code: str, detail: str, pointer: str | None) -> Refused:
    return Refused(LineCode.EVENT_REJECTED, f"{code}: {detail}", pointer)
