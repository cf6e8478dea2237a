"""How records of our topics look: one document a line for programs, a few lines each for people."""

from collections import defaultdict
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import orjson
from aiokafka import ConsumerRecord
from rich.console import Console
from rich.text import Text

from drm_ingest.event import Enrichment
from drm_ingest.kafka.dead_letters import reason_of

Show = Callable[[ConsumerRecord], None]


def as_lines(write: Callable[[bytes], object]) -> Show:
    """Return how events are shown to programs: one JSON document a line, as it is in Kafka."""

    def show(record: ConsumerRecord) -> None:
        value = record.value or b""
        write((value.replace(b"\n", b" ") if b"\n" in value else value) + b"\n")

    return show


def dead_letters_as_lines(write: Callable[[bytes], object]) -> Show:
    """Return how dead letters are shown to programs: key, reason and value as text, one JSON document a line."""

    def show(record: ConsumerRecord) -> None:
        write(orjson.dumps({"key": _text(record.key), **reason_of(record), "value": _text(record.value)}) + b"\n")

    return show


def dead_letters_as_text(console: Console) -> Show:
    """Return how dead letters are shown to people: when, who and why; where it was read; what it was."""

    def show(record: ConsumerRecord) -> None:
        reason = reason_of(record)
        set_aside = datetime.fromtimestamp(record.timestamp / 1000, UTC)
        head = Text(f"{set_aside:%Y-%m-%dT%H:%M:%SZ}  ")
        head.append(_text(record.key), style="bold cyan")
        head.append(f"  {reason.get('code', '')}", style="bold red")
        console.print(head, soft_wrap=True)
        said = "  ".join(reason[name] for name in ("pointer", "detail") if name in reason)
        if said:
            console.print(Text(f"  {said}"), soft_wrap=True)
        origin = "{topic}/{partition}/{offset}".format_map(defaultdict(lambda: "?", reason))
        console.print(
            Text(f"  set aside by {reason.get('stage', '?')}, read from {origin}", style="dim"), soft_wrap=True
        )
        console.print(Text(f"  {_text(record.value)}"), soft_wrap=True)

    return show


def _text(value: bytes | None) -> str:
    """Return text; bytes that are not UTF-8 become escapes."""
    return (value or b"").decode("utf-8", "backslashreplace")


def as_text(console: Console) -> Show:
    """Return how events are shown to people: when, who and what; the data; who held it and whatever else is known."""

    def show(record: ConsumerRecord) -> None:
        event = event_of(record)
        if not event:
            console.print(Text(repr(record.value), style="red"))
            return
        head = Text(f"{event.get('occurredat', '')}  ")
        head.append(str(event.get("subject", "")), style="bold cyan")
        head.append(f"  {event.get('type', '')}", style="bold")
        console.print(head, soft_wrap=True)
        for name in ("data", "data_base64"):
            if name in event:
                console.print(Text(f"  {orjson.dumps(event[name]).decode()}"), soft_wrap=True)
        known = [f"{name}={event[name]}" for name in _TOLD if name in event]
        console.print(Text(f"  {'  '.join(known)}", style="dim"), soft_wrap=True)

    return show


def changes_as_text(console: Console) -> Show:
    """Return how changes of relations are shown to people: who and what, from when to when; what moved; who says so."""

    def show(record: ConsumerRecord) -> None:
        event, change = event_of(record), change_of(record)
        if not change:
            console.print(Text(repr(record.value), style="red"))
            return
        head = Text(f"{event.get('time', '')}  ")
        head.append(str(change.get("subject", "")), style="bold cyan")
        head.append(f"  {change.get('role') or 'party'} {change.get('change', '')}", style="bold")
        console.print(head, soft_wrap=True)
        held = change.get("after") or change.get("before")
        if held:
            console.print(Text(f"  {_during(held, 'valid_from', 'valid_to')}"), soft_wrap=True)
        for piece in change.get("moved", ()):
            types = "  ".join(f"{type_}={events}" for type_, events in piece["events_by_type"].items())
            events = f"{piece['events']} event{'' if piece['events'] == 1 else 's'}"
            text = f"  {piece['direction']} {events}, {_during(piece, 'starts', 'ends')}  {types}"
            console.print(Text(text.rstrip()), soft_wrap=True)
        known = [f"{name}={change[name]}" for name in _TOLD_OF_CHANGES if change.get(name) is not None]
        console.print(Text(f"  {'  '.join(known)}", style="dim"), soft_wrap=True)

    return show


_TOLD_OF_CHANGES = ("number", "party", "relationship", "asserted_by", "reason", "moved_left_out", "moved_uncounted")


def _during(of: dict[str, Any], start: str, end: str) -> str:
    since, until = of.get(start), of.get(end)
    return f"{f'from {since}' if since else 'since ever'} {f'to {until}' if until else 'on'}"


def change_of(record: ConsumerRecord) -> dict[str, Any]:
    """Return what changed, of a record of that topic; nothing where it tells none."""
    data = event_of(record).get("data")
    return data if isinstance(data, dict) else {}


_TOLD = ("id", "source", *(name for name in Enrichment.__struct_fields__ if name not in {"occurredat", "contenthash"}))


def event_of(record: ConsumerRecord) -> dict[str, Any]:
    """Return the event of a record; nothing where it is none."""
    try:
        event = orjson.loads(record.value or b"")
    except orjson.JSONDecodeError:
        return {}
    return event if isinstance(event, dict) else {}
