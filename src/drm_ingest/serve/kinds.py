"""What the record of a vendor, a partner, an employee or a supplier has beside everybody's."""

from collections.abc import Mapping
from typing import Any
from uuid import UUID

from pydantic import BaseModel, Field

from drm_ingest.postgres.record.figures import Rows
from drm_ingest.postgres.record.kinds import PARTS_MAX
from drm_ingest.serve.activity import Satisfaction, satisfaction
from drm_ingest.serve.shapes import StoredTime


class FaultCode(BaseModel):
    code: str = Field(examples=["E42"])
    devices: int = Field(description="on which it is open", examples=[2])


class FaultsByCode(BaseModel):
    open: int = Field(examples=[3])
    devices: int = Field(description="with at least one of them", examples=[2])
    by_code: list[FaultCode] = Field(description=f"on most devices first; at most {PARTS_MAX}")


class Sales(BaseModel):
    """Of a vendor: what it sold, to whom, and how these are."""

    devices_sold: int = Field(description="ever", examples=[120])
    devices_now: int = Field(description="not taken back", examples=[118])
    customers_reached: int = Field(
        description="who owned a device that it sold, or bought from it; linked ones are one", examples=[97]
    )
    customers_now: int = Field(description="of whom that holds now", examples=[95])
    satisfaction: Satisfaction = Field(
        description="answers of these customers and on these devices, while they had them"
    )
    faults: FaultsByCode = Field(description="open on devices that it sold, since these customers have them")


class Around(BaseModel):
    """The days before a visit, or those after."""

    days: float = Field(description="that are on the record: fewer if the service began or time ends", examples=[30.0])
    faults: int = Field(description="raised on the device", examples=[3])
    satisfaction: Satisfaction = Field(description="of who had the device then, and answers on it")


class Visit(BaseModel):
    """A support.contact by visit."""

    device: str = Field(examples=["meter-7"])
    subject: str = Field(description="of the event: the device, or who had it", examples=["party:crm:778"])
    id: str | None = Field(description="of the event; null: dropped by retention")
    source: str | None
    occurred_at: StoredTime
    before: Around
    after: Around


class Service(BaseModel):
    """Of a partner: what it looks after, and how that was before and after it came."""

    devices_serviced: int = Field(description="ever; those it installed too", examples=[40])
    devices_now: int = Field(examples=[37])
    visits: int = Field(description="one for each device concerned", examples=[12])
    around_visit_days: int = Field(examples=[30])
    before: Around = Field(description="all shown visits together; days and events between two visits count for both")
    after: Around
    items: list[Visit] = Field(description=f"newest first; at most {PARTS_MAX}")


class CaredFor(BaseModel):
    """A party that is cared for now."""

    party: UUID = Field(description="of linked ones the one made first")
    kind: str = Field(examples=["customer"])
    name: str = Field(examples=["Ada Byron"])
    since: StoredTime | None
    satisfaction: Satisfaction = Field(description="in the time it was cared for")
    open_faults: int = Field(description="on devices it owns or uses", examples=[1])


class Care(BaseModel):
    """Of an employee: who is cared for, and how they are."""

    cared_for: int = Field(description="now", examples=[25])
    items: list[CaredFor] = Field(description=f"by age; at most {PARTS_MAX}")


class Batch(BaseModel):
    role: str = Field(description="made_by or parts_by", examples=["parts_by"])
    batch: str | None = Field(description="null: of no batch that is known", examples=["2026-02/17"])
    devices: int = Field(description="ever", examples=[500])
    devices_now: int = Field(examples=[498])
    devices_with_faults: int = Field(description="ever raised", examples=[7])
    faults_raised: int = Field(examples=[9])
    faults_open: int = Field(examples=[2])
    open_by_code: dict[str, int] = Field(examples=[{"E42": 2}])


class Supply(BaseModel):
    """Of a supplier: where its parts are, and how they do. A fault counts for every batch in its device."""

    devices: int = Field(description="with something of it, ever", examples=[1200])
    devices_now: int = Field(examples=[1190])
    batches: int = Field(description="how many there are", examples=[14])
    items: list[Batch] = Field(description=f"with most faults first; at most {PARTS_MAX}")


def sales(figures: Mapping[str, Rows]) -> Sales:
    by_code = figures["sold_faults"]
    faults = FaultsByCode(
        open=by_code[0]["open"] if by_code else 0,
        devices=by_code[0]["devices_in_all"] if by_code else 0,
        by_code=[FaultCode(**row) for row in by_code],
    )
    return Sales(**figures["sales"][0], satisfaction=satisfaction(figures["sold_satisfaction"]), faults=faults)


def service(figures: Mapping[str, Rows], around_visit_days: int) -> Service:
    visits, (devices,) = figures["newest_visits"], figures["serviced"]
    by_visit = _by(figures["visit_answers"])

    def around(phase: str, shown: Rows) -> Around:
        answers = [row for visit in shown for row in by_visit.get(f"{visit['number']}{phase}", [])]
        return Around(
            days=round(float(sum(row[f"days_{phase}"] for row in shown)), 3),
            faults=sum(row[f"faults_{phase}"] for row in shown),
            satisfaction=satisfaction(answers),
        )

    return Service(
        devices_serviced=devices["devices"],
        devices_now=devices["devices_now"],
        visits=figures["visits"][0]["visits"] if "visits" in figures else visits[0]["visited"] if visits else 0,
        around_visit_days=around_visit_days,
        before=around("before", visits),
        after=around("after", visits),
        items=[Visit(**row, before=around("before", [row]), after=around("after", [row])) for row in visits],
    )


def care(figures: Mapping[str, Rows]) -> Care:
    customers, answers = figures["customers"], _by(figures["customer_answers"])
    faults = {row["of"]: row["open"] for row in figures["customer_faults"]}
    return Care(
        cared_for=customers[0]["cared_for"] if customers else 0,
        items=[
            CaredFor(
                **row,
                party=row["id"],
                satisfaction=satisfaction(answers.get(str(row["id"]), [])),
                open_faults=faults.get(str(row["id"]), 0),
            )
            for row in customers
        ],
    )


def supply(figures: Mapping[str, Rows]) -> Supply:
    batches, (devices,) = figures["batches"], figures["supplied"]
    codes: dict[tuple[str, str | None], dict[str, int]] = {}
    for row in figures["supplied_faults"]:
        codes.setdefault((row["role"], row["batch"]), {})[row["code"]] = row["open"]
    return Supply(
        **devices,
        batches=batches[0]["batches"] if batches else 0,
        items=[Batch(**row, open_by_code=codes.get((row["role"], row["batch"]), {})) for row in batches],
    )


def _by(rows: Rows) -> dict[str, list[Any]]:
    found: dict[str, list[Any]] = {}
    for row in rows:
        found.setdefault(row["of"], []).append(row)
    return found
