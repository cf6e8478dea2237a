"""What became of an event after its 200."""

from collections.abc import Sequence
from datetime import datetime
from uuid import UUID

import asyncpg

from drm_ingest.event import identity_key
from drm_ingest.postgres.relations import identities

DEAD_LETTERS_MAX = 20


async def stored(db: asyncpg.Connection, subject: str, source: str, id_: str) -> asyncpg.Record | None:
    """Return the event under an identity; None: none is attached.

    `event_id` is None, and with it every column but `occurred_at`, where retention has dropped the event itself.
    """
    return await db.fetchrow(
        "select identity.occurred_at, event.id as event_id, event.id, event.subject, event.source, event.type, "
        "event.occurred_at_raw, event.time_quality, event.sequence, event.received_at, event.recorded_at, "
        "event.content_hash, event.sender, event.dataschema, event.data "
        "from event_identity as identity left join event on event.occurred_at = identity.occurred_at "
        "and event.subject = $2 and event.source = $3 and event.id = $4 "
        "where identity.key = $1",
        _key(subject, source, id_), subject, source, id_,
    )  # fmt: skip


async def dead_letters(db: asyncpg.Connection, subject: str, source: str, id_: str) -> list[asyncpg.Record]:
    """Return the first dead letters under an identity: stage, code, detail, recorded_at, and where they were read.

    One that was replayed since, and is stored with that content, is none any more.
    """
    rows: list[asyncpg.Record] = await db.fetch(
        'select stage, code, detail, recorded_at, topic, "partition", "offset" from dead_letter '
        "where key = $1 and not exists (select from event_identity as first where first.key = dead_letter.key "
        "and first.content_hash = dead_letter.content_hash) order by recorded_at limit $2",
        _key(subject, source, id_), DEAD_LETTERS_MAX,
    )  # fmt: skip
    return rows


async def identity(db: asyncpg.Connection, subject: str, source: str, id_: str) -> asyncpg.Record | None:
    """Return due and refused of an identity event; None: it was stored before these began relations."""
    return await identities.one(db, _key(subject, source, id_))


async def now(db: asyncpg.Connection) -> datetime:
    """Return what Postgres calls now."""
    time: datetime = await db.fetchval("select clock_timestamp()")
    return time


async def stored_hashes(db: asyncpg.Connection, keys: Sequence[bytes]) -> dict[bytes, bytes]:
    """Return the content hash of the event that is stored under each of these identity keys."""
    found = await db.fetch("select key, content_hash from event_identity where key = any($1::uuid[])", _uuids(keys))
    return {row["key"].bytes: row["content_hash"].bytes for row in found}


async def refused_since(db: asyncpg.Connection, keys: Sequence[bytes], since: datetime) -> set[bytes]:
    """Return those of the identity keys that became dead letters of attach after that."""
    found = await db.fetch(
        "select distinct key from dead_letter where key = any($1::uuid[]) and recorded_at >= $2", _uuids(keys), since
    )
    return {row["key"].bytes for row in found}


def _uuids(keys: Sequence[bytes]) -> list[UUID]:
    return [UUID(bytes=key) for key in keys]


def _key(subject: str, source: str, id_: str) -> UUID:
    return UUID(bytes=identity_key(subject, source, id_))
