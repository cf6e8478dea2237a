"""The directory: the context of subjects, from Postgres, remembered.

What is promised: an event shows every change of a device and of its relations that was acknowledged (201) before the
event was sent, as long as Postgres answers. What is remembered cannot break that, because before each batch the
directory hears of all that changed until then (see postgres/directory.py).

While Postgres does not answer, events go on with what is remembered, marked `stale`, or without context, marked
`missing`; only the batch under way when it stopped answering waits (for `directory_timeout_s`). Records in Postgres
never depend on any of this.
"""

import asyncio
import contextlib
from collections.abc import Collection, Iterable
from itertools import islice
from math import inf
from types import TracebackType
from typing import Self

import structlog

from drm_ingest.event import SUBJECT_CHARACTERS_MAX
from drm_ingest.metrics import Metrics
from drm_ingest.pipeline.enrich.context import Context
from drm_ingest.postgres.directory import DirectoryConnection, Row
from drm_ingest.postgres.pool import PASSING, connect
from drm_ingest.settings import Settings

Contexts = dict[bytes, Context]

RETRY_S = 0.1
RETRY_MAX_S = 5.0

log = structlog.get_logger(__name__)


class Directory:
    """Looks up contexts; an async context manager, asked by one task at a time."""

    def __init__(self, settings: Settings, metrics: Metrics) -> None:
        self._settings = settings
        self._metrics = metrics
        self._loop = asyncio.get_running_loop()
        self._connection: DirectoryConnection | None = None  # None is the brake: nobody waits for Postgres then
        self._connecting: asyncio.Task[None] | None = None
        self._retry_s = RETRY_S
        self._kept: Contexts = {}  # the latest loaded last
        self._names: dict[str, set[bytes]] = {}  # keys of a party that was called otherwise than Postgres calls it
        self._heard_since = inf  # what was loaded before may have changed unheard
        self._asking = False
        self._changed: set[str] = set()  # heard while a question is under way

    async def __aenter__(self) -> Self:
        """Connect; that Postgres is down is no reason not to start."""
        connected = asyncio.Event()
        self._connecting = asyncio.create_task(self._stay_connected(connected), name="directory")
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(connected.wait(), self._settings.directory_timeout_s)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._connecting is not None:
            self._connecting.cancel()
            await asyncio.wait([self._connecting])

    def __len__(self) -> int:
        """How many contexts are kept."""
        return len(self._kept)

    @property
    def connected(self) -> bool:
        """Whether Postgres answers, as far as is known."""
        return self._connection is not None

    async def look_up(self, keys: Collection[bytes]) -> Contexts:
        """Return the context of every subject, by key (its UTF-8); a key that cannot be a subject is left out."""
        if self._connecting is not None and self._connecting.done():
            self._connecting.result()  # raises: it ends by a defect only
        contexts, unknown = self._remembered(keys)
        hits = len(contexts)
        if (connection := self._connection) is not None:  # it may be another, or none, before we have the answer
            self._asking = True
            try:
                contexts |= await self._load(connection, unknown)
                # What was remembered may turn out to have changed: ask again, once. An answer holds for this batch.
                if self._changed and (changed := [key for key, context in contexts.items() if not context.loaded_at]):
                    contexts |= await self._load(connection, changed)
                self._retry_s = RETRY_S
                self._count(hit=hits, loaded=len(contexts) - hits)
                return contexts
            except PASSING as error:
                log.warning("Postgres does not answer; events go on with the context remembered", error=repr(error))
                self._lose(connection)
            finally:
                self._asking = False
                self._changed.clear()
        return self._without_postgres(keys)

    def _remembered(self, keys: Collection[bytes]) -> tuple[Contexts, list[bytes]]:
        """Return what is remembered well enough, and the keys of the rest."""
        loaded_since = max(self._loop.time() - self._settings.directory_max_age_s, self._heard_since)
        contexts: Contexts = {}
        unknown = []
        kept = self._kept.get
        for key in keys:
            context = kept(key)
            if context is not None and context.loaded_at >= loaded_since:
                contexts[key] = context
            else:
                unknown.append(key)
        return contexts, unknown

    async def _load(self, connection: DirectoryConnection, keys: list[bytes]) -> Contexts:
        """Ask Postgres, and hear of every change until now; even when there is nothing to ask."""
        self._changed.clear()
        timeout_s, relations_max = self._settings.directory_timeout_s, self._settings.directory_relations_max
        subjects = {subject: key for key in keys if (subject := _subject(key)) is not None}
        if not subjects:
            await connection.catch_up(timeout_s)
            return {}
        asked_at = self._loop.time()
        rows_of: dict[str, list[Row]] = {subject: [] for subject in subjects}
        for row in await connection.look_up(subjects, relations_max, timeout_s):
            rows_of[row.subject].append(row)
        contexts = {
            subjects[subject]: Context(subject, rows, relations_max, asked_at) for subject, rows in rows_of.items()
        }
        self._keep(contexts)
        return contexts

    def _keep(self, contexts: Contexts) -> None:
        for key, context in contexts.items():
            self._kept.pop(key, None)
            self._kept[key] = context
            if context.about != context.subject:
                self._names.setdefault(context.about, set()).add(key)
            if context.about in self._changed or context.subject in self._changed:
                context.loaded_at = 0.0  # perhaps the answer is older than the change: good for now, not for later
        devices_max = self._settings.directory_devices_max
        if len(self._kept) > devices_max:
            # A tenth at a time, since each time costs a walk from the front; those loaded longest ago stand there.
            surplus = len(self._kept) - devices_max + devices_max // 10
            for key in list(islice(self._kept, surplus)):
                self._drop(key)

    def _drop(self, key: bytes) -> None:
        context = self._kept.pop(key)
        if (names := self._names.get(context.about)) is not None:
            names.discard(key)
            if not names:
                del self._names[context.about]

    def _on_change(self, subject: str) -> None:
        """Postgres says that a device or its relations changed."""
        if self._asking:
            self._changed.add(subject)
        for key in (subject.encode(), *self._names.get(subject, ())):
            if (context := self._kept.get(key)) is not None:
                context.loaded_at = 0.0  # not dropped: should Postgres go down now, stale is better than nothing

    def _without_postgres(self, keys: Iterable[bytes]) -> Contexts:
        contexts: Contexts = {}
        stale = 0
        for key in keys:
            if (kept := self._kept.get(key)) is not None:
                contexts[key] = kept.stale()
                stale += 1
            elif (subject := _subject(key)) is not None:
                contexts[key] = Context.missing(subject)
        self._count(stale=stale, missing=len(contexts) - stale)
        return contexts

    def _count(self, **results: int) -> None:
        for result, subjects in results.items():
            if subjects:
                self._metrics.directory_lookups.labels(result).inc(subjects)

    def _lose(self, connection: DirectoryConnection) -> None:
        if self._connection is connection:
            self._connection = None
            self._heard_since = inf
        connection.give_up()

    async def _stay_connected(self, connected: asyncio.Event) -> None:
        while True:
            try:
                connection = await self._connect()
            except PASSING as error:
                log.warning("cannot reach Postgres for context", error=repr(error), retry_s=self._retry_s)
                await self._wait_longer()
                continue
            self._heard_since = self._loop.time()
            self._connection = connection
            connected.set()
            log.info("context comes from Postgres")
            try:
                await connection.lost.wait()
            finally:
                self._lose(connection)
            await self._wait_longer()

    async def _connect(self) -> DirectoryConnection:
        connection = await connect(self._settings, "drm enrich")
        try:
            listening = await DirectoryConnection.listen(connection, self._on_change)
            # The question itself, so that a table that is locked holds up nobody but this task.
            await listening.look_up((), 1, self._settings.directory_timeout_s)
        except BaseException:
            connection.terminate()
            raise
        return listening

    async def _wait_longer(self) -> None:
        """Wait before the next attempt: longer each time, until a question has been answered again."""
        await asyncio.sleep(self._retry_s)
        self._retry_s = min(self._retry_s * 2, RETRY_MAX_S)


def _subject(key: bytes) -> str | None:
    """Return the subject with that key; None where no subject has it, and Postgres must not be asked."""
    try:
        subject = key.decode()
    except UnicodeDecodeError:
        return None
    return subject if 0 < len(subject) <= SUBJECT_CHARACTERS_MAX and "\0" not in subject else None
