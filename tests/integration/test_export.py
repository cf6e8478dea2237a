"""What is exported is read back by what people read it with, whole and with its schema versions."""

import asyncio
import json
import subprocess
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path

import asyncpg
import pandas as pd
import pyarrow.parquet as pq

from drm_ingest.exchange.parquet import BYTES_A_GROUP, RELATIONSHIPS, TABLE_BYTES, Written, metadata_of
from drm_ingest.settings import KiB, MiB

STATUS, ODD = "device.status", "Ünknown/type=x"


def export(folder: Path, environment: Mapping[str, str], *options: str) -> str:
    command = [sys.executable, "-m", "drm_ingest", "export", str(folder), *options]
    done = subprocess.run(command, env=dict(environment), capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stderr


def in_duckdb(query: str) -> list[list[object]]:
    """Ask in a process of its own, as its users do: in ours its types would outlive it."""
    code = "import duckdb, json, sys; json.dump(duckdb.sql(sys.argv[1]).fetchall(), sys.stdout)"
    done = subprocess.run([sys.executable, "-c", code, query], capture_output=True, text=True, check=True, timeout=120)
    rows: list[list[object]] = json.loads(done.stdout)
    return rows


async def store(db: asyncpg.Connection, type_: str, at: datetime, version: str | None, data: str | None) -> None:
    await db.execute(
        "insert into event "
        "(occurred_at, received_at, content_hash, subject, source, id, type, time_quality, sender, dataschema, data) "
        "values ($1, $1, gen_random_uuid(), 'm-1', '', gen_random_uuid()::text, $2, 'sent', 'x', $3, $4)",
        at, type_, version, data,
    )  # fmt: skip
    await db.execute(
        "insert into subject_day (day, events, last_at, last_hash, subject, type) "
        "values ($1, 1, $2, gen_random_uuid(), 'm-1', $3) on conflict do nothing",
        at.date(), at, type_,
    )  # fmt: skip


async def fill(db: asyncpg.Connection) -> None:
    for day in range(1, 29):
        await store(db, STATUS, datetime(2026, 3, day, tzinfo=UTC), "1.0" if day % 2 else "1.1", f'{{"n": {day}}}')
    await store(db, STATUS, datetime(2026, 4, 1, tzinfo=UTC), None, None)
    await store(db, ODD, datetime(2026, 4, 1, tzinfo=UTC), None, '{"ä": 1}')
    party = await db.fetchval("insert into party (kind, name) values ('customer', 'Ada') returning id")
    await db.execute("insert into party_ref (namespace, ref, party) values ('crm', '1', $1)", party)
    await db.execute(
        "insert into party_attribute (party, name, origin, value, said_at, asserted_by) "
        "values ($1, 'city', 'crm', '\"Lund\"', now(), 'x')",
        party,
    )
    await db.execute(
        "insert into relationship (subject, role, party, exclusive, subject_kind, party_kind, valid) "
        "values ('m-1', 'owner', $1, true, 'device', 'customer', tstzrange('2026-03-01Z', null))",
        party,
    )


def files_in(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


async def test_an_export_is_read_back_by_duckdb_and_pandas(
    db: asyncpg.Connection, environment: Mapping[str, str], tmp_path: Path
) -> None:
    await fill(db)
    folder = tmp_path / "out"
    assert "32 rows in 6 files" in export(folder, environment)
    names = files_in(folder)
    assert names == [
        "_export.json",
        "devices/part-0.parquet",
        "events/type=%C3%9Cnknown%2Ftype%3Dx/month=2026-04/part-0.parquet",
        f"events/type={STATUS}/month=2026-03/part-0.parquet",
        f"events/type={STATUS}/month=2026-04/part-0.parquet",
        "parties/part-0.parquet",
        "relationships/part-0.parquet",
    ]
    events = f"read_parquet('{folder}/events/*/*/*.parquet', hive_partitioning = true)"
    counted = in_duckdb(
        f"select month, count(*), sum((data::json ->> 'n')::int)::int from {events} group by 1 order by 1"
    )
    assert counted == [["2026-03", 28, sum(range(1, 29))], ["2026-04", 2, None]]
    owned = in_duckdb(
        f"select name, role, subject from read_parquet('{folder}/relationships/*.parquet') as relation "
        f"join read_parquet('{folder}/parties/*.parquet') as party on party.id = relation.party"
    )
    assert owned == [["Ada", "owner", "m-1"]]
    march = pd.read_parquet(folder / "events", filters=[("month", "==", "2026-03"), ("type", "==", STATUS)])
    assert march["occurred_at"].min() == pd.Timestamp("2026-03-01", tz="UTC")
    assert len(march) == len(pd.read_parquet(folder / names[3])) == 28
    (ada,) = pd.read_parquet(folder / "parties").to_dict("records")
    assert (json.loads(ada["refs"]), json.loads(ada["attributes"])[0]["value"]) == ({"crm": ["1"]}, "Lund")
    said = metadata_of(folder / names[3])
    assert said == {
        "drm.format": "1", "drm.table": "event", "drm.type": STATUS, "drm.month": "2026-03", "drm.rows": "28",
        "drm.schema-versions": '["1.0","1.1"]',
    }  # fmt: skip


async def test_an_export_repeated_replaces_every_file_and_one_interrupted_goes_on_behind_what_is_done(
    db: asyncpg.Connection, environment: Mapping[str, str], tmp_path: Path
) -> None:
    await fill(db)
    folder = tmp_path / "out"
    export(folder, environment)
    first = files_in(folder)
    await db.execute("update event set type = $1 where occurred_at < '2026-03-15Z'", "device.fault")
    assert "32 rows in 7 files" in export(folder, environment)
    assert "events/type=device.fault/month=2026-03/part-0.parquet" in files_in(folder)
    await db.execute("delete from event where type = 'device.fault'")
    assert "18 rows in 6 files" in export(folder, environment)
    assert files_in(folder) == first  # what is gone is not there twice
    interrupt(folder, done=("events 2026-03",))
    await db.execute("delete from event")
    assert "Going on behind 1 part of" in export(folder, environment)
    assert f"events/type={STATUS}/month=2026-04/part-0.parquet" in files_in(folder), "dropped events stay exported"


def interrupt(folder: Path, done: tuple[str, ...]) -> None:
    """Leave the note as it is once these parts are done and nothing else."""
    note = json.loads((folder / "_export.json").read_text())
    note |= {"complete": False, "parts": {part: note["parts"][part] for part in done}}
    (folder / "_export.json").write_text(json.dumps(note))


# -- while everything goes on, and however much there is


async def tell_stories(db: asyncpg.Connection, numbers: range, events_each: int = 1) -> None:
    """Of each number a customer, who owns a device, which sent events of 1,000 bytes; in one transaction."""
    await db.execute(
        """
        with number as (select generate_series($1::int, $2::int) as n),
        customer as (insert into party (kind, name) select 'customer', n::text from number returning id, name),
        called as (insert into party_ref (namespace, ref, party) select 'crm', name, id from customer),
        device as (insert into device (subject, registered_by) select 'd-' || n, 'event' from number),
        owner as (
            insert into relationship (subject, role, party, exclusive, subject_kind, party_kind, valid)
            select 'd-' || name, 'owner', id, true, 'device', 'customer', tstzrange('2026-03-01Z', null) from customer
        ),
        counted as (
            insert into subject_day (day, events, last_at, last_hash, subject, type)
            select '2026-03-05', $3, '2026-03-05Z', gen_random_uuid(), 'd-' || n, $4 from number
        )
        insert into event
            (occurred_at, received_at, content_hash, subject, source, id, type, time_quality, sender, data)
        select '2026-03-05Z', now(), gen_random_uuid(), 'd-' || n, '', i::text, $4, 'sent', 'x',
            jsonb_build_object('n', n, 'text', repeat(md5(n || ' ' || i), 31))
        from number cross join generate_series(1, $3::int) as i
        """,
        numbers[0], numbers[-1], events_each, STATUS,
    )  # fmt: skip


async def test_an_export_agrees_with_itself_while_everything_goes_on(
    db: asyncpg.Connection, environment: Mapping[str, str], tmp_path: Path
) -> None:
    before = told = 10_000
    await tell_stories(db, range(before))
    running = asyncio.create_task(asyncio.to_thread(export, tmp_path, environment))
    while not running.done():
        await tell_stories(db, range(told, told + 1))
        told += 1
    await running
    parties, relations, devices, events = (
        pd.read_parquet(tmp_path / name) for name in ("parties", "relationships", "devices", "events")
    )
    assert set(relations["party"]) == set(parties["id"])
    assert set(relations["subject"]) == set(devices["subject"])
    sent_by = set(events["subject"])
    assert sent_by <= set(relations["subject"])
    assert sent_by == {f"d-{number}" for number in range(len(sent_by))}, "a later event is there, an earlier one not"
    assert before < len(sent_by) <= len(devices) < told, "nothing went on"


async def test_the_memory_of_an_export_does_not_grow_with_what_there_is(
    db: asyncpg.Connection, environment: Mapping[str, str], tmp_path: Path
) -> None:
    await tell_stories(db, range(10_000), events_each=4)
    few = peak_bytes(tmp_path / "few", environment)
    await tell_stories(db, range(10_000, 40_000), events_each=4)
    many = peak_bytes(tmp_path / "many", environment)
    assert len(pd.read_parquet(tmp_path / "many" / "events", columns=["id"])) == 160_000
    more = 120_000 * 1000
    assert many - few < more / 3, f"{more // MiB} MiB more events take {(many - few) / MiB:.0f} MiB more memory"


def peak_bytes(folder: Path, environment: Mapping[str, str]) -> int:
    """Export, and return the most memory that the process had at any time.

    Started from a small process: Linux counts what the parent has where it forks as the child's.
    """
    measure = (
        "import resource, subprocess, sys; subprocess.run(sys.argv[1:], check=True);"
        "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)"
    )
    command = [sys.executable, "-c", measure, sys.executable, "-m", "drm_ingest", "export", str(folder)]
    done = subprocess.run(command, env=dict(environment), capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    return int(done.stdout) * (1 if sys.platform == "darwin" else KiB)


def test_rows_that_come_one_by_one_do_not_wait_until_their_values_fill_the_memory(tmp_path: Path) -> None:
    file = Written(tmp_path / "rare.parquet", RELATIONSHIPS, {})
    for _ in range(2 * BYTES_A_GROUP // TABLE_BYTES):
        file.add([dict.fromkeys(RELATIONSHIPS.names)])
    file.finish()
    assert pq.read_metadata(file.path).num_row_groups >= 2
