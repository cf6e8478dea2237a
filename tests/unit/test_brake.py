"""The brake: single failures are set aside, an abnormal share of them stops the worker, and forgetting is bounded."""

import pytest

from drm_ingest.pipeline.brake import Brake, Braked
from drm_ingest.settings import Settings


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def brake(clock: Clock | None = None, **changes: float) -> Brake:
    few = {"brake_letters_min": 10, "brake_window_events": 100, "brake_window_s": 60.0} | changes
    return Brake(Settings().model_copy(update=few), clock or Clock())


def test_fewer_failures_than_the_minimum_never_brake() -> None:
    brake().check(9, 9, "poison")


def test_all_of_a_batch_failing_brakes_and_says_how_many_why_and_what_to_do() -> None:
    with pytest.raises(Braked, match=r"^10 of the last 10 events fail.*poison.*DRM_BRAKE_SHARE_MAX=1$"):
        brake().check(10, 10, "poison")


def test_a_share_at_the_bound_passes_and_one_above_it_brakes() -> None:
    brake().check(20, 100, "poison")
    with pytest.raises(Braked):
        brake().check(21, 100, "poison")


def test_failures_in_batch_after_batch_add_up() -> None:
    cautious = brake()
    for _ in range(9):
        cautious.check(1, 1, "poison")
        cautious.passed(1, 1)
    with pytest.raises(Braked, match=r"^10 of the last 10 "):
        cautious.check(1, 1, "poison")


def test_a_batch_without_failures_always_passes() -> None:
    cautious = brake()
    cautious.passed(100, 100)
    cautious.check(0, 1, "")


def test_only_the_latest_events_count() -> None:
    cautious = brake()
    cautious.passed(0, 1_000_000)
    for _ in range(100):
        cautious.passed(0, 1)
    with pytest.raises(Braked):
        cautious.check(30, 30, "poison")


def test_what_failed_is_forgotten_in_time_so_that_one_bad_event_never_waits_for_ever() -> None:
    clock = Clock()
    cautious = brake(clock)
    cautious.passed(50, 100)
    with pytest.raises(Braked):
        cautious.check(1, 1, "poison")
    clock.now = 61.0
    cautious.check(1, 1, "poison")


def test_a_person_can_say_that_they_are_all_poison() -> None:
    brake(brake_share_max=1.0).check(1000, 1000, "poison")
