"""Send events until each has its answer: retry what is unknown, count what is refused, go on where it stopped."""

import json
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any, Self

import httpx

Event = Mapping[str, Any]
Numbered = tuple[int, Event]
Encoded = tuple[int, bytes]

BATCH_BYTES_MAX = 1024 * 1024
PACED_BATCH_S = 0.1
CONNECT_MAX_S, ANSWER_MAX_S = 5.0, 30.0  # then it is away, and a person hears of it
WAIT_FIRST_S, WAIT_MAX_S = 0.2, 10.0
# The fate is unknown, or a proxy in between has a bad day: sending again is always safe.
_AGAIN = {408, 425, 429, 500, 502, 503, 504}
_UNAUTHENTICATED, _TOO_LARGE = 401, 413


class Line(dict[str, Any]):
    """An event that a recording holds ready-made: its `text` is sent as it stands, number for number."""

    def __init__(self, event: Event, text: bytes) -> None:
        """`text` is one line of JSON."""
        super().__init__(event)
        self.text = text


class GaveUp(Exception):
    """The edge did not take the events: it refused the whole request, or stayed away too long."""


class _TooLarge(Exception):
    """The request was refused for its size; carries the problem's code and detail."""


@dataclass(slots=True)
class Sent:
    """What became of what was sent; `line` is the last line that has its answer."""

    line: int = 0
    accepted: int = 0
    rejected: Counter[str] = field(default_factory=Counter)
    retried: int = 0
    skipped: int = 0
    examples: dict[str, str] = field(default_factory=dict)  # code -> the first event refused with it, and why

    @classmethod
    def load(cls, path: Path) -> "tuple[Sent, dict[str, Any]]":
        """Return what an earlier run left behind in a note, and what it noted of itself.

        Raises:
            ValueError, LookupError, TypeError, AttributeError: this is no such note.
        """
        note = json.loads(path.read_text())
        return cls(**note["sent"] | {"rejected": Counter(note["sent"]["rejected"])}), dict(note["of"])

    def save(self, path: Path, of: Mapping[str, Any]) -> None:
        """Leave a note, replacing the last by rename, so that it is always whole; `of` tells of which sending."""
        fresh = path.with_name(path.name + ".new")
        fresh.write_text(json.dumps({"of": of, "sent": {name: getattr(self, name) for name in self.__slots__}}))
        fresh.replace(path)


class Sender:
    """Sends batches one after another, so that the order within a device stays."""

    def __init__(
        self,
        url: str,
        key: str,
        *,
        batch_events: int = 500,
        patience_s: float = 300.0,
        tell: Callable[[str], None] = lambda _: None,
    ) -> None:
        """`patience_s`: how long one batch may go without an answer before giving up; `tell` hears what it waits for.

        Raises:
            GaveUp: there is no such URL.
        """
        headers = {"authorization": f"Bearer {key.strip()}", "content-type": "application/x-ndjson"}
        timeout = httpx.Timeout(min(ANSWER_MAX_S, patience_s), connect=min(CONNECT_MAX_S, patience_s))
        try:
            self._client = httpx.Client(base_url=url, headers=headers, timeout=timeout)
        except (httpx.InvalidURL, UnicodeError) as error:
            raise GaveUp(f"{url!r} is no address, or the key holds what a header cannot: {error}") from None
        self._url = url
        self._batch_events = batch_events
        self._patience_s = patience_s
        self._tell = tell

    def __enter__(self) -> Self:
        """Connections are kept until exit."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close the connections."""
        self._client.close()

    def send(
        self,
        events: Iterable[Numbered],
        sent: Sent,
        *,
        rate: float | None = None,
        on_rejected: Callable[[int, Mapping[str, Any]], None] = lambda _line, _result: None,
    ) -> Iterator[int]:
        """Send (line, event) pairs; after each answered batch bring `sent` up to date and yield how many events it had.

        `rate` is a multiple of the events' own time; None: as fast as acknowledged. `on_rejected` hears of each event
        that is refused its line and the result.

        Raises:
            GaveUp: a batch was refused as a whole and no retry helps, or it had no answer for `patience_s`.
        """
        for batch in self._batches(events, None if rate is None else _Pace(rate)):
            yield from self._deliver(batch, sent, on_rejected)

    def _batches(self, events: Iterable[Numbered], pace: "_Pace | None") -> Iterator[list[Encoded]]:
        """Cut by number and by bytes; when paced, a batch is what happens within a tenth of a second, when it does."""
        batch: list[Encoded] = []
        size, due = 0, 0.0
        try:
            for line, event in events:
                text = event.text if isinstance(event, Line) else json.dumps(event, separators=(",", ":")).encode()
                at = 0.0 if pace is None else pace.due(event)
                full = len(batch) >= self._batch_events or size + len(text) > BATCH_BYTES_MAX
                if batch and (full or at > due + PACED_BATCH_S):
                    yield batch
                    batch, size = [], 0
                if not batch:
                    due = at
                    if pace is not None:
                        pace.wait(due)
                batch.append((line, text))
                size += len(text) + 1
        except (ValueError, OSError):  # what was read before it is good
            if batch:
                yield batch
            raise
        if batch:
            yield batch

    def _deliver(
        self, batch: list[Encoded], sent: Sent, on_rejected: Callable[[int, Mapping[str, Any]], None]
    ) -> Iterator[int]:
        """Send a batch, in halves where it is too large for the edge."""
        try:
            answer = self._post(batch, sent)
        except _TooLarge as error:
            if half := len(batch) // 2:
                yield from self._deliver(batch[:half], sent, on_rejected)
                yield from self._deliver(batch[half:], sent, on_rejected)
                return
            code, detail = error.args
            answer = {"accepted": 0, "results": [{"index": 0, "status": "rejected", "code": code, "detail": detail}]}
        sent.accepted += answer["accepted"]
        for result in answer["results"]:
            if result["status"] == "rejected":
                sent.rejected[result["code"]] += 1
                on_rejected(batch[result["index"]][0], result)
                where = f"line {batch[result['index']][0]} {result.get('pointer', '')}".rstrip()
                sent.examples.setdefault(result["code"], f"{where}: {result.get('detail', '')}")
        sent.line = batch[-1][0]
        yield len(batch)

    def _post(self, batch: list[Encoded], sent: Sent) -> Any:
        """Return the answer to a batch, sending it again while its fate is unknown; that is always safe."""
        body = b"\n".join([text for _, text in batch])
        gives_up_at = time.monotonic() + self._patience_s
        wait_s = WAIT_FIRST_S
        while True:
            try:
                response = self._client.post("/v1/events", content=body)
            except (httpx.UnsupportedProtocol, httpx.LocalProtocolError) as error:
                raise GaveUp(f"{self._url!r} is no address, or the key holds what a header cannot: {error}") from None
            except httpx.TransportError as error:
                problem = f"cannot reach {self._url} ({error or type(error).__name__})"
                pause_s = wait_s
            else:
                status, said = response.status_code, _json_of(response)
                if status in {200, 422} and "results" in said:
                    return {"accepted": 0, **said}
                if status == _TOO_LARGE and "code" in said:
                    raise _TooLarge(said["code"], said.get("detail", ""))
                told = _told(said) if "code" in said else response.text[:200].strip()
                if status == _UNAUTHENTICATED:
                    told += " Check --key or DRM_SENDER_KEY."
                problem = f"{self._url} answers {status} {told}".rstrip()
                if status not in _AGAIN:
                    raise GaveUp(problem)
                pause_s = max(wait_s, _retry_after_s(response))
            if time.monotonic() + pause_s > gives_up_at:
                raise GaveUp(f"{problem} (gave up after {self._patience_s:.0f} s)")
            self._tell(f"{problem}, trying again in {pause_s:.1f} s")
            sent.retried += len(batch)
            time.sleep(pause_s)
            wait_s = min(wait_s * 2, WAIT_MAX_S)


def _json_of(response: httpx.Response) -> dict[str, Any]:
    """Return the JSON object that it holds; of anything else an empty one: no edge answered."""
    try:
        said = response.json()
    except ValueError:
        return {}
    return said if isinstance(said, dict) else {}


def _told(problem: Mapping[str, Any]) -> str:
    """Return a problem document as a person reads it: code, title, detail."""
    return f"{problem['code']}: {problem.get('title', '')} {problem.get('detail', '')}".rstrip()


def _retry_after_s(response: httpx.Response) -> float:
    """Return what Retry-After says, seconds or a date (RFC 9110, 10.2.3); 0 where it says nothing."""
    text = response.headers.get("retry-after", "")
    if text.isdecimal():
        return float(text)
    try:
        return max(0.0, (parsedate_to_datetime(text) - datetime.now(UTC)).total_seconds())
    except (ValueError, TypeError):
        return 0.0


class _Pace:
    """Maps the events' own time to now, `rate` times as fast."""

    def __init__(self, rate: float) -> None:
        self._rate = rate
        self._first: datetime | None = None
        self._started = time.monotonic()

    def due(self, event: Event) -> float:
        """Seconds after the start at which an event is due; one without a time that can be read is due at once."""
        try:
            at = datetime.fromisoformat(event["time"])
            self._first = self._first or at
            return (at - self._first).total_seconds() / self._rate
        except (LookupError, TypeError, ValueError):
            return 0.0

    def wait(self, due: float) -> None:
        ahead = due - (time.monotonic() - self._started)
        if ahead > 0:
            time.sleep(ahead)
