"""What would be wrong in every line of a file is told once, with what was probably meant, before any is taken."""

from pathlib import Path

import pytest

from drm_ingest.exchange.lines import Unreadable
from drm_ingest.exchange.mapping import BadMapping
from drm_ingest.exchange.opening import Import, opened


def refused(what: str, file: Path, mapping: Path | None = None) -> str:
    with pytest.raises((BadMapping, Unreadable)) as wrong:
        opened(Import(what, file, mapping, None, None, True, False, 0.1, 100, ","), "", print)
    return str(wrong.value)


@pytest.mark.parametrize(
    ("what", "file", "told"),
    [
        ("parties", "Ref,nmae,kind\n1,Ada,customer\n",
         ("/Ref: There is no such field (did you mean 'refs'?). · ",
          "/nmae: There is no such field (did you mean 'name'?). · /name: Must be given. · and 1 more",
          " · expected are kind, name, refs.<namespace>, attributes.<name>, origin, said_at",
          "; there are Ref, nmae, kind · ")),
        ("parties", "kind,name,refs.CRM,attributes.city\n",
         ("/refs/CRM: Must match", "/origin: Say which system its attributes are from.")),
        ("parties", "kind,name,refs,refs.crm\n", ("/refs: It is a value and holds values too.",)),
        ("events", "Type,time\n", ("/type: Must be given.", "(did you mean 'type'?)")),
        ("devices", "serial\n",
         ("not the fields of devices: expected are subject, model, firmware; there are serial · --mapping names",)),
        ("devices", '{"serial": 1}\n', ("of devices: expected are subject, ", "there are serial ·")),
    ],
)  # fmt: skip
def test_columns_that_are_not_the_fields_are_told_with_those_that_are(
    tmp_path: Path, what: str, file: str, told: tuple[str, ...]
) -> None:
    path = tmp_path / ("x.ndjson" if file.startswith("{") else "x.csv")
    path.write_text(file)
    said = refused(what, path)
    assert [part for part in told if part not in said] == [], said


@pytest.mark.parametrize("mapping", [None, "[fields]\nkind = 'kind'\nname = 'name'\nrefs.crm = 'refs.crm'\n"])
def test_a_header_that_something_else_separates_is_told_with_what_to_say(tmp_path: Path, mapping: str | None) -> None:
    (tmp_path / "x.csv").write_text("kind\tname\trefs.crm\n")
    path = None if mapping is None else tmp_path / "m.toml"
    if mapping is not None:
        (tmp_path / "m.toml").write_text(mapping)
    assert "separated by tab: say --delimiter tab" in refused("parties", tmp_path / "x.csv", path)


def test_a_line_that_is_wrong_among_lines_of_which_each_has_its_own_names_says_nothing_of_the_others(
    tmp_path: Path,
) -> None:
    (tmp_path / "x.ndjson").write_text('{"name": "Ada", "colour": "red"}\n')
    opened(Import("parties", tmp_path / "x.ndjson", None, None, None, True, False, 0.1, 100, ","), "", print)


@pytest.mark.parametrize(
    ("what", "fields", "told"),
    [
        ("parties", "name = 'name'\nkind = {const = 'customer'}\nrefs.crm = 'crm'",
         "/kind: A field is read from a column, a constant or a template, and not from a 'const' (did you mean "),
        ("parties", "nme = 'name'\nkind = {constant = 'customer'}\nrefs.crm = 'crm'",
         "/nme: There is no such field (did you mean 'name'?). · /name: Must be given. · expected are kind, name, "),
        ("parties", "name = 'name'\nkind = {constant = 'costumer'}\nrefs.crm = ['crm', 'shop']",
         "parties: /kind: Must be 'customer', "),
        ("parties", "name = 'name'\nkind = 'kind'", "parties: /refs: Give the party a reference"),
        ("relationships", "subject = 'id'\nrole = {constant = 'owner'}\nparty = 'crm'\nvalid_form = 'since'",
         "relationships: /valid_form: There is no such field (did you mean 'valid_from'?)."),
        ("events", "type = {constant = 'x.seen'}\nsubject = {temlate = 'm-{id}'}",
         "/subject: A field is read from a column, a constant or a template, and not from a 'temlate' (did you mean"),
        ("events", "type = {constant = 'x.seen'}\ndataSchema = 'v'", "(did you mean 'dataschema'?)"),
    ],
)  # fmt: skip
def test_a_mapping_to_fields_that_there_are_not_is_told_with_what_was_meant(
    tmp_path: Path, what: str, fields: str, told: str
) -> None:
    (tmp_path / "x.ndjson").write_text('{"name": "Ada", "crm": 1}\n')
    (tmp_path / "m.toml").write_text(f"[fields]\n{fields}\n")
    said = refused(what, tmp_path / "x.ndjson", tmp_path / "m.toml")
    assert f"m.toml does not fit {what}: " in said
    assert told in said


def test_a_word_that_is_no_source_is_told_where_its_value_is_taken_for_a_column(tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_text("kind,name\ncustomer,Ada\n")
    (tmp_path / "m.toml").write_text("[fields]\nattributes.city = {const = 'Lund'}\n")
    said = refused("parties", tmp_path / "x.csv", tmp_path / "m.toml")
    assert "/attributes/city/const: There is no column 'Lund'" in said
    assert "(did you mean 'constant'?)" in said


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("x.gz", "", "both also packed (.gz), and Parquet (.parquet); rename it, as in x.csv.gz"),
        ("x.xlsx", "", "read are CSV (.csv), NDJSON (.ndjson, .jsonl, .json), "),
        ("x.parquet.gz", "", "gunzip it first"),
        ("x.json", '[\n{"subject": "m-1"}\n]\n', "jq -c '.[]' makes"),
        ("x.ndjson", '{\n"subject": "m-1"\n}\n', "jq -c . makes"),
    ],
)  # fmt: skip
def test_a_file_that_is_not_read_is_told_with_what_makes_it_one_that_is(
    tmp_path: Path, name: str, content: str, told: str
) -> None:
    (tmp_path / name).write_text(content)
    assert told in refused("devices", tmp_path / name)
