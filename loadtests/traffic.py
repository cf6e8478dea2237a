"""Make events and say what must become of each: new ones, repeats, conflicts, invalid ones, over HTTP or WebSocket."""

import hashlib
import itertools
import random
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import orjson

_ticks = itertools.count(1)


def tick() -> int:
    """A logical clock: what was acknowledged before something else was sent has the smaller number."""
    return next(_ticks)


@dataclass(slots=True)
class Entry:
    """One sending of one event, and its answer."""

    subject: str
    id: str
    hash: str  # 32 hexadecimal digits, by the formula in README, not by the product's code
    body: bytes
    kind: str  # new, repeat, conflict, invalid, unclassified
    expect: str  # accepted, or the code it must be rejected with
    answer: str = "unsent"  # accepted, rejected:<code>, unknown
    first_sent: int = 0
    acked: int = 0
    sendings: int = 0

    def line(self) -> bytes:
        """The entry as a line of the ledger's file."""
        return orjson.dumps({name: getattr(self, name) for name in self.__slots__ if name != "body"}) + b"\n"


class Device:
    """One device's events, in order."""

    def __init__(self, subject: str, seed: int, *, duplicates: float, invalid: float, conflicts: float) -> None:
        """The shares are between 0 and 1; `conflicts` are new contents under an old id."""
        self._random = random.Random(seed)
        self.subject = subject
        self._duplicates, self._invalid, self._conflicts = duplicates, invalid, conflicts
        self._count = 0
        self._settled: list[Entry] = []  # a few of those acknowledged, to repeat
        self._clock = datetime.now(UTC) - timedelta(days=self._random.uniform(0, 2))

    def settle(self, entry: Entry) -> None:
        """Remember an acknowledged event, so that it can be repeated."""
        if entry.answer == "accepted" and entry.kind in {"new", "unclassified"}:
            self._settled = [*self._settled[-20:], entry]

    def events(self, count: int) -> list[Entry]:
        """Make the next events."""
        return [self._next() for _ in range(count)]

    def _next(self) -> Entry:
        draw = self._random.random()
        if self._settled and draw < self._duplicates:
            first = self._random.choice(self._settled)
            return Entry(first.subject, first.id, first.hash, first.body, "repeat", "accepted")
        draw -= self._duplicates
        if self._settled and draw < self._conflicts:
            return self._make("conflict", id_=self._random.choice(self._settled).id)
        draw -= self._conflicts
        if draw < self._invalid:
            return self._make("invalid")
        return self._make("unclassified" if self._random.random() < 0.01 else "new")

    def _make(self, kind: str, id_: str | None = None) -> Entry:
        self._count += 1
        id_ = id_ or f"{self._count:08d}"
        self._clock += timedelta(seconds=self._random.uniform(0.1, 3))
        time = self._clock.isoformat(timespec="milliseconds").replace("+00:00", "Z")
        type_ = "acme.untyped" if kind == "unclassified" else "device.measurement"
        data = (
            b'{"temperature": %.2f, "humidity": %.1f, "battery": %d, "run": %d, "rssi": -%d}'
            % (
                self._random.uniform(-20, 40), self._random.uniform(0, 100), self._random.randint(0, 100),
                self._count, self._random.randint(30, 90),
            )
        )  # fmt: skip
        expect = "accepted"
        if kind == "invalid":
            expect, wrong = self._random.choice(_INVALID)
            id_, type_, time = wrong.get("id", id_), wrong.get("type", type_), wrong.get("time", time)
            data = wrong["data"].encode() if "data" in wrong else data
        body = (
            b'{"specversion":"1.0","id":"%s","source":"loadtest","type":"%s","subject":"%s","time":"%s","sequence":"%09d","data":%s}'
            % (id_.encode(), type_.encode(), self.subject.encode(), time.encode(), self._count, data)
        )
        hash_ = hashlib.sha256(f"{type_}\0{time}\0".encode() + data).hexdigest()[:32]
        return Entry(self.subject, id_, hash_, body, kind, expect)


_INVALID: tuple[tuple[str, dict[str, str]], ...] = (
    ("schema_violation", {"data": '{"temperature": "warm"}'}),
    ("time_invalid", {"time": "yesterday"}),
    ("attribute_invalid", {"id": "x" * 101}),
    ("text_not_storable", {"type": "acme.untyped", "data": '{"note": "\\u0000"}'}),
    ("number_out_of_range", {"data": '{"temperature": 1e400}'}),
)


def devices(
    prefix: str, count: int, seed: int, *, duplicates: float, invalid: float, conflicts: float
) -> Iterator[Device]:
    """Make devices that behave alike but differ in what they send."""
    for number in range(count):
        yield Device(
            f"{prefix}-{number}", seed * 1_000_003 + number, duplicates=duplicates, invalid=invalid, conflicts=conflicts
        )
