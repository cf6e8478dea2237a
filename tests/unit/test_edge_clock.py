"""A sender's clock is corrected by what it says itself, and only when that is far off."""

from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest

from drm_ingest.edge.clock import Clock
from drm_ingest.settings import Settings

NOW = datetime(2026, 11, 22, 10, 0, tzinfo=UTC)
clock = Clock(Settings(clock_skew_tolerated_s=300))


@pytest.mark.parametrize(
    ("off_by_s", "offset_ms"), [(0, 0), (300, 0), (-300, 0), (301, 301_000), (-301, -301_000), (86_400, 86_400_000)]
)
def test_the_offset_is_what_to_add_to_the_senders_times(off_by_s: int, offset_ms: int) -> None:
    stated = NOW - timedelta(seconds=off_by_s)
    assert clock.offset(stated, NOW) == offset_ms
    assert clock.offset_of_date(format_datetime(stated, usegmt=True).encode(), NOW) == offset_ms


def test_a_device_that_believes_it_is_1970_is_corrected() -> None:
    assert clock.offset_of_date(b"Thu, 01 Jan 1970 00:00:10 GMT", NOW) == round((NOW.timestamp() - 10) * 1000)


@pytest.mark.parametrize("date", [b"", b"now", b"\xff\xfe", b"Sun, 99 Nov 2026 10:00:00 GMT", b"Sun, 22 Nov 99999"])
def test_what_is_no_date_is_ignored(date: bytes) -> None:
    assert clock.offset_of_date(date, NOW) == 0


def test_remembered_dates_are_bounded() -> None:
    for number in range(10_000):
        clock.offset_of_date(b"%d" % number, NOW)
    assert len(clock._dates) <= 256
