"""Files of other systems flow in: each line once, whatever happens meanwhile, and what is refused is told."""

import json
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from drm_ingest.exchange.parties import LINES
from drm_ingest.postgres.bulk.relations import Held, Imagined, Wanted, begin_many
from drm_ingest.postgres.roles import ensure_login
from drm_ingest.settings import Settings

CUSTOMERS = """\
Customer Ref,Customer Name,Segment,City
C-1,Ada Byron,Consumer,Lund
C-2,Ben Okafor,Corporate,Oslo
null,Nobody,Consumer,Lund
C-3,,Consumer,Lund
C-4,Cy Twombly,Consumer,"Rome
(old town)"
C-5,too,many,cells,here
"""
MAPPING = """
[fields]
kind = { constant = "customer" }
name = "Customer Name"
refs.shop = "Customer Ref"
origin = { constant = "shop" }
attributes.segment = { column = "Segment", type = "text" }
attributes.city = "City"
"""

Import = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
async def db(database: str) -> AsyncIterator[asyncpg.Connection]:
    connection = await asyncpg.connect(database)
    yield connection
    await connection.close()


@pytest.fixture
async def as_serve(db: asyncpg.Connection, settings: Settings, environment: Mapping[str, str]) -> dict[str, str]:
    """The environment of a command that has the rights of serve and no others."""
    await ensure_login(db, "serve", "test_importer", "of-the-importer")
    _, _, address = settings.postgres_dsn.get_secret_value().rpartition("@")
    return {**environment, "DRM_POSTGRES_DSN": f"postgresql://test_importer:of-the-importer@{address}"}


@pytest.fixture
def import_(as_serve: Mapping[str, str], tmp_path: Path) -> Import:
    """Return a function that runs `drm-ingest import`."""

    def run(what: str, file: Path, *options: str, mapping: str | None = None) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "drm_ingest", "import", what, str(file), *options]
        if mapping is not None:
            (tmp_path / "mapping.toml").write_text(mapping)
            command += ["--mapping", str(tmp_path / "mapping.toml")]
        return subprocess.run(command, env=dict(as_serve), capture_output=True, text=True, check=False, timeout=120)

    return run


def refused(file: Path) -> list[tuple[int, str, str]]:
    """The line, code and original of what was refused."""
    lines = file.with_name(file.name + ".errors.ndjson").read_text().splitlines()
    return [(told["line"], told["code"], told["original"]) for told in map(json.loads, lines)]


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def kill_once(begun: Callable[[], bool], command: Sequence[str], environment: Mapping[str, str]) -> None:
    """Run a command and kill it as soon as it has begun; it is not over by then."""
    quiet = subprocess.DEVNULL
    with subprocess.Popen(command, env=dict(environment), stdout=quiet, stderr=quiet) as killed:
        deadline = time.monotonic() + 240
        while not begun() and killed.poll() is None and time.monotonic() < deadline:
            time.sleep(0.01)
        killed.send_signal(signal.SIGKILL)
    assert begun()
    assert killed.returncode == -signal.SIGKILL


async def everything(db: asyncpg.Connection) -> dict[str, Any]:
    """What parties, references and attributes there are, without what each run gives them anew."""
    return {
        "parties": [
            tuple(row)
            for row in await db.fetch(
                "select kind, name, refs from party join lateral (select array_agg(namespace || ':' || ref order by 1) "
                "as refs from party_ref where party = party.id) as named on true order by refs"
            )
        ],
        "attributes": [
            tuple(row)
            for row in await db.fetch(
                "select ref, name, origin, value, said_at, recorded_at, asserted_by from party_attribute "
                "join party_ref using (party) order by 1, 2, 3"
            )
        ],
    }  # fmt: skip


async def test_good_lines_are_taken_and_wrong_ones_told_with_line_code_and_original(
    db: asyncpg.Connection, import_: Import, tmp_path: Path
) -> None:
    file = tmp_path / "customers.csv"
    file.write_text(CUSTOMERS)
    done = import_("parties", file, mapping=MAPPING)
    assert done.returncode == 1, done.stderr
    assert "made 3 · changed 0 · the same 0 · refused 3" in done.stderr
    assert "  " not in done.stderr.replace("\n  ", "")
    assert refused(file) == [
        (4, "reference_refused", "null,Nobody,Consumer,Lund"),
        (5, "field_invalid", "C-3,,Consumer,Lund"),
        (8, "unreadable", "C-5,too,many,cells,here"),
    ]
    found = await everything(db)
    assert found["parties"] == [
        ("customer", "Ada Byron", ["shop:C-1"]),
        ("customer", "Ben Okafor", ["shop:C-2"]),
        ("customer", "Cy Twombly", ["shop:C-4"]),
    ]
    assert [row[:4] for row in found["attributes"]][-2:] == [
        ("C-4", "city", "shop", '"Rome\\n(old town)"'),
        ("C-4", "segment", "shop", '"Consumer"'),
    ]


async def test_a_file_imported_twice_is_imported_once(db: asyncpg.Connection, import_: Import, tmp_path: Path) -> None:
    file = tmp_path / "customers.csv"
    file.write_text(CUSTOMERS)
    import_("parties", file, mapping=MAPPING)
    once = await everything(db)
    again = import_("parties", file, mapping=MAPPING)
    assert "made 0 · changed 0 · the same 3 · refused 3" in again.stderr
    assert await everything(db) == once
    assert len(refused(file)) == 3
    assert names_in(tmp_path) == [
        "customers.csv",
        "customers.csv.errors.ndjson",
        "mapping.toml",
    ]


async def test_a_dry_run_says_what_would_be_and_changes_nothing(
    db: asyncpg.Connection, import_: Import, tmp_path: Path
) -> None:
    file = tmp_path / "customers.csv"
    file.write_text(CUSTOMERS)
    dry = import_("parties", file, "--dry-run", mapping=MAPPING)
    assert "made 3 · changed 0 · the same 0 · refused 3 (nothing was changed: a dry run)" in dry.stderr
    assert (await everything(db))["parties"] == []
    assert names_in(tmp_path) == ["customers.csv", "mapping.toml"]
    import_("parties", file, mapping=MAPPING)
    file.write_text(CUSTOMERS.replace("Oslo", "Bergen") + "C-6,Di Lay,Consumer,Kyiv\n")
    dry = import_("parties", file, "--dry-run", mapping=MAPPING)
    assert "made 1 · changed 1 · the same 2 · refused 3" in dry.stderr
    assert "made 1 · changed 1 · the same 2 · refused 3" in import_("parties", file, mapping=MAPPING).stderr


async def test_a_clean_run_leaves_no_error_file_nor_that_of_a_run_before(import_: Import, tmp_path: Path) -> None:
    file = tmp_path / "customers.csv"
    file.write_text(CUSTOMERS)
    import_("parties", file, mapping=MAPPING)
    assert len(refused(file)) == 3
    file.write_text("".join(CUSTOMERS.splitlines(keepends=True)[:3]))
    again = import_("parties", file, mapping=MAPPING)
    assert (again.returncode, "has what an earlier run refused" in again.stderr) == (0, True), again.stderr
    assert names_in(tmp_path) == ["customers.csv", "mapping.toml"]


async def test_lines_that_share_a_reference_are_one_party_and_a_line_that_names_two_is_refused(
    db: asyncpg.Connection, import_: Import, tmp_path: Path
) -> None:
    file = tmp_path / "some.ndjson"
    lines = [
        {"kind": "customer", "name": "Ada", "refs": {"crm": "1"}},
        {"kind": "customer", "name": "Ada B.", "refs": {"crm": "1", "shop": ["a", "b"]}},
        {"kind": "customer", "name": "Ben", "refs": {"crm": "2"}},
        {"kind": "customer", "name": "both", "refs": {"crm": "2", "shop": "a"}},
        {"kind": "vendor", "name": "Ada's", "refs": {"crm": "1"}},
        {"kind": "customer", "name": "no reference"},
    ]
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    expected = "made 2 · changed 1 · the same 0 · refused 3"
    assert expected in import_("parties", file, "--dry-run").stderr
    assert expected in import_("parties", file).stderr
    assert [code for _, code, _ in refused(file)] == ["reference_conflict", "kind_conflict", "reference_missing"]
    assert (await everything(db))["parties"] == [
        ("customer", "Ada", ["crm:1", "shop:a", "shop:b"]),
        ("customer", "Ben", ["crm:2"]),
    ]


async def test_a_file_that_does_not_fit_stops_before_it_does_harm(
    db: asyncpg.Connection, import_: Import, tmp_path: Path
) -> None:
    file = tmp_path / "customers.csv"
    file.write_text(
        "Customer Ref,Customer Name,Segment,City\n" + "".join(f"C-{n},,x,y\n" for n in range(150)) + "C-x,Ada,x,y\n"
    )
    stopped = import_("parties", file, mapping=MAPPING)
    assert stopped.returncode == 1
    assert "stopped: 150 of 151 lines are refused" in stopped.stderr
    assert (await everything(db))["parties"] == []
    assert "made 1" in import_("parties", file, "--refused-share-max", "1", mapping=MAPPING).stderr


async def test_an_import_that_is_killed_goes_on_where_it_stopped(
    db: asyncpg.Connection, as_serve: Mapping[str, str], import_: Import, tmp_path: Path
) -> None:
    count, taken = 30_000, 2 * LINES
    file = tmp_path / "many.csv"
    rows = "".join(f"{n if n % 1000 else 'null'},Party {n}\n" for n in range(1, count + 1))
    file.write_text("refs.crm,name\n" + rows)
    mapping = tmp_path / "mapping.toml"
    mapping.write_text('[fields]\nkind = {constant = "customer"}\nname = "name"\nrefs.crm = "refs.crm"\n')
    command = [sys.executable, "-m", "drm_ingest", "import", "parties", str(file), "--mapping", str(mapping)]
    note = tmp_path / ".many.csv.parties.import"

    def is_waiting() -> bool:
        return note.exists() and json.loads(note.read_text())["progress"]["read"] == taken

    held = db.transaction()  # what somebody else is about to call so keeps the third batch waiting
    await held.start()
    await db.execute(
        "with other as (insert into party (kind, name) values ('customer', 'other') returning id) "
        "insert into party_ref (namespace, ref, party) select 'crm', $1, id from other", str(taken + 1),
    )  # fmt: skip
    patient = {"DRM_POSTGRES_LOCK_TIMEOUT_S": "300", "DRM_POSTGRES_STATEMENT_TIMEOUT_S": "300"}
    kill_once(is_waiting, command, {**as_serve, **patient})
    await held.rollback()
    done = import_("parties", file, mapping=mapping.read_text())
    assert f"Going on after line {1 + taken}" in done.stderr
    assert await db.fetchval("select count(*) from party") == count - count // 1000
    assert [line for line, _, _ in refused(file)] == [1 + 1000 * n for n in range(1, count // 1000 + 1)]
    assert not note.exists()


PARTIES = [
    {"kind": "customer", "name": "Ada", "refs": {"crm": "1"}},
    {"kind": "customer", "name": "Ben", "refs": {"crm": "2"}},
    {"kind": "vendor", "name": "North", "refs": {"erp": "n"}},
]


def write_lines(file: Path, lines: Sequence[Mapping[str, Any]]) -> Path:
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return file


async def test_devices_are_registered_and_described_anew_only_where_they_changed(
    db: asyncpg.Connection, import_: Import, tmp_path: Path
) -> None:
    await db.execute("insert into device (subject, registered_by) values ('seen', 'event')")
    file = tmp_path / "devices.csv"
    lines = "subject,model,firmware\nseen,Thermo 3,\nm-1,Thermo 3,1.0\nm-2,,\nm-1,,1.1\nparty:crm:1,x,\n"
    (tmp_path / "devices.csv").write_text(lines)
    assert "made 2 · changed 2 · the same 0 · refused 1" in import_("devices", file, "--dry-run").stderr
    assert "made 2 · changed 2 · the same 0 · refused 1" in import_("devices", file).stderr
    assert [code for _, code, _ in refused(file)] == ["field_invalid"]
    rows = await db.fetch("select subject, model, firmware, registered_by from device order by 1")
    assert [tuple(row) for row in rows] == [
        ("m-1", "Thermo 3", "1.1", "registry"),
        ("m-2", None, None, "registry"),
        ("seen", "Thermo 3", None, "registry"),
    ]


async def test_half_a_name_of_a_party_becomes_no_device(
    db: asyncpg.Connection, import_: Import, tmp_path: Path
) -> None:
    import_("parties", write_lines(tmp_path / "parties.ndjson", PARTIES))
    ada = await db.fetchval("select party from party_ref where namespace = 'crm' and ref = '1'")
    await db.execute(
        "insert into device (subject, registered_by) values ('crm:2', 'registry')"
    )  # a device may be called as a party is
    subjects = ["crm:1", str(ada), ada.hex, "crm:2", "crm:3", "00000000-0000-0000-0000-000000000000"]
    lines = [{"subject": subject, "role": "serviced_by", "party": "erp:n"} for subject in subjects]
    file = write_lines(tmp_path / "relations.ndjson", lines)
    expected = "made 3 · changed 0 · the same 0 · refused 3"
    assert expected in import_("relationships", file, "--dry-run").stderr
    told = import_("relationships", file).stderr
    assert expected in told
    assert "/subject There is no device crm:1, and a party is called so: write party:crm:1. A device of that" in told
    assert [(line, code) for line, code, _ in refused(file)] == [(n, "field_invalid") for n in (1, 2, 3)]
    devices = await db.fetch("select subject from device order by 1")
    assert [row["subject"] for row in devices] == sorted(subjects[3:])


async def test_relations_come_in_under_the_rules_of_the_door_and_are_written_down_with_what_they_move(
    db: asyncpg.Connection, import_: Import, tmp_path: Path
) -> None:
    import_("parties", write_lines(tmp_path / "parties.ndjson", PARTIES))
    at = "2026-03-0{}T00:00:00Z".format
    lines = [
        {"subject": "m-1", "role": "owner", "party": "crm:1", "valid_from": at(1), "valid_to": at(3)},
        {"subject": "m-1", "role": "owner", "party": "crm:2", "valid_from": at(3)},
        {"subject": "m-1", "role": "owner", "party": "crm:1", "valid_from": at(4)},  # held already
        {"subject": "m-1", "role": "user", "party": "crm:1", "valid_from": at(2), "valid_to": at(5), "reason": "lent"},
        {"subject": "m-1", "role": "owner", "party": "crm:1", "valid_from": at(1), "valid_to": at(3)},  # the same
        {"subject": "m-1", "role": "sold_by", "party": "crm:1"},  # no vendor
        {"subject": "m-1", "role": "owner", "party": "crm:9"},
        {"subject": "m-2", "role": "sold_by", "party": "erp:n", "valid_from": at(5), "valid_to": at(4)},
        {"subject": "m-2", "role": "sold_by", "party": "erp:n", "batch": "b"},
        {"subject": "party:crm:1", "role": "buys_from", "party": "erp:n"},
        {"subject": "party:crm:1", "role": "buys_from", "party": "crm:1"},
    ]
    file = write_lines(tmp_path / "relations.ndjson", lines)
    expected = "made 4 · changed 0 · the same 1 · refused 6"
    assert expected in import_("relationships", file, "--dry-run").stderr
    assert await db.fetchval("select count(*) from relationship") == 0
    told = import_("relationships", file).stderr
    assert expected in told
    assert "/role sold_by on a device is held by a party of the kind vendor, and this one's is customer." in told
    wrong_role = write_lines(tmp_path / "wrong.ndjson", [{"subject": "m-1", "role": "ownr", "party": "crm:1"}])
    told = import_("relationships", wrong_role).stderr
    assert "There is no role 'ownr' on a device (did you mean 'owner'?); there are " in told
    assert "sold_by" in told
    assert [(line, code) for line, code, _ in refused(file)] == [
        (3, "held_already"),
        (6, "role_misfit"),
        (7, "party_unknown"),
        (8, "field_invalid"),
        (9, "field_invalid"),
        (11, "field_invalid"),
    ]
    written = await db.fetch(
        "select change.subject, role, change, detail ->> 'reason' as reason, direction, starts, ends, events "
        "from relationship_change change left join relationship_move using (number) order by number, starts"
    )
    march = [datetime(2026, 3, day, tzinfo=UTC) for day in range(1, 6)]
    ada = await db.fetchval("select party from party_ref where namespace = 'crm' and ref = '1'")
    assert [tuple(row) for row in written] == [
        ("m-1", "owner", "begun", None, "gained", march[0], march[2], 0),
        ("m-1", "owner", "begun", None, "gained", march[2], None, 0),
        ("m-1", "user", "begun", "lent", "gained", march[2], march[4], 0),  # until then Ada owned it
        (f"party:{ada}", "buys_from", "begun", None, "gained", None, None, 0),
    ]
    assert "made 0 · changed 0 · the same 5 · refused 6" in import_("relationships", file).stderr


class Compared(datetime):
    """A time that counts how often it was looked at."""

    times = 0

    def __lt__(self, other: Any) -> bool:
        Compared.times += 1
        return super().__lt__(other)

    def __le__(self, other: Any) -> bool:
        Compared.times += 1
        return super().__le__(other)


async def test_a_subject_of_very_many_lines_does_not_have_each_held_against_all_others(
    db: asyncpg.Connection, import_: Import, tmp_path: Path
) -> None:
    import_("parties", write_lines(tmp_path / "parties.ndjson", PARTIES))
    days = [Compared(2020, 1, 1, tzinfo=UTC) + timedelta(days=n) for n in range(1001)]
    lines = [
        Wanted("m-1", "owner", f"crm:{1 + n % 2}", starts, ends, None, "office", None, "m-1")
        for n, (starts, ends) in enumerate(pairwise(days))
    ]
    imagined = Imagined()
    assert await begin_many(db, lines, imagined) == ["made"] * 1000
    assert await begin_many(db, lines, imagined) == ["same"] * 1000
    meanwhile = [replace(line, valid_from=line.valid_from + timedelta(hours=1)) for line in lines if line.valid_from]
    refused_by = await begin_many(db, meanwhile, imagined)
    assert [one.valid_from for one in refused_by if isinstance(one, Held)] == days[:-1]
    assert len(refused_by) < Compared.times < 100_000  # each against each other it were some millions


async def test_a_relation_of_linked_parties_moves_what_is_about_all_of_them_and_one_among_them_nothing(
    db: asyncpg.Connection, import_: Import, tmp_path: Path
) -> None:
    nuts = [{"kind": "supplier", "name": name, "refs": {"erp": name}} for name in ("Nuts", "Bolts")]
    import_("parties", write_lines(tmp_path / "parties.ndjson", [*PARTIES, *nuts]))
    id_of = {row["name"]: row["id"] for row in await db.fetch("select name, id from party")}
    for one, other in (("Ada", "Ben"), ("Nuts", "Bolts")):
        await db.execute(
            "insert into party_link (party, other, kind, reason, asserted_by, recorded) "
            "select id, $2, kind, 'same card', 'office', tstzrange(now(), null) from party where id = $1",
            *sorted((id_of[one], id_of[other])),
        )
    noon = datetime(2026, 3, 1, 12, tzinfo=UTC)
    for about in ("party:crm:1", "party:crm:2", f"party:{id_of['Ben']}", "party:erp:Nuts"):
        await db.execute(
            "insert into event "
            "(occurred_at, received_at, content_hash, subject, source, id, type, time_quality, sender) "
            "values ($1, $1, gen_random_uuid(), $2, '', '1', 'support.contact', 'sent', 'x')",
            noon, about,
        )  # fmt: skip
        await db.execute(
            "insert into subject_day (day, events, last_at, last_hash, subject, type) "
            "values ($1, 1, $2, gen_random_uuid(), $3, 'support.contact')",
            noon.date(), noon, about,
        )  # fmt: skip
    claims = [
        {"subject": "party:crm:1", "role": "buys_from", "party": "erp:n", "valid_from": "2026-03-01T00:00:00Z"},
        # What is there by the one relation does not come once more by the other, of this file or of the next.
        {"subject": "party:crm:2", "role": "buys_from", "party": "erp:n", "valid_from": "2026-02-01T00:00:00Z"},
        {"subject": "party:erp:Nuts", "role": "supplies", "party": "erp:Bolts"},
    ]
    import_("relationships", write_lines(tmp_path / "relations.ndjson", claims))
    again = {**claims[0], "valid_from": "2026-01-01T00:00:00Z", "valid_to": "2026-02-15T00:00:00Z"}
    import_("relationships", write_lines(tmp_path / "more.ndjson", [again]))
    changes = await db.fetch(
        "select change.role, starts, ends, events from relationship_change change "
        "left join relationship_move using (number) order by number"
    )
    assert [tuple(row) for row in changes] == [
        ("buys_from", datetime(2026, 3, 1, tzinfo=UTC), None, 3),
        ("buys_from", datetime(2026, 2, 1, tzinfo=UTC), datetime(2026, 3, 1, tzinfo=UTC), 0),
        ("supplies", None, None, None),
        ("buys_from", datetime(2026, 1, 1, tzinfo=UTC), datetime(2026, 2, 1, tzinfo=UTC), 0),
    ]


async def test_relations_learnt_after_their_events_tell_what_they_moved_as_those_of_the_door_do(
    db: asyncpg.Connection, import_: Import, tmp_path: Path
) -> None:
    import_("parties", write_lines(tmp_path / "parties.ndjson", PARTIES))
    for day in (1, 2, 3):
        at = datetime(2026, 3, day, 12, tzinfo=UTC)
        await db.execute(
            "insert into event "
            "(occurred_at, received_at, content_hash, subject, source, id, type, time_quality, sender) "
            "values ($1, $1, gen_random_uuid(), 'm-1', '', $2, 'device.status', 'sent', 'x')",
            at, str(day),
        )  # fmt: skip
        await db.execute(
            "insert into subject_day (day, events, last_at, last_hash, subject, type) "
            "values ($1, 1, $2, gen_random_uuid(), 'm-1', 'device.status')",
            at.date(), at,
        )  # fmt: skip
    claims = [
        {"subject": "m-1", "role": "owner", "party": "crm:1", "valid_from": "2026-03-02T13:00:00Z"},
        {"subject": "m-1", "role": "user", "party": "crm:1", "valid_from": "2026-03-01T00:00:00Z"},
    ]
    import_("relationships", write_lines(tmp_path / "relations.ndjson", claims))
    moved = await db.fetch("select events, types from relationship_move order by number")
    assert [(row["events"], json.loads(row["types"])) for row in moved] == [
        (1, {"device.status": 1}),
        (2, {"device.status": 2}),
    ]
