"""Records: what a party's relations brought it, put together when it is read.

A record is that of a group: a party and those linked to it (links.py). Its steps are in record/, each a piece of SQL;
here they are asked one after the other, in one snapshot. That of a large party, as it is now, is read from totals
(totals/) once these are built; so is what happened until `as_of`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import asyncpg

from drm_ingest.postgres.record import figures, kinds, own, tally, whole
from drm_ingest.postgres.record.figures import Rows
from drm_ingest.postgres.record.known import NOW, View
from drm_ingest.postgres.record.reading import PARTS_MAX, Reading
from drm_ingest.postgres.registry import attributes
from drm_ingest.postgres.relations import links


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
    """What only a party of its kind has; see kinds.py. `visited`, if it is there, says how many visits there are."""
    read_at: datetime
    attached_at: datetime | None
    """When events were last stored, of anybody."""
    totals_through: datetime | None
    """Events recorded until then are counted; None: all that are stored."""
    relations_now: tuple[int, int, int]
    """How many relations hold, are planned, are past."""


async def of_party(db: asyncpg.Connection, party: UUID, view: View, shown: Shown) -> PartyRecord:
    """Put together the record of a party, which exists, and those linked to it."""
    async with db.transaction(isolation="repeatable_read", readonly=True):
        members = await links.members(db, party, view.known_at)
        group = [row["id"] for row in members]
        read = await db.fetchrow(whole.READ, group[0] if view.known_at is None else None, view == NOW)
        large = read["large"] if read["members"] == group else None
        # What was current at another time than now is not counted beforehand; what happened until then is.
        record = Reading(db, view.of(group))
        if large is not None and view == NOW:
            record = replace(record, large=large, figures=figures.of(read["shown"]))
        added = record.figures
        listed = await (_listed(record, shown) if added is None else _listed_of_large(record, added, shown))
        devices = [row["subject"] for row in listed["devices"]]
        happened = await _happened_by_totals(record, large, devices, shown.days) if large is not None else None
        latest, days = happened or await _happened(record, devices, shown.days)
        if happened and record.large is None:
            record = replace(record, ranges=large)
        return PartyRecord(
            **listed,
            parties=members,
            links=await links.links(db, group, view.known_at) if len(group) > 1 else [],
            attributes=await attributes.of_parties(db, group),
            latest=latest,
            days=days,
            faults=await record.figure("faults", own.FAULTS, PARTS_MAX),
            satisfaction=await record.figure("satisfaction", own.SATISFACTION),
            part=await kinds.part(record, members[0]["kind"], shown.around_visit_days),
            read_at=read["read_at"],
            attached_at=read["attached_at"],
            totals_through=read["through"] if happened or record.large else None,
        )


async def _listed(record: Reading, shown: Shown) -> dict[str, Any]:
    """Return relations and devices, as many as are shown and how many there are."""
    relations = await record.live(own.RELATIONS, shown.relations)
    held = relations[0] if relations else {"holding": 0, "planned": 0, "past": 0}
    devices = await record.live(own.DEVICES, shown.devices)
    return {
        "relations": relations[: shown.relations],
        "relations_now": (held["holding"], held["planned"], held["past"]),
        "devices": devices[: shown.devices],
        "devices_now": devices[0]["devices_now"] if devices else 0,
    }


async def _listed_of_large(record: Reading, figures: Mapping[str, Rows], shown: Shown) -> dict[str, Any]:
    db, group = record.db, record.of[0]
    relations: Rows = []
    for statement in whole.RELATIONS.values():
        if len(relations) < shown.relations:
            relations += await db.fetch(statement, group, shown.relations - len(relations))
    (held,), (found,) = figures["relations"], figures["devices_now"]
    return {
        "relations": relations,
        "relations_now": (held["holding"], held["planned"], held["past"]),
        "devices": await db.fetch(whole.DEVICES, group, shown.devices),
        "devices_now": found["devices_now"],
    }


async def _happened(record: Reading, devices: list[str], days: int) -> tuple[Rows, Rows]:
    """Return what happened: `latest`, and what did on the last of so many days and on the days before it."""
    latest = await record.live(tally.RECORD, devices)
    if not latest or not days:
        return latest, []
    ends = _day_after(latest)
    return latest, await record.live(tally.BY_DAY, ends - timedelta(days=days), ends)


async def _happened_by_totals(record: Reading, large: int, devices: list[str], days: int) -> tuple[Rows, Rows] | None:
    """Return the same from the totals of days, and from events of the day that `as_of` is in.

    None: something is not known without looking at the events.
    """
    db, as_of = record.db, record.of[1]
    last_day = "[]" if as_of is None else await db.fetchval(whole.LAST_DAY, large, as_of)
    counted = (large, as_of and as_of.astimezone(UTC).date(), last_day)
    latest = await db.fetch(whole.LATEST, *counted)
    if any(row["occurred_at"] is None or row["first_seen"] is None for row in latest):
        return None
    by_day: Rows = []
    if latest and days:
        ends = _day_after(latest)
        by_day = await db.fetch(whole.BY_DAY, *counted, (ends - timedelta(days=days)).date(), ends.date())
    return latest + await record.live(whole.LATEST_OF_DEVICES, devices), by_day


def _day_after(latest: Rows) -> datetime:
    """Return when the last day ends on which anything happened."""
    last: datetime = max(row["occurred_at"] for row in latest).astimezone(UTC)
    return last.replace(hour=0, minute=0, second=0, microsecond=0) + timedelta(days=1)


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
