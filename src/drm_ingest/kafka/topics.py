"""The topics: their names, their settings, their creation, and the check at the start of each process."""

from collections.abc import Iterable
from dataclasses import dataclass

from drm_ingest.settings import Settings

UNCLASSIFIED = "unclassified"


class TopicsWrong(Exception):
    """Topics are missing or not as they must be; the message says what to do."""


@dataclass(frozen=True, slots=True)
class Topics:
    """The names of all topics under one prefix."""

    prefix: str

    @classmethod
    def of(cls, settings: Settings) -> "Topics":
        """Return the names for these settings."""
        return cls(settings.topic_prefix)

    @property
    def ingress(self) -> str:
        """Events as sent, for `enrich` only."""
        return f"{self.prefix}.ingress"

    def events(self, family: str) -> str:
        """Enriched events of one family (or `unclassified`), for product teams and `attach`."""
        return f"{self.prefix}.events.{family}"

    @property
    def dead_letters(self) -> str:
        """What could not go on, with its reason."""
        return f"{self.prefix}.dead-letters"

    @property
    def relationship_changes(self) -> str:
        """What changed in a record, numbered."""
        return f"{self.prefix}.relationship-changes"

    def all(self, families: Iterable[str]) -> list[str]:
        """Return every topic; `unclassified` is always among the families."""
        events = [self.events(family) for family in sorted({*families, UNCLASSIFIED})]
        return [self.ingress, *events, self.dead_letters, self.relationship_changes]


async def create(settings: Settings, families: Iterable[str]) -> list[str]:
    """Create the topics that are missing and return their names; safe to repeat, changes nothing that exists."""
    raise NotImplementedError


async def check(settings: Settings, families: Iterable[str]) -> None:
    """Make sure that every topic is there and as it must be.

    Raises:
        TopicsWrong: says each thing that is wrong and what to do.
        KafkaUnreachable: no bootstrap server answers.
    """
    raise NotImplementedError
