"""Whether a sender's clock is off, by the time it states for the request or connection itself."""

from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime

from drm_ingest.settings import Settings

_REMEMBERED_MAX = 256


class Clock:
    """Turns a stated sending time into the offset to add to all times of that request or connection."""

    def __init__(self, settings: Settings) -> None:
        self._tolerated = timedelta(seconds=settings.clock_skew_tolerated_s)
        self._dates: dict[bytes, datetime | None] = {}  # most requests of a second carry the same text

    def offset_of_date(self, date: bytes, now: datetime) -> int:
        """Return the offset in ms for a `Date` header (RFC 9110, 5.6.7); 0 where that cannot be read."""
        try:
            sent = self._dates[date]
        except KeyError:
            if len(self._dates) >= _REMEMBERED_MAX:
                self._dates.clear()
            sent = self._dates[date] = _parse(date)
        return 0 if sent is None else self.offset(sent, now)

    def offset(self, sent: datetime, now: datetime) -> int:
        """Return our time minus the stated one in ms, or 0 while within `clock_skew_tolerated_s`."""
        difference = now - sent
        return 0 if abs(difference) <= self._tolerated else round(difference / timedelta(milliseconds=1))


def stated_time(date: bytes | None) -> float | None:
    """Return the time of a `Date` header in seconds since 1970; None where there is none, or none that can be read."""
    sent = None if date is None else _parse(date)
    return None if sent is None else sent.timestamp()


def _parse(date: bytes) -> datetime | None:
    try:
        sent = parsedate_to_datetime(date.decode("latin-1"))
    except (ValueError, TypeError, OverflowError, IndexError):
        return None  # a recipient may ignore a Date that is not one
    return sent if sent.tzinfo else sent.replace(tzinfo=UTC)
