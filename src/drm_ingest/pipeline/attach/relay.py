"""Publish what changed in records: `relationship_change` → `<prefix>.relationship-changes`, in order of number.

    become the relay ─▶ read after the position ─▶ write, keyed by party ─▶ acknowledged ─▶ move the position

One worker of all is the relay; the others look whether it still lives. What it wrote and could not note is written
again by the next: at least once, and whoever reads keeps the highest number of each partition.
"""

import asyncio
import contextlib
import os
import socket
from collections.abc import Mapping, Sequence
from time import monotonic
from typing import Any

import asyncpg
import orjson
import structlog

from drm_ingest.event import CONTENT_TYPE_EVENT, PARTY_PREFIX
from drm_ingest.kafka.topics import Topics
from drm_ingest.kafka.writer import NotAcknowledged, Outgoing, Writer
from drm_ingest.metrics import Metrics
from drm_ingest.postgres import pool
from drm_ingest.postgres.pool import PASSING
from drm_ingest.postgres.relations import outbox
from drm_ingest.postgres.relations.outbox import NotTheRelay
from drm_ingest.settings import Settings

TYPE = "drm.relationship.changed"
SOURCE = "/drm-ingest/relationship-changes"
CHANGES_MAX = 200  # written at a time
TIMES = {"valid_from", "valid_to", "recorded_at", "starts", "ends"}
HEADERS = [("content-type", CONTENT_TYPE_EVENT)]
LOOK_S = 2.0  # how often a worker that is not the relay looks after it
RETRY_S = 1.0

log = structlog.get_logger(__name__)


class Relay:
    """One in each worker."""

    def __init__(self, settings: Settings, metrics: Metrics, writer: Writer) -> None:
        self._settings = settings
        self._metrics = metrics
        self._writer = writer
        self._topic = Topics.of(settings).relationship_changes
        self._connection: asyncpg.Connection | None = None
        self._mine = False
        self._tell_at = 0.0  # monotonic
        self._trouble: str | None = None
        self._failing_since: float | None = None  # monotonic
        self._waiting_since: float | None = None  # the oldest change that is not published; monotonic
        metrics.relay_lag_seconds.set_function(self._lag_s)

    def _lag_s(self) -> float:
        now = monotonic()
        return now - min(self._failing_since or now, self._waiting_since or now)

    def unready(self) -> str | None:
        """Return why changes of relations are not published; None: they are, as far as it is ours."""
        since = self._failing_since
        if since is None or monotonic() - since < self._settings.produce_deadline_s:
            return None
        return f"changes of relations are not published: {self._trouble}"

    async def work(self) -> None:
        """Go on for ever; failures are told and tried again."""
        try:
            while True:
                try:
                    wait_s = await self._step()
                    self._trouble = self._failing_since = None
                except (*PASSING, NotAcknowledged, NotTheRelay) as error:
                    wait_s = RETRY_S
                    self._fail(error)
                except Exception as error:  # a defect of ours would else stop all attaching, for one change
                    wait_s = RETRY_S
                    self._fail(error, defect=True)
                await asyncio.sleep(wait_s)
        finally:
            self._drop()

    def _fail(self, error: Exception, *, defect: bool = False) -> None:
        reason = str(error) or type(error).__name__
        if reason != self._trouble:
            log.warning("changes of relations not published, to be tried again", reason=reason, exc_info=defect)
        self._trouble = reason
        self._failing_since = self._failing_since or monotonic()
        if not isinstance(error, NotAcknowledged):
            self._drop()

    async def _step(self) -> float:
        """Publish what there is, or look after whoever does; return how long to wait."""
        db = await self._connected()
        if not self._mine:
            self._mine = await outbox.become_relay(db, self._topic)
            if self._mine:
                log.info("publishing changes of relations", topic=self._topic)
        lag_s = await outbox.lag_s(db, self._topic)
        self._waiting_since = monotonic() - lag_s if lag_s else None
        if not self._mine:
            if await outbox.end_silent_relay(db, self._topic, 3 * LOOK_S + self._settings.produce_deadline_s):
                log.warning("ended the session of a relay that was silent", topic=self._topic)
            return LOOK_S
        if monotonic() >= self._tell_at:
            await outbox.tell_alive(db, self._topic)
            self._tell_at = monotonic() + LOOK_S
        at = await outbox.position(db, self._topic)
        found = await outbox.changes(db, at, CHANGES_MAX)
        if found:
            await self._writer.write([self._outgoing(row) for row in found])
            await outbox.move(db, self._topic, at, found[-1]["number"])
            self._metrics.relayed.inc(len(found))
            self._waiting_since = None
        return 0.0 if len(found) == CHANGES_MAX else self._settings.relay_poll_s

    def _outgoing(self, row: asyncpg.Record) -> Outgoing:
        key = str(row["party"]).encode()
        value = cloud_event(row, self._settings.writer_batch_bytes_max // 4)
        return Outgoing(self._topic, self._writer.partition_for(self._topic, key), key, value, HEADERS)

    async def _connected(self) -> asyncpg.Connection:
        if self._connection is None or self._connection.is_closed():
            self._mine = False
            self._connection = await pool.connect(
                self._settings, f"drm relay {socket.gethostname()[:24]} {os.getpid()}"
            )
        return self._connection

    def _drop(self) -> None:
        """With its session the lock goes too."""
        self._mine = False
        if self._connection is not None:
            with contextlib.suppress(*PASSING):
                self._connection.terminate()
            self._connection = None


def cloud_event(row: Mapping[str, Any], moved_bytes_max: int) -> bytes:
    """Return a change as a structured CloudEvent; of what it moved the first pieces, as far as there is room."""
    detail = orjson.loads(row["detail"])
    before, after = (None if row[name] is None else _in_utc(orjson.loads(row[name])) for name in ("before", "after"))
    moved, left_out = _cut([_in_utc(piece) for piece in orjson.loads(row["moved"])], moved_bytes_max)
    data = {
        "number": row["number"],
        "change": row["change"],
        "relationship": row["relationship"],
        "subject": row["subject"],
        "role": row["role"],
        "party": row["party"],
        "before": before,
        "after": after,
        "asserted_by": detail.get("asserted_by"),
        "reason": detail.get("reason"),
        "moved": moved,
    }
    if left_out:
        data["moved_left_out"] = left_out
    if detail.get("counted") is False:
        data["moved_uncounted"] = True
    event = {
        "specversion": "1.0",
        "id": str(row["number"]),
        "source": SOURCE,
        "type": TYPE,
        "subject": f"{PARTY_PREFIX}{row['party']}",
        "time": row["recorded_at"],
        "datacontenttype": "application/json",
        "data": data,
    }
    return orjson.dumps(event, str, option=orjson.OPT_UTC_Z)  # asyncpg has a UUID of its own


def _in_utc(row: dict[str, Any]) -> dict[str, Any]:
    """Write times as all of ours are; Postgres has them in UTC already."""
    return {
        name: value.replace("+00:00", "Z") if name in TIMES and value is not None else value
        for name, value in row.items()
    }


def _cut(moved: Sequence[dict[str, Any]], room_bytes: int) -> tuple[list[dict[str, Any]], int]:
    """Return the pieces that there is room for, and how many there is none for."""
    for number, piece in enumerate(moved):
        room_bytes -= len(orjson.dumps(piece))
        if room_bytes < 0:
            return list(moved[:number]), len(moved) - number
    return list(moved), 0
