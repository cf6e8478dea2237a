"""What happened on a record or a device: counts, the latest, ratings and faults; and the two times it is seen at."""

from datetime import date
from decimal import Decimal
from itertools import groupby
from typing import Annotated, Any

from pydantic import BaseModel, Field

from drm_ingest.postgres.record.figures import Rows
from drm_ingest.postgres.record.known import View
from drm_ingest.serve.shapes import Request, StoredTime, Time, decoded, from_json


class ViewQuery(Request):
    """The two times."""

    as_of: Time | None = Field(None, description="what was true then; left out: now")
    known_at: Time | None = Field(
        None,
        description="relations and links as we knew them then; left out: as we know them now. "
        "Events count whenever they arrived; names, references and attributes are those of now",
    )

    @property
    def view(self) -> View:
        return View(self.as_of, self.known_at)


class State(BaseModel):
    """The latest event of one type, by when it happened."""

    subject: str = Field(examples=["meter-7"])
    id: str | None = Field(description="null: the event itself has been dropped by retention", examples=["8f14e45f"])
    source: str | None
    occurred_at: StoredTime
    data: Annotated[Any, from_json] = Field(examples=[{"temperature": 21.4}])


class Activity(BaseModel):
    """What happened, in counts and in its latest state."""

    events: int = Field(examples=[51_235])
    events_by_type: dict[str, int] = Field(examples=[{"device.measurement": 51_204, "device.status": 31}])
    first_seen: StoredTime | None
    last_seen: StoredTime | None
    latest: dict[str, State] = Field(description="by type")


def activity(rows: Rows) -> Activity:
    """Return what rows of a record say, those over all devices."""
    over_all = [row for row in rows if row["device"] is None]
    return Activity(
        events=sum(row["events"] for row in over_all),
        events_by_type={row["type"]: row["events"] for row in over_all},
        first_seen=min((row["first_seen"] for row in over_all), default=None),
        last_seen=max((row["occurred_at"] for row in over_all), default=None),
        latest={row["type"]: State(**row) for row in over_all},
    )


class Day(BaseModel):
    """What happened on a UTC day."""

    day: date
    events: int = Field(examples=[288])
    events_by_type: dict[str, int] = Field(examples=[{"device.measurement": 288}])


def days(rows: Rows) -> list[Day]:
    """Return rows of a day and a type as days."""
    found = []
    for day, of_day in groupby(rows, key=lambda row: row["day"]):
        by_type = {row["type"]: row["events"] for row in of_day}
        found.append(Day(day=day, events=sum(by_type.values()), events_by_type=by_type))
    return found


class OpenFault(BaseModel):
    """A fault that was raised on a device and not cleared since."""

    device: str = Field(examples=["meter-7"])
    code: str = Field(examples=["E42"])
    severity: str | None = Field(examples=["error"])
    message: str | None = Field(examples=["Pump blocked"])
    component: str | None = Field(examples=["pump"])
    since: StoredTime = Field(description="when it was first raised since it was last cleared")
    last_at: StoredTime = Field(description="when it was last raised")
    raised: int = Field(description="how often in that time", examples=[1])


class OpenFaults(BaseModel):
    open: int = Field(description="how many there are", examples=[1])
    items: list[OpenFault] = Field(description="last raised first; at most 100")


def open_faults(rows: Rows) -> OpenFaults:
    """Return open faults; what `data` says besides the code is that of when it was last raised."""
    items = []
    for row in rows:
        data = decoded(row["data"])
        told = {name: _text(data.get(name)) for name in ("severity", "message", "component")}
        items.append(OpenFault(device=row["subject"], **row, **told))
    return OpenFaults(open=rows[0]["open"] if rows else 0, items=items)


def _text(value: object) -> str | None:
    return value if isinstance(value, str) else None


class Answers(BaseModel):
    """Answers on one scale. Answers on different scales are never counted together."""

    answers: int = Field(examples=[12])
    score: float | None = Field(
        description="csat: percent who answered 4 or 5; nps: percent of 9 and 10, less percent of 0 to 6; "
        "ces: the mean; null for a scale that is not known",
        examples=[83.3],
    )
    by_score: dict[str, int] = Field(description="how many answered what", examples=[{"3": 2, "5": 10}])
    first_at: StoredTime
    last_at: StoredTime


Satisfaction = Annotated[dict[str, Answers], Field(description="by scale: csat 1 to 5, nps 0 to 10, ces 1 to 7")]


def satisfaction(rows: Rows) -> dict[str, Answers]:
    """Return rows of a scale and a score by scale."""
    found = {}
    for scale, of_scale in groupby(sorted(rows, key=lambda row: row["scale"]), key=lambda row: row["scale"]):
        answers = list(of_scale)
        by_score: dict[Decimal, int] = {}
        for row in answers:
            by_score[row["score"]] = by_score.get(row["score"], 0) + row["answers"]
        found[scale] = Answers(
            answers=sum(by_score.values()),
            score=_score(scale, by_score),
            by_score={f"{score:f}": by_score[score] for score in sorted(by_score)},
            first_at=min(row["first_at"] for row in answers),
            last_at=max(row["last_at"] for row in answers),
        )
    return found


def _score(scale: str, by_score: dict[Decimal, int]) -> float | None:
    """Return the figure that is usual for a scale: top-2-box, net promoter score, mean."""
    answers = sum(by_score.values())

    def percent(low: int, high: int) -> float:
        return 100 * sum(count for score, count in by_score.items() if low <= score <= high) / answers

    if scale == "csat":
        return round(percent(4, 5), 1)
    if scale == "nps":
        return round(percent(9, 10) - percent(0, 6), 1)
    if scale == "ces":
        return round(float(sum(score * count for score, count in by_score.items())) / answers, 2)
    return None
