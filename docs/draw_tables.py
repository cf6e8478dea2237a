"""The tables of relations with their keys, as the schema has them."""

import re
from collections import Counter
from dataclasses import dataclass

from docs.draw_svg import path, rect, svg, text

ROW, HEAD, WIDE, GUTTER = 18, 24, 186, 62
_ABOUT = "subject subject_kind subject_party role exclusive party party_kind batch slot"
_HELD = "valid recorded asserted_by reason"
SHOWN: list[list[tuple[str, str, str]]] = [
    [
        ("party_ref", "party", "namespace ref party"),
        ("party_attribute", "party", "party name origin value said_at"),
        ("origin", "party", "name trust"),
        ("party_link", "party", "id party other kind reason recorded"),
    ],
    [
        ("party", "party", "id kind name"),
        ("role", "relation", "name exclusive goes_on"),
        ("role_kind", "relation", "role exclusive subject_kind party_kind"),
    ],
    [
        ("relationship", "relation", f"id version {_ABOUT} {_HELD}"),
        ("relationship_change", "change", "number relationship version party change recorded_at"),
        ("relationship_move", "change", "number party direction starts ends events types"),
    ],
    [
        ("device", "device", "subject model firmware"),
        ("device_replacement", "device", "id device by at recorded"),
        ("identity_event", "event", "key subject party role linked occurred_at"),
        ("event", "event", "subject source id type occurred_at data"),
        ("subject_day", "event", "subject day type events last_at"),
    ],
]  # fmt: skip
"""Which tables, column by column of the picture: name, hue and columns; what a table has beside is "…"."""
BY_VALUE = (
    ("party_attribute", "origin", "origin", "name"),
    ("relationship", "subject", "device", "subject"),
    ("relationship_change", "relationship", "relationship", "id"),
    ("identity_event", "subject", "device", "subject"),
    ("event", "subject", "device", "subject"),
    ("subject_day", "subject", "device", "subject"),
)
"""Joined without a foreign key."""


@dataclass(frozen=True, slots=True)
class Table:
    name: str
    hue: str
    columns: list[str]
    more: bool
    key: set[str]
    column: int  # of the picture
    x: float
    y: float

    @property
    def height(self) -> float:
        return HEAD + ROW * (len(self.columns) + self.more) + 6

    def row(self, column: str) -> float:
        """The middle of a column's row."""
        return self.y + HEAD + ROW * self.columns.index(column) + 12


def tables(schema: str, **options: bool) -> str:
    placed: dict[str, Table] = {}
    for number, stack in enumerate(SHOWN):
        x, y = 20 + number * (WIDE + GUTTER), 52.0
        for name, hue, columns in stack:
            declared, key = _declared(schema, name)
            shown = columns.split()
            if missing := set(shown) - set(declared):
                raise ValueError(f"{name} has no {', '.join(sorted(missing))}: correct SHOWN")
            placed[name] = table = Table(name, hue, shown, len(shown) < len(declared), key, number, x, y)
            y += table.height + 22
    lanes: Counter[int] = Counter()
    foreign = [(a, b, c, d, False) for a, b, c, d in _foreign(schema) if a in placed and c in placed]
    edges = [_edge(placed, lanes, *edge) for edge in [*foreign, *((*edge, True) for edge in BY_VALUE)]]
    boxes = [part for table in placed.values() for part in _box(table)]
    width = 20 * 2 + len(SHOWN) * WIDE + (len(SHOWN) - 1) * GUTTER + 34
    height = max(table.y + table.height for table in placed.values()) + 20
    legend = [
        text(20, 32, "● key", "dim small"), path("edge", [(80, 28), (110, 28)]),
        text(116, 32, "foreign key", "dim small"), path("edge", [(200, 28), (230, 28)], dashed=True),
        text(236, 32, "joined by value", "dim small"),
        text(width - 20, 32, "valid: when it was true · recorded: when we knew", "dim small", "end"),
    ]  # fmt: skip
    return svg(width, height, "The tables of relations, with their keys", [*legend, *edges, *boxes], **options)


def _declared(schema: str, table: str) -> tuple[list[str], set[str]]:
    """Return the columns of a table and those of its primary key; of the event that of its identity."""
    [body] = re.findall(rf"CREATE TABLE public\.{table} \(\n(.*?)\n\)", schema, re.DOTALL)
    columns = re.findall(r'^    "?([a-z_]+)"? [a-z]', body, re.MULTILINE)
    keys = re.findall(rf"ALTER TABLE ONLY public\.{table}\n    ADD CONSTRAINT \w+ PRIMARY KEY \((.*?)\)", schema)
    return columns, set(keys[0].split(", ") if keys else ("subject", "source", "id"))


def _foreign(schema: str) -> list[tuple[str, str, str, str]]:
    """Return each foreign key by its first columns: table, column, table, column."""
    found = re.findall(
        r"ALTER TABLE ONLY public\.(\w+)\n    ADD CONSTRAINT \w+ FOREIGN KEY \((\w+).*?\) "
        r"REFERENCES public\.(\w+)\((\w+)",
        schema,
    )
    return [(a, b, c, d) for a, b, c, d in found]


def _box(table: Table) -> list[str]:
    x, y = table.x, table.y
    parts = [
        rect(x, y, WIDE, table.height, "box", 5), rect(x, y, WIDE, HEAD, f"{table.hue}-hue", 5),
        text(x + 10, y + 17, table.name, "on key"),
    ]  # fmt: skip
    for column in table.columns:
        is_key = column in table.key
        middle = table.row(column)
        if is_key:
            parts.append(f'<circle class="ink" cx="{x + 11:g}" cy="{middle:g}" r="3"/>')
        parts.append(text(x + 21, middle + 4, column, "ink key" if is_key else "ink"))
    if table.more:
        parts.append(text(x + 21, table.row(table.columns[-1]) + ROW + 3, "…", "dim"))
    return parts


def _edge(
    placed: dict[str, Table], lanes: Counter[int], a: str, a_column: str, b: str, b_column: str, by_value: bool
) -> str:
    """Draw a line from a column to the one it refers to, in a lane of its own between the columns of the picture."""
    start, end = placed[a], placed[b]
    gutter = max(start.column, end.column) if start.column != end.column else start.column + 1
    lanes[gutter] += 1
    lane = 20 + gutter * (WIDE + GUTTER) - GUTTER + 6 * lanes[gutter] + 4
    y0, y1 = start.row(a_column), end.row(b_column)
    x0 = start.x if start.column == gutter else start.x + WIDE
    x1 = end.x if end.column == gutter else end.x + WIDE
    arrow = 5 if x1 < lane else -5
    head = path("edge", [(x1 + arrow, y1 - 4), (x1, y1), (x1 + arrow, y1 + 4)])
    return path("edge", [(x0, y0), (lane, y0), (lane, y1), (x1, y1)], dashed=by_value) + head
