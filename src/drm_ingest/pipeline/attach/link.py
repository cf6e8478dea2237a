"""Link people with devices, as identity events say: after each batch that brings some, and of what was left at start.

    due events ─▶ whoever is new becomes a party ─▶ one transaction a device: lock, derive, change what differs

It runs beside the path of events and has a connection of its own, so attaching waits for none of it. Whatever ends it
in between, what is due stays due in Postgres.
"""

import asyncio
import contextlib
from collections.abc import Iterable, Iterator
from datetime import timedelta
from time import monotonic
from uuid import UUID

import asyncpg
import structlog

from drm_ingest.metrics import Metrics
from drm_ingest.pipeline.attach.ranges import EARLIEST, Said, Span, ranges
from drm_ingest.postgres.pool import PASSING, Pool
from drm_ingest.postgres.registry import parties
from drm_ingest.postgres.relations import evidence, identities
from drm_ingest.postgres.relations.changes import lock
from drm_ingest.postgres.relations.derive import Wanted, make_equal
from drm_ingest.postgres.relations.evidence import Known
from drm_ingest.postgres.relations.identities import Settled
from drm_ingest.postgres.relations.recheck import Recheck
from drm_ingest.settings import Settings

SUBJECTS_MAX = 100  # asked for at a time
TRY_AGAIN_S = 5.0  # a device that could not be done; the others go on

log = structlog.get_logger(__name__)


class Linker:
    """One in each worker; whichever comes first does what is due, and the lock of the device holds back the other."""

    def __init__(self, settings: Settings, metrics: Metrics, pool: Pool) -> None:
        self._settings = settings
        self._metrics = metrics
        self._pool = pool
        self._woken = asyncio.Event()
        self._woken.set()  # what was left at start
        self._later: dict[str, float] = {}  # subject → not before, monotonic
        hours = settings.anonymous_claim_hours
        self._claim = None if hours < 0 else timedelta(hours=hours)
        self._recheck = Recheck()
        self._waited_s = 0.0  # the oldest event that is due
        self._failing_since: float | None = None  # monotonic
        metrics.identity_lag_seconds.set_function(self._lag_s)

    def _lag_s(self) -> float:
        """Return how long the oldest is waiting: while nobody can look, as long as it was and longer each second."""
        now = monotonic()
        return self._waited_s + now - (self._failing_since or now)

    def wake(self) -> None:
        """Tell that identity events were committed."""
        self._woken.set()

    async def work(self) -> None:
        """Go on for ever; failures are told and tried again."""
        while True:
            # Not wait_for: in Python 3.11 that loses a cancellation which comes as the wait ends.
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._settings.identity_sweep_s):
                    await self._woken.wait()
            self._woken.clear()
            try:
                async with self._pool.acquire() as db:
                    await self._sweep(db)
                self._failing_since = None
            except PASSING as error:
                self._failing_since = self._failing_since or monotonic()
                log.warning("identities not linked, to be tried again", reason=str(error) or type(error).__name__)
                await asyncio.sleep(TRY_AGAIN_S)
                self._woken.set()

    async def _sweep(self, db: asyncpg.Connection) -> None:
        """Link until nothing is due but what failed a moment ago."""
        await self._recheck.look_again(db)
        while True:
            self._later = {subject: at for subject, at in self._later.items() if at > monotonic()}
            subjects = await identities.due(db, list(self._later), SUBJECTS_MAX)
            for subject in subjects:
                await self._try(db, subject)
            self._waited_s = await identities.oldest_due_s(db)
            if not subjects:
                await self._recheck.begin(db)
                return

    async def _try(self, db: asyncpg.Connection, subject: str) -> None:
        """Link what is due of one device; where that fails, go on with others and come back."""
        try:
            await self._create(db, subject)
            async with db.transaction():
                changed = await self._derive(db, subject)
        except Exception as error:  # a defect of ours would else stop all attaching, for one device
            if db.is_closed():
                raise
            self._later[subject] = monotonic() + TRY_AGAIN_S
            reason = str(error) or type(error).__name__
            log.warning(
                "identities not linked", subject=subject, reason=reason, exc_info=not isinstance(error, PASSING)
            )
        else:
            if changed:
                log.debug("identities linked", subject=subject, changed=changed)

    async def _create(self, db: asyncpg.Connection, subject: str) -> None:
        """Let there be a party for each reference that nobody has."""
        if not self._settings.identity_creates_parties:
            return
        for namespace, ref in await identities.unknown_customers(db, subject):
            # ReferenceTaken: somebody else was quicker.
            with contextlib.suppress(parties.ReferenceTaken):
                await parties.create(
                    db, "customer", f"{namespace}:{ref}", [(namespace, ref)], self._settings.party_references_max
                )

    async def _derive(self, db: asyncpg.Connection, subject: str) -> int:
        _, recorded_at = await lock(db, subject)
        if not await identities.is_due(db, subject):
            return 0  # another worker was quicker
        settled = await evidence.settled(db, subject, claims=self._claim != timedelta(0))
        known = await evidence.known(db, subject, settled)
        spans = derived(known, self._claim)
        if spans is None:
            known = await evidence.known(db, subject, None)
            spans = derived(known, self._claim) or []
        due = known.due
        told = [*known.open, *known.events]
        kinds = {each["party"]: each["party_kind"] for each in told}
        exclusive = {each["role"]: each["exclusive"] for each in told if each["exclusive"] is not None}
        wanted = [
            Wanted(span.role, exclusive[span.role], span.party, kinds[span.party], span.starts, span.ends, *_by(span))
            for span in spans
        ]
        last = max(due, key=lambda event: event["occurred_at"])
        changed = await make_equal(db, subject, known.open, wanted, recorded_at, (last["sender"], last["method"]))
        # Who came since parties were made stays due, and is made by the next turn of the sweep.
        due = [event for event in due if not (event["unknown"] and self._settings.identity_creates_parties)]
        refused = [_refusal(event) for event in due]
        await identities.settle(
            db, Settled([event["key"] for event in due], refused, [event["party"] for event in due])
        )
        for reason in refused:
            self._metrics.identity_events.labels("linked" if reason is None else "refused").inc()
        return changed


def derived(known: Known, claim: timedelta | None) -> list[Span] | None:
    """Return who holds which role on a subject when, as identity events say: all that reaches beyond what is settled.

    None: it takes more to tell. With a claim, nothing may be settled before the first sign-in.
    """
    rows = [row for row in known.open if row["derived"]]
    stated = list(_spans([row for row in known.open if not row["derived"]], "valid_from", "valid_to"))
    begun: list[Span] = []
    if known.settled:
        until = known.settled.until
        if any(span.first < until for span in stated):
            return None  # behind it may be who is signed in
        begun = [_begun(row) for row in rows if row["valid_from"] is None or row["valid_from"] < until]
        claim = timedelta(0)
    said = [
        Said(
            event["occurred_at"], event["linked"], event["party"], event["role"], bool(event["exclusive"]),
            event["sequence"], event["content_hash"].bytes, event["sender"], event["method"],
        )
        for event in known.events
        if _refusal(event) is None
    ]  # fmt: skip
    found = ranges(
        said,
        windows=list(_windows(known)),
        stated=stated,
        exclusive={each["role"] for each in (*known.open, *known.events) if each["exclusive"]},
        claim=claim,
        begun=begun,
    )
    # Where somebody goes on who was said to have left, who said last that they had come is not known.
    left = {(span.role, span.party, span.starts): span.ends for span in begun if span.ends}
    for span in found:
        if span.ended_by is None and left.get((span.role, span.party, span.starts), span.ends) != span.ends:
            return None
    return found


def _begun(row: asyncpg.Record) -> Span:
    began = Said(
        row["valid_from"] or EARLIEST,
        True,
        row["party"],
        row["role"],
        sender=row["asserted_by"] or "",
        method=row["reason"],
    )
    return Span(row["role"], row["party"], row["valid_from"], row["valid_to"], began)


def _spans(rows: Iterable[asyncpg.Record], starts: str, ends: str) -> Iterable[Span]:
    return (Span(row["role"], row["party"], row[starts], row[ends]) for row in rows)


def _windows(known: Known) -> Iterator[Span]:
    """Yield what people have said of each; of everybody: of each who is told of at all."""
    everybody: set[UUID] = {each["party"] for each in (*known.events, *known.open) if each["party"] is not None}
    for word in known.words:
        for party in everybody.difference(word["but"]) if word["party"] is None else (word["party"],):
            yield Span(word["role"], party, word["starts"], word["ends"])


def _by(span: Span) -> tuple[str, str | None]:
    """Return who said what was said last of a stretch, and how."""
    said = span.ended_by or span.began_by
    return (said.sender, said.method) if said else ("", None)


def _refusal(event: asyncpg.Record) -> str | None:
    """Return why an event says nothing, as far as is known now."""
    if not event["usable"]:
        return str(event["refused"])
    if not event["is_role"]:
        return f"There is no role {event['role']} on a device."
    if event["everybody"]:
        return None
    if event["party"] is None:
        return "It names a party that is not there."
    if event["exclusive"] is None:
        return f"A {event['party_kind']} does not hold the role {event['role']}."
    return None
