"""Quotas in memory: what is given out, what is forgotten, and what workers share."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from drm_ingest.edge import buckets as buckets_module
from drm_ingest.edge import quotas as module
from drm_ingest.edge.admit import Admitted
from drm_ingest.edge.buckets import BYTES, EVENTS, SLOT, SLOT_BYTES, WAYS, Buckets, memory_of, shared_memory, tag_of
from drm_ingest.edge.credentials import Credential
from drm_ingest.edge.judge import Record
from drm_ingest.edge.quota import Quota, Rates
from drm_ingest.edge.quotas import Quotas, Spent, quota_memory
from drm_ingest.errors import Refusal
from drm_ingest.settings import Settings

SETTINGS = Settings(quota_senders_max=64, quota_devices_max=64)


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(module, "monotonic", made)
    return made


def quotas() -> Quotas:
    return Quotas(SETTINGS, bytearray(quota_memory(SETTINGS)))


def quota(all_: Rates | None = None, device: Rates | None = None, burst_s: float = 2, sender: bytes = b"s") -> Quota:
    return Quota(sender.ljust(16), all_ or Rates(), device or Rates(), burst_s)


def sent(*subjects: str, size: int = 100) -> Admitted:
    records: list[Record] = [(subject.encode(), b"x" * size, []) for subject in subjects]
    return Admitted(len(records), records, body_bytes=size * len(records), accepted=len(records))


def debts(memory: bytearray, now: float) -> list[float]:
    """Return the seconds that are owed, of events and of bytes, slot by slot."""
    paid_at = memoryview(memory).cast("d").tolist()
    pairs = zip(paid_at[EVENTS::SLOT], paid_at[BYTES::SLOT], strict=True)
    return [paid - now for pair in pairs for paid in pair if paid > now]


def refused(quotas: Quotas, quota: Quota, admitted: Admitted) -> Refusal | None:
    try:
        quotas.spend(quota, admitted)
    except Refusal as refusal:
        return refusal
    return None


def test_a_burst_goes_through_and_then_the_rate(clock: Clock) -> None:
    mine, ours = quota(Rates(events_per_s=10), burst_s=2), quotas()
    taken = sum(refused(ours, mine, sent("m")) is None for _ in range(100))
    assert taken in (20, 21)  # two seconds' worth, and perhaps the one that finds the last of it
    for _ in range(1000):
        clock.now += 0.01
        taken += refused(ours, mine, sent("m")) is None
    assert taken == pytest.approx(121, abs=2)


def test_a_refusal_says_which_limit_its_value_and_when(clock: Clock) -> None:
    mine, ours = quota(Rates(events_per_s=10), burst_s=2), quotas()
    ours.spend(mine, sent(*["m"] * 75))
    refusal = refused(ours, mine, sent("m"))
    assert refusal is not None
    assert refusal.problem.code == "rate_limited"
    assert refusal.retry_after_s == 6  # 7.5 s of debt, 2 s of which it may have
    assert refusal.members == {"limit": 10, "quota": "sender-events"}
    assert dict(refusal.headers) == {
        b"ratelimit-policy": b'"sender-events";q=20;w=2',
        b"ratelimit": b'"sender-events";r=0;t=6',
    }
    clock.now += refusal.retry_after_s
    assert refused(ours, mine, sent("m")) is None


def test_bytes_have_a_quota_of_their_own(clock: Clock) -> None:
    mine, ours = quota(Rates(bytes_per_s=1000), burst_s=1), quotas()
    ours.spend(mine, sent("m", size=5000))
    refusal = refused(ours, mine, sent("m"))
    assert refusal is not None
    assert refusal.members == {"limit": 1000, "quota": "sender-bytes"}
    assert (b"ratelimit-policy", b'"sender-bytes";q=1000;qu="content-bytes";w=1') in refusal.headers


def test_a_device_beyond_its_quota_takes_nothing_from_the_others(clock: Clock) -> None:
    mine, ours = quota(device=Rates(events_per_s=1), burst_s=5), quotas()
    while refused(ours, mine, sent("noisy")) is None:
        pass
    assert all(refused(ours, mine, sent(f"m-{number}")) is None for number in range(30))
    refusal = refused(ours, mine, sent("m-1", "noisy"))
    assert refusal is not None
    assert refusal.members == {"limit": 1, "quota": "device-events", "subject": "noisy"}


def test_a_refused_request_costs_nothing(clock: Clock) -> None:
    mine, ours = quota(Rates(events_per_s=100), Rates(events_per_s=1), burst_s=1), quotas()
    ours.spend(mine, sent("noisy", "noisy"))
    for _ in range(1000):
        assert refused(ours, mine, sent("noisy")) is not None
    assert refused(ours, mine, sent("quiet")) is None


def test_a_key_that_is_for_one_device_is_refused_by_its_headers_alone(clock: Clock) -> None:
    mine, ours = quota(device=Rates(events_per_s=1), burst_s=1), quotas()
    key = Credential("k", "fleet", "sender", "meter-7", quota=mine)
    ours.refuse_if_spent(key)
    ours.spend(mine, sent("meter-7", "meter-7"))
    with pytest.raises(Refusal):
        ours.refuse_if_spent(key)
    ours.refuse_if_spent(Credential("k", "fleet", "sender", None, quota=mine))


def test_no_quota_is_no_limit(clock: Clock) -> None:
    ours = quotas()
    ours.refuse_if_spent(Credential("k", "fleet", "sender", None))
    bytes_only = quota(Rates(bytes_per_s=1e9))
    for _ in range(1000):
        ours.spend(bytes_only, sent("m"))


def test_senders_do_not_share_the_devices_of_one_name(clock: Clock) -> None:
    ours = quotas()
    one, other = (quota(device=Rates(events_per_s=1), burst_s=1, sender=name) for name in (b"a", b"b"))
    ours.spend(one, sent(*["meter-7"] * 50))
    assert refused(ours, one, sent("meter-7")) is not None
    assert refused(ours, other, sent("meter-7")) is None


def test_what_workers_share_is_one_quota(clock: Clock) -> None:
    memory = shared_memory(quota_memory(SETTINGS))
    workers = [Quotas(SETTINGS, memory) for _ in range(2)]
    mine = quota(Rates(events_per_s=10), Rates(events_per_s=5), burst_s=2)
    taken = sum(refused(workers[number % 2], mine, sent(f"m-{number}")) is None for number in range(100))
    assert taken in (20, 21)


@pytest.mark.parametrize("records", [1, 7])
def test_a_credential_of_one_device_costs_what_its_events_cost_one_by_one(clock: Clock, records: int) -> None:
    mine = quota(Rates(events_per_s=10), Rates(events_per_s=5, bytes_per_s=1000), burst_s=100)
    memories = [bytearray(quota_memory(SETTINGS)) for _ in range(3)]
    together, by_subject, alone = (Quotas(SETTINGS, memory) for memory in memories)
    together.spend(mine, sent(*["meter-7"] * records), b"meter-7")
    by_subject.spend(mine, sent(*["meter-7"] * records))
    for _ in range(records):
        alone.spend(mine, sent("meter-7"))
    owed = [debts(memory, clock.now) for memory in memories]
    assert owed[0] == pytest.approx([records / 10, records / 5, records / 10])  # of the sender, of the device
    assert owed[1] == pytest.approx(owed[0])
    assert owed[2] == pytest.approx(owed[0])


def test_more_devices_than_are_remembered_have_their_buckets_all_the_same(
    clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(buckets_module, "_KNOWN_MAX", 10)
    settings = Settings(quota_senders_max=64, quota_devices_max=4096)
    ours = Quotas(settings, bytearray(quota_memory(settings)))
    mine = quota(Rates(events_per_s=1e6), Rates(events_per_s=1), burst_s=1)
    for _ in range(2):
        for number in range(100):
            assert refused(ours, mine, sent(f"m-{number}")) is None
    assert all(refused(ours, mine, sent(f"m-{number}")) is not None for number in range(100))


def test_what_was_spent_on_another_machine_counts_here(clock: Clock) -> None:
    here, there = quotas(), quotas()
    there.spent = Spent()
    mine = quota(Rates(events_per_s=10), Rates(events_per_s=5), burst_s=2)
    there.spend(mine, sent(*["m"] * 30))
    here.spent_elsewhere(there.spent)
    refusal = refused(here, mine, sent("other"))
    assert refusal is not None
    assert refusal.retry_after_s == 1


@given(st.lists(st.tuples(st.integers(0, 300), st.integers(1, 20)), max_size=400))
def test_forgetting_never_makes_a_fresh_bucket(spending: list[tuple[int, int]]) -> None:
    """However many names there are, a set of slots gives out no more than its slots would."""
    buckets = Buckets(bytearray(WAYS * SLOT_BYTES))  # one set
    given_s = 0
    burst_s = 3
    for name, cost_s in spending:
        at = EVENTS + buckets.at(b"", str(name).encode())
        if buckets.paid_at[at] <= burst_s:  # at the time 0
            buckets.paid_at[at] += cost_s
            given_s += cost_s
    assert given_s <= WAYS * (burst_s + 20)


def test_a_full_bucket_is_given_away_before_one_in_debt() -> None:
    buckets = Buckets(bytearray(WAYS * SLOT_BYTES))
    noisy = buckets.at(b"", b"noisy")
    buckets.paid_at[noisy + EVENTS] = 1e9
    for number in range(1000):
        buckets.at(b"", str(number).encode())
    assert buckets.at(b"", b"noisy") == noisy
    assert buckets.tags[noisy] == tag_of(b"noisy")


def test_memory_is_what_the_settings_say() -> None:
    assert memory_of(65_536) == 65_536 * 24
    assert memory_of(1) == WAYS * SLOT_BYTES
