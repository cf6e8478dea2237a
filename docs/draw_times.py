"""Relations in time: a household's, and one in two times; valid time runs to the right."""

from datetime import UTC, datetime
from typing import Any

from docs.draw_svg import path, rect, svg, text

BEGIN, END = datetime(2026, 1, 1, tzinfo=UTC), datetime(2026, 11, 1, tzinfo=UTC)
LEFT, RIGHT, LANE = 170, 960, 26
ROLES = {"owner": "relation", "user": "party", "serviced_by": "device", "cared_for_by": "party"}
MARKS = {"device.fault": "✕", "support.contact": "▲", "feedback.rating": "★", "commerce.purchase": "■"}


def _at(time: str | None, otherwise: float) -> float:
    """Return where a time is; without one, or "today", at the edge."""
    if time is None or time == "today":
        return otherwise if time is None else RIGHT
    share = (datetime.fromisoformat(time) - BEGIN) / (END - BEGIN)
    return round(LEFT + (RIGHT - LEFT) * share, 1)


def _months(top: float, bottom: float) -> list[str]:
    parts = []
    for month in range(1, 11):
        x = _at(f"2026-{month:02}-01T00:00:00Z", LEFT)
        parts += [
            path("grid", [(x, top), (x, bottom)]),
            text(x + 4, top - 6, f"{datetime(2026, month, 1):%b}", "dim small"),
        ]
    return [*parts, path("grid", [(RIGHT, top), (RIGHT, bottom)])]


def household(told: dict[str, Any], **options: bool) -> str:
    parts: list[str] = []
    y = 60.0
    for subject, title in told["subjects"].items():
        parts.append(text(20, y + 6, title, "ink key"))
        parts += _events([event for event in told["events"] if event["subject"] == subject], y)
        y += 22
        for role, lane in _lanes([row for row in told["relations"] if row["subject"] == subject]):
            parts.append(text(LEFT - 10, y + 15, role, "dim", "end"))
            for row in lane:
                parts += _bar(row, y)
            y += LANE
        y += 22
    height = y + 24
    legend = " · ".join(
        ["● measurement", *(f"{sign} {name.split('.')[1]}" for name, sign in MARKS.items()), "small: others"]
    )
    parts = [*_months(42, y - 10), *parts, text(20, height - 16, legend, "dim small")]
    return svg(RIGHT + 20, height, "The household's relations in valid time", parts, **options)


def _lanes(rows: list[dict[str, Any]]) -> list[tuple[str, list[dict[str, Any]]]]:
    """Return what is drawn in one row each: a role that excludes others together, else each party."""
    lanes: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for row in rows:
        lanes.setdefault((row["role"], "" if row["role"] == "owner" else row["party"]), []).append(row)
    return [(role, lane) for (role, _), lane in lanes.items()]


def _bar(row: dict[str, Any], y: float) -> list[str]:
    starts, ends = _at(row["valid_from"], LEFT), _at(row["valid_to"], RIGHT)
    label = row["party"] + (f" · batch {row['batch']}" if row["batch"] else "")
    narrow = ends - starts < 7 * len(label)
    return [
        rect(starts, y + 2, max(ends - starts - 1, 4), LANE - 6, f"{ROLES.get(row['role'], 'event')}-hue"),
        text(ends + 8, y + 16, label, "ink small") if narrow else text(starts + 8, y + 16, label, "on small"),
        *([text(RIGHT - 8, y + 16, "→", "on small", "end")] if row["valid_to"] is None else []),
    ]


def _events(events: list[dict[str, Any]], y: float) -> list[str]:
    parts, days = [], set()
    for event in events:
        x = _at(event["occurred_at"], LEFT)
        if event["occurred_at"][:10] in days:
            continue  # one sign a day, or they are on top of one another
        days.add(event["occurred_at"][:10])
        if sign := MARKS.get(event["type"]):
            parts.append(text(x, y + 6, sign, "event small", "middle"))
        else:
            radius = 3 if event["type"] == "device.measurement" else 1.5
            parts.append(f'<circle class="event" cx="{x:g}" cy="{y + 2:g}" r="{radius:g}"/>')
    return parts


# One relation in two times: valid time to the right, what was recorded later further down.

SAID = {"begun": "claimed with its code", "corrected": "the receipt is found", "ended": "replaced by another"}


def two_times(told: dict[str, Any], **options: bool) -> str:
    parts, y, band = [], 46.0, 74
    measured = [
        event["occurred_at"]
        for event in told["events"]
        if event["type"] == "device.measurement" and event["subject"] == told["versions"][0]["subject"]
    ]
    bottom = y + band * len(told["versions"])
    parts += _months(y, bottom)
    for row in told["versions"]:
        starts, ends = _at(row["valid_from"], LEFT), _at(row["valid_to"], RIGHT)
        starts = min(starts, RIGHT - 6)
        parts += [
            path("grid", [(20, y), (RIGHT, y)]),
            text(20, y + 24, f"version {row['version']}: {row['change']}", "ink key"),
            text(20, y + 42, SAID[row["change"]], "dim small"),
            rect(starts, y + 34, ends - starts, LANE - 4, "relation-hue"),
        ]
        if ends - starts > 200:
            parts.append(text(starts + 8, y + 49, "Ekman family, owner", "on small"))
        else:
            parts.append(text(starts - 8, y + 49, "Ekman family, owner from today on", "ink small", "end"))
        held = [_at(at, LEFT) for at in measured]
        for x in held:
            style = "event" if starts <= x < ends else "hollow"
            parts.append(f'<circle class="{style}" cx="{x:g}" cy="{y + 20:g}" r="3.5"/>')
        on = sum(starts <= x < ends for x in held)
        parts.append(text(held[-1] + 14, y + 24, f"{on} of {len(held)} measurements are on its record", "dim small"))
        y += band
    end = bottom - 4
    parts += [
        path("edge", [(12, 50), (12, end)]), path("edge", [(8, end - 6), (12, end), (16, end - 6)]),
        text(20, bottom + 22, "↓ recorded later (known_at)", "dim small"),
        text(RIGHT, bottom + 22, "valid time (as_of) →", "dim small", "end"),
    ]  # fmt: skip
    return svg(RIGHT + 20, bottom + 38, "One relation in two times", parts, **options)
