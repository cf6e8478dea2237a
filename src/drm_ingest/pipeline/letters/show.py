"""How dead letters look: a table, one in full, and lines for programs."""

import base64
import json
from collections.abc import Iterable
from typing import Any

import orjson
from rich.console import Console
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from drm_ingest.kafka.dead_letters import own_headers
from drm_ingest.pipeline.letters.find import Letter

DETAIL_CHARACTERS = 80
WIDTH_MAX = 1000


def document(letter: Letter) -> dict[str, Any]:
    """Return it for programs; `value` is text, or `value_base64` where it is none."""
    reason = letter.reason
    shown: dict[str, Any] = {
        "letter": letter.name,
        "set_aside_at": letter.set_aside_at.isoformat(),
        "replayed": letter.replayed,
        **{name: reason[name] for name in ("stage", "code", "pointer", "detail") if name in reason},
        "origin": letter.origin,
        "key": _text(letter.key),
        "headers": {name: _text(value) for name, value in own_headers(letter.record)},
    }
    if "cut" in reason:
        shown["cut_from_bytes"] = int(reason["cut"])
    try:
        shown["value"] = letter.value.decode()
    except UnicodeDecodeError:
        shown["value_base64"] = base64.b64encode(letter.value).decode()
    return shown


def line(letter: Letter) -> bytes:
    """Return it as one line of JSON."""
    return orjson.dumps(document(letter)) + b"\n"


def value_of(line: bytes) -> tuple[str, bytes]:
    """Return what such a line calls its letter, and the value in it.

    Raises:
        ValueError: it is no such line.
    """
    shown = orjson.loads(line)
    if not isinstance(shown, dict) or not isinstance(shown.get("letter"), str):
        raise ValueError("it has no `letter`")
    if isinstance(shown.get("value_base64"), str):
        return shown["letter"], base64.b64decode(shown["value_base64"], validate=True)
    if not isinstance(shown.get("value"), str):
        raise ValueError("its `value` must be a string with the event in it, or `value_base64`")
    return shown["letter"], shown["value"].encode()


def listed(console: Console, letters: Iterable[Letter]) -> None:
    """Show them one a line, as wide as they are: a narrow terminal breaks a line, it does not lose a column."""
    drawn = _table(letters)
    unbound = console.options.update_width(WIDTH_MAX)
    console.width = max(console.width, Measurement.get(console, unbound, drawn).maximum)
    console.print(drawn)


def _table(letters: Iterable[Letter]) -> Table:
    drawn = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for name in ("letter", "set aside", "stage", "code", "subject", "type", "detail"):
        drawn.add_column(name, no_wrap=name != "detail", overflow="fold")
    for letter in letters:
        reason, detail = letter.reason, letter.reason.get("detail", "")
        drawn.add_row(
            letter.name + (" ✓" if letter.replayed else ""),
            f"{letter.set_aside_at:%Y-%m-%d %H:%M:%S}",
            reason.get("stage", "?"),
            Text(reason.get("code", "?"), style="red"),
            Text(_text(letter.key), style="cyan"),
            Text(str(letter.event.get("type", ""))),
            Text(detail if len(detail) <= DETAIL_CHARACTERS else detail[:DETAIL_CHARACTERS] + "…"),
        )
    return drawn


def whole(console: Console, letter: Letter) -> None:
    """Show one with all there is of it."""
    reason = letter.reason
    console.print(Text(f"{letter.name}  {letter.set_aside_at:%Y-%m-%dT%H:%M:%SZ}", style="bold"))
    rows = {
        "subject": _text(letter.key),
        "stage": reason.get("stage", "?"),
        "code": reason.get("code", "?"),
        "pointer": reason.get("pointer", ""),
        "detail": reason.get("detail", ""),
        "read from": letter.origin,
        "cut": f"only the first {len(letter.value)} of {reason['cut']} bytes are here" if "cut" in reason else "",
        "replayed": "yes" if letter.replayed else "no",
        **{f"header {name}": _text(value) for name, value in own_headers(letter.record)},
    }
    for name, text in rows.items():
        if text:
            console.print(Text(f"  {name:<22}{text}"), soft_wrap=True)
    console.print(Text(f"  {len(letter.value)} bytes:", style="dim"))
    try:  # not the quick decoder: what it refuses is what is looked at here
        pretty = json.dumps(json.loads(letter.value), indent=2, ensure_ascii=False)
        pretty.encode()
    except (ValueError, RecursionError):
        pretty = _text(letter.value)
    console.print(Text(pretty), soft_wrap=True)


def _text(value: bytes) -> str:
    """Return text; bytes that are not UTF-8 become escapes, as do control characters."""
    text = value.decode("utf-8", "backslashreplace")
    return "".join(char if char.isprintable() else ascii(char)[1:-1] for char in text)
