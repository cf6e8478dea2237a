"""The end of a log for a person: what happened, not the JSON around it."""

import json

LINE_CHARACTERS_MAX = 400
NOT_SHOWN = {"event", "exception", "level", "logger", "pid", "process", "time"}
DRAWN = " \t|+-"  # how a traceback of a group is framed


def readable(lines: list[str]) -> list[str]:
    """Turn our own JSON lines into sentences, an exception into its last line; cut what is too long."""
    return [_cut(sentence) for line in lines if (sentence := _sentence(line))]


def _sentence(line: str) -> str:
    try:
        fields = json.loads(line)
    except ValueError:
        return line.rstrip()
    if not isinstance(fields, dict) or "event" not in fields:
        return line
    others = " ".join(f"{name}={value}" for name, value in fields.items() if name not in NOT_SHOWN)
    framed = [text.strip(DRAWN) for text in str(fields.get("exception", "")).splitlines()]
    said = [text for text in framed if text]
    exception = f": {said[-1]}" if said else ""
    return " ".join(f"{fields.get('level', '')} {str(fields['event']).strip()}{exception} {others}".split())


def _cut(line: str) -> str:
    return line if len(line) <= LINE_CHARACTERS_MAX else line[: LINE_CHARACTERS_MAX - 1] + "…"
