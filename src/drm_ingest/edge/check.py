"""Check the attributes of an event: which may be there, of what type and how long, and who may write for whom."""

import json
import re
from collections.abc import Mapping

from drm_ingest.edge.scope import OutOfScope
from drm_ingest.errors import EventCode, Rejected, json_pointer
from drm_ingest.event import (
    ID_CHARACTERS_MAX,
    PARTY_PREFIX,
    RESERVED_ATTRIBUTES,
    SOURCE_CHARACTERS_MAX,
    SUBJECT_CHARACTERS_MAX,
    TYPE_CHARACTERS_MAX,
)
from drm_ingest.reference import KEYED

OTHER_CHARACTERS_MAX = 200
EXTENSION_NAME_CHARACTERS_MAX = 64

LENGTHS = {
    "type": range(1, TYPE_CHARACTERS_MAX + 1),
    "id": range(1, ID_CHARACTERS_MAX + 1),
    "subject": range(1, SUBJECT_CHARACTERS_MAX + 1),
    "source": range(SOURCE_CHARACTERS_MAX + 1),
    "time": range(OTHER_CHARACTERS_MAX + 1),  # and then it is parsed
    "dataschema": range(1, OTHER_CHARACTERS_MAX + 1),
    "sequence": range(1, OTHER_CHARACTERS_MAX + 1),
    "traceparent": range(1, OTHER_CHARACTERS_MAX + 1),
}
_TIME = "time is a string in RFC 3339 with an offset, as in 2026-11-22T10:00:00Z; no number."
_SPECIAL = frozenset({"data", "specversion", "datacontenttype", "data_base64"})
_EXTENSION_INTEGERS = range(-(2**31), 2**31)  # CloudEvents' Integer
_extension_name = re.compile(rf"[a-z0-9]{{1,{EXTENSION_NAME_CHARACTERS_MAX}}}").fullmatch
_json_type = re.compile(
    r"[a-z0-9!#$&^_.+-]+/(?:[a-z0-9!#$&^_.+-]+\+)?json(?:\s*;.*)?", re.ASCII | re.IGNORECASE
).fullmatch
# A party's own id, or what another system calls it: crm:778.
_party = re.compile(
    r"party:(?:[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}|[a-z][a-z0-9-]{0,39}:.{1,150})", re.DOTALL
).fullmatch


def check_attributes(attributes: Mapping[str, object]) -> None:
    """Check everything in an event beside `data`.

    Raises:
        Rejected: attribute_invalid, attribute_reserved.
    """
    for name, attribute in attributes.items():
        lengths = LENGTHS.get(name)
        if lengths is not None:
            if attribute is not None and (not isinstance(attribute, str) or len(attribute) not in lengths):
                text = f"a string of {lengths[0]} to {lengths[-1]} characters"
                raise invalid(name, _TIME if name == "time" else f"{name} is {text}.")
        elif name not in _SPECIAL:
            check_extension(name, attribute)
        else:
            _check_special(name, attribute)


def check_extension(name: str, attribute: object) -> None:
    """Check an attribute that the envelope does not name: its name and its type, as CloudEvents wants them.

    Raises:
        Rejected: attribute_reserved, attribute_invalid.
    """
    if name in RESERVED_ATTRIBUTES:
        raise Rejected(EventCode.ATTRIBUTE_RESERVED, f"/{name}")
    if not _extension_name(name):
        raise invalid(name, "Attributes are named in lower-case letters and digits; all else belongs in data.")
    if attribute is None or isinstance(attribute, (str, bool)):
        return
    if not isinstance(attribute, int) or attribute not in _EXTENSION_INTEGERS:
        raise invalid(name, "An extension attribute is a string, true, false or a whole number of 32 bits.")


def own_subject(subject: str | None, device: str) -> str:
    """Return the subject of an event sent by a credential that is bound to a device: that device, named or not.

    Raises:
        Rejected: subject_forbidden.
    """
    if subject is not None and subject != device:
        detail = f"This token or key writes only as its own device, {device}; leave subject out."
        raise OutOfScope(EventCode.SUBJECT_FORBIDDEN, "/subject", "devices", detail)
    return device if subject is None else subject


def refuse_ambiguous(value: bytes) -> None:
    """Refuse an event with two subjects or two types: readers differ in which of the two they take.

    Slow: to be asked only where both words of one kind, or escapes that may hide one, are in the bytes.

    Raises:
        Rejected: attribute_invalid.
    """
    names = _names(value)
    for name in ("subject", "type"):
        if names.count(name) > 1:
            raise invalid(name, f"{name} is given twice.")


def check_party(subject: str) -> None:
    """Check how a party is named.

    Raises:
        Rejected: attribute_invalid.
    """
    if not _party(subject):
        raise invalid(
            "subject", "Name a party party:<id>, its id here, or party:<namespace>:<ref>, as in party:crm:778."
        )
    # It would be in every topic and log that names the party, and on no record: there it is kept keyed.
    if (kept_as := KEYED.get(subject.removeprefix(PARTY_PREFIX).partition(":")[0])) is not None:
        raise invalid(
            "subject", f"Name the party by its keyed hash, {PARTY_PREFIX}{kept_as}:…, or by another reference."
        )


def _check_special(name: str, attribute: object) -> None:
    if name == "specversion" and attribute != "1.0":
        raise invalid(name, "specversion is 1.0.")
    if attribute is None:
        return
    if name == "datacontenttype" and not (isinstance(attribute, str) and _json_type(attribute)):
        raise invalid(name, "data is JSON: application/json, or none named.")
    if name == "data_base64":
        raise invalid(name, "Send data as JSON, in data; not as base64.")


def invalid(name: str, detail: str) -> Rejected:
    """Return the rejection of an attribute, pointed at by name."""
    return Rejected(EventCode.ATTRIBUTE_INVALID, json_pointer(name), detail)


def _names(value: bytes) -> list[str]:
    """Return the names in an object, each as often as it is there."""
    # The hook is called from the inside out; what it returns last is for the event itself.
    names: list[str] = json.loads(value, object_pairs_hook=lambda pairs: [name for name, _ in pairs])
    return names
