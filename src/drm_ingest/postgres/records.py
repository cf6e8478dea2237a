"""Records: what a party's relations brought it, put together when it is read.

A record is that of a group: a party and those linked to it (links.py). Its steps are in record/, each a piece of SQL;
here they are asked, many at once, in one snapshot. That of a large party, as it is now, is read from totals
(totals/) once these are built; so is what happened until `as_of`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from uuid import UUID

import asyncpg

from drm_ingest.postgres.record import figures, kinds, own, tally, whole
from drm_ingest.postgres.record.figures import Of, Rows
from drm_ingest.postgres.record.kinds import Shown
from drm_ingest.postgres.record.known import NOW, View
from drm_ingest.postgres.relations import links


@dataclass(frozen=True, slots=True)
class PartyRecord:
    """What a party's relations brought it, and those linked to it, in rows."""

    parties: Rows
    """Whose record it is, by age: id, kind, name, created_at, refs (JSON text)."""
    links: Rows
    """What makes them one: id, party, other, reason, asserted_by, linked_at."""
    relations: Rows
    """As `relationships.ROW`, with holds (now, later or before)."""
    relations_now: Sequence[int]
    """How many relations hold, are planned, are past."""
    devices: Rows
    """On which it holds a role now, by subject: subject, model, firmware, roles."""
    devices_now: int
    """How many there are, if not all of them were asked for."""
    latest: Rows
    """For each type, over all devices (device is None) and for each of `devices`: device, type, subject, occurred_at,
    source, id, recorded_at and data of the latest, and, the same in all rows of a type, events; in all rows,
    first_seen."""
    days: Rows
    """day, type, events: of the last days on which anything may have happened, newest first."""
    figures: Mapping[str, Rows]
    """Attributes, faults, satisfaction, and what only a party of its kind has, by the names of record/figures.py."""
    read_at: datetime
    attached_at: datetime | None
    """When events were last stored, of anybody."""
    totals_through: datetime | None
    """Events recorded until then are counted; None: all that are stored."""


async def of_party(db: asyncpg.Connection, party: UUID, view: View, shown: Shown) -> PartyRecord:
    """Put together the record of a party, which exists, and those linked to it."""
    async with db.transaction(isolation="repeatable_read", readonly=True):
        members = await links.members(db, party, view.known_at)
        group, kind = [row["id"] for row in members], members[0]["kind"]
        read = await db.fetchrow(whole.READ, group[0] if view.known_at is None else None, view == NOW)
        large = read["large"] if read["members"] == group else None
        of, found = view.of(group), dict[str, Rows]()
        if large is None:
            questions = kinds.live(kind, shown)
        elif view == NOW:
            questions = kinds.beside_totals(kind, shown, large)
            found.update(figures.decoded(read["shown"]))
        else:
            questions = kinds.of_then(kind, shown, large)
        for asked in questions:
            found.update(await figures.read(db, of, asked))
        relations, devices = found["listed_relations"], found["listed_devices"][: shown.devices]
        latest, days = await _happened(db, of, devices, shown.days, found.get("happened", ()))
        return PartyRecord(
            parties=members,
            links=await links.links(db, group, view.known_at) if len(group) > 1 else [],
            relations=relations[: shown.relations],
            relations_now=_first(found.get("relations", relations), "holding", "planned", "past"),
            devices=devices,
            devices_now=_first(found.get("devices_now", found["listed_devices"]), "devices_now")[0],
            latest=latest,
            days=days,
            figures=found,
            read_at=read["read_at"],
            attached_at=read["attached_at"],
            totals_through=None if large is None else read["through"],
        )


def _first(rows: Rows, *names: str) -> Sequence[int]:
    """Return counts, which are the same in all rows."""
    return [rows[0][name] if rows else 0 for name in names]


async def _happened(db: asyncpg.Connection, of: Of, devices: Rows, days: int, counted: Rows) -> tuple[Rows, Rows]:
    """Return `latest`, and what happened on the last of so many days and on the days before it.

    As the totals of days have it in `counted`, unless they have nothing or do not know something, since it moved away.
    """
    subjects = [row["subject"] for row in devices]
    for happened in counted:
        latest = happened["latest"]
        if all(row["occurred_at"] is not None and row["first_seen"] is not None for row in latest):
            return [*latest, *await db.fetch(whole.LATEST_OF_DEVICES, *of, subjects)], happened["days"]
    latest = await db.fetch(tally.RECORD, *of, subjects)
    if not latest or not days:
        return latest, []
    last = max(row["occurred_at"] for row in latest).astimezone(UTC)
    ends = last.replace(hour=0, minute=0, second=0, microsecond=0) + timedelta(days=1)
    return latest, await db.fetch(tally.BY_DAY, *of, ends - timedelta(days=min(days, last.toordinal())), ends)


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
