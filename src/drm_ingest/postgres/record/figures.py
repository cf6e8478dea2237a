"""The figures of a large party as they were added up (totals/shown.py): the rows that are else read live, by name."""

from collections.abc import Mapping, Sequence
from datetime import datetime
from decimal import Decimal
from typing import Any, TypedDict

import msgspec

Rows = Sequence[Mapping[str, Any]]
"""As asyncpg returns them, or as they were added up."""


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


class _Figures(TypedDict, total=False):
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


_decoder = msgspec.json.Decoder(_Figures)


def of(shown: str) -> Mapping[str, Rows]:
    """Return what is stored as JSON."""
    rows: Any = _decoder.decode(shown)
    found: Mapping[str, Rows] = rows
    return found
