"""A customer's record as a person likes to read it: who, with which device, how it is now, what happened."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any

from rich.console import Group, RenderableType
from rich.markup import escape
from rich.panel import Panel
from rich.table import Table

from drm_ingest.schema import Schemas

SIGNS = {"Cel": "°C", "[ppm]": "ppm", "lat": "°", "lon": "°", "%RH": "% RH", "kW.h": "kWh", "m3": "m³"}
"""Of the units of schemas/ that people write otherwise."""
SCALES = {"csat": "1 to 5", "nps": "0 to 10", "ces": "1 to 7"}  # of feedback.rating
PURCHASES, RATINGS = "commerce.purchase", "feedback.rating"

Json = Mapping[str, Any]


def portrait(record: Json, facts: Iterable[Json], sent: Mapping[str, int], units: Mapping[str, str]) -> Panel:
    """Draw a record as `GET /v1/parties/{id}` has it, with events about the party (newest first) beside it.

    `sent` is how many events of each type there must be, `units` the unit of each measured name.
    """
    grid = Table.grid(padding=(0, 2, 0, 0))
    grid.add_column(style="dim", no_wrap=True)
    grid.add_column(overflow="fold")
    for device in record["devices"]:
        for text in _device(device, units):
            grid.add_row(*text)
    if record["events"]:
        grid.add_row("seen", f"{_day(record['first_seen'])} to {_day(record['last_seen'])}")
    facts = list(facts)
    for label, type_, row in (("bought", PURCHASES, _purchase), ("rated", RATINGS, _rating)):
        of_type = [fact for fact in facts if fact["type"] == type_]
        if of_type:
            grid.add_row(label, _columns([row(fact) for fact in of_type], right=2))
    references = ", ".join(f"{namespace}:{ref}" for namespace, refs in record["refs"].items() for ref in refs)
    return Panel(
        Group(grid, "", _counts(record["events_by_type"], sent)),
        title=f"[bold]{escape(record['name'])}[/], {record['kind']}",
        subtitle=f"[dim]{escape(references)}  {record['id']}[/]",
        title_align="left",
        subtitle_align="left",
        padding=(1, 2),
        width=84,
    )


def units_of(schemas: Schemas, type_: str) -> dict[str, str]:
    """Return the unit of each name that the newest schema of a type lists, as people write it."""
    schema = schemas.find(type_, None)
    listed = schema.document["properties"] if schema else {}
    return {name: SIGNS.get(of["x-unit"], of["x-unit"]) for name, of in listed.items() if "x-unit" in of}


def _device(device: Json, units: Mapping[str, str]) -> Iterator[tuple[str, RenderableType]]:
    roles = ", ".join(
        role["role"] + (f" since {_day(role['valid_from'])}" if role["valid_from"] else "") for role in device["roles"]
    )
    yield "device", f"[bold cyan]{escape(device['id'])}[/]  {escape(device['model'] or 'model unknown')}, {roles}"
    for latest in device["latest"].values():
        data = latest["data"]
        own = data.get("units", {})
        readings = [
            (
                f"[bold]{_number(value)}[/]",
                f"{own.get(name) or units.get(name, '')}",
                f"[dim]{name.replace('_', ' ')}[/]",
            )
            for name, value in data.items()
            if isinstance(value, int | float)
        ]
        yield "latest", Group(f"[dim]{_minute(latest['occurred_at'])}[/]", _columns(readings, right=0))


def _purchase(event: Json) -> tuple[str, ...]:
    data = event["data"]
    goods = ", ".join(line["name"] for line in data.get("lines", ()))
    price = f"{data['total_minor'] / 100:,.2f} {data['currency']}"  # the currencies of the demo have two decimals
    return f"[dim]{_day(event['occurred_at'])}[/]", escape(goods or data["order"]), f"[bold]{price}[/]"


def _rating(event: Json) -> tuple[str, ...]:
    data = event["data"]
    said = f"[bold]{data['score']}[/] [dim]of {SCALES[data['scale']]}[/]"
    return f"[dim]{_day(event['occurred_at'])}[/]", data["scale"].upper(), said


def _counts(counted: Mapping[str, int], sent: Mapping[str, int]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim", padding=(0, 2, 0, 0))
    table.add_column("events")
    table.add_column("on the record", justify="right")
    table.add_column("sent", justify="right")
    table.add_column("")
    for type_ in sorted({*counted, *sent}):
        there, expected = counted.get(type_, 0), sent.get(type_, 0)
        mark = "[green]✓[/]" if there == expected else "[red]✗[/]"
        table.add_row(type_, f"{there:,}", f"{expected:,}", mark)
    return table


def _columns(rows: Sequence[tuple[str, ...]], right: int | None = None) -> Table:
    grid = Table.grid(padding=(0, 2, 0, 0))
    for number in range(len(rows[0]) if rows else 0):
        grid.add_column(justify="right" if number == right else "left")
    for row in rows:
        grid.add_row(*row)
    return grid


def _number(value: float) -> str:
    return f"{value:,.5f}".rstrip("0").rstrip(".") if isinstance(value, float) else f"{value:,}"


def _day(time: str) -> str:
    return f"{datetime.fromisoformat(time):%-d %b %Y}"


def _minute(time: str) -> str:
    return f"{datetime.fromisoformat(time):%-d %b %Y, %H:%M} UTC"
