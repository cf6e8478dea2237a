"""What is known and what happened, in plain Python: lists of facts, asked one by one, at one instant after another.

It has nothing of the product in it: no SQL, no ranges, no days. What is asked for is refused or done here too, and said
in advance; when it was recorded, and under which id, is told by the tables. Devices and parties have short names.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from functools import cache
from typing import Any

from tests.integration.conftest import Sent

INSTANT, EVER = timedelta(microseconds=1), datetime.min.replace(tzinfo=UTC)
KINDS = {
    "ada": "customer", "bo": "customer", "cy": "customer", "volt": "vendor", "watt": "vendor", "fixit": "partner",
    "eve": "employee", "parts": "supplier", "nuts": "supplier",
}  # fmt: skip
DEVICES = "wxyz"
EXCLUSIVE, OF_THE_THING = {"owner", "sold_by", "made_by"}, {"made_by", "parts_by"}
Bound = datetime | None


class Refused(Exception):
    """What was asked for is not done, and answered with this status."""

    def __init__(self, status: int) -> None:
        super().__init__(status)
        self.status = status


@dataclass(frozen=True)
class Version:
    """What was known of a relation from `since` until `gone`, which is None while it still is."""

    id: str | None
    subject: str
    role: str
    party: str
    batch: str | None
    start: Bound
    end: Bound
    derived: bool = False
    since: Bound = None
    gone: Bound = None

    def at(self, time: datetime) -> bool:
        return (self.start is None or self.start <= time) and (self.end is None or time < self.end)

    def overlaps(self, start: Bound, end: Bound) -> bool:
        return (self.end is None or start is None or start < self.end) and (
            end is None or self.start is None or self.start < end
        )

    @property
    def says(self) -> tuple[Any, ...]:
        return self.subject, self.role, self.party, self.batch, self.start, self.end, self.derived


@dataclass(frozen=True)
class Joined:
    """Two parties linked, or a device replaced by another at a time."""

    pair: tuple[str, str]
    at: Bound = None
    since: Bound = None
    gone: Bound = None
    relations: tuple[tuple[Version, str | None], ...] = field(default=(), compare=False)
    """That a replacement ended, as they were, and which each began."""


@dataclass(frozen=True)
class Word:
    """From `start` until `end` a person has said when a party holds a role on a device: events say nothing of it."""

    subject: str
    role: str
    party: str
    start: Bound
    end: datetime
    while_begun: str | None = None
    """Of a hand-over: it counts while this relation of the new owner begins at `start`."""

    def at(self, time: datetime) -> bool:
        return (self.start is None or self.start <= time) and time < self.end


@dataclass(frozen=True)
class Happened:
    """An event that is stored, and whom or what it is about; one of identity may name a party."""

    on: str
    sent: Sent
    data: dict[str, Any]
    names: str | None = None

    @property
    def order(self) -> tuple[Any, ...]:
        return self.sent.at, len(self.sent.sequence or ""), self.sent.sequence or "", self.sent.hash

    @property
    def linked(self) -> bool:
        return self.sent.type == "identity.linked"


def known(fact: Version | Joined, then: Bound) -> bool:
    if then is None or fact.since is None:
        return fact.gone is None
    return fact.since <= then and (fact.gone is None or then < fact.gone)


def same(links: Iterable[Joined], who: str) -> set[str]:
    """Return whom links lead to, over however many of them."""
    group, pairs = {who}, [set(link.pair) for link in links]
    while further := [pair for pair in pairs if pair & group and not pair <= group]:
        group |= set().union(*further)
    return group


@dataclass
class Model:
    versions: list[Version] = field(default_factory=list)
    links: list[Joined] = field(default_factory=list)
    replacements: list[Joined] = field(default_factory=list)
    words: list[Word] = field(default_factory=list)
    codes: dict[str, str | None] = field(default_factory=dict)
    """Of a device that has a code in force, or used: the relation that it began."""
    events: list[Happened] = field(default_factory=list)
    due: set[str] = field(default_factory=set)

    def attempt(self, do: Callable[..., int], *how: Any) -> int:
        """Return the status of the answer; where it is refused nothing has changed."""
        before = {name: value.copy() for name, value in vars(self).items()}
        try:
            return do(*how)
        except Refused as refused:
            vars(self).update(before)
            return refused.status

    def open(self) -> list[Version]:
        return [version for version in self.versions if version.gone is None]

    def group(self, who: str) -> set[str]:
        return same([link for link in self.links if link.gone is None], who)

    # -- relations ---------------------------------------------------------------------------------------------------

    def _free(self, new: Version, but: Version | None = None) -> None:
        for other in self.open():
            alone = new.role in EXCLUSIVE or (other.party, other.batch) == (new.party, new.batch)
            on_it = (other.subject, other.role) == (new.subject, new.role) and other.overlaps(new.start, new.end)
            if other is not but and on_it and alone:
                raise Refused(409)

    def begin(self, new: Version) -> int:
        if new.start and new.end and new.start >= new.end:
            raise Refused(422)
        if any(replace(other, derived=False).says == new.says for other in self.open()):
            return 200
        self._free(new)
        self.versions.append(new)
        return 201

    def latest(self, id_: str) -> Version:
        return max((v for v in self.versions if v.id == id_), key=lambda v: (v.gone is None, v.since or EVER))

    def revise(self, was: Version, start: Bound, end: Bound) -> int:
        if was.gone:
            raise Refused(409)
        if (start, end) == (was.start, was.end) and not was.derived:
            return 200
        if start and end and start >= end:
            raise Refused(422)
        self._free(replace(was, start=start, end=end), but=was)
        self.withdraw(was)
        self.versions.append(replace(was, start=start, end=end, derived=False, since=None))
        return 200

    def withdraw(self, was: Version) -> int:
        if was.gone is None:
            self.versions.remove(was)  # the tables tell until when it was known
            if was.derived:
                self.words.append(Word(was.subject, was.role, was.party, was.start, was.end or datetime.now(UTC)))
        return 200

    def hand_over(self, device: str, giver: str, taker: str, at: datetime, everybody: bool) -> int:
        givers, takers = self.group(giver), self.group(taker)
        if taker in givers:
            raise Refused(422)
        on_it = [version for version in self.open() if version.subject == device]
        owner = next((version for version in on_it if version.role == "owner" and version.at(at)), None)

        def stops(party: str) -> bool:
            return party in givers or (everybody and party not in takers)

        if owner is None or owner.party not in givers:
            repeated = owner and (owner.party, owner.start) == (taker, at) and any(
                version.role == "owner" and version.end == at and version.party in givers for version in on_it
            )  # fmt: skip
            raise Refused(200 if repeated else 409)
        self.revise(owner, owner.start, at)
        for user in on_it:
            if user.role == "user" and stops(user.party) and user.overlaps(at, None):
                if user.start and user.start >= at:
                    self.withdraw(user)
                else:
                    self.revise(user, user.start, at)
        self.begin(Version(None, device, "owner", taker, None, at, None))
        until = datetime.now(UTC)
        self.words += [Word(device, "user", who, at, until, "new") for who in KINDS if stops(who)]
        if self.codes.get(device, "used") is None:
            del self.codes[device]
        return 201

    def claim(self, device: str, party: str, right: bool, now: datetime) -> int:
        if device not in self.codes or not right:
            raise Refused(403)
        if (begun := self.codes[device]) is not None:
            was = self.latest(begun)
            holds = was.gone is None and (was.end is None or datetime.now(UTC) < was.end)
            raise Refused(200 if was.party == party and holds else 403)
        return self.begin(Version(None, device, "owner", party, None, now, None))

    # -- replacements and links --------------------------------------------------------------------------------------

    def replace(self, device: str, by: str, at: datetime) -> int:
        after = {r.pair[0]: r for r in self.replacements if r.gone is None}
        before = {r.pair[1]: r.pair[0] for r in self.replacements if r.gone is None}
        if by == device:
            raise Refused(422)
        if device in after:
            raise Refused(200 if (after[device].pair[1], after[device].at) == (by, at) else 409)
        earlier = device
        while earlier := before.get(earlier, ""):
            if earlier == by:
                raise Refused(422)
        if by in after or by in before:
            raise Refused(409)
        going_on = [
            v for v in self.open() if v.subject == device and v.at(at) and v.role not in OF_THE_THING
            and not (v.derived and v.role == "user")
        ]  # fmt: skip
        if any(version.start == at for version in going_on):
            raise Refused(422)
        for was in going_on:
            self.revise(was, was.start, at)
            new = Version(None, by, was.role, was.party, was.batch, at, was.end)
            if not self._within(new):
                self.begin(new)
        self.replacements.append(Joined((device, by), at, relations=tuple((was, None) for was in going_on)))
        self.due.add(device)
        return 201

    def _within(self, new: Version) -> bool:
        """The party holds that role there already, all that time and perhaps longer."""
        return any(
            replace(other, start=new.start, end=new.end, derived=False, id=None, since=None) == new
            and other.at(new.start or EVER)
            and (other.end is None or (new.end is not None and new.end <= other.end))
            for other in self.open()
        )

    def undo(self, device: str) -> int:
        found = next((r for r in self.replacements if r.pair[0] == device and r.gone is None), None)
        if found is None:
            return 200
        for was, begun in found.relations:
            for id_, start, end in ((was.id, was.start, found.at), (begun, found.at, was.end)):
                if id_ and ((left := self.latest(id_)).gone or (left.start, left.end) != (start, end)):
                    raise Refused(409)
        for _, begun in found.relations:
            if begun:
                self.withdraw(self.latest(begun))
        for was, _ in found.relations:
            left = self.latest(was.id or "")
            self.revise(left, left.start, was.end)
        self.replacements.remove(found)
        self.due.add(device)
        return 200

    def link(self, one: str, other: str) -> int:
        pair = min(one, other, key=list(KINDS).index), max(one, other, key=list(KINDS).index)
        if one == other or KINDS[one] != KINDS[other]:
            raise Refused(422)
        if any(link.pair == pair and link.gone is None for link in self.links):
            return 200
        self.links.append(Joined(pair))
        return 201

    def unlink(self, one: str, other: str) -> int:
        self.links = [link for link in self.links if set(link.pair) != {one, other} or link.gone]
        return 200

    # -- what identity events say ------------------------------------------------------------------------------------

    def signed_in(
        self, device: str, claim: timedelta | None
    ) -> tuple[Callable[[str, str, datetime], bool], list[datetime]]:
        """Return whether a party holds a role at a time, as these events say, and the times at which that changes."""
        said = sorted(
            (e for e in self.events if e.on == device and e.sent.type.startswith("identity.") and "role" in e.data),
            key=lambda e: (*e.order[:3], e.linked, e.order[3]),
        )
        told = {event.names for event in self.events if event.on == device}
        words = [
            word for word in self.words if word.subject == device and (word.while_begun is None or (
                word.party in told and any((v.id, v.start) == (word.while_begun, word.start) for v in self.open())
            ))
        ] + [
            Word(device, "user", who, each.at, max(each.at, each.since))
            for each in self.replacements if each.pair[0] == device and each.gone is None and each.at and each.since
            for who in told if who
        ]  # fmt: skip
        stated = [version for version in self.open() if version.subject == device and not version.derived]
        first = next((event for event in said if event.linked and event.data["role"] == "user"), None)
        moments = {EVER, *(event.sent.at for event in said)}
        spans = [(word.start, word.end) for word in words] + [(each.start, each.end) for each in stated]
        moments |= {bound for span in spans for bound in span if bound}
        claimed_from = EVER if first is None or claim is None else first.sent.at - claim
        moments.add(claimed_from)

        @cache
        def on(role: str, party: str, at: datetime) -> bool:
            last = None
            for event in said:
                mine = event.names == party or (event.names is None and not event.linked)
                other = event.linked and role in EXCLUSIVE
                spoken = any((w.role, w.party) == (role, event.names) and w.at(event.sent.at) for w in words)
                if event.sent.at <= at and event.data["role"] == role and (mine or other) and not spoken:
                    last = event
            if last is None or not last.linked or last.names != party:
                return False
            starts = [word.start for word in words if (word.role, word.party) == (role, party) and word.start]
            return not any(last.sent.at < start <= at for start in starts)

        def theirs(at: datetime) -> bool:
            """It is somebody else's than of who signed in first, or people have said whose it is."""
            assert first
            return any(
                on(role, who, at) or any((s.role, s.party) == (role, who) and s.at(at) for s in stated)
                for role in ("user", "owner") for who in KINDS if who != first.names
            ) or any((w.role, w.party) == ("user", first.names) and w.at(at) for w in words)  # fmt: skip

        def claimed(party: str, at: datetime) -> bool:
            if first is None or party != first.names or not claimed_from <= at < first.sent.at:
                return False
            out_at_once = any(
                (e.sent.at, e.linked, e.data["role"]) == (first.sent.at, False, "user") and e.names in (None, party)
                for e in said[said.index(first) :]
            )
            return on("user", party, first.sent.at) and not out_at_once and not any(
                theirs(then) for then in {at, *moments} if at <= then < first.sent.at
            )  # fmt: skip

        def holds(role: str, party: str, at: datetime) -> bool:
            by_hand = any(s.role == role and (s.party == party or role in EXCLUSIVE) and s.at(at) for s in stated)
            return not by_hand and (on(role, party, at) or (role == "user" and claimed(party, at)))

        return holds, sorted(moments)


# -- as it is seen at two times ---------------------------------------------------------------------------------------


@dataclass
class Seen:
    model: Model
    as_of: Bound
    known_at: Bound
    times: Sequence[datetime]

    def __post_init__(self) -> None:
        self.now = self.as_of or datetime.now(UTC)
        self.known = [
            v for v in self.model.versions
            if known(v, self.known_at) and (self.as_of is None or v.start is None or v.start <= self.as_of)
        ]  # fmt: skip
        self.events = [event for event in self.model.events if event.sent.at <= self.now]
        links = [link for link in self.model.links if known(link, self.known_at)]
        self.groups = {who: frozenset(same(links, who)) for who in KINDS}
        self.replaced = [r for r in self.model.replacements if known(r, self.known_at)]
        self.moments = sorted({*(time for time in self.times if time <= self.now), self.now})
        self.related = {
            on: [v for v in self.known if v.subject == on or v.subject in self.groups.get(on, ())]
            for on in (*DEVICES, *KINDS)
        }

    def group(self, who: str) -> frozenset[str]:
        return self.groups[who]

    def through(self, group: frozenset[str], on: str, at: datetime, *roles: str) -> Iterator[Version]:
        """Yield the relations through which what happened there is on the record of these parties."""
        return (
            v for v in self.related[on]
            if v.party in group and v.subject not in group and (not roles or v.role in roles) and v.at(at)
        )  # fmt: skip

    def held(self, group: frozenset[str], on: str, at: datetime, *roles: str) -> bool:
        return any(True for _ in self.through(group, on, at, *roles))

    def holder(self, device: str, at: datetime, *roles: str, kind: str = "") -> set[str]:
        """Return who had a role on a device, and those linked to them."""
        return {
            same for v in self.related[device] if v.role in roles and v.at(at) and kind in ("", KINDS[v.party])
            for same in self.group(v.party)
        }  # fmt: skip

    def mine(self, group: frozenset[str]) -> list[Happened]:
        return [event for event in self.events if event.on in group or self.held(group, event.on, event.sent.at)]

    def line(self, device: str) -> list[Happened]:
        """Return what happened on a device, and on those whose place it took until it did."""
        found, until = [], self.now + INSTANT
        at: str | None = device
        while at:
            found += [event for event in self.events if event.on == at and event.sent.at < until]
            before = [r for r in self.replaced if r.pair[1] == at and r.at and r.at <= self.now]
            at, until = (before[0].pair[0], min(until, before[0].at or until)) if before else (None, until)
        return found

    def since(self, start: datetime, end: datetime, held: Callable[[datetime], object]) -> bool:
        """It held at `start`, at `end` and all the time between."""
        return bool(held(end) and held(start)) and all(
            held(moment) for moment in self.moments if start <= moment <= end
        )

    def open(self, device: str, held: Callable[[datetime], object]) -> Iterator[str]:
        """Yield codes open on a device since it is held."""
        if not held(self.now):
            return
        last: dict[str, Happened] = {}
        for event in self.events:
            if event.on == device and event.sent.type == "device.fault":
                before = last.get(event.data["code"])
                if (before is None or before.order < event.order) and self.since(event.sent.at, self.now, held):
                    last[event.data["code"]] = event
        yield from (code for code, event in last.items() if event.data.get("state") != "cleared")

    def answers(self, wanted: Callable[[str, datetime], object]) -> dict[str, dict[str, int]]:
        found: dict[str, dict[str, int]] = {}
        for event in self.events:
            if event.sent.type == "feedback.rating" and wanted(event.on, event.sent.at):
                scores = found.setdefault(event.data["scale"], {})
                score = f"{event.data['score']:g}"
                scores[score] = scores.get(score, 0) + 1
        return found
