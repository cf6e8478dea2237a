"""What became of an event after its 200."""

from uuid import UUID

import asyncpg

from drm_ingest.event import identity_key

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
    """Return the first dead letters under an identity: stage, code, detail, recorded_at, and where they lie."""
    rows: list[asyncpg.Record] = await db.fetch(
        'select stage, code, detail, recorded_at, topic, "partition", "offset" from dead_letter '
        "where key = $1 order by recorded_at limit $2",
        _key(subject, source, id_), DEAD_LETTERS_MAX,
    )  # fmt: skip
    return rows


def _key(subject: str, source: str, id_: str) -> UUID:
    return UUID(bytes=identity_key(subject, source, id_))
