"""Identity events: who signed in where, and out again, as it was said; kept with the events themselves, for ever."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from uuid import UUID

import asyncpg
import msgspec
import orjson

from drm_ingest.event import LINKED, PARTY_PREFIX, UNLINKED
from drm_ingest.postgres.store.rows import EPOCH, Row
from drm_ingest.reference import NotAReference, kept

DEFAULT_ROLE = "user"
_namespace = re.compile(r"[a-z][a-z0-9-]{0,39}")
_REF_CHARACTERS_MAX = 150


class _Data(msgspec.Struct):
    """What is read of `data`; its schema has seen to the rest at the edge."""

    party: str | None = None
    role: str = DEFAULT_ROLE
    method: str | None = None


@dataclass(slots=True)
class Said:
    """An identity event: whom it is about, as it is kept; `refused` where it can never say anything."""

    role: str = DEFAULT_ROLE
    method: str | None = None
    namespace: str | None = None
    ref: str | None = None
    party: UUID | None = None
    refused: str | None = None


_ADD = """
insert into identity_event (key, subject, linked, namespace, ref, party, role, method, occurred_at, sequence,
                            content_hash, sender, usable, refused)
select * from unnest($1::uuid[], $2::text[], $3::bool[], $4::text[], $5::text[], $6::uuid[], $7::text[], $8::text[],
                     $9::timestamptz[], $10::text[], $11::uuid[], $12::text[], $13::bool[], $14::text[])
on conflict (key) do nothing
"""


async def add(db: asyncpg.Connection, rows: Sequence[Row], reference_key: bytes | None) -> bool:
    """Keep what identity events among these say, in the transaction that stores them; return whether there are any."""
    found = [row for row in rows if row.type in (LINKED, UNLINKED)]
    if not found:
        return False
    said = [read(row.subject, row.data, row.type == LINKED, reference_key) for row in found]
    await db.execute(
        _ADD,
        [UUID(bytes=row.key) for row in found], [row.subject for row in found], [row.type == LINKED for row in found],
        [each.namespace for each in said], [each.ref for each in said], [each.party for each in said],
        [each.role for each in said], [each.method for each in said],
        [EPOCH + timedelta(microseconds=row.occurred_us) for row in found], [row.sequence for row in found],
        [UUID(bytes=row.content_hash) for row in found], [_sender(row) for row in found],
        [each.refused is None for each in said], [each.refused for each in said],
    )  # fmt: skip
    return True


def _sender(row: Row) -> str:
    return str(orjson.loads(row.record.value)["sender"]) if row.record.value else ""


def read(subject: str, data: msgspec.Raw | None, linked: bool, reference_key: bytes | None) -> Said:
    """Return what an identity event says. It is stored whatever that is: what makes no sense is refused, not raised."""
    try:
        sent = _Data() if data is None else msgspec.json.decode(data, type=_Data | None) or _Data()
    except (ValueError, RecursionError) as error:
        return Said(refused=f"Its data cannot be read: {error}"[:300])
    said = Said(role=sent.role[:100], method=None if sent.method is None else sent.method[:100])
    if subject.startswith(PARTY_PREFIX):
        said.refused = "Identity events are about devices; a relation between parties begins by POST /v1/relationships."
    elif sent.party is None:
        said.refused = "It names no party." if linked else None
    else:
        _name(said, sent.party, reference_key)
    return said


def _name(said: Said, party: str, reference_key: bytes | None) -> None:
    namespace, colon, ref = party.partition(":")
    try:
        if not colon:
            said.party = UUID(party)
            return
        namespace, ref = kept(namespace, ref, reference_key)
        if not _namespace.fullmatch(namespace) or len(ref) > _REF_CHARACTERS_MAX:
            raise ValueError
    except NotAReference as error:
        said.refused = str(error)[:300]
    except ValueError:
        said.refused = "A party is named by its id or by a reference, as in crm:778."
    else:
        said.namespace, said.ref = namespace, ref


# -- what relations do not have in them yet -----------------------------------------------------------------------


async def due(db: asyncpg.Connection, but: Sequence[str], limit: int) -> list[str]:
    """Return subjects, other than `but`, of which the relations are not yet as identity events say."""
    rows = await db.fetch(
        "select distinct subject from identity_event where due and subject <> all ($1::text[]) limit $2", but, limit
    )
    return [row["subject"] for row in rows]


async def is_due(db: asyncpg.Connection, subject: str) -> bool:
    """Return whether anything of a subject is due."""
    return bool(await db.fetchval("select exists (select from identity_event where subject = $1 and due)", subject))


async def oldest_due_s(db: asyncpg.Connection) -> float:
    """Return for how long the oldest of these has been waiting, in seconds; 0: none is."""
    age: float = await db.fetchval(
        "select coalesce(extract(epoch from clock_timestamp() - min(recorded_at)), 0)::float8 "
        "from identity_event where due"
    )
    return max(0.0, age)


async def unknown_customers(db: asyncpg.Connection, subject: str) -> list[tuple[str, str]]:
    """Return references that due events of a subject link and nobody has, where a customer can hold the role."""
    rows = await db.fetch(
        """
        select distinct said.namespace, said.ref
        from identity_event said
        join role_kind on role_kind.role = said.role and subject_kind = 'device' and party_kind = 'customer'
        where subject = $1 and due and usable and linked and said.namespace is not null and not exists (
            select from party_ref where party_ref.namespace = said.namespace and party_ref.ref = said.ref)
        order by said.namespace, said.ref
        """,
        subject,
    )
    return [(row["namespace"], row["ref"]) for row in rows]


@dataclass(slots=True)
class Settled:
    """What became of identity events: keys, and for each why it says nothing (None: it does)."""

    keys: list[UUID] = field(default_factory=list)
    refused: list[str | None] = field(default_factory=list)
    parties: list[UUID | None] = field(default_factory=list)
    """Whom each names, as far as is known."""


async def settle(db: asyncpg.Connection, settled: Settled) -> None:
    """Note that relations have these in them, as far as they say something; `recheck.py` looks at them once more."""
    await db.execute(
        "update identity_event set due = false, refused = became.refused, "
        "settled_in = case when namespace is not null then pg_current_xact_id() end, "
        "settled_as = case when namespace is not null then became.party end "
        "from unnest($1::uuid[], $2::text[], $3::uuid[]) as became (key, refused, party) "
        "where identity_event.key = became.key",
        settled.keys, settled.refused, settled.parties,
    )  # fmt: skip


async def one(db: asyncpg.Connection, key: UUID) -> asyncpg.Record | None:
    """Return due and refused of one; None: that is no identity event, or it came before they began relations."""
    return await db.fetchrow("select due, refused from identity_event where key = $1", key)
