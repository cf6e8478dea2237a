"""Who is sending: a snapshot of all credentials in memory, so that no request waits for Postgres."""

from dataclasses import dataclass
from typing import Literal

from drm_ingest.metrics import Metrics
from drm_ingest.settings import Settings


@dataclass(frozen=True, slots=True)
class Credential:
    """A key that may be used now, and whose it is."""

    id: str
    sender: str
    role: Literal["sender", "reader", "admin"]
    device: str | None
    """The only subject it may write for, and the one meant where an event names none; None: any subject."""


class Credentials:
    """All credentials, read anew every `credential_refresh_s`; while Postgres is down the last ones stay."""

    def __init__(self, settings: Settings, metrics: Metrics) -> None:
        """Nothing is opened before `start`."""

    async def start(self) -> None:
        """Begin to refresh in the background; returns at once, whether Postgres is there or not."""
        raise NotImplementedError

    async def stop(self) -> None:
        """Stop refreshing and hang up."""
        raise NotImplementedError

    @property
    def ready(self) -> bool:
        """Whether a first snapshot has been read."""
        raise NotImplementedError

    def find(self, authorization: bytes | None) -> Credential | None:
        """Return whose `Authorization` header that is: `Bearer <key>`, or Basic with the key as user name."""
        raise NotImplementedError

    def find_key(self, key: str) -> Credential | None:
        """Return whose key that is; None for one that is unknown, revoked or expired."""
        raise NotImplementedError
