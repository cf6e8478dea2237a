"""What a sender may send: how much, and how much each of its devices."""

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Rates:
    """Events and bytes a second; None: as many as they like."""

    events_per_s: float | None = None
    bytes_per_s: float | None = None
    event_s: float = field(init=False)
    """What an event costs, in seconds of its bucket; 0: nothing."""
    byte_s: float = field(init=False)
    limited: bool = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "event_s", 1 / self.events_per_s if self.events_per_s else 0.0)
        object.__setattr__(self, "byte_s", 1 / self.bytes_per_s if self.bytes_per_s else 0.0)
        object.__setattr__(self, "limited", bool(self.event_s or self.byte_s))


@dataclass(frozen=True, slots=True)
class Quota:
    """What one sender may send."""

    sender: bytes
    """Its id: whose buckets they are, however many keys it has."""
    all: Rates
    device: Rates
    """Each of its subjects."""
    burst_s: float
    """So many seconds' worth may come at once."""
