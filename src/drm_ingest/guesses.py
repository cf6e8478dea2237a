"""Slow down whoever guesses: so many failures an address, in bounded memory; those with a credential never wait."""

from collections import OrderedDict
from ipaddress import IPv6Address, ip_address
from math import ceil

from drm_ingest.errors import Refusal
from drm_ingest.settings import Settings

ADDRESSES_MAX = 10_000
"""The one that failed longest ago is forgotten for a new one; about 2 MB."""
BURST_S = 10
"""So many seconds' worth of failures may come at once."""


class Guesses:
    """Failed authentications by address, each a token bucket."""

    def __init__(self, settings: Settings) -> None:
        self._per_s = settings.authentication_failures_per_s_max
        self._left: OrderedDict[str, tuple[float, float]] = OrderedDict()  # by address: failures left, and when

    def __len__(self) -> int:
        return len(self._left)

    def refuse_if_spent(self, address: str | None, now: float) -> None:
        """Refuse to look closer at what an address sends after too many failures; `now` is a monotonic clock.

        Raises:
            Refusal: rate_limited.
        """
        left = self._left_of(_origin(address), now)
        if left < 1:
            raise Refusal(
                "rate_limited",
                f"Too many credentials from your address were wrong; at most {self._per_s} a second are looked at.",
                retry_after_s=max(1, ceil((1 - left) / self._per_s)),
                limit=self._per_s,
            )

    def failed(self, address: str | None, now: float) -> None:
        """Count a failure."""
        origin = _origin(address)
        self._left[origin] = (max(0.0, self._left_of(origin, now) - 1), now)
        self._left.move_to_end(origin)
        if len(self._left) > ADDRESSES_MAX:
            self._left.popitem(last=False)

    def _left_of(self, origin: str, now: float) -> float:
        most = float(BURST_S * self._per_s)
        left, at = self._left.get(origin, (most, now))
        return min(most, left + (now - at) * self._per_s)


def _origin(address: str | None) -> str:
    """Return whom an address belongs to: of IPv6 everybody has 2^64."""
    if address is None or ":" not in address:
        return address or ""
    try:
        ip = ip_address(address.partition("%")[0])
    except ValueError:
        return address
    if not isinstance(ip, IPv6Address):
        return address
    return str(ip.ipv4_mapped) if ip.ipv4_mapped else ip.packed[:8].hex()
