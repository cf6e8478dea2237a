"""Many relations that begin are written down, with what each moved; what may begin, relations.py has judged."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

import asyncpg
import orjson

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


# What each line adds to what its party, and those linked with it, hold: beside what is there and the lines before it.
_GAINED = """
with fresh as (
    select line, subject, shared, tstzrange(starts, ends) as valid
    from unnest($1::text[], $2::uuid[], $3::timestamptz[], $4::timestamptz[])
        with ordinality as fresh (subject, shared, starts, ends, line)
),
member as (select * from unnest($5::uuid[], $6::uuid[]) as member (shared, party)),
before as (
    select subject, shared, range_agg(relationship.valid) as held
    from (select distinct subject, shared from fresh) as pair
    join member using (shared)
    join relationship using (subject, party)
    where upper_inf(recorded)
    group by subject, shared
),
gained as (
    select line, subject, unnest(
        tstzmultirange(valid) - coalesce(held, '{}')
        - coalesce(range_agg(valid) over (partition by subject, shared order by line
                                          rows between unbounded preceding and 1 preceding), '{}')
    ) as during
    from fresh left join before using (subject, shared)
)
select line::int - 1 as line, subject, lower(during) as starts, upper(during) as ends
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
    parties = list({one.party for one in fresh})
    linked = await db.fetch(_LINKED, parties)
    shared: dict[UUID, UUID] = dict(zip(parties, parties, strict=True))
    members = dict.fromkeys(zip(parties, parties, strict=True))
    for row in linked:
        together = await group(db, row["party"])
        shared[row["party"]] = together[0]
        members |= dict.fromkeys((together[0], party) for party in together)
    rows = await db.fetch(
        _GAINED,
        *_columns((one.subject, shared[one.party], one.of.valid_from, one.of.valid_to) for one in fresh),
        *_columns(members),
    )
    with_events = {
        row["subject"] for row in await db.fetch(_WITH_EVENTS, list({row["subject"] for row in rows}))
    }  # fmt: skip
    moved = []
    for row in rows:
        counts = (
            await moves.counted(db, [row["subject"]], row["starts"], row["ends"])
            if row["subject"] in with_events
            else {}
        )
        moved.append((row["line"], moves.Move(fresh[row["line"]].party, "gained", row["starts"], row["ends"], counts)))
    return moved
