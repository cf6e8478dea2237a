"""Columns become fields as docs/import.md says; what cannot is told with its field."""

import re
from datetime import UTC, date, datetime
from pathlib import Path

import pytest
from pydantic import SecretStr

from drm_ingest.exchange.fit import misfit
from drm_ingest.exchange.lines import File, Unreadable
from drm_ingest.exchange.mapping import BadMapping, Columns, Unmappable
from drm_ingest.exchange.parties import Parties
from drm_ingest.exchange.refused import LineCode, Refused
from drm_ingest.exchange.relationships import Relationships
from drm_ingest.exchange.taking import Context
from drm_ingest.settings import Settings

DOCS = Path(__file__).parents[2] / "docs"
DOCUMENT = (DOCS / "import.md").read_text()


@pytest.mark.parametrize(
    ("fields", "pointer", "reason"),
    [
        ({"valid_from": "20260301"}, "/valid_from",
         "Must be a time in RFC 3339 with an offset, as in 2026-11-22T10:00:00Z."),
        ({"valid_to": "9999-12-31T00:00:00Z"}, "/valid_to", "Must lie in the years 2 to 9998."),
        ({"role": ""}, "/role", "Must not be empty."),
        ({"colour": "red"}, "/colour", "There is nothing of this name here; /docs lists what there is."),
    ],
)  # fmt: skip
def test_a_field_of_a_line_is_refused_in_the_words_of_the_door(
    fields: dict[str, str], pointer: str, reason: str
) -> None:
    context = Context(Settings(), "erp", datetime.now(UTC), dry_run=True)
    with pytest.raises(Refused) as refused:
        Relationships(context).read({"subject": "m-1", "role": "owner", "party": "crm:1"} | fields)
    assert (refused.value.pointer, refused.value.reason) == (pointer, reason)


def test_a_reference_of_a_line_is_refused_where_it_is() -> None:
    context = Context(Settings(), "erp", datetime.now(UTC), dry_run=True)
    with pytest.raises(Refused) as refused:
        Parties(context).read({"kind": "customer", "name": "Ada", "refs": {"crm": ["1", 7]}})
    assert (refused.value.pointer, refused.value.reason) == ("/refs/crm/1", 'Must be a string: "4711" and not 4711.')


def test_a_line_may_name_a_party_by_its_mail_address() -> None:
    settings = Settings(reference_hmac_key=SecretStr("a key of at least thirty-two bytes"))
    context = Context(settings, "erp", datetime.now(UTC), dry_run=True)
    line = {"subject": "party:email:Ada@acme.se", "role": "buys_from", "party": "email:cy@acme.se"}
    wanted = Relationships(context).read(line)
    (party,) = Parties(context).read({"kind": "customer", "name": "Ada", "refs": {"email": "ada@acme.se"}}).refs
    assert wanted.subject == "party:" + ":".join(party)
    assert wanted.party.startswith("email-hmac:")


@pytest.mark.parametrize("written", ["9999-12-31", " 9999-12-31 ", date(9999, 12, 31), datetime(9999, 12, 31)])
def test_an_end_that_stands_for_none_may_be_named_as_absent(tmp_path: Path, written: object) -> None:
    mapping = columns(tmp_path, 'absent = ["9999-12-31"]\n[fields]\nvalid_to = {column = "Ends", type = "time"}\n')
    assert mapping.fields({"Ends": written}) == {}
    assert mapping.fields({"Ends": date(2026, 3, 1)}) == {"valid_to": "2026-03-01T00:00:00Z"}


def columns(tmp_path: Path, text: str) -> Columns:
    (tmp_path / "mapping.toml").write_text(text)
    return Columns.load(tmp_path / "mapping.toml")


def test_the_mapping_of_the_document_does_what_it_says(tmp_path: Path) -> None:
    (example,) = re.findall(r"```toml\n(.*?)```", DOCUMENT, re.DOTALL)
    row = {
        "Customer Name": " Ada Byron ", "Customer ID": "a9", "Country": "AT", "Customer No": "77", "Segment": "A",
        "Updated": "01.07.2026 10:00", "Credit": "1234.50", "Newsletter": "yes",
    }  # fmt: skip
    assert columns(tmp_path, example).fields(row) == {
        "kind": "customer",
        "name": "Ada Byron",
        "refs": {"shop": "a9", "crm": "AT-77"},
        "origin": "shop",
        "said_at": "2026-07-01T08:00:00Z",
        "attributes": {"segment": "key account", "credit_minor": 123450, "newsletter": True},
    }
    assert columns(tmp_path, example).fields(dict.fromkeys(row, "n/a")) == {"kind": "customer", "origin": "shop"}


def test_every_code_of_a_refused_line_is_in_the_document() -> None:
    assert [code.value for code in LineCode if f"| `{code.value}` | {code.remedy} |" not in DOCUMENT] == []


@pytest.mark.parametrize("mapping", sorted((DOCS / "superstore").glob("*.toml")), ids=lambda path: path.stem)
def test_the_mappings_of_the_superstore_are_read(mapping: Path) -> None:
    assert callable(Columns.load(mapping).fields)


@pytest.mark.parametrize(
    ("field", "value", "pointer"),
    [
        ('n = {column = "x", type = "integer"}', "1.5", "/n"),
        ('data.n = {column = "x", type = "number"}', "NaN", "/data/n"),
        ('at = {column = "x", type = "time"}', "soon", "/at"),
        ('at = {column = "x", format = "%Y"}', "2026-01", "/at"),
        ('b = {column = "x", type = "boolean"}', "maybe", "/b"),
        ('v = {column = "x", values = {A = "a"}}', "B", "/v"),
        ('j = {column = "x", type = "json"}', "{", "/j"),
        ('list = ["x", "y"]', "1", "/list/1"),
    ],
)
def test_a_value_that_does_not_fit_is_told_with_its_field(tmp_path: Path, field: str, value: str, pointer: str) -> None:
    with pytest.raises(Unmappable) as refused:
        columns(tmp_path, f"[fields]\n{field}\n").fields({"x": value})
    assert refused.value.pointer == pointer


@pytest.mark.parametrize(
    "text",
    [
        "", "[fields]", "fields = 1", "[field]\nn = 'x'", "[fields]\nn = 1",
        "[fields]\nn = {column = 'x', tpye = 'text'}",
        "[fields]\nn = {column = 'x', type = 'txt'}", "[fields]\nn = {column = 'x', constant = 1}",
        "[fields]\nn = {column = 'x', zone = 'Mars/Olympus'}", "[times]\nformt = 'x'\n[fields]\nn = 'x'",
        "[fields]\nn = {template = 'no column'}", "[fields",
        "[fields]\nn = {column = 'x', type = 'integer', scale = 'a'}",
    ],
)  # fmt: skip
def test_a_mapping_that_is_wrong_is_refused_before_anything_is_read(tmp_path: Path, text: str) -> None:
    with pytest.raises(BadMapping):
        columns(tmp_path, text)


def test_a_line_keeps_its_number_and_its_original(tmp_path: Path) -> None:
    file = tmp_path / "x.csv"
    file.write_bytes(b'\xef\xbb\xbfa,b\r\n1,"two\r\nlines"\r\n\r\n2\r\n3,\xff\r\n4,\0\r\n')
    found = [(line.number, line.row, line.original, line.wrong is None) for line in File(file).lines()]
    assert found == [
        (3, {"a": "1", "b": "two\r\nlines"}, '1,"two\r\nlines"', True),
        (5, None, "2", False),
        (6, None, "3,\udcff", False),
        (7, None, "4,\0", False),
    ]
    assert [line.number for line in File(file).lines(after=5)] == [6, 7]


def test_a_file_of_an_unknown_kind_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.xlsx").touch()
    with pytest.raises(Unreadable):
        File(tmp_path / "x.xlsx")


def test_a_parquet_file_is_read_with_its_types(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.table({"crm": ["007", "8"], "n": [1, None]}), tmp_path / "x.parquet")
    read = columns(tmp_path, "[fields]\nrefs.crm = 'crm'\nn = 'n'\n")
    rows = [read.fields(line.row) for line in File(tmp_path / "x.parquet").lines() if line.row is not None]
    assert rows == [{"refs": {"crm": "007"}, "n": 1}, {"refs": {"crm": "8"}}]


def test_a_mapping_that_does_not_fit_a_file_is_told_with_what_was_probably_meant(tmp_path: Path) -> None:
    path = tmp_path / "m.toml"
    path.write_text(
        "[fields]\nname = 'Custmer Name'\nkind = {constant = 'Kind'}\nrefs.shop = {template = '{Ref} {Number}'}\n"
        "id = {template = '{#line}'}\ndata.lines = [{sku = 'SKU'}]\n"
    )
    columns = Columns.load(path)
    assert misfit(columns.named, ["Customer Name", "Ref", "number", "SKU"]) == (
        "/name: There is no column 'Custmer Name' (did you mean 'Customer Name'?); "
        "there are Customer Name, Ref, number, SKU. · "
        "/refs/shop: There is no column 'Number' (did you mean 'number'?); there are Customer Name, Ref, number, SKU."
    )
    assert misfit(columns.named, ["Custmer Name", "Ref", "Number", "SKU"]) is None


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("[feilds]\na = 'b'", "did you mean 'fields'?"),
        ("[fields]\na = {column = 'b', tpye = 'integer'}", "did you mean 'type'?"),
        ("[fields]\na = {column = 'b', type = 'interger'}", "did you mean 'integer'?"),
    ],
)
def test_a_word_that_a_mapping_does_not_know_is_told_with_the_one_that_was_meant(
    tmp_path: Path, text: str, told: str
) -> None:
    path = tmp_path / "m.toml"
    path.write_text(text)
    with pytest.raises(BadMapping) as wrong:
        Columns.load(path)
    assert told in str(wrong.value)
