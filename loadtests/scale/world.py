"""Parties, devices and relations, drawn from a seed: the same numbers make the same world."""

import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from uuid import UUID

from asyncpg import Range

BULK_DEVICES = 3
BULK_EVENTS = 12_000  # on each of them: what a back-dated change moves
KEPT_DAYS = 400  # how far back relations begin
SHARES = {"customer": 0.934, "vendor": 0.0067, "partner": 0.0267, "employee": 0.03, "supplier": 0.0033}
"""Of all parties: in 300,000 some 2,000 vendors and 1,000 suppliers."""
BATCHES = 40  # of each supplier
LINKED_SHARE = 0.01  # of customers, that are linked with another

RELATION_COLUMNS = (
    "id", "version", "subject", "role", "party", "exclusive", "subject_kind", "party_kind", "valid", "recorded",
    "asserted_by", "reason", "batch",
)  # fmt: skip
EXCLUSIVE = frozenset({"owner", "sold_by", "made_by"})


@dataclass(frozen=True, slots=True)
class Sizes:
    """How large the world is."""

    devices: int
    parties: int
    relations: int
    events: int
    days: int
    vendor_devices: int
    seed: int

    @property
    def bulk(self) -> int:
        """How many devices have `BULK_EVENTS` each."""
        return BULK_DEVICES if self.events >= 3 * BULK_DEVICES * BULK_EVENTS else 0


def device(number: int) -> str:
    """Return the subject of a device, as loadtests.load calls it."""
    return f"meter-{number:06d}"


@dataclass
class World:
    """Who there is, and who stood in which relation to what."""

    sizes: Sizes
    until: datetime
    """A midnight, UTC; everything happened before it."""
    parties: dict[str, list[UUID]] = field(default_factory=dict)
    links: list[tuple[UUID, UUID]] = field(default_factory=list)
    relations: list[tuple[object, ...]] = field(default_factory=list)
    serviced: list[tuple[int, UUID, datetime]] = field(default_factory=list)
    """Device, partner, since when."""
    _draw: random.Random = field(init=False)

    @staticmethod
    def make(sizes: Sizes, until: datetime, *, relations: bool = True) -> "World":
        """Draw the world; without `relations` only who there is."""
        world = World(sizes, until)
        world._draw = random.Random(sizes.seed)
        world._make_parties()
        if relations:
            world._make_relations()
        return world

    def _uuid(self, at: datetime) -> UUID:
        # Of version 7, as Postgres makes them: in the order of time, which is how they lie in indexes.
        milliseconds = int(at.timestamp() * 1000)
        bits = self._draw.getrandbits(74)
        return UUID(int=milliseconds << 80 | 7 << 76 | bits >> 62 << 64 | 2 << 62 | bits & (1 << 62) - 1)

    def _make_parties(self) -> None:
        made_at = self.until - timedelta(days=KEPT_DAYS + 30)
        step = timedelta(days=30) / self.sizes.parties
        kinds = [kind for kind, share in SHARES.items() for _ in range(round(share * 10_000))]
        for number in range(self.sizes.parties):
            kind = self._draw.choice(kinds) if number >= len(SHARES) else list(SHARES)[number]
            self.parties.setdefault(kind, []).append(self._uuid(made_at + number * step))
        customers = self.parties["customer"]
        chosen = sorted(self._draw.sample(range(len(customers)), int(len(customers) * LINKED_SHARE) // 2 * 2))
        self.links = [(customers[a], customers[b]) for a, b in zip(chosen[::2], chosen[1::2], strict=True)]

    def of(self, kind: str) -> UUID:
        """Draw a party, some far more often than others: of vendors a few have thousands of devices, most a hundred."""
        these = self.parties[kind]
        return these[int(len(these) * (self._draw.random() if kind == "customer" else self._draw.random() ** 2))]

    def _ago(self, days: float, until: float = 1.0) -> datetime:
        return self.until - timedelta(seconds=int(86_400 * self._draw.uniform(until, days)))

    def _make_relations(self) -> None:
        sizes, draw = self.sizes, self._draw
        whole = sizes.relations

        def devices(share: float) -> Iterator[int]:
            return iter(draw.sample(range(sizes.devices), min(sizes.devices, int(whole * share))))

        first_vendor, *_ = self.parties["vendor"]
        sold = list(devices(0.27))
        since = {number: self._ago(KEPT_DAYS) for number in sold}
        bulk = set(range(sizes.bulk))  # nobody's at first: they are for the changes
        for place, number in enumerate(sold):
            if number not in bulk:
                vendor = first_vendor if place < sizes.vendor_devices else self.of("vendor")
                self._relate(device(number), "sold_by", vendor, "vendor", since[number], None)
        for number in devices(0.33):
            if number not in bulk:
                self._own(number, since.get(number))
        for number in devices(0.11):
            starts = self._ago(300)
            ends = starts + timedelta(days=draw.uniform(1, 60)) if draw.random() < 0.5 else None
            self._relate(device(number), "user", self.of("customer"), "customer", starts, ends)
        for number in devices(0.07):
            partner, starts = self.of("partner"), self._ago(300, 30)
            self.serviced.append((number, partner, starts))
            self._relate(device(number), "serviced_by", partner, "partner", starts, None)
        for role, share in (("parts_by", 0.1), ("made_by", 0.02)):
            for number in devices(share):
                batch = f"2025-{draw.randrange(BATCHES):02d}" if role == "parts_by" or draw.random() < 0.5 else None
                self._relate(device(number), role, self.of("supplier"), "supplier", None, None, batch=batch)
        for role, kind, share in (("cared_for_by", "employee", 0.05), ("buys_from", "vendor", 0.02)):
            customers = self.parties["customer"]
            for customer in draw.sample(customers, min(len(customers), int(whole * share))):
                self._relate(f"party:{customer}", role, self.of(kind), kind, self._ago(300), None, "customer")
        for employee in self.parties["employee"]:
            kind = draw.choice(("vendor", "partner"))
            self._relate(f"party:{employee}", "works_for", self.of(kind), kind, None, None, "employee")

    def _own(self, number: int, since: datetime | None) -> None:
        starts = since or self._ago(KEPT_DAYS)
        ends = None
        if self._draw.random() < 0.1:  # sold on
            ends = starts + (self.until - timedelta(hours=12) - starts) * self._draw.uniform(0.2, 1)
            self._relate(device(number), "owner", self.of("customer"), "customer", ends, None)
        self._relate(device(number), "owner", self.of("customer"), "customer", starts, ends)

    def _relate(
        self, subject: str, role: str, party: UUID, kind: str, starts: datetime | None, ends: datetime | None,
        subject_kind: str = "device", batch: str | None = None,
    ) -> None:  # fmt: skip
        """Add a relation; of a few an earlier version that was wrong, and of fewer one that was withdrawn."""
        known = starts or self.until - timedelta(days=KEPT_DAYS)
        learnt = known + (self.until - known) * self._draw.uniform(0, 0.1)
        id_, luck = self._uuid(learnt), self._draw.random()
        who = (subject, role, party, role in EXCLUSIVE, subject_kind, kind)
        said = ("erp", None, batch)
        valid, version = Range(starts, ends), 1
        if luck < 0.02 and starts is not None:
            corrected = learnt + (self.until - learnt) * self._draw.random()
            wrong = Range(starts + timedelta(hours=1), ends)
            self.relations.append((id_, 1, *who, wrong, Range(learnt, corrected), *said))
            learnt, version = corrected, 2
        recorded = Range(learnt, None)
        if 0.02 <= luck < 0.022:
            recorded = Range(learnt, learnt + timedelta(hours=3))
        self.relations.append((id_, version, *who, valid, recorded, *said))


def midnight() -> datetime:
    """Return when today began, UTC."""
    return datetime.now(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
