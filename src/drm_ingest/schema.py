"""The schemas: what `data` of each type of event must look like, and which topic family it goes to.

`schemas/<type>/<MAJOR.MINOR>.json` is a JSON Schema 2020-12 whose `x-drm` object names the family; docs/schemas.md
tells how to write one. All of them are read and compiled once, at start; nothing is fetched, then or later.
"""

import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any, Self

import jsonschema_rs

from drm_ingest.violation import shortened, violation

UNCLASSIFIED = "unclassified"
"""The family of every type that has no schema."""

_DIALECT = "https://json-schema.org/draft/2020-12/schema"
_TYPE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,199}")
_VERSION = re.compile(r"(0|[1-9][0-9]{0,3})\.(0|[1-9][0-9]{0,3})")
_FAMILY = re.compile(r"[a-z][a-z0-9-]{0,48}")  # part of a topic's name; "." and "_" would clash in Kafka's metrics
_REFUSED = ".invalid.json"  # examples of what the schema refuses; the tests read them
# The dialect's own description, refusing what it does not know at any depth: a mistyped keyword would check nothing.
_STRICT = {
    "$schema": _DIALECT,
    "$id": "urn:drm-ingest:schema",
    "$ref": _DIALECT,
    "$dynamicAnchor": "meta",
    "patternProperties": {"^x-": True},
    "unevaluatedProperties": False,
}


class BadSchema(ValueError):
    """A schema file, or the folder of them, cannot be used: which one, and why."""

    def __init__(self, path: Path, reason: str) -> None:
        super().__init__(f"{path}: {reason}")


class UnknownVersion(LookupError):
    """The type is known, the version named in `dataschema` (or, with none named, a major 1) is not there."""

    def __init__(self, type_: str, dataschema: str | None, known: tuple[str, ...]) -> None:
        self.known = known
        there = ", ".join(known)
        super().__init__(
            f"{type_} has no version of major 1; name one of these in dataschema: {there}"
            if dataschema is None
            else f"{type_} has no version {shortened(dataschema, 20)}; there is {there}"
        )


@dataclass(frozen=True, slots=True, eq=False)
class Schema:
    """One version of one type, compiled."""

    type: str
    version: str
    family: str
    data_required: bool
    """False: an event without `data` is complete."""
    is_valid: Callable[[object], bool]
    """Whether decoded JSON fits; the library's own compiled check, with no frame of ours around it (hot path).

    Raises UnicodeEncodeError for a name with a lone surrogate, which no JSON decoder here lets through.
    """
    document: Mapping[str, Any]
    _validator: jsonschema_rs.Validator

    def first_violation(self, data: object) -> tuple[str, str]:
        """Where `data` fails and what to change: a JSON pointer from the event's root, and a sentence.

        Both are at most 300 characters long and repeat none of the sender's values.
        Raises ValueError where `data` is valid.
        """
        try:
            self._validator.validate(data)  # stops at the first; iter_errors would build them all
        except jsonschema_rs.ValidationError as error:
            return violation(error, self.document)
        raise ValueError("there is no violation: data is valid")


@dataclass(frozen=True, slots=True, eq=False)
class Schemas:
    """All schemas; immutable once loaded."""

    families: tuple[str, ...]
    """The sorted names of all families, `unclassified` too."""
    _family_of: Mapping[str, str]
    _newest: Mapping[str, Schema]
    """By type: the newest minor of major 1."""
    _versions: Mapping[str, Mapping[str, Schema]]

    @classmethod
    def load(cls, directory: Path | None = None) -> Self:
        """Read and compile every schema under `directory`; None: those shipped with the package.

        Raises BadSchema, naming the file and the reason, rather than run with a schema that is wrong.
        """
        directory = directory or shipped()
        if not directory.is_dir():
            raise BadSchema(directory, "no such folder; DRM_SCHEMAS_DIR names the one that holds <type>/<version>.json")
        versions: dict[str, dict[str, Schema]] = {}
        for folder in sorted(directory.iterdir()):
            if folder.name.startswith("."):
                continue
            if folder.is_dir():
                versions[folder.name] = {schema.version: schema for schema in _load_type(folder)}
            elif folder.suffix == ".json":
                raise BadSchema(folder, "a schema stands in the folder of its type: <type>/<version>.json")
        if not versions:
            raise BadSchema(directory, "holds no schema: <type>/<version>.json")
        schemas = [schema for of_type in versions.values() for schema in of_type.values()]
        family_of = {schema.type: schema.family for schema in schemas}
        return cls(
            families=tuple(sorted({*family_of.values(), UNCLASSIFIED})),
            _family_of=family_of,
            _newest={schema.type: schema for schema in schemas if _order(schema.version)[0] == 1},
            _versions=versions,
        )

    def __iter__(self) -> Iterator[Schema]:
        """By type, then by version."""
        return (schema for type_ in sorted(self._versions) for schema in self._versions[type_].values())

    def family(self, type_: str) -> str:
        """The family of a type, the last part of its topic's name; `unclassified` for a type without a schema."""
        return self._family_of.get(type_, UNCLASSIFIED)

    def find(self, type_: str, dataschema: str | None) -> Schema | None:
        """The schema for an event; None where the type is unknown.

        Without `dataschema` it is the newest minor of major 1.
        Raises UnknownVersion for a known type without that version.
        """
        if dataschema is None:
            found = self._newest.get(type_)
            if found is not None or type_ not in self._versions:
                return found
        else:
            of_type = self._versions.get(type_)
            if of_type is None:
                return None
            found = of_type.get(dataschema)
            if found is not None:
                return found
        raise UnknownVersion(type_, dataschema, tuple(self._versions[type_]))


def shipped() -> Path:
    """In a wheel the schemas are package data; in a checkout they stand at the top of the repository."""
    packaged = Path(__file__).parent / "_schemas"
    return packaged if packaged.is_dir() else Path(__file__).parents[2] / "schemas"


def _order(version: str) -> tuple[int, int]:
    major, minor = version.split(".")
    return int(major), int(minor)


def _load_type(folder: Path) -> list[Schema]:
    """All versions of a type, oldest first."""
    if not _TYPE.fullmatch(folder.name):
        raise BadSchema(folder, "the folder's name is no type: letters, digits, '.', '_' and '-', at most 200")
    schemas = []
    for path in folder.iterdir():
        if path.name.startswith(".") or path.name.endswith(_REFUSED):
            continue
        if path.suffix != ".json" or not _VERSION.fullmatch(path.stem):
            raise BadSchema(path, f"expected MAJOR.MINOR.json or MAJOR.MINOR{_REFUSED}, as in 1.0.json")
        schemas.append(_load_schema(path))
    if not schemas:
        raise BadSchema(folder, "holds no schema: MAJOR.MINOR.json, as in 1.0.json")
    schemas.sort(key=lambda schema: _order(schema.version))
    for older, newer in pairwise(schemas):
        _check_succession(folder, older, newer)
    return schemas


@cache
def _strict() -> jsonschema_rs.Draft202012Validator:
    """Compile it once: the library never frees a validator that refers to itself, a quarter of a megabyte each."""
    return jsonschema_rs.Draft202012Validator(_STRICT, offline=True)


def _load_schema(path: Path) -> Schema:
    type_, version = path.parent.name, path.stem
    try:
        document = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise BadSchema(path, f"cannot be read as JSON: {error}") from error
    if not isinstance(document, dict):
        raise BadSchema(path, "a schema is a JSON object")
    for member, expected in (("$schema", _DIALECT), ("$id", f"urn:drm-ingest:schema:{type_}:{version}")):
        if document.get(member) != expected:
            raise BadSchema(path, f'"{member}" must be "{expected}"')
    own = document.get("x-drm")
    if not isinstance(own, dict) or not own.keys() <= {"family", "data_required"}:
        raise BadSchema(path, '"x-drm" must be an object with "family" and, if wanted, "data_required"')
    family, data_required = own.get("family"), own.get("data_required", True)
    if not isinstance(family, str) or not _FAMILY.fullmatch(family) or family == UNCLASSIFIED:
        raise BadSchema(path, f'"x-drm.family" must be lower-case letters, digits and "-", and not "{UNCLASSIFIED}"')
    if not isinstance(data_required, bool):
        raise BadSchema(path, '"x-drm.data_required" must be true or false')
    if unknown := _strict().evaluate(document).errors():
        where = max((entry["instanceLocation"] for entry in unknown), key=lambda place: place.count("/"))
        raise BadSchema(path, f"{where} is not in JSON Schema 2020-12; a keyword of your own begins with x-")
    try:
        # An engine without backtracking: no pattern can be made slow by what a sender sends.
        validator = jsonschema_rs.Draft202012Validator(
            document,
            validate_formats=True,
            ignore_unknown_formats=False,
            pattern_options=jsonschema_rs.RegexOptions(),
            offline=True,
        )
    except (jsonschema_rs.ValidationError, jsonschema_rs.ReferencingError) as error:
        raise BadSchema(path, error.message) from error
    return Schema(type_, version, family, data_required, validator.is_valid, document, validator)


def _check_succession(folder: Path, older: Schema, newer: Schema) -> None:
    """A type has one topic; a minor takes whatever the minor before took."""
    path = folder / f"{newer.version}.json"
    if newer.family != older.family:
        raise BadSchema(path, f'family "{newer.family}", but "{older.family}" in {older.version}: a type has one topic')
    if _order(newer.version)[0] != _order(older.version)[0]:
        return
    if newer.data_required and not older.data_required:
        raise BadSchema(path, f"needs data, which {older.version} did not: a minor only ever adds")
    if missing := set(_listed(older.document)) - set(_listed(newer.document)):
        raise BadSchema(path, f"lacks {min(missing)}, which {older.version} lists: a minor only ever adds")
    covered = jsonschema_rs.canonicalize(dict(newer.document), validate_formats=True, offline=True).covers(
        jsonschema_rs.canonicalize(_without_unlisted(older.document), validate_formats=True, offline=True)
    )
    if covered == jsonschema_rs.canonical.Containment.NO:  # of some conditions the library cannot tell: UNKNOWN
        raise BadSchema(path, f"refuses data that {older.version} takes: a minor only ever adds")


def _listed(document: Mapping[str, Any], above: str = "") -> Iterator[str]:
    for name, part in document.get("properties", {}).items():
        yield above + name
        if isinstance(part, dict):
            items = part.get("items")
            yield from _listed(items if isinstance(items, dict) else part, f"{above}{name}/")


def _without_unlisted(document: Mapping[str, Any]) -> dict[str, Any]:
    """The same schema, taking no member that it does not list: those are free to get a meaning in a later minor."""
    closed = {
        key: {name: _without_unlisted(part) if isinstance(part, dict) else part for name, part in value.items()}
        if key in ("properties", "$defs")
        else _without_unlisted(value)
        if key == "items" and isinstance(value, dict)
        else value
        for key, value in document.items()
    }
    if "properties" in closed:
        closed.setdefault("additionalProperties", False)
    return closed
