"""Quotas: how much a sender may send and how much each of its devices, over all workers and machines; else 429.

What a sender has is given out while there is any: a request larger than what is left goes through and leaves a debt,
which time pays. So no request is too large to ever pass, the average holds, and over any time a sender gets at most
rate x time + burst + one request a connection more.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from time import monotonic

from drm_ingest.edge.admit import Admitted
from drm_ingest.edge.buckets import BYTES, EVENTS, Buckets, Memory, memory_of
from drm_ingest.edge.credentials import Credential
from drm_ingest.edge.judge import Record
from drm_ingest.edge.quota import Quota, Rates
from drm_ingest.errors import Refusal
from drm_ingest.settings import Settings

SENDERS, DEVICES = "sender", "device"
_NOBODY = b""  # who owns the senders' buckets
_UNIT_NAMES = ("events", "bytes")
QUOTA_NAMES = tuple(f"{whose}-{unit}" for whose in (SENDERS, DEVICES) for unit in _UNIT_NAMES)
"""What the answers call them."""
SENDER_QUOTAS = QUOTA_NAMES[:2]


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
        self._known_senders = self._senders.known(_NOBODY)
        self.spent: Spent | None = None
        """Is there once another machine wants to know."""

    def refuse_if_spent(self, credential: Credential) -> None:
        """Refuse by whose key it is alone, before anything of the body is looked at.

        Raises:
            Refusal: rate_limited.
        """
        quota = credential.quota
        if quota is None:
            return
        empty_at = monotonic() + quota.burst_s
        if quota.all.limited:
            senders = self._senders
            at = senders.at(_NOBODY, quota.sender)
            if senders.events_paid_at[at] > empty_at or senders.bytes_paid_at[at] > empty_at:
                _refuse(senders, at, quota, quota.all, empty_at)
        if quota.device.limited and credential.bucket:
            devices = self._devices
            at = devices.at(quota.sender, credential.bucket)
            if devices.events_paid_at[at] > empty_at or devices.bytes_paid_at[at] > empty_at:
                _refuse(devices, at, quota, quota.device, empty_at, credential.bucket)

    def spend(self, quota: Quota, admitted: Admitted, bucket: bytes = b"") -> None:
        """Take what a request costs, all of it or, refused, nothing.

        `bucket` is that of the credential, all of whose events are its device's own.

        The hot path of a sender with quotas, which is why what a request with one device needs is all here, without a
        call or a list, and each number is read once: amid all else that a request does, each step of Python costs
        thrice what it does in a loop of its own. `_refuse`, which says why, is called only when there is a reason.

        Raises:
            Refusal: rate_limited.
        """
        now = monotonic()
        senders, spent, records = self._senders, self.spent, admitted.records
        sender, all_, each = quota.sender, quota.all, quota.device
        empty_at = now + quota.burst_s
        if all_.limited:
            found = self._known_senders.get(sender)
            at = found[1] if found and senders.tags[found[1]] == found[0] else senders.find(_NOBODY, sender)
            all_events_paid, all_bytes_paid = senders.events_paid_at[at], senders.bytes_paid_at[at]
            if all_events_paid > empty_at or all_bytes_paid > empty_at:
                _refuse(senders, at, quota, all_, empty_at)
        if each.limited and records:
            if bucket or len(records) == 1:
                devices, name = self._devices, bucket or records[0][0]
                found = devices.known(sender).get(name)
                own = found[1] if found and devices.tags[found[1]] == found[0] else devices.find(sender, name)
                events_paid, bytes_paid = devices.events_paid_at[own], devices.bytes_paid_at[own]
                if events_paid > empty_at or bytes_paid > empty_at:
                    _refuse(devices, own, quota, each, empty_at, name)
                size = len(records[0][1]) if len(records) == 1 else sum([len(value) for _, value, _ in records])
                events_s, bytes_s = len(records) * each.event_s, size * each.byte_s
                devices.events_paid_at[own] = (events_paid if events_paid > now else now) + events_s
                devices.bytes_paid_at[own] = (bytes_paid if bytes_paid > now else now) + bytes_s
                if spent is not None:
                    _note(spent.devices, devices.tags[own], events_s, bytes_s)
            else:
                self._spend_each(quota, records, now)
                if all_.limited:  # that took a while, in which other workers gave out something
                    all_events_paid, all_bytes_paid = senders.events_paid_at[at], senders.bytes_paid_at[at]
        if all_.limited:
            events_s, bytes_s = admitted.received * all_.event_s, admitted.body_bytes * all_.byte_s
            senders.events_paid_at[at] = (all_events_paid if all_events_paid > now else now) + events_s
            senders.bytes_paid_at[at] = (all_bytes_paid if all_bytes_paid > now else now) + bytes_s
            if spent is not None:
                _note(spent.senders, senders.tags[at], events_s, bytes_s)

    def _spend_each(self, quota: Quota, records: Sequence[Record], now: float) -> None:
        """Take what devices cost, of all of them or, refused, of none; 0.25 µs each, so written as `spend` is."""
        devices, spent, sender, each = self._devices, self.spent, quota.sender, quota.device
        known, tags = devices.known(sender), devices.tags
        events_paid_at, bytes_paid_at = devices.events_paid_at, devices.bytes_paid_at
        empty_at, event_s, byte_s = now + quota.burst_s, each.event_s, each.byte_s
        ats: list[int] = []
        last = None
        for record in records:
            subject = record[0]
            if subject != last:  # a batch is often the history of one device
                last, found = subject, known.get(subject)
                at = found[1] if found and tags[found[1]] == found[0] else devices.find(sender, subject)
                if events_paid_at[at] > empty_at or bytes_paid_at[at] > empty_at:
                    _refuse(devices, at, quota, each, empty_at, subject)
            ats.append(at)
        for at, record in zip(ats, records, strict=True):
            if event_s:
                before = events_paid_at[at]
                events_paid_at[at] = (before if before > now else now) + event_s
            if byte_s:
                before = bytes_paid_at[at]
                bytes_paid_at[at] = (before if before > now else now) + len(record[1]) * byte_s
        if spent is not None:
            for at, record in zip(ats, records, strict=True):
                _note(spent.devices, tags[at], event_s, len(record[1]) * byte_s)

    def spent_elsewhere(self, spent: Spent) -> None:
        """Take what another machine gave out."""
        now = monotonic()
        for buckets, costs in ((self._senders, spent.senders), (self._devices, spent.devices)):
            for tag, (events_s, bytes_s) in costs.items():
                _charge(buckets.paid_at, buckets.at_tag(tag), events_s, bytes_s, now)

    def in_debt(self, kind: str) -> int:
        """Return how many buckets of that kind are not full."""
        return (self._senders if kind == SENDERS else self._devices).in_debt()


def quota_memory(settings: Settings) -> int:
    """Return how many bytes the buckets take."""
    return memory_of(settings.quota_senders_max) + memory_of(settings.quota_devices_max)


def rate_limited(quota: Quota, unit: int, wait_s: float, device: bytes | None) -> Refusal:
    """Return a 429 that names the quota and when there is something left of it."""
    whose, rates = (SENDERS, quota.all) if device is None else (DEVICES, quota.device)
    limit = float((rates.bytes_per_s if unit == BYTES else rates.events_per_s) or 0)
    unit_name = _UNIT_NAMES[unit == BYTES]
    name = f"{whose}-{unit_name}"
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


def _refuse(
    buckets: Buckets, at: int, quota: Quota, rates: Rates, empty_at: float, device: bytes | None = None
) -> None:
    """Refuse by the bucket there; a debt in a unit that has no limit any more is none."""
    for unit, costs in ((EVENTS, rates.event_s), (BYTES, rates.byte_s)):
        if buckets.paid_at[at + unit] > empty_at and costs:
            raise rate_limited(quota, unit, buckets.paid_at[at + unit] - empty_at, device)


def _charge(paid_at: "memoryview[float]", at: int, events_s: float, bytes_s: float, now: float) -> None:
    # No max(), which takes as long as three readings.
    if events_s:
        before = paid_at[at + EVENTS]
        paid_at[at + EVENTS] = (before if before > now else now) + events_s
    if bytes_s:
        before = paid_at[at + BYTES]
        paid_at[at + BYTES] = (before if before > now else now) + bytes_s


def _note(spent: dict[int, tuple[float, float]], tag: int, events_s: float, bytes_s: float) -> None:
    events, bytes_ = spent.get(tag, (0.0, 0.0))
    spent[tag] = events + events_s, bytes_ + bytes_s
