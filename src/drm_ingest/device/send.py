"""Send events until each has its answer: retry what is unknown, count what is refused, go on where it stopped."""

import json
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from datetime import datetime
from itertools import islice
from pathlib import Path
from typing import Any, Self

import httpx
import orjson

Numbered = tuple[int, dict[str, Any]]


class GaveUp(Exception):
    """The edge did not take the events: it refused the whole request, or stayed away too long."""


@dataclass(slots=True)
class Sent:
    """What became of what was sent; `line` is the last line that has its answer."""

    line: int = 0
    accepted: int = 0
    rejected: Counter[str] = field(default_factory=Counter)
    retried: int = 0
    examples: dict[str, str] = field(default_factory=dict)  # code -> the first event refused with it, and why

    @classmethod
    def load(cls, path: Path | None) -> "Sent":
        """Go on where an earlier run stopped, if it left a note."""
        if path is None or not path.exists():
            return cls()
        note = json.loads(path.read_text())
        return cls(note["line"], note["accepted"], Counter(note["rejected"]), note["retried"])

    def save(self, path: Path | None) -> None:
        """Leave a note, replacing the last by rename, so that it is always whole."""
        if path is None:
            return
        note = {
            "line": self.line,
            "accepted": self.accepted,
            "rejected": dict(self.rejected),
            "retried": self.retried,
        }
        fresh = path.with_name(path.name + ".new")
        fresh.write_text(json.dumps(note))
        fresh.replace(path)


class Sender:
    """Sends batches one after another, so that the order within a device stays."""

    def __init__(self, url: str, key: str, *, batch_events: int = 500, patience_s: float = 300.0) -> None:
        """`patience_s`: how long one batch may go without an answer before giving up."""
        self._client = httpx.Client(base_url=url, headers={"authorization": f"Bearer {key}"}, timeout=30.0)
        self._batch_events = batch_events
        self._patience_s = patience_s

    def __enter__(self) -> Self:
        """Connections are kept until exit."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close the connections."""
        self._client.close()

    def send(self, events: Iterable[Numbered], sent: Sent, *, rate: float | None = None) -> Iterator[int]:
        """Send (line, event) pairs; after each answered batch bring `sent` up to date and yield how many events it had.

        `rate` is a multiple of the events' own time; None: as fast as acknowledged.

        Raises:
            GaveUp: a batch was refused as a whole and no retry helps, or it had no answer for `patience_s`.
        """
        pace = None if rate is None else _Pace(rate)
        for batch in self._batches(events, pace):
            if pace is not None:
                pace.wait(batch[0][1])
            answer = self._post(batch, sent)
            sent.accepted += answer["accepted"]
            for result in answer["results"]:
                if result["status"] == "rejected":
                    sent.rejected[result["code"]] += 1
                    line = batch[result["index"]][0]
                    where = result.get("pointer", "")
                    sent.examples.setdefault(result["code"], f"line {line} {where}: {result.get('detail', '')}")
            sent.line = batch[-1][0]
            yield len(batch)

    def _batches(self, events: Iterable[Numbered], pace: "_Pace | None") -> Iterator[list[Numbered]]:
        """Cut into batches; when paced, a batch is what happens within a tenth of a second."""
        if pace is None:
            stream = iter(events)
            while batch := list(islice(stream, self._batch_events)):
                yield batch
            return
        batch = []
        due = 0.0
        for numbered in events:
            at = pace.due(numbered[1])
            if batch and (at > due + 0.1 or len(batch) >= self._batch_events):
                yield batch
                batch = []
            if not batch:
                due = at
            batch.append(numbered)
        if batch:
            yield batch

    def _post(self, batch: list[Numbered], sent: Sent) -> Any:
        """Return the answer to a batch, sending it again while its fate is unknown; that is always safe."""
        body = orjson.dumps([event for _, event in batch])
        gives_up_at = time.monotonic() + self._patience_s
        wait_s = 0.2
        while True:
            try:
                response = self._client.post(
                    "/v1/events", content=body, headers={"content-type": "application/cloudevents-batch+json"}
                )
            except httpx.TransportError as error:
                problem = f"no answer from {self._client.base_url}: {error!r}"
            else:
                if response.status_code in {200, 422} and "results" in (answer := response.json()):
                    return {"accepted": 0, **answer}
                problem = f"{response.status_code}: {response.text[:500]}"
                if response.status_code not in {408, 429, 503}:
                    raise GaveUp(problem)
                wait_s = max(wait_s, float(response.headers.get("retry-after", 0)))
            if time.monotonic() + wait_s > gives_up_at:
                raise GaveUp(f"{problem} (gave up after {self._patience_s:.0f} s; the same command goes on from here)")
            sent.retried += len(batch)
            time.sleep(wait_s)
            wait_s = min(wait_s * 2, 10.0)


class _Pace:
    """Maps the events' own time to now, `rate` times as fast."""

    def __init__(self, rate: float) -> None:
        self._rate = rate
        self._first: datetime | None = None
        self._started = time.monotonic()

    def due(self, event: dict[str, Any]) -> float:
        """Seconds after the start at which an event is due; one without a time is due at once."""
        if "time" not in event:
            return 0.0
        at = datetime.fromisoformat(event["time"])
        if self._first is None:
            self._first = at
        return (at - self._first).total_seconds() / self._rate

    def wait(self, event: dict[str, Any]) -> None:
        ahead = self.due(event) - (time.monotonic() - self._started)
        if ahead > 0:
            time.sleep(ahead)
