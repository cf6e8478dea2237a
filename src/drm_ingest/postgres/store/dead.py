"""What cannot be stored, and where its fate is looked up; the letter itself lies in its topic."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self
from uuid import UUID

import asyncpg
from aiokafka import ConsumerRecord

from drm_ingest.errors import EventCode
from drm_ingest.postgres.store.rows import Row

REASON_CHARACTERS_MAX = 300

_NOTE = """
insert into dead_letter (topic, "partition", "offset", key, content_hash, stage, code, detail)
select t.topic, t."partition", t."offset", t.key, t.content_hash, 'attach', t.code, t.detail
from unnest($1::text[], $2::int[], $3::bigint[], $4::uuid[], $5::uuid[], $6::text[], $7::text[])
    as t (topic, "partition", "offset", key, content_hash, code, detail)
on conflict do nothing
"""


@dataclass(frozen=True, slots=True)
class Dead:
    """A record that cannot be stored, and why."""

    record: ConsumerRecord
    code: EventCode
    detail: str
    key: bytes | None = None
    content_hash: bytes | None = None

    @classmethod
    def of(cls, row: Row, code: EventCode, detail: str) -> Self:
        """Return the letter of a row."""
        return cls(row.record, code, detail[:REASON_CHARACTERS_MAX], row.key, row.content_hash)


def conflict(row: Row) -> Dead:
    """Return the letter of a row whose identity another event has."""
    return Dead.of(row, EventCode.ID_CONFLICT, EventCode.ID_CONFLICT.remedy)


async def note(connection: asyncpg.Connection, dead: Sequence[Dead]) -> None:
    """Write their fates, in the transaction that moves past them; once, however often they are read."""

    def uuid(value: bytes | None) -> UUID | None:
        return UUID(bytes=value) if value is not None else None

    await connection.execute(
        _NOTE,
        [letter.record.topic for letter in dead],
        [letter.record.partition for letter in dead],
        [letter.record.offset for letter in dead],
        [uuid(letter.key) for letter in dead],
        [uuid(letter.content_hash) for letter in dead],
        [letter.code.value for letter in dead],
        [letter.detail for letter in dead],
    )
