"""Records: what a party's relations brought it, put together when it is read.

A record is that of a group: a party and those linked to it (links.py). Its steps are in record/, each a piece of SQL;
here they are asked one after the other, in one snapshot. That of a large party, as it is now, is read from totals
(totals/) once these are built.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import asyncpg

from drm_ingest.postgres.record import cared_for, own, serviced, sold, supplied, tally, whole
from drm_ingest.postgres.record.known import NOW, View
from drm_ingest.postgres.registry import attributes, parties
from drm_ingest.postgres.relations import links

PARTS_MAX = 100
"""Of each list in the part that is of one kind: visits, batches, customers, codes of faults."""

Rows = list[asyncpg.Record]


@dataclass(frozen=True, slots=True)
class Shown:
    """How much of a record is shown."""

    devices: int
    relations: int
    days: int
    around_visit_days: int


@dataclass(frozen=True, slots=True)
class PartyRecord:
    """What a party's relations brought it, and those linked to it, in rows."""

    parties: Rows
    """Whose record it is, by age: id, kind, name, created_at, refs (JSON text)."""
    links: Rows
    """What makes them one: id, party, other, reason, asserted_by, linked_at."""
    attributes: Rows
    """Every origin's word, the one agreed on first of its name; as `attributes.of_parties` returns them."""
    relations: Rows
    """As `relationships.ROW`, with holds (now, later or before)."""
    devices: Rows
    """On which it holds a role now, by subject: subject, model, firmware, roles (JSON text)."""
    devices_now: int
    """How many there are, if not all of them were asked for."""
    latest: Rows
    """For each type, over all devices (device is None) and for each of `devices`: device, type, subject, occurred_at,
    source, id, recorded_at and data of the latest, and, the same in all rows of a type, events; in all rows,
    first_seen."""
    days: Rows
    """day, type, events: of the last days on which anything may have happened, newest first."""
    faults: Rows
    """subject, code, since, last_at, raised, data (JSON text): of what is open on the devices held now, newest first;
    in all rows, open: how many there are."""
    satisfaction: Rows
    """scale, score, answers, first_at, last_at."""
    part: Mapping[str, Rows]
    """What only a party of its kind has; see `_PARTS`. `visited`, if it is there, says how many visits there are."""
    read: asyncpg.Record
    """read_at, attached_at."""
    totals_through: datetime | None
    """Events recorded until then are counted; None: all that are stored."""
    relations_now: tuple[int, int, int]
    """How many relations hold, are planned, are past."""


async def of_party(db: asyncpg.Connection, party: UUID, view: View, shown: Shown) -> PartyRecord:
    """Put together the record of a party, which exists, and those linked to it."""
    async with db.transaction(isolation="repeatable_read", readonly=True):
        group = await links.group(db, party, view.known_at)
        members = await parties.parties_of(db, group)
        totals = await db.fetchrow(whole.OF_GROUP, group[0]) if view == NOW else None
        if totals is not None and totals["members"] == group:
            put_together = await _from_totals(db, members[0]["kind"], totals, shown)
        else:
            put_together = await _live(db, members[0]["kind"], view.of(group), shown)
        return PartyRecord(
            parties=members,
            links=await links.links(db, group, view.known_at) if len(group) > 1 else [],
            attributes=await attributes.of_parties(db, group),
            read=await db.fetchrow(own.READ),
            **put_together,
        )


Of = tuple[Sequence[UUID], datetime | None, datetime | None]


async def _live(db: asyncpg.Connection, kind: str, of: Of, shown: Shown) -> dict[str, Any]:
    devices = await db.fetch(own.DEVICES, *of, shown.devices)
    latest = await db.fetch(tally.RECORD, *of, [row["subject"] for row in devices])
    relations = await db.fetch(own.RELATIONS, *of, shown.relations)
    counted = relations[0] if relations else {"holding": 0, "planned": 0, "past": 0}
    return {
        "relations": relations[: shown.relations],
        "relations_now": (counted["holding"], counted["planned"], counted["past"]),
        "devices": devices,
        "devices_now": await db.fetchval(own.DEVICES_NOW, *of),
        "latest": latest,
        "days": await _days(db, of, latest, shown.days),
        "faults": await db.fetch(own.FAULTS, *of, PARTS_MAX),
        "satisfaction": await db.fetch(own.SATISFACTION, *of),
        "part": await _PARTS[kind](db, of, shown),
        "totals_through": None,
    }


async def _from_totals(db: asyncpg.Connection, kind: str, totals: asyncpg.Record, shown: Shown) -> dict[str, Any]:
    large, group = totals["id"], totals["members"]

    async def figures(name: str) -> Rows:
        rows: Rows = await db.fetch(whole.FIGURES[name], large)
        return rows

    (counted,) = await figures("relations")
    relations: Rows = []
    for statement in whole.RELATIONS.values():
        if len(relations) < shown.relations:
            relations += await db.fetch(statement, group, shown.relations - len(relations))
    devices = await db.fetch(whole.DEVICES, group, shown.devices)
    latest = await db.fetch(whole.LATEST, large)
    part: dict[str, Rows] = {}
    if kind == "vendor":
        part = {
            "sales": await figures("sales"),
            "satisfaction": await figures("sold_satisfaction"),
            "faults": await figures("sold_faults"),
        }
    elif kind == "supplier":
        part = {
            "devices": await figures("supplied"),
            "batches": await figures("batches"),
            "faults": await figures("supplied_faults"),
        }
    elif kind == "partner":
        (visited,) = await figures("visits")
        # The newest visits are all on these devices; what was around them is read live.
        on = [row["subject"] for row in await db.fetch(whole.VISITED, large, PARTS_MAX)]
        of = (*NOW.of(group), PARTS_MAX, shown.around_visit_days, on)
        part = {
            "devices": await figures("serviced"),
            "visits": await db.fetch(serviced.newest("$6"), *of),
            "satisfaction": await db.fetch(serviced.satisfaction("$6"), *of),
            "visited": [visited],
        }
    elif kind == "employee":
        part = dict(await _of_employee(db, NOW.of(group), shown))
    days: Rows = []
    if latest and shown.days:
        ends = _day_after(latest)
        days = await db.fetch(whole.BY_DAY, large, (ends - timedelta(days=shown.days)).date(), ends.date())
    return {
        "relations": relations,
        "relations_now": (counted["holding"], counted["planned"], counted["past"]),
        "devices": devices,
        "devices_now": (await figures("devices_now"))[0]["devices_now"],
        "latest": latest + await db.fetch(whole.LATEST_OF_DEVICES, group, [row["subject"] for row in devices]),
        "days": days,
        "faults": await figures("faults"),
        "satisfaction": await figures("satisfaction"),
        "part": part,
        "totals_through": totals["through"],
    }


async def _days(db: asyncpg.Connection, of: Of, latest: Rows, days: int) -> Rows:
    """Return what happened on the last of so many days on which anything did, and on the days before it."""
    if not latest or not days:
        return []
    ends = _day_after(latest)
    rows: Rows = await db.fetch(tally.BY_DAY, *of, ends - timedelta(days=days), ends)
    return rows


def _day_after(latest: Rows) -> datetime:
    last: datetime = max(row["occurred_at"] for row in latest).astimezone(UTC)
    return last.replace(hour=0, minute=0, second=0, microsecond=0) + timedelta(days=1)


async def _of_customer(db: asyncpg.Connection, of: Of, shown: Shown) -> Mapping[str, Rows]:
    return {}


async def _of_vendor(db: asyncpg.Connection, of: Of, shown: Shown) -> Mapping[str, Rows]:
    return {
        "sales": await db.fetch(sold.SALES, *of),
        "satisfaction": await db.fetch(sold.SATISFACTION, *of),
        "faults": await db.fetch(sold.FAULTS, *of, PARTS_MAX),
    }


async def _of_partner(db: asyncpg.Connection, of: Of, shown: Shown) -> Mapping[str, Rows]:
    return {
        "devices": await db.fetch(serviced.DEVICES, *of),
        "visits": await db.fetch(serviced.VISITS, *of, PARTS_MAX, shown.around_visit_days),
        "satisfaction": await db.fetch(serviced.SATISFACTION, *of, PARTS_MAX, shown.around_visit_days),
    }


async def _of_employee(db: asyncpg.Connection, of: Of, shown: Shown) -> Mapping[str, Rows]:
    customers = await db.fetch(cared_for.CUSTOMERS, *of, PARTS_MAX)
    listed = [row["id"] for row in customers]
    return {
        "customers": customers,
        "satisfaction": await db.fetch(cared_for.SATISFACTION, *of, listed),
        "faults": await db.fetch(cared_for.FAULTS, *of, listed),
    }


async def _of_supplier(db: asyncpg.Connection, of: Of, shown: Shown) -> Mapping[str, Rows]:
    return {
        "devices": await db.fetch(supplied.DEVICES, *of),
        "batches": await db.fetch(supplied.BATCHES, *of, PARTS_MAX),
        "faults": await db.fetch(supplied.FAULTS, *of, PARTS_MAX),
    }


_PARTS = {
    "customer": _of_customer,
    "vendor": _of_vendor,
    "partner": _of_partner,
    "employee": _of_employee,
    "supplier": _of_supplier,
}


@dataclass(frozen=True, slots=True)
class Counts:
    """How much is on a record."""

    relations: int
    """Past ones too."""
    devices_now: int
    events_by_type: dict[str, int]


async def counts(db: asyncpg.Connection, group: Sequence[UUID]) -> Counts:
    """Count what is on the record that these parties share, or would share."""
    of = NOW.of(group)
    relations = await db.fetchval(own.RELATIONS_COUNT, *of)
    devices_now = await db.fetchval(own.DEVICES_NOW, *of)
    return Counts(relations, devices_now, dict(await db.fetch(tally.COUNTS, *of)))


async def of_subject(db: asyncpg.Connection, subject: str, view: View) -> Rows:
    """Return the record of one subject, whoever held it; rows as in `PartyRecord.latest`."""
    rows: Rows = await db.fetch(tally.SUBJECT_RECORD, subject, view.as_of, view.known_at, [])
    return rows
