"""When whom identity events let hold which role: a pure function of the set of them, in whatever order they came.

Events of a subject are walked in the order in which they happened. `linked` opens a stretch, unless the party is in
one; of an exclusive role it ends that of anybody else. `unlinked` ends it, for everybody where it names nobody.

What people say counts more. Where somebody changed what was derived, it is as they said until then: events say nothing
of that window. And around relations that people stated themselves, what is derived is cut.
"""

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from uuid import UUID

from drm_ingest.event import TIME_MIN

USER = "user"
WITH_A_CLAIM = (USER, "owner")
"""Roles whose holders an unknown user of a device may have been."""

EARLIEST, LATEST = datetime.min.replace(tzinfo=UTC), datetime.max.replace(tzinfo=UTC)
Bound = datetime | None


@dataclass(frozen=True, slots=True)
class Said:
    """An identity event: `party` None is everybody, in `unlinked` alone."""

    at: datetime
    linked: bool
    party: UUID | None
    role: str
    exclusive: bool = False
    sequence: str | None = None
    hash: bytes = b""
    sender: str = ""
    method: str | None = None

    @property
    def order(self) -> tuple[object, ...]:
        """By time, then sequence (as in days.py). At one moment who leaves does so before the next comes."""
        sequence = self.sequence or ""
        return self.at, len(sequence), sequence, self.linked, self.hash, self.sender, self.method or ""


@dataclass(frozen=True, slots=True)
class Span:
    """A party holds a role from `starts` (None: ever) to `ends` (None: no end known), and not at it."""

    role: str
    party: UUID
    starts: Bound
    ends: Bound
    began_by: Said | None = None
    ended_by: Said | None = None

    @property
    def first(self) -> datetime:
        return self.starts or EARLIEST

    @property
    def last(self) -> datetime:
        return self.ends or LATEST


def ranges(
    events: Iterable[Said],
    *,
    windows: Sequence[Span] = (),
    stated: Sequence[Span] = (),
    exclusive: Iterable[str] = (),
    claim: timedelta | None = timedelta(0),
    begun: Iterable[Span] = (),
) -> list[Span]:
    """Return who holds which role when: disjoint for each party and role, and of exclusive roles for all parties.

    Args:
        events: in any order.
        windows: in which people have changed what was derived.
        stated: relations that people stated.
        exclusive: roles that exclude others in time.
        claim: how long before the first sign-in ever what nobody did becomes that user's; None: without limit.
        begun: stretches that are open when the first of the events happens; none had ended, whatever their `ends`.
    """
    known = sorted(events, key=lambda said: said.order)
    found = _claimed(known, list(_walk(known, windows, begun)), windows, stated, claim)
    alone = frozenset(exclusive)
    cut = [piece for span in found for piece in _around(span, _rivals(span, stated, alone))]
    return sorted(cut, key=lambda span: (span.role, span.first, span.party))


def _walk(events: Sequence[Said], windows: Sequence[Span], begun: Iterable[Span]) -> Iterator[Span]:
    """Yield the stretches; at the start of a window of its party and role one ends, whatever events say."""
    open_ = {(span.role, span.party): replace(span, ends=None, ended_by=None) for span in begun}

    def end(key: tuple[str, UUID], at: datetime, by: Said | None) -> Iterator[Span]:
        span = open_.pop(key, None)
        if span is not None and span.first < at:
            yield replace(span, ends=at, ended_by=by)

    closing = deque(sorted(windows, key=lambda window: window.first))
    by_whom: dict[tuple[str, UUID], list[Span]] = {}
    for window in windows:
        by_whom.setdefault((window.role, window.party), []).append(window)
    for said in events:
        while closing and closing[0].first <= said.at:
            window = closing.popleft()
            yield from end((window.role, window.party), window.first, None)
        ended = [key for key in open_ if key[0] == said.role and key[1] != said.party and said.exclusive]
        if not said.linked:
            ended = [key for key in open_ if key[0] == said.role and said.party in (None, key[1])]
        spoken = by_whom.get((said.role, said.party), ()) if said.party is not None else ()
        if any(window.first <= said.at < window.last for window in spoken):
            continue
        for key in ended:
            yield from end(key, said.at, said)
        if said.linked and said.party is not None:
            open_.setdefault((said.role, said.party), Span(said.role, said.party, said.at, None, said))
    for window in closing:
        yield from end((window.role, window.party), window.first, None)
    yield from open_.values()


def _claimed(
    events: Sequence[Said], spans: list[Span], windows: Sequence[Span], stated: Sequence[Span], claim: timedelta | None
) -> list[Span]:
    """Let the stretch of the first sign-in begin earlier; not in a window of its own, nor while anybody else had it."""
    first = next((said for said in events if said.linked and said.role == USER), None)
    if first is None or claim == timedelta(0):
        return spans
    for number, span in enumerate(spans):
        if span.began_by is first:
            others = [other for other in (*spans, *stated) if other.role in WITH_A_CLAIM and other.party != span.party]
            own = [window for window in windows if (window.role, window.party) == (span.role, span.party)]
            floor = EARLIEST if claim is None else max(EARLIEST, _before(first.at, claim))
            for other in (*others, *own):
                if other.first < first.at:
                    floor = max(floor, min(other.last, first.at))
            starts = None if floor == EARLIEST else floor
            return [*spans[:number], replace(span, starts=starts), *spans[number + 1 :]]
    return spans


def _before(at: datetime, claim: timedelta) -> datetime:
    return at - claim if at - TIME_MIN > claim else EARLIEST


def _rivals(span: Span, stated: Iterable[Span], exclusive: frozenset[str]) -> list[Span]:
    return [
        other for other in stated if other.role == span.role and (other.party == span.party or span.role in exclusive)
    ]


def _around(span: Span, rivals: Sequence[Span]) -> Iterator[Span]:
    """Yield what is left of a stretch beside these."""
    left: Span | None = span
    for rival in sorted(rivals, key=lambda rival: rival.first):
        if left is None:
            return
        if rival.last <= left.first or left.last <= rival.first:
            continue
        if left.first < rival.first:
            yield replace(left, ends=rival.starts, ended_by=None)
        left = replace(left, starts=rival.ends) if rival.last < left.last else None
    if left is not None:
        yield left
