"""Many relations that begin are written down, with what each moved; what may begin, relations.py has judged."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

import asyncpg
import orjson

from drm_ingest.event import PARTY_PREFIX
from drm_ingest.postgres.bulk.known import Wanted
from drm_ingest.postgres.relations import changes, moves
from drm_ingest.postgres.relations.links import group


@dataclass(frozen=True, slots=True)
class Fresh:
    id: UUID
    subject: str
    subject_kind: str
    party: UUID
    party_kind: str
    exclusive: bool
    of: Wanted


# What each line adds to what its party, and those linked with it, hold on its subject, and those linked with that,
# beside what is there and the lines before it. `what` and `whose` are the first of those linked.
_GAINED = """
with fresh as (
    select line, what, whose, tstzrange(starts, ends) as valid
    from unnest($1::text[], $2::uuid[], $3::timestamptz[], $4::timestamptz[])
        with ordinality as fresh (what, whose, starts, ends, line)
),
about as (select * from unnest($5::text[], $6::text[]) as about (what, subject)),
member as (select * from unnest($7::uuid[], $8::uuid[]) as member (whose, party)),
before as (
    select what, whose, range_agg(relationship.valid) as held
    from (select distinct what, whose from fresh) as pair
    join about using (what)
    join member using (whose)
    join relationship using (subject, party)
    where upper_inf(recorded)
    group by what, whose
),
gained as (
    select line, unnest(
        tstzmultirange(valid) - coalesce(held, '{}')
        - coalesce(range_agg(valid) over (partition by what, whose order by line
                                          rows between unbounded preceding and 1 preceding), '{}')
    ) as during
    from fresh left join before using (what, whose)
)
select line::int - 1 as line, lower(during) as starts, upper(during) as ends
from gained order by line, lower(during) nulls first"""

_WITH_EVENTS = """
select subject from unnest($1::text[]) as subject
where exists (select from subject_day where subject_day.subject = subject.subject)
   or exists (
       select from party_ref join subject_day on subject_day.subject = ('party:' || namespace || ':' || ref) collate "C"
       where party = case when starts_with(subject.subject, 'party:') then substr(subject.subject, 7)::uuid end
   )"""

_LINKED = """
select party from unnest($1::uuid[]) as of (party)
where exists (select from party_link where upper_inf(recorded) and party_link.party = of.party)
   or exists (select from party_link where upper_inf(recorded) and party_link.other = of.party)"""

_INSERT = """
insert into relationship (id, subject, role, party, exclusive, subject_kind, party_kind, batch, valid, recorded,
                          asserted_by, reason)
select id, subject, role, party, exclusive, subject_kind, party_kind, batch, tstzrange(valid_from, valid_to),
       tstzrange($1, null), asserted_by, reason
from unnest($2::uuid[], $3::text[], $4::text[], $5::uuid[], $6::bool[], $7::text[], $8::text[], $9::text[],
            $10::timestamptz[], $11::timestamptz[], $12::text[], $13::text[])
    as fresh (id, subject, role, party, exclusive, subject_kind, party_kind, batch, valid_from, valid_to, asserted_by,
              reason)"""


async def write(db: asyncpg.Connection, fresh: Sequence[Fresh], recorded_at: datetime) -> None:
    devices = sorted({one.subject for one in fresh if one.subject_kind == "device"})
    await db.execute(
        "insert into device (subject, registered_by) select subject, 'relationship' from unnest($1::text[]) as subject "
        "on conflict do nothing",
        devices,
    )
    moved = await _moved(db, fresh)
    await db.execute(
        _INSERT,
        recorded_at,
        *_columns(
            (one.id, one.subject, one.of.role, one.party, one.exclusive, one.subject_kind, one.party_kind,
             one.of.batch, one.of.valid_from, one.of.valid_to, one.of.asserted_by, one.of.reason)
            for one in fresh
        ),
    )  # fmt: skip
    await changes.write_begun(
        db,
        [(one.id, one.subject, one.party, one.of.role, _detail(one.of)) for one in fresh],
        recorded_at,
        [(fresh[line].id, move) for line, move in moved],
    )


def _columns(rows: Iterable[tuple[object, ...]]) -> list[list[object]]:
    return [list(column) for column in zip(*rows, strict=True)]


def _detail(of: Wanted) -> str:
    """Return what changes.note writes of a beginning."""
    detail = {name: getattr(of, name) for name in ("valid_from", "valid_to", "batch", "asserted_by", "reason")}
    return orjson.dumps(detail, option=orjson.OPT_UTC_Z).decode()


async def _moved(db: asyncpg.Connection, fresh: Sequence[Fresh]) -> list[tuple[int, moves.Move]]:
    """Return what each line brings its party, as moves.between: only gains, for nothing is taken from anybody."""
    groups = await _groups(db, {of for one in fresh for of in (one.party, _subject_party(one)) if of is not None})
    about = {one.subject: _about(one, groups) for one in fresh}
    # A relation to oneself, now that they are linked, brings nothing.
    lines = [line for line, one in enumerate(fresh) if one.party not in groups.get(_subject_party(one), ())]
    if not lines:
        return []
    rows = await db.fetch(
        _GAINED,
        *_columns(
            (about[one.subject][0], groups[one.party][0], one.of.valid_from, one.of.valid_to)
            for one in (fresh[line] for line in lines)
        ),
        *_columns(sorted({(subjects[0], subject) for subjects in about.values() for subject in subjects})),
        *_columns(sorted({(parties[0], party) for parties in groups.values() for party in parties})),
    )
    gained = [(lines[row["line"]], row["starts"], row["ends"]) for row in rows]
    asked = sorted({subject for line, _, _ in gained for subject in about[fresh[line].subject]})
    with_events = {row["subject"] for row in await db.fetch(_WITH_EVENTS, asked)}
    moved = []
    for line, starts, ends in gained:
        subjects = [subject for subject in about[fresh[line].subject] if subject in with_events]
        counts = await moves.counted(db, subjects, starts, ends) if subjects else {}
        moved.append((line, moves.Move(fresh[line].party, "gained", starts, ends, counts)))
    return moved


async def _groups(db: asyncpg.Connection, parties: Collection[UUID]) -> dict[UUID | None, Sequence[UUID]]:
    """Return of each party those who share one record with it, itself among them, by age."""
    groups: dict[UUID | None, Sequence[UUID]] = {party: [party] for party in parties}
    for row in await db.fetch(_LINKED, list(parties)):
        if len(groups[row["party"]]) == 1:
            together = await group(db, row["party"])
            groups |= dict.fromkeys(together, together)
    return groups


def _subject_party(one: Fresh) -> UUID | None:
    return UUID(one.subject.removeprefix(PARTY_PREFIX)) if one.subject.startswith(PARTY_PREFIX) else None


def _about(one: Fresh, groups: Mapping[UUID | None, Sequence[UUID]]) -> Sequence[str]:
    """Return the subjects whose events are on one record: those of linked parties, or the device alone."""
    return [f"{PARTY_PREFIX}{same}" for same in groups.get(_subject_party(one), ())] or [one.subject]
