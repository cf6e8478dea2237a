"""Spread what was given out of quotas to the edges on other machines, and take off what they gave out.

Twice a second each process tells the others what it gave out since (through Postgres, in the background); of several
workers on one machine the first takes off what others gave out, since they share their buckets. So a sender gets all
of its quota on whichever edge it is, and over M machines at most what the others give out in the second that word
takes: (M - 1) x (burst + rate x 1 s) more than its quota, once; the debt is paid afterwards, so the average holds.
While Postgres is away, each machine gives out the whole quota.

An edge that hears of no other machine keeps no account and tells only that it is there.
"""

import asyncio
import contextlib
import secrets
from time import monotonic

import asyncpg
import msgspec
import structlog
from msgspec import Struct

from drm_ingest.edge.quotas import Quotas, Spent
from drm_ingest.postgres.spent import Told
from drm_ingest.settings import Settings

_INTERVAL_S = 0.5
_GONE_AFTER_S = 10.0  # a machine that is silent for so long is not there
_ENTRIES = 120  # in a notification: of 8,000 bytes, says Postgres
_NOTIFICATIONS_MAX = 20  # at a time: of more buckets the largest amounts are told
_UNREACHABLE = (OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError)

log = structlog.get_logger(__name__)


class Word(Struct, array_like=True):
    """What one edge tells the others; each entry is tag, seconds of events, seconds of bytes."""

    machine: str
    senders: list[tuple[int, float, float]]
    devices: list[tuple[int, float, float]]


_decode = msgspec.json.Decoder(Word).decode
_encode = msgspec.json.Encoder().encode


class Spread:
    """The exchange of one process with the edges on other machines."""

    def __init__(self, settings: Settings, quotas: Quotas, machine: str, *, first: bool) -> None:
        """`machine` names those who share the buckets; `first`: this one of them takes off what others gave out."""
        self._quotas = quotas
        self._machine = machine
        self._first = first
        self._told = Told(settings, self._hear)
        self._heard_at = 0.0
        self._telling: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Begin in the background."""
        self._telling = asyncio.create_task(self._tell_for_ever(), name="quotas")

    async def stop(self) -> None:
        """Tell no more, and hang up."""
        if self._telling is not None:
            self._telling.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._telling
        self._told.close()

    def _hear(self, payload: str) -> None:
        try:
            word = _decode(payload)
        except msgspec.DecodeError:
            return  # of another version
        if word.machine == self._machine:
            return
        self._heard_at = monotonic()
        if self._quotas.spent is None:
            self._quotas.spent = Spent()
        if self._first:
            self._quotas.spent_elsewhere(
                Spent({tag: (e, b) for tag, e, b in word.senders}, {tag: (e, b) for tag, e, b in word.devices})
            )

    async def _tell_for_ever(self) -> None:
        reachable = True
        while True:
            try:
                await self._told.tell(self._words())
                reachable = True
            except _UNREACHABLE as error:
                if reachable:
                    log.warning("other machines are not told of quotas; each gives out all", error=repr(error))
                reachable = False
            await asyncio.sleep(_INTERVAL_S * (0.5 + secrets.randbelow(1000) / 1000))

    def _words(self) -> list[str]:
        """Return what is to be told now; of what nobody was there for, nothing is kept."""
        quotas = self._quotas
        spent = quotas.spent or Spent()
        alone = monotonic() - self._heard_at > _GONE_AFTER_S
        quotas.spent = None if alone else Spent()
        senders, devices = (_largest(each) for each in (spent.senders, spent.devices))
        words = [Word(self._machine, senders[:_ENTRIES], [])]
        entries = _ENTRIES
        words += [Word(self._machine, senders[at : at + entries], []) for at in range(entries, len(senders), entries)]
        words += [Word(self._machine, [], devices[at : at + entries]) for at in range(0, len(devices), entries)]
        return [_encode(word).decode() for word in words[:_NOTIFICATIONS_MAX]]


def _largest(spent: dict[int, tuple[float, float]]) -> list[tuple[int, float, float]]:
    entries = [(tag, round(events_s, 4), round(bytes_s, 4)) for tag, (events_s, bytes_s) in spent.items()]
    return sorted(entries, key=lambda entry: -max(entry[1:]))
