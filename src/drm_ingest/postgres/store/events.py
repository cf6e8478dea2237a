"""Store events, exactly once in effect: identities, events, day counts, devices and positions in one transaction.

    RowRefused     Postgres cannot hold a row; a retry changes nothing
    Fenced         another worker owns a partition (positions.py)

Everything else that Postgres raises passes with time or by a person's hand: the batch is read again.
"""

from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self
from uuid import UUID

import asyncpg
from aiokafka import TopicPartition

from drm_ingest import reference
from drm_ingest.errors import EventCode
from drm_ingest.event import PARTY_PREFIX
from drm_ingest.postgres import pool
from drm_ingest.postgres.relations import identities
from drm_ingest.postgres.store import days, dead, positions, refusals
from drm_ingest.postgres.store.dead import Dead
from drm_ingest.postgres.store.positions import Move, Owner
from drm_ingest.postgres.store.refusals import refuses_row
from drm_ingest.postgres.store.rows import EVENT_COLUMNS, IDENTITY_COLUMNS, Row, copy_stream
from drm_ingest.settings import Settings

STAGED_BATCHES = 8
"""After a batch with a repeat in it, this many go the careful way: repeats come in bursts, as retries do."""

_STAGE_IDENTITY = "create temporary table staged_identity (like event_identity) on commit delete rows"

_INSERT_IDENTITIES = """
with went_in as (
    insert into event_identity (key, content_hash, occurred_at)
    select key, content_hash, occurred_at from staged_identity order by key
    on conflict do nothing
    returning key
)
select key from staged_identity where key not in (select key from went_in)
"""

_FIRST = "select key, content_hash from event_identity where key = any($1::uuid[])"

_REGISTER = """
insert into device (subject, registered_by) select unnest($1::text[]), 'event' on conflict do nothing
"""


@dataclass(frozen=True, slots=True)
class Batch:
    """What was read of some partitions, and how far that moves them. Rows have distinct keys; rivals have theirs."""

    moves: Mapping[TopicPartition, Move]
    rows: Sequence[Row]
    dead: Sequence[Dead] = ()
    rivals: Sequence[Row] = ()


@dataclass(slots=True)
class Stored:
    """What became of the rows of a batch."""

    attached: list[Row] = field(default_factory=list)
    duplicates: int = 0
    dead: list[Dead] = field(default_factory=list)

    def __iadd__(self, other: "Stored") -> Self:
        self.attached += other.attached
        self.duplicates += other.duplicates
        self.dead += other.dead
        return self


class EventStore:
    """The one connection through which a worker writes; made when first needed, dropped after any failure."""

    def __init__(
        self,
        settings: Settings,
        owner: Owner,
        bury: Callable[[Sequence[Dead]], Awaitable[None]],
        allow: Callable[[Sequence[Dead], int], None] = lambda dead, events: None,
        passed: Callable[[Sequence[Dead], int], None] = lambda dead, events: None,
        identified: Callable[[], None] = lambda: None,
        identity_topic: str | None = None,
    ) -> None:
        """`bury` writes dead letters to Kafka and returns when they are durable; awaited before the commit.

        `allow` is called before that, with what fails of how many events; what it raises rolls everything back.
        `passed` is told the same once it is committed, and `identified` where identity events are among what went in:
        these are looked for in batches that hold some of `identity_topic` (None: in all).
        """
        self._allow, self._passed, self._identified = allow, passed, identified
        self._identity_topic = identity_topic
        self._reference_key = reference.key_of(settings)
        self._settings = settings
        self._owner = owner
        self._bury = bury
        self._connection: asyncpg.Connection | None = None
        self._careful_batches = 0
        self._registered: set[str] = set()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._drop()

    async def claim(self, partitions: Iterable[TopicPartition]) -> dict[TopicPartition, int]:
        """Become the only one who may move these partitions; return their positions (positions.py)."""
        try:
            connection = await self._connected()
            wait_s = self._settings.postgres_lock_timeout_s
            return await positions.claim(connection, self._owner, partitions, end_wait_s=wait_s)
        except BaseException:
            self._drop()
            raise

    async def give_up(self, partitions: Iterable[TopicPartition]) -> None:
        """Let the successor take these partitions without ending our connection."""
        try:
            await positions.give_up(await self._connected(), self._owner, partitions)
        except BaseException:
            self._drop()
            raise

    async def store(self, batch: Batch) -> Stored:
        """Store a batch in one transaction and return what became of it.

        The quick way copies identities straight into their table and fails as a whole on a repeat; the careful way
        finds the repeats first; where Postgres refuses a row, every row is tried alone.

        Raises:
            Fenced: nothing is stored; another worker goes on from the position in Postgres.
            asyncpg.PostgresError, asyncpg.InterfaceError, OSError, TimeoutError: nothing is stored; try again.
            Whatever `bury` and `allow` raise: nothing is stored; try again.
        """
        try:
            return await self._store(batch)
        except BaseException:
            # Nobody knows what state it is in, and a cancelled statement may still be running there.
            self._drop()
            raise

    async def _store(self, batch: Batch) -> Stored:
        if self._careful_batches == 0:
            try:
                return await self._transact(batch, self._insert)
            except asyncpg.UniqueViolationError:
                self._careful_batches = STAGED_BATCHES
            except asyncpg.PostgresError as error:
                if not refuses_row(error):
                    raise
        try:
            stored = await self._transact(batch, self._insert_new)
        except asyncpg.PostgresError as error:
            if not refuses_row(error):
                raise
            stored = await self._transact(batch, self._insert_taken)
        if stored.duplicates:
            self._careful_batches = STAGED_BATCHES
        elif self._careful_batches:
            self._careful_batches -= 1
        return stored

    async def _transact(
        self, batch: Batch, insert: Callable[[asyncpg.Connection, Sequence[Row]], Awaitable[Stored]]
    ) -> Stored:
        connection = await self._connected()
        events = len(batch.rows) + len(batch.rivals) + len(batch.dead)
        async with connection.transaction():
            await positions.move(connection, self._owner, batch.moves)
            stored = await insert(connection, batch.rows) if batch.rows else Stored()
            if batch.rivals:
                stored += await self._compare(connection, batch.rivals)
            linking = self._may_link(batch) and await identities.add(connection, stored.attached, self._reference_key)
            stored.dead += batch.dead
            if stored.dead:
                self._allow(stored.dead, events)
                await self._bury(stored.dead)
                await dead.note(connection, stored.dead)
        self._passed(stored.dead, events)
        self._remember(stored.attached)
        if linking:
            self._identified()
        return stored

    def _may_link(self, batch: Batch) -> bool:
        return self._identity_topic is None or any(moved.topic == self._identity_topic for moved in batch.moves)

    async def _insert(self, connection: asyncpg.Connection, rows: Sequence[Row]) -> Stored:
        """Insert rows none of which is stored yet; raises UniqueViolationError where one is."""
        await _copy(connection, "event_identity", IDENTITY_COLUMNS, sorted(row.identity for row in rows))
        await self._insert_rest(connection, rows)
        return Stored(list(rows))

    async def _insert_new(self, connection: asyncpg.Connection, rows: Sequence[Row]) -> Stored:
        """Insert the rows that are new; tell repeats from conflicts by the hash of the first."""
        await _copy(connection, "staged_identity", IDENTITY_COLUMNS, [row.identity for row in rows])
        repeated = [record["key"] for record in await connection.fetch(_INSERT_IDENTITIES)]
        if not repeated:
            await self._insert_rest(connection, rows)
            return Stored(list(rows))
        known = {key.bytes for key in repeated}
        stored = Stored([row for row in rows if row.key not in known])
        stored += await self._compare(connection, [row for row in rows if row.key in known])
        if stored.attached:
            await self._insert_rest(connection, stored.attached)
        return stored

    async def _compare(self, connection: asyncpg.Connection, rows: Sequence[Row]) -> Stored:
        """Tell repeats from conflicts by the hash of the first with the same key; none of these rows is inserted."""
        # A statement of its own, so that it sees what another worker has committed meanwhile.
        firsts = await connection.fetch(_FIRST, [UUID(bytes=row.key) for row in rows])
        first = {record["key"].bytes: record["content_hash"].bytes for record in firsts}
        stored = Stored()
        for row in rows:
            if first.get(row.key) == row.content_hash:
                stored.duplicates += 1
            else:
                stored.dead.append(dead.conflict(row))
        return stored

    async def _insert_taken(self, connection: asyncpg.Connection, rows: Sequence[Row]) -> Stored:
        """Insert what Postgres takes; what it refuses is dead."""
        firsts = await connection.fetch(_FIRST, [UUID(bytes=row.key) for row in rows])
        known = {record["key"].bytes for record in firsts}  # repeats are compared, not tried: the first is stored
        refused = await refusals.find(connection, [row for row in rows if row.key not in known])
        self._allow(refused, len(rows))
        records = {id(letter.record) for letter in refused}
        taken = [row for row in rows if id(row.record) not in records]
        stored = Stored(dead=list(refused))
        if taken:
            await self._insert_by_halves(connection, taken, stored, len(rows))
        return stored

    async def _insert_by_halves(
        self, connection: asyncpg.Connection, rows: Sequence[Row], stored: Stored, events: int
    ) -> None:
        """Add to `stored` what goes in; a row that something else than the table of events refuses is found so."""
        try:
            async with connection.transaction():  # a savepoint
                part = await self._insert_new(connection, rows)
                # Staged rows would be there twice for the next part.
                await connection.execute("truncate staged_identity, staged_day")
            stored += part
            return
        except asyncpg.PostgresError as error:
            if not refuses_row(error):
                raise
            if len(rows) == 1:
                stored.dead.append(Dead.of(rows[0], EventCode.ROW_REFUSED, f"{error} [{error.sqlstate}]"))
                self._allow(stored.dead, events)
                return
        middle = len(rows) // 2
        await self._insert_by_halves(connection, rows[:middle], stored, events)
        await self._insert_by_halves(connection, rows[middle:], stored, events)

    async def _insert_rest(self, connection: asyncpg.Connection, rows: Sequence[Row]) -> None:
        """Insert everything but the identities."""
        unknown = {row.subject for row in rows} - self._registered
        if devices := sorted(subject for subject in unknown if not subject.startswith(PARTY_PREFIX)):
            await connection.execute(_REGISTER, devices)
        await _copy(connection, "event", EVENT_COLUMNS, [row.event for row in rows])
        await days.add(connection, days.fold(rows))

    def _remember(self, rows: Iterable[Row]) -> None:
        if len(self._registered) > self._settings.attach_remembered_devices_max:
            self._registered.clear()
        self._registered.update(row.subject for row in rows)

    async def _connected(self) -> asyncpg.Connection:
        if self._connection is None or self._connection.is_closed():
            self._connection = connection = await pool.connect(self._settings, self._owner.holder)
            self._registered.clear()  # it may be another Postgres by now, restored from a backup
            await connection.execute(f"{_STAGE_IDENTITY}; {days.STAGE}")
        return self._connection

    def _drop(self) -> None:
        if self._connection is not None:
            self._connection.terminate()
            self._connection = None


async def _copy(connection: asyncpg.Connection, table: str, columns: Sequence[str], packed: Iterable[bytes]) -> None:
    await connection.copy_to_table(table, source=copy_stream(packed), columns=columns, format="binary")
