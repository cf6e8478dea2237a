"""What a credential may send: for which devices, which types, for parties, and whether it links identities."""

from collections.abc import Sequence
from dataclasses import dataclass

from drm_ingest.errors import EventCode, Rejected
from drm_ingest.event import PARTY_PREFIX

IDENTITY_PREFIX = "identity."
ANY_THAT_BEGINS = "*"


class OutOfScope(Rejected):
    """An event that its credential may not send; `scope` is the part of the scope that would have to allow it."""

    def __init__(self, code: EventCode, pointer: str, scope: str, detail: str) -> None:
        super().__init__(code, pointer, detail)
        self.scope = scope


@dataclass(frozen=True, slots=True)
class Patterns:
    """Names that are listed, and beginnings of names."""

    names: frozenset[str]
    beginnings: tuple[str, ...]

    @classmethod
    def of(cls, listed: Sequence[str] | None) -> "Patterns | None":
        """Return what is listed, where `meter-*` stands for all that begin with `meter-`; None for None: no limit."""
        if listed is None:
            return None
        beginnings = tuple(entry[:-1] for entry in listed if entry.endswith(ANY_THAT_BEGINS))
        return cls(frozenset(entry for entry in listed if not entry.endswith(ANY_THAT_BEGINS)), beginnings)

    def match(self, name: str) -> bool:
        return name in self.names or name.startswith(self.beginnings)


@dataclass(frozen=True, slots=True)
class Scope:
    """The limits of a credential; one without any limit has no scope at all, and pays nothing for it."""

    devices: Patterns | None
    types: Patterns | None
    parties: bool
    identities: bool

    @classmethod
    def of(
        cls, devices: Sequence[str] | None, types: Sequence[str] | None, *, parties: bool, identities: bool
    ) -> "Scope | None":
        """Return the scope of a row; None: everything is allowed."""
        if devices is None and types is None and parties and identities:
            return None
        return cls(Patterns.of(devices), Patterns.of(types), parties, identities)

    def refuse(self, type_: str, subject: str) -> None:
        """Refuse an event that is not allowed.

        Raises:
            OutOfScope: subject_forbidden, type_forbidden.
        """
        if self.types is not None and not self.types.match(type_):
            raise _type("types", "does not list this type.")
        if not self.identities and type_.startswith(IDENTITY_PREFIX):
            raise _type("identities", "does not let it link identities.")
        if subject.startswith(PARTY_PREFIX):
            if not self.parties:
                raise _subject("parties", "does not let it write for parties.")
        elif self.devices is not None and not self.devices.match(subject):
            raise _subject("devices", "does not list this device.")


def _type(scope: str, why: str) -> OutOfScope:
    return OutOfScope(EventCode.TYPE_FORBIDDEN, "/type", scope, f"The scope of this credential ({scope}) {why}")


def _subject(scope: str, why: str) -> OutOfScope:
    return OutOfScope(EventCode.SUBJECT_FORBIDDEN, "/subject", scope, f"The scope of this credential ({scope}) {why}")
