"""The figures of a record: rows by name, in JSON, whether they are read live or were added up before (totals/shown.py).

So many statements are one question: each more would wait for Postgres, and for its turn on the processor.
"""

import re
from collections.abc import Mapping, Sequence
from datetime import date, datetime
from decimal import Decimal
from functools import cache, partial
from typing import Any, NotRequired, TypedDict
from uuid import UUID

import asyncpg
import msgspec

Rows = Sequence[Mapping[str, Any]]
"""As asyncpg returns them, or of a figure."""

Of = tuple[Sequence[UUID], datetime | None, datetime | None]
"""$1 to $3 of all statements of a record (known.py)."""

Asked = tuple[str, tuple[object, ...]]
"""A statement, and what it has as parameters from $4 on."""


class _Relation(TypedDict):
    id: UUID
    version: int
    subject: str
    role: str
    party: UUID
    batch: str | None
    valid_from: datetime | None
    valid_to: datetime | None
    recorded_at: datetime
    superseded_at: None
    asserted_by: str | None
    reason: str | None
    holds: str
    holding: NotRequired[int]
    planned: NotRequired[int]
    past: NotRequired[int]


class _Device(TypedDict):
    subject: str
    model: str | None
    firmware: str | None
    roles: list[dict[str, Any]]
    devices_now: NotRequired[int]


class _Latest(TypedDict):
    device: None
    type: str
    subject: str | None
    occurred_at: datetime | None
    source: str | None
    id: str | None
    recorded_at: datetime | None
    data: str | None
    events: int
    first_seen: datetime | None


class _Day(TypedDict):
    day: date
    type: str
    events: int


class _Happened(TypedDict):
    latest: list[_Latest]
    days: list[_Day]


class _Word(TypedDict):
    name: str
    origin: str
    value: str
    said_at: datetime
    recorded_at: datetime
    asserted_by: str
    party: UUID


class _Relations(TypedDict):
    holding: int
    planned: int
    past: int


class _Devices(TypedDict):
    devices: int
    devices_now: int


class _DevicesNow(TypedDict):
    devices_now: int


class _Fault(TypedDict):
    subject: str
    code: str
    since: datetime
    last_at: datetime
    raised: int
    data: dict[str, Any]
    open: int


class _Answers(TypedDict):
    scale: str
    score: Decimal
    answers: int
    first_at: datetime
    last_at: datetime


class _AnswersOf(_Answers):
    of: str


class _Sales(TypedDict):
    devices_sold: int
    devices_now: int
    customers_reached: int
    customers_now: int


class _FaultOfSold(TypedDict):
    code: str
    devices: int
    open: int
    devices_in_all: int


class _Batch(TypedDict):
    role: str
    batch: str | None
    devices: int
    devices_now: int
    faults_raised: int
    devices_with_faults: int
    faults_open: int
    batches: int


class _FaultOfBatch(TypedDict):
    role: str
    batch: str | None
    code: str
    open: int


class _Visits(TypedDict):
    visits: int


class _Visit(TypedDict):
    number: int
    device: str
    subject: str
    source: str | None
    id: str | None
    occurred_at: datetime
    visited: int
    days_before: float
    days_after: float
    faults_before: int
    faults_after: int


class _Customer(TypedDict):
    id: UUID
    kind: str
    name: str
    since: datetime | None
    cared_for: int


class _OpenOf(TypedDict):
    of: str
    open: int


class _Figures(TypedDict, total=False):
    listed_relations: list[_Relation]
    listed_devices: list[_Device]
    attributes: list[_Word]
    happened: list[_Happened]
    relations: list[_Relations]
    devices_now: list[_DevicesNow]
    faults: list[_Fault]
    satisfaction: list[_Answers]
    sales: list[_Sales]
    sold_satisfaction: list[_Answers]
    sold_faults: list[_FaultOfSold]
    supplied: list[_Devices]
    batches: list[_Batch]
    supplied_faults: list[_FaultOfBatch]
    serviced: list[_Devices]
    visits: list[_Visits]
    newest_visits: list[_Visit]
    visit_answers: list[_AnswersOf]
    customers: list[_Customer]
    customer_answers: list[_AnswersOf]
    customer_faults: list[_OpenOf]


_decoder = msgspec.json.Decoder(_Figures)


def decoded(stored: str) -> Mapping[str, Rows]:
    """Return what is in JSON."""
    rows: Any = _decoder.decode(stored)
    found: Mapping[str, Rows] = rows
    return found


async def read(db: asyncpg.Connection, of: Of, asked: Mapping[str, Asked]) -> Mapping[str, Rows]:
    """Return the rows of statements by name."""
    if not asked:
        return {}
    values = [value for _, own in asked.values() for value in own]
    statement = _together(tuple((name, sql, len(own)) for name, (sql, own) in asked.items()))
    return decoded(await db.fetchval(statement, *of, *values))


@cache
def _together(statements: tuple[tuple[str, str, int], ...]) -> str:
    figures, before = [], 0
    for name, sql, own in statements:
        # A statement that had more would take those of its neighbour, and be wrong without a word.
        if max(map(int, _parameter.findall(sql)), default=0) > _OF + own:
            raise ValueError(f"{name} has more than {own} parameters of its own")
        numbered = _parameter.sub(partial(_moved, by=before), sql)
        figures.append(f"'{name}', (select coalesce(json_agg(figure), '[]') from ({numbered}) as figure)")
        before += own
    return f"""
select json_build_object({", ".join(figures)})
from (select $1::uuid[], $2::timestamptz, $3::timestamptz) as view"""


_OF = 3
_parameter = re.compile(r"\$(\d+)")


def _moved(parameter: re.Match[str], *, by: int) -> str:
    number = int(parameter[1])
    return f"${number + by if number > _OF else number}"
