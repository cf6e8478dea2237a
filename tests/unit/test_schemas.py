"""The shipped schemas do what they say, and a folder of schemas that is wrong is refused at start."""

import json
import re
from collections.abc import Iterator
from dataclasses import FrozenInstanceError
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from drm_ingest.__main__ import cli
from drm_ingest.examples import wrong
from drm_ingest.schema import BadSchema, Schema, Schemas, UnknownVersion

REPOSITORY = Path(__file__).parents[2]
SHIPPED = Schemas.load(REPOSITORY / "schemas")
EVERY_SCHEMA = [pytest.param(schema, id=f"{schema.type} {schema.version}") for schema in SHIPPED]
SUCCESSIONS = [
    (older, newer)
    for older, newer in combinations(SHIPPED, 2)
    if older.type == newer.type and older.version.split(".")[0] == newer.version.split(".")[0]
]
DOCUMENT = (REPOSITORY / "docs" / "schemas.md").read_text()


def parts(document: Any) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every listed member of a schema at any depth, with its name."""
    if isinstance(document, dict):
        for key, value in document.items():
            if key == "properties":
                yield from ((name, part) for name, part in value.items() if isinstance(part, dict))
            if key != "examples":
                yield from parts(value)
    elif isinstance(document, list):
        for value in document:
            yield from parts(value)


def table(heading: str) -> list[list[str]]:
    """The cells of the first table under a heading of the document, without its head, as plain text."""
    section = DOCUMENT.split(f"\n## {heading}\n", 1)[1].split("\n## ", 1)[0]
    rows = [line.strip("|").split("|") for line in section.splitlines() if line.startswith("|")]
    return [[cell.strip().strip("`") for cell in row] for row in rows[2:]]


# -- what is shipped ---------------------------------------------------------------------------------------------------


def test_every_schema_takes_its_examples_and_refuses_the_mistakes_beside_it_at_their_place() -> None:
    assert list(wrong(REPOSITORY / "schemas")) == []


def test_mistakes_are_shown_for_schemas_that_exist() -> None:
    shown = {(path.parent.name, path.name) for path in (REPOSITORY / "schemas").glob("*/*.invalid.json")}

    assert shown == {(schema.type, f"{schema.version}.invalid.json") for schema in SHIPPED}


@pytest.mark.parametrize(("older", "newer"), SUCCESSIONS, ids=lambda schema: schema.version)
def test_a_newer_minor_takes_every_example_of_an_older_one(older: Schema, newer: Schema) -> None:
    for example in older.document["examples"]:
        assert newer.is_valid(example), newer.first_violation(example)


def test_some_type_has_several_minors() -> None:
    assert ("device.status", "1.0", "1.1") in {
        (older.type, older.version, newer.version) for older, newer in SUCCESSIONS
    }


@pytest.mark.parametrize("schema", EVERY_SCHEMA)
def test_every_schema_and_every_listed_member_is_described(schema: Schema) -> None:
    assert schema.document["title"]
    for name, part in [("data", schema.document), *parts(schema.document)]:
        described = "const" in part or part.get("description", "").endswith(".")
        assert described, f"{schema.type} {schema.version}: {name}"


@pytest.mark.parametrize("schema", EVERY_SCHEMA)
def test_no_name_with_a_colon_is_listed_because_those_belong_to_senders(schema: Schema) -> None:
    assert not [name for name, _ in parts(schema.document) if ":" in name]


def test_every_number_of_a_device_has_a_unit() -> None:
    numbers = [
        (schema.type, name, part)
        for schema in SHIPPED
        if schema.type in {"device.measurement", "device.status"}
        for name, part in parts(schema.document)
        if part.get("type") == "number"
    ]

    assert len(numbers) > 20
    assert not [(type_, name) for type_, name, part in numbers if "x-unit" not in part]


def test_the_units_of_listed_readings_are_those_listed() -> None:
    for schema in SHIPPED:
        if schema.type == "device.measurement":
            members = schema.document["properties"]
            listed = {name: {"const": part["x-unit"]} for name, part in members.items() if name != "units"}
            assert members["units"]["properties"] == listed


def test_every_type_is_in_the_document_with_its_versions_and_family() -> None:
    documented = {type_: (versions.split(", "), family) for type_, versions, family, _ in table("The types")}

    assert documented == {
        schema.type: ([s.version for s in SHIPPED if s.type == schema.type], schema.family) for schema in SHIPPED
    }


def test_every_family_and_every_unit_is_in_the_document() -> None:
    units = {part["x-unit"] for schema in SHIPPED for _, part in parts(schema.document) if "x-unit" in part}

    assert sorted(family for family, _ in table("The families")) == list(SHIPPED.families)
    assert {unit for unit, *_ in table("Units")} == units


def test_the_smallest_schema_of_the_document_loads(tmp_path: Path) -> None:
    [block] = [text for text in re.findall(r"```json\n(.*?)```", DOCUMENT, re.DOTALL) if "$schema" in text]
    (tmp_path / "lock.opened").mkdir()
    (tmp_path / "lock.opened" / "1.0.json").write_text(block)

    schema = Schemas.load(tmp_path).find("lock.opened", None)

    assert schema is not None
    assert all(schema.is_valid(example) for example in schema.document["examples"])
    assert schema.first_violation({"by": "crowbar"}) == (
        "/data/by",
        "by must be one of key, code, app. How it was opened.",
    )


# -- finding one -------------------------------------------------------------------------------------------------------


def write(directory: Path, type_: str, version: str, body: dict[str, Any] | None = None, **own: Any) -> Path:
    """Write a schema and return its path; `own` goes into x-drm, family `test` unless told."""
    path = directory / type_ / f"{version}.json"
    path.parent.mkdir(exist_ok=True)
    head = {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$id": f"urn:drm-ingest:schema:{type_}:{version}",
        "x-drm": {"family": "test"} | own,
    }
    path.write_text(json.dumps(head | (body or {})))
    return path


def load_one(directory: Path, body: dict[str, Any]) -> Schema:
    write(directory, "t", "1.0", body)
    schema = Schemas.load(directory).find("t", None)
    assert schema is not None
    return schema


def test_a_type_is_added_by_adding_a_file(tmp_path: Path) -> None:
    write(tmp_path, "com.acme.DoorOpened", "1.0", {"required": ["door"]}, family="doors", data_required=False)

    schemas = Schemas.load(tmp_path)
    schema = schemas.find("com.acme.DoorOpened", None)

    assert schemas.families == ("doors", "unclassified")
    assert schemas.family("com.acme.DoorOpened") == "doors"
    assert schema is not None
    assert (schema.type, schema.version, schema.data_required) == ("com.acme.DoorOpened", "1.0", False)
    assert schema.is_valid({"door": 3})
    assert not schema.is_valid({})


def test_a_checkout_finds_its_own_schemas() -> None:
    assert [schema.document for schema in Schemas.load()] == [schema.document for schema in SHIPPED]


def test_an_unknown_type_has_no_schema_and_is_unclassified() -> None:
    assert SHIPPED.find("toaster.popped", None) is None
    assert SHIPPED.find("toaster.popped", "1.0") is None
    assert SHIPPED.family("toaster.popped") == "unclassified"
    assert "unclassified" in SHIPPED.families


def test_without_a_version_the_newest_minor_of_major_1_is_meant(tmp_path: Path) -> None:
    for version in ("0.1", "1.0", "1.9", "1.10", "2.0"):
        write(tmp_path, "t", version)
    schemas = Schemas.load(tmp_path)

    assert [schema.version for schema in schemas] == ["0.1", "1.0", "1.9", "1.10", "2.0"]
    newest, named = schemas.find("t", None), schemas.find("t", "2.0")
    assert newest is not None
    assert newest.version == "1.10"
    assert named is not None
    assert named.version == "2.0"


def test_a_version_that_is_not_there_is_answered_with_those_that_are() -> None:
    with pytest.raises(UnknownVersion, match=r"^device\.status has no version 1\.7; there is 1\.0, 1\.1$") as caught:
        SHIPPED.find("device.status", "1.7")

    assert caught.value.known == ("1.0", "1.1")


@pytest.mark.parametrize("dataschema", ["", "1", "01.0", "1.0 ", "1.0.0", "https://example.org/device.status/1.0"])
def test_a_version_is_major_dot_minor_and_nothing_else(dataschema: str) -> None:
    with pytest.raises(UnknownVersion):
        SHIPPED.find("device.status", dataschema)


def test_a_type_without_a_major_1_asks_for_its_version_by_name(tmp_path: Path) -> None:
    write(tmp_path, "t", "2.0")
    schemas = Schemas.load(tmp_path)

    with pytest.raises(UnknownVersion, match=r"name one of these in dataschema: 2\.0"):
        schemas.find("t", None)


def test_loaded_schemas_cannot_be_changed() -> None:
    with pytest.raises(FrozenInstanceError):
        SHIPPED.families = ()  # type: ignore[misc]
    with pytest.raises(FrozenInstanceError):
        next(iter(SHIPPED)).family = "other"  # type: ignore[misc]


# -- what a sender is told ---------------------------------------------------------------------------------------------


def test_a_violation_names_the_place_what_it_must_be_and_its_unit() -> None:
    schema = SHIPPED.find("device.measurement", None)
    assert schema is not None

    assert schema.first_violation({"humidity": "40"}) == (
        "/data/humidity",
        "humidity must be a number, not a string. Relative humidity; a little over 100 happens. Unit: %RH.",
    )


@pytest.mark.parametrize(
    ("body", "data", "pointer", "detail"),
    [
        ({"type": "object"}, [], "/data", "data must be an object, not an array."),
        ({"type": ["object", "null"]}, 1, "/data", "data must be an object or null, not a number."),
        ({"minProperties": 1}, {}, "/data", "data must not be empty."),
        ({"maxProperties": 1}, {"a": 1, "b": 1}, "/data", "data must have 1 members or fewer."),
        ({"required": ["a"]}, {}, "/data/a", "a is missing."),
        ({"dependentRequired": {"a": ["b"]}}, {"a": 1}, "/data/b", "b is missing."),
        (
            {"properties": {"a": {"type": "integer"}}},
            {"a": 1.5},
            "/data/a",
            "a must be a whole number, not a decimal number.",
        ),
        ({"properties": {"a": {"type": "number"}}}, {"a": True}, "/data/a", "a must be a number, not true or false."),
        ({"properties": {"a": {"maximum": 5}}}, {"a": 6}, "/data/a", "a must be at most 5."),
        ({"properties": {"a": {"exclusiveMinimum": 0}}}, {"a": 0}, "/data/a", "a must be more than 0."),
        ({"properties": {"a": {"const": "b"}}}, {"a": "c"}, "/data/a", "a must be b."),
        ({"properties": {"a": {"pattern": "^b"}}}, {"a": "c"}, "/data/a", "a does not have the form it needs."),
        ({"properties": {"a": {"format": "date-time"}}}, {"a": "today"}, "/data/a", "a must be a valid date-time."),
        ({"properties": {"a": False}}, {"a": 1}, "/data/a", "a does not fit."),
        (
            {"properties": {}, "additionalProperties": False},
            {"b": 1},
            "/data/b",
            "b is not known here: remove it or correct its name.",
        ),
        (
            {"properties": {"a/b": {"items": {"properties": {"~": {"type": "string"}}}}}},
            {"a/b": [{}, {"~": 1}]},
            "/data/a~1b/1/~0",
            "~ must be a string, not a number.",
        ),
        (
            {"$defs": {"x": {"description": "An x.", "type": "string"}}, "properties": {"a": {"$ref": "#/$defs/x"}}},
            {"a": None},
            "/data/a",
            "a must be a string, not null. An x.",
        ),
        ({"anyOf": [{"required": ["a"]}, {"required": ["b"]}]}, {}, "/data", "data does not fit."),
    ],
)
def test_a_violation_says_what_to_change(
    tmp_path: Path, body: dict[str, Any], data: object, pointer: str, detail: str
) -> None:
    assert load_one(tmp_path, body).first_violation(data) == (pointer, detail)


LONG = "x" * 100_000


@pytest.mark.parametrize(
    "data",
    [
        {"temperature": LONG},
        {LONG: "a"},
        {"temperature": [LONG] * 10},
        {"units": {LONG: 1}, "temperature": 1},
        {"a" * 300: {"b": LONG}},
    ],
)
def test_what_a_sender_is_told_stays_short_and_repeats_no_value(data: object) -> None:
    schema = SHIPPED.find("device.measurement", None)
    assert schema is not None

    pointer, detail = schema.first_violation(data)

    assert len(pointer) <= 300
    assert len(detail) <= 300
    assert LONG[:100] not in pointer + detail


def test_long_lists_of_choices_are_cut(tmp_path: Path) -> None:
    schema = load_one(tmp_path, {"enum": [f"choice-{number}" for number in range(1000)]})

    _, detail = schema.first_violation("other")

    assert len(detail) == 300
    assert detail.endswith("…")


def test_valid_data_has_no_violation() -> None:
    schema = SHIPPED.find("device.measurement", None)
    assert schema is not None

    with pytest.raises(ValueError, match="there is no violation"):
        schema.first_violation({"temperature": 21.5})


NAMES = st.sampled_from([name for schema in SHIPPED for name, _ in parts(schema.document)]) | st.text(max_size=9)
VALUES = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9)
JSON = st.recursive(VALUES, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=4))


@given(schema=st.sampled_from(list(SHIPPED)), data=JSON)
def test_whatever_is_sent_is_either_valid_or_explained(schema: Schema, data: object) -> None:
    if not schema.is_valid(data):
        pointer, detail = schema.first_violation(data)
        assert pointer.startswith("/data")
        assert len(pointer) <= 300
        assert 0 < len(detail) <= 300


# -- what is refused at start ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ({"$schema": "http://json-schema.org/draft-07/schema#"}, "2020-12"),
        ({"$id": "urn:drm-ingest:schema:t:1.1"}, "urn:drm-ingest:schema:t:1.0"),
        ({"x-drm": None}, "x-drm"),
        ({"x-drm": {"family": "test", "familly": "test"}}, "x-drm"),
        ({"x-drm": {}}, "x-drm.family"),
        ({"x-drm": {"family": "Two.Words"}}, "x-drm.family"),
        ({"x-drm": {"family": "unclassified"}}, "x-drm.family"),
        ({"x-drm": {"family": "test", "data_required": "no"}}, "x-drm.data_required"),
        ({"type": "strin"}, "/type is not in JSON Schema"),
        ({"properties": {"a": {"minimun": 3}}}, "/properties/a/minimun is not in JSON Schema"),
        ({"allOf": [{"if": {"requred": ["a"]}}]}, "/allOf/0/if/requred is not in JSON Schema"),
        ({"properties": {"a": {"format": "date-tme"}}}, "date-tme"),
        ({"pattern": "^(?!party:)"}, "regex"),
        ({"$ref": "https://example.org/other.json"}, "other.json"),
        ({"$ref": "#/$defs/missing"}, "/$defs/missing"),
    ],
)  # fmt: skip
def test_a_wrong_schema_is_refused_with_its_file_and_the_reason(
    tmp_path: Path, body: dict[str, Any], reason: str
) -> None:
    path = write(tmp_path, "t", "1.0", body)

    with pytest.raises(BadSchema, match=re.escape(reason)) as caught:
        Schemas.load(tmp_path)

    assert str(caught.value).startswith(f"{path}: ")


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("t/1.0.json", "{", "cannot be read as JSON"),
        ("t/1.0.json", "\xff", "cannot be read as JSON"),
        ("t/1.0.json", "[]", "a schema is a JSON object"),
        ("t/1.json", "{}", "expected MAJOR.MINOR.json"),
        ("t/v1.0.json", "{}", "expected MAJOR.MINOR.json"),
        ("t/01.0.json", "{}", "expected MAJOR.MINOR.json"),
        ("t/1.0.yaml", "", "expected MAJOR.MINOR.json"),
        ("t/1.0.invalid.json", "[]", "holds no schema"),
        ("t t/1.0.json", "{}", "no type"),
        ("t-1.0.json", "{}", "stands in the folder of its type"),
        ("README.md", "", "holds no schema"),
    ],
)  # fmt: skip
def test_a_folder_that_is_not_as_it_should_be_is_refused(tmp_path: Path, name: str, content: str, reason: str) -> None:
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(content.encode("latin-1"))

    with pytest.raises(BadSchema, match=reason):
        Schemas.load(tmp_path)


def test_a_folder_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadSchema, match="DRM_SCHEMAS_DIR"):
        Schemas.load(tmp_path / "missing")


def test_hidden_files_and_notes_beside_the_types_are_left_alone(tmp_path: Path) -> None:
    write(tmp_path, "t", "1.0")
    (tmp_path / "..data").mkdir()
    (tmp_path / "README.md").touch()
    (tmp_path / "t" / ".1.0.json.swp").touch()

    assert [schema.type for schema in Schemas.load(tmp_path)] == ["t"]


BEFORE: dict[str, Any] = {
    "type": "object",
    "properties": {
        "a": {"enum": ["x", "y"]},
        "b": {"type": "array", "items": {"properties": {"c": {"maxLength": 5}}}},
    },
}


@pytest.mark.parametrize(
    "change",
    [
        {"required": ["a"]},
        {"properties": BEFORE["properties"] | {"a": {"enum": ["x"]}}},
        {"properties": BEFORE["properties"] | {"a": {"type": "number"}}},
        {"properties": {"a": {}, "b": {"type": "array", "items": {"properties": {"c": {"maxLength": 4}}}}}},
    ],
)
def test_a_minor_that_takes_something_away_is_refused(tmp_path: Path, change: dict[str, Any]) -> None:
    write(tmp_path, "t", "1.0", BEFORE)
    path = write(tmp_path, "t", "1.1", BEFORE | change)

    with pytest.raises(BadSchema, match=r"refuses data that 1\.0 takes: a minor only ever adds") as caught:
        Schemas.load(tmp_path)

    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    ("properties", "missing"),
    [
        ({"a": BEFORE["properties"]["a"]}, "b"),
        (BEFORE["properties"] | {"b": {"type": "array", "items": {"type": "object"}}}, "b/c"),
    ],
)
def test_a_minor_keeps_every_member_that_is_listed(tmp_path: Path, properties: dict[str, Any], missing: str) -> None:
    write(tmp_path, "t", "1.0", BEFORE)
    write(tmp_path, "t", "1.1", {"type": "object", "properties": properties})

    with pytest.raises(BadSchema, match=rf"lacks {missing}, which 1\.0 lists"):
        Schemas.load(tmp_path)


def test_a_minor_may_add_members_and_choices_and_room(tmp_path: Path) -> None:
    after = {
        "type": "object",
        "properties": {
            "a": {"enum": ["x", "y", "z"]},
            "b": {"type": "array", "items": {"properties": {"c": {"maxLength": 6}, "d": {"type": "number"}}}},
            "e": {"type": "boolean"},
        },
    }
    write(tmp_path, "t", "1.0", BEFORE)
    write(tmp_path, "t", "1.1", after)

    assert [schema.version for schema in Schemas.load(tmp_path)] == ["1.0", "1.1"]


def test_a_major_may_take_something_away(tmp_path: Path) -> None:
    write(tmp_path, "t", "1.0", BEFORE)
    write(tmp_path, "t", "2.0", BEFORE | {"required": ["a"]})

    assert [schema.version for schema in Schemas.load(tmp_path)] == ["1.0", "2.0"]


def test_a_minor_cannot_start_to_need_data(tmp_path: Path) -> None:
    write(tmp_path, "t", "1.0", data_required=False)
    write(tmp_path, "t", "1.1", data_required=True)

    with pytest.raises(BadSchema, match=r"needs data, which 1\.0 did not"):
        Schemas.load(tmp_path)


def test_all_versions_of_a_type_go_to_one_topic(tmp_path: Path) -> None:
    write(tmp_path, "t", "1.0", family="one")
    write(tmp_path, "t", "2.0", family="two")

    with pytest.raises(BadSchema, match="a type has one topic"):
        Schemas.load(tmp_path)


# -- what the examples are held to -------------------------------------------------------------------------------------

LOCK: dict[str, Any] = {"properties": {"by": {"enum": ["key", "code"]}}, "required": ["by"]}


def with_mistakes(directory: Path, mistakes: object) -> list[str]:
    path = write(directory, "lock.opened", "1.0", LOCK | {"examples": [{"by": "key"}, {"by": "code"}]})
    path.with_name("1.0.invalid.json").write_text(mistakes if isinstance(mistakes, str) else json.dumps(mistakes))
    return list(wrong(directory))


MISTAKE = {"why": "no such way", "data": {"by": "foot"}, "pointer": "/data/by"}


@pytest.mark.parametrize(
    ("mistakes", "says"),
    [
        ("{", "lock.opened/1.0.invalid.json: cannot be read as JSON"),
        ({"by": "foot"}, "lock.opened/1.0.invalid.json: is a list of mistakes: [{"),
        ([MISTAKE, "foot"], "mistake 2 has exactly why, data and pointer"),
        ([{"data": {}}], "mistake 1 has exactly why, data and pointer"),
        ([MISTAKE | {"pointer": "/by"}], "mistake 1: pointer begins at the event, with /data"),
        ([MISTAKE], "lock.opened 1.0: shows 1 mistakes; show at least 2"),
        ([MISTAKE, MISTAKE | {"data": {"by": "key"}}], "takes what it ought to refuse: no such way"),
        ([MISTAKE, MISTAKE | {"pointer": "/data"}], "refuses at /data/by, not at /data: no such way"),
    ],
)
def test_mistakes_that_show_nothing_are_told_with_what_is_wrong(tmp_path: Path, mistakes: object, says: str) -> None:
    [told] = with_mistakes(tmp_path, mistakes)
    assert says in told


def test_an_example_that_its_schema_refuses_is_told(tmp_path: Path) -> None:
    write(tmp_path, "lock.opened", "1.0", LOCK | {"examples": [{"by": "key"}, {}]})
    refused, missing = wrong(tmp_path)
    assert refused == "lock.opened 1.0: example 2 is refused at /data/by: by is missing."
    assert "lock.opened/1.0.invalid.json: cannot be read" in missing


def test_a_team_checks_a_folder_of_its_own_with_a_command(tmp_path: Path) -> None:
    assert with_mistakes(tmp_path, [MISTAKE, MISTAKE]) == []
    good = CliRunner().invoke(cli, ["schemas", str(tmp_path)])
    assert (good.exit_code, good.stdout) == (0, "lock.opened 1.0 → test\nnothing is wrong\n")
    with_mistakes(tmp_path, [])
    wrong_ = CliRunner().invoke(cli, ["schemas", str(tmp_path)])
    assert (wrong_.exit_code, "shows 0 mistakes" in wrong_.stderr) == (1, True)
    broken = CliRunner().invoke(cli, ["schemas", str(tmp_path / "lock.opened")])
    assert (broken.exit_code, "a schema stands in the folder of its type" in broken.stderr) == (1, True)


def test_the_sample_of_mistakes_in_the_document_fits_the_smallest_schema(tmp_path: Path) -> None:
    schema, sample = (
        next(text for text in re.findall(r"```json\n(.*?)```", DOCUMENT, re.DOTALL) if mark in text)
        for mark in ("$schema", '"why"')
    )
    (tmp_path / "lock.opened").mkdir()
    (tmp_path / "lock.opened" / "1.0.json").write_text(schema)
    (tmp_path / "lock.opened" / "1.0.invalid.json").write_text(sample)
    assert list(wrong(tmp_path)) == []
