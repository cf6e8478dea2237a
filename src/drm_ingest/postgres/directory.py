"""Who a device is and whose it is: one question for many subjects, and word of what changes.

Both go over one connection, and so in order: Postgres sends the notifications of what was committed before an answer is
complete, so whoever has the answer has heard of every change that was acknowledged before it asked.
"""

import asyncio
from collections.abc import Callable, Iterable, Sequence
from datetime import datetime
from typing import NamedTuple
from uuid import UUID

import asyncpg
import orjson

from drm_ingest.event import PARTY_PREFIX

CHANNEL = "drm_directory"
CHANNEL_OF_MANY = "drm_directory_many"
"""With a list of subjects in JSON, from a statement that changed more than a few."""

_LOOK_UP = """
with asked as (
    select subject, null::uuid as self, subject collate "C" as about
    from unnest($1::text[]) as device(subject)
  union all
    select named.subject, party.id, ('party:' || party.id) collate "C"
    from unnest($2::text[], $3::uuid[]) as named(subject, id) join party using (id)
  union all
    select named.subject, party_ref.party, ('party:' || party_ref.party) collate "C"
    from unnest($4::text[], $5::text[], $6::text[]) as named(subject, namespace, ref)
    join party_ref using (namespace, ref)
)
select asked.subject, asked.about, asked.self, device.model, device.firmware,
       held.role, held.party, lower(held.valid), upper(held.valid)
from asked
left join device on device.subject = asked.about
left join lateral (
    select role, party, valid from relationship
    where relationship.subject = asked.about and upper_inf(recorded)
    order by upper(valid) desc nulls first limit $7
) as held on true
"""


class Row(NamedTuple):
    """One role held on a subject, or none (`role` is None); the latest come first, by when they end."""

    subject: str  # as asked
    about: str  # as relations and notifications call it: `party:<id>` for every name of a party
    self: UUID | None  # the party that the subject is
    model: str | None
    firmware: str | None
    role: str | None
    party: UUID | None
    valid_from: datetime | None  # None: always
    valid_to: datetime | None  # None: still


class DirectoryConnection:
    """A connection that asks and listens; `lost` is set when it can be used no more."""

    def __init__(self, connection: asyncpg.Connection, statement: asyncpg.prepared_stmt.PreparedStatement) -> None:
        """Made by `listen`."""
        self._connection = connection
        self._statement = statement
        self.lost = asyncio.Event()
        connection.add_termination_listener(lambda _: self.lost.set())

    @classmethod
    async def listen(cls, connection: asyncpg.Connection, on_change: Callable[[str], None]) -> "DirectoryConnection":
        """Begin to hear of changes; `on_change` gets the subject."""

        def on_changes(_connection: object, _pid: int, _channel: str, subjects: str) -> None:
            for subject in orjson.loads(subjects):
                on_change(subject)

        await connection.add_listener(CHANNEL, lambda _connection, _pid, _channel, subject: on_change(subject))
        await connection.add_listener(CHANNEL_OF_MANY, on_changes)
        return cls(connection, await connection.prepare(_LOOK_UP))

    async def look_up(self, subjects: Iterable[str], relations_max: int, timeout_s: float) -> Sequence[Row]:
        """Return the rows of those subjects that are known, at most `relations_max` + 1 each.

        Raises whatever asyncpg raises; the connection should be given up then.
        """
        devices, ids, refs = [], [], []
        for subject in subjects:
            if not subject.startswith(PARTY_PREFIX):
                devices.append(subject)
                continue
            name = subject.removeprefix(PARTY_PREFIX)
            namespace, colon, ref = name.partition(":")
            if colon:
                refs.append((subject, namespace, ref))
            elif (party := _uuid(name)) is not None:
                ids.append((subject, party))
        rows = await self._statement.fetch(
            devices,
            [subject for subject, _ in ids],
            [party for _, party in ids],
            [subject for subject, _, _ in refs],
            [namespace for _, namespace, _ in refs],
            [ref for _, _, ref in refs],
            relations_max + 1,
            timeout=timeout_s,
        )
        return [Row(*row) for row in rows]

    async def catch_up(self, timeout_s: float) -> None:
        """Return when every change acknowledged before now has been heard of."""
        await self._connection.execute("select", timeout=timeout_s)

    def give_up(self) -> None:
        """Close without waiting for anything."""
        self._connection.terminate()
        self.lost.set()


def _uuid(text: str) -> UUID | None:
    try:
        return UUID(text)
    except ValueError:
        return None
