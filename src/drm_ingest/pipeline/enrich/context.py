"""What is known of a subject, ready to be spliced into its events: model, firmware, who held which role when."""

from collections.abc import Sequence
from datetime import UTC, datetime
from sys import intern

from drm_ingest.event import PARTY_PREFIX, published_source
from drm_ingest.pipeline.splice import fragment
from drm_ingest.postgres.directory import Row

STALE = "stale"
MISSING = "missing"

_ALWAYS = datetime.min.replace(tzinfo=UTC)
_STILL = datetime.max.replace(tzinfo=UTC)


class Context:
    """The context of one subject.

    Roles are those at the time of the event, not of its arrival. Between two changes of roles the attributes are the
    same for all events, so those of the latest span are kept ready: `attributes` is right where since <= time < until,
    else `at(time)` makes it so.
    """

    __slots__ = (
        "_device", "_holders", "_horizon", "_quality", "_stale",
        "about", "attributes", "is_party", "loaded_at", "since", "source", "subject", "until",
    )  # fmt: skip

    def __init__(self, subject: str, rows: Sequence[Row], relations_max: int, loaded_at: float) -> None:
        """`rows` are what Postgres knows of the subject.

        `loaded_at` is the loop's time just before it was asked; 0 once the subject turned out to have changed since.
        """
        self.subject = subject
        self.loaded_at = loaded_at
        self.is_party = subject.startswith(PARTY_PREFIX)
        self.source = b"" if self.is_party else fragment(source=published_source(subject, ""))  # where none was sent
        self.about = rows[0].about if rows else subject
        self._device = fragment(devicemodel=rows[0].model, devicefirmware=rows[0].firmware) if rows else b""
        # Of those that ended first, more than are kept, only the last end is known: what was before, is not.
        self._horizon = (rows[relations_max].valid_to or _STILL) if len(rows) > relations_max else _ALWAYS
        holders = [
            (row.valid_from or _ALWAYS, row.valid_to or _STILL, intern(f"{row.role}:{row.party}"))
            for row in rows[:relations_max]
            if row.role is not None
        ]
        if rows and rows[0].self is not None:
            holders.append((_ALWAYS, _STILL, f"self:{rows[0].self}"))
        self._holders = tuple(sorted(holders, key=lambda holder: holder[2]))
        self._quality: str | None = None
        self._stale: Context | None = None
        self.attributes = b""
        self.since = self.until = _STILL  # no span yet

    @classmethod
    def missing(cls, subject: str) -> "Context":
        """Return the context of a subject that Postgres could not be asked about."""
        context = cls(subject, (), 0, 0.0)
        context._quality = MISSING
        return context

    def stale(self) -> "Context":
        """Return the same context, marked as remembered while Postgres cannot be asked."""
        if self._stale is None:
            stale = self._stale = object.__new__(Context)
            for name in Context.__slots__:
                setattr(stale, name, getattr(self, name))
            stale._quality = STALE
            stale.since = stale.until = _STILL
        return self._stale

    def at(self, time: datetime) -> bytes:
        """Return the attributes of an event that happened then, and keep them for others of the same span."""
        since, until, roles = _ALWAYS, _STILL, []
        for valid_from, valid_to, role in self._holders:
            if time < valid_from:
                until = min(until, valid_from)
            elif time >= valid_to:
                since = max(since, valid_to)
            else:
                since, until = max(since, valid_from), min(until, valid_to)
                roles.append(role)
        quality = self._quality
        if time < self._horizon:
            until, quality = min(until, self._horizon), MISSING
        else:
            since = max(since, self._horizon)
        self.since, self.until = since, until
        self.attributes = self._device + fragment(contextquality=quality, partyroles=" ".join(roles) or None)
        return self.attributes
