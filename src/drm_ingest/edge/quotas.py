"""Quotas: how much a sender may send and how much each of its devices, over all workers and machines; else 429.

What a sender has is given out while there is any: a request larger than what is left goes through and leaves a debt,
which time pays. So no request is too large to ever pass, the average holds, and over any time a sender gets at most
rate x time + burst + one request a connection more.
"""

import math
from collections import defaultdict
from dataclasses import dataclass, field
from time import monotonic
from typing import TYPE_CHECKING

from drm_ingest.edge.buckets import BYTES, EVENTS, UNITS, Buckets, Memory, memory_of
from drm_ingest.errors import Refusal
from drm_ingest.settings import Settings

if TYPE_CHECKING:
    from drm_ingest.edge.admit import Admitted
    from drm_ingest.edge.credentials import Credential

SENDERS, DEVICES = "sender", "device"
_UNIT_NAMES = ("events", "bytes")
QUOTA_NAMES = tuple(f"{whose}-{unit}" for whose in (SENDERS, DEVICES) for unit in _UNIT_NAMES)
"""What the answers call them."""
SENDER_QUOTAS = QUOTA_NAMES[:2]


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


@dataclass
class Spent:
    """What was given out here and the other machines have not been told, in seconds of events and of bytes by tag."""

    senders: dict[int, tuple[float, float]] = field(default_factory=dict)
    devices: dict[int, tuple[float, float]] = field(default_factory=dict)


class Quotas:
    """The quotas of all senders, in memory that the workers of this machine share."""

    def __init__(self, settings: Settings, memory: Memory) -> None:
        """`memory` is as large as `quota_memory` says."""
        senders = memory_of(settings.quota_senders_max)
        view = memoryview(memory).cast("B")
        self._senders = Buckets(view[:senders])
        self._devices = Buckets(view[senders:])
        self.spent: Spent | None = None
        """Is there once another machine wants to know."""

    def refuse_if_spent(self, credential: "Credential") -> None:
        """Refuse by whose key it is alone, before anything of the body is looked at.

        Raises:
            Refusal: rate_limited.
        """
        quota = credential.quota
        if quota is None:
            return
        now = monotonic()
        if quota.all.limited:
            self._refuse(self._senders, self._senders.slot(quota.sender), quota, quota.all, now)
        if quota.device.limited and credential.device is not None:
            device = credential.device.encode()
            slot = self._devices.slot(quota.sender + device)
            self._refuse(self._devices, slot, quota, quota.device, now, device)

    def spend(self, quota: Quota, admitted: "Admitted") -> None:
        """Take what a request costs, all of it or, refused, nothing.

        Raises:
            Refusal: rate_limited.
        """
        now = monotonic()
        senders, devices = self._senders, self._devices
        all_, each, spent = quota.all, quota.device, self.spent
        if all_.limited:
            slot = senders.slot(quota.sender)
            self._refuse(senders, slot, quota, all_, now)
        costs = []
        if each.limited:
            for subject, events, bytes_ in _by_subject(admitted):
                device = devices.slot(quota.sender + subject)
                self._refuse(devices, device, quota, each, now, subject)
                costs.append((device, events * each.event_s, bytes_ * each.byte_s))
        if all_.limited:
            events_s, bytes_s = admitted.received * all_.event_s, admitted.body_bytes * all_.byte_s
            _charge(senders, slot, events_s, bytes_s, now)
            if spent is not None:
                _note(spent.senders, senders.tag(slot), events_s, bytes_s)
        for device, events_s, bytes_s in costs:
            _charge(devices, device, events_s, bytes_s, now)
            if spent is not None:
                _note(spent.devices, devices.tag(device), events_s, bytes_s)

    def spent_elsewhere(self, spent: Spent) -> None:
        """Take what another machine gave out."""
        now = monotonic()
        for buckets, costs in ((self._senders, spent.senders), (self._devices, spent.devices)):
            for tag, (events_s, bytes_s) in costs.items():
                _charge(buckets, buckets.slot_of_tag(tag), events_s, bytes_s, now)

    def in_debt(self, kind: str) -> int:
        """Return how many buckets of that kind are not full."""
        return (self._senders if kind == SENDERS else self._devices).in_debt()

    def _refuse(
        self, buckets: Buckets, slot: int, quota: Quota, rates: Rates, now: float, device: bytes | None = None
    ) -> None:
        empty_at, paid_at = now + quota.burst_s, buckets.paid_at
        at = UNITS * slot
        if paid_at[at] > empty_at and rates.event_s:
            raise rate_limited(quota, EVENTS, paid_at[at] - empty_at, device)
        if paid_at[at + 1] > empty_at and rates.byte_s:
            raise rate_limited(quota, BYTES, paid_at[at + 1] - empty_at, device)


def quota_memory(settings: Settings) -> int:
    """Return how many bytes the buckets take."""
    return memory_of(settings.quota_senders_max) + memory_of(settings.quota_devices_max)


def rate_limited(quota: Quota, unit: int, wait_s: float, device: bytes | None) -> Refusal:
    """Return a 429 that names the quota and when there is something left of it."""
    whose, rates = (SENDERS, quota.all) if device is None else (DEVICES, quota.device)
    limit = float((rates.events_per_s, rates.bytes_per_s)[unit] or 0)
    name, unit_name = f"{whose}-{_UNIT_NAMES[unit]}", _UNIT_NAMES[unit]
    seconds = max(1, math.ceil(wait_s))
    about = {} if device is None else {"subject": device.decode()}
    who = "this sender" if device is None else "this device"
    shown = int(limit) if limit.is_integer() else limit
    return Refusal(
        "rate_limited",
        f"Send at most {shown:,} {unit_name} a second for {who}; send this again in {seconds} s.",
        retry_after_s=seconds,
        limit=shown,
        quota=name,
        **about,
    ).with_headers(*_headers(name, unit, limit, quota.burst_s, seconds))


def _headers(name: str, unit: int, limit: float, burst_s: float, seconds: int) -> list[tuple[bytes, bytes]]:
    """Return `RateLimit-Policy` and `RateLimit` (draft-ietf-httpapi-ratelimit-headers-11).

    A window of the draft is a burst of ours. Its registry has no unit for events, so there `qu` is left out.
    """
    unit_text = ';qu="content-bytes"' if unit == BYTES else ""
    window_s = max(1, round(burst_s))
    policy = f'"{name}";q={max(1, int(limit * window_s))}{unit_text};w={window_s}'
    return [(b"ratelimit-policy", policy.encode()), (b"ratelimit", f'"{name}";r=0;t={seconds}'.encode())]


def _by_subject(admitted: "Admitted") -> list[tuple[bytes, int, int]]:
    """Return each subject with its events and their bytes."""
    records = admitted.records
    if len(records) == 1:
        return [(records[0][0], 1, len(records[0][1]))]
    sizes: defaultdict[bytes, list[int]] = defaultdict(list)
    for subject, value, _ in records:
        sizes[subject].append(len(value))
    return [(subject, len(each), sum(each)) for subject, each in sizes.items()]


def _charge(buckets: Buckets, slot: int, events_s: float, bytes_s: float, now: float) -> None:
    paid_at = buckets.paid_at
    at = UNITS * slot
    if events_s:
        before = paid_at[at]
        paid_at[at] = (max(now, before)) + events_s
    if bytes_s:
        before = paid_at[at + 1]
        paid_at[at + 1] = (max(now, before)) + bytes_s


def _note(spent: dict[int, tuple[float, float]], tag: int, events_s: float, bytes_s: float) -> None:
    events, bytes_ = spent.get(tag, (0.0, 0.0))
    spent[tag] = events + events_s, bytes_ + bytes_s
