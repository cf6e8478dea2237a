"""`drm-ingest send` as a person runs it, against a real edge and its Kafka."""

import asyncio
import gzip
import json
import os
import signal
import socket
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from tests.integration.edge import KEY, Edge, an_event

from drm_ingest.up.kafka import Kafka

MEASURED = ("--type", "device.measurement", "--time-column", "when", "--subject-column", "device")


@dataclass
class Ended:
    """How a run of the command ended, and what it told the person."""

    code: int
    told: str


async def send(edge: Edge, file: Path, *options: str, key: str = KEY) -> Ended:
    """Run it to its end, in the folder of the file."""
    process = await start(edge, file, *options, key=key)
    _, told = await process.communicate()
    assert process.returncode is not None
    return Ended(process.returncode, told.decode())


async def start(edge: Edge, file: Path, *options: str, key: str = KEY) -> asyncio.subprocess.Process:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("DRM_")}
    environment |= {"DRM_EDGE_URL": edge.url, "DRM_SENDER_KEY": key}
    return await asyncio.create_subprocess_exec(
        sys.executable, "-m", "drm_ingest", "send", file.name, *options,
        cwd=file.parent, env=environment, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip


async def sent(edge: Edge, *subjects: str) -> list[dict[str, Any]]:
    """Return the events of these subjects in the ingress topic."""
    keys = {subject.encode() for subject in subjects}
    return [json.loads(record.value) for record in await edge.records() if record.key in keys]


def ndjson(path: Path, *lines: bytes | dict[str, Any]) -> Path:
    path.write_bytes(b"\n".join([line if isinstance(line, bytes) else json.dumps(line).encode() for line in lines]))
    return path


async def test_the_columns_of_a_csv_become_events(edge: Edge, tmp_path: Path) -> None:
    with gzip.open(tmp_path / "room.csv.gz", "wt") as file:
        file.write("when,device,celsius,note\n2026-05-01 08:00:00,csv-1,21.5,\n2026-05-01 08:01:00,csv-2,22,x\n")
    ended = await send(
        edge, tmp_path / "room.csv.gz", *MEASURED,
        "--timezone", "Europe/Vienna", "--column", "celsius=temperature",
    )  # fmt: skip
    assert (ended.code, "accepted 2 · rejected 0 · retried 0" in ended.told) == (0, True), ended.told
    found = {
        event["subject"]: (event["type"], event["time"], event["data"]) for event in await sent(edge, "csv-1", "csv-2")
    }
    assert found == {
        "csv-1": ("device.measurement", "2026-05-01T06:00:00Z", {"temperature": 21.5}),
        "csv-2": ("device.measurement", "2026-05-01T06:01:00Z", {"temperature": 22}),
    }


async def test_what_is_sent_again_has_the_same_ids(edge: Edge, tmp_path: Path) -> None:
    file = tmp_path / "room.csv"
    file.write_text("when,device,temperature\n2026-05-01,again-1,1\n2026-05-02,again-1,1\n")
    for _ in range(2):
        assert (await send(edge, file, *MEASURED, "--restart")).code == 0
    first, second, *again = await sent(edge, "again-1")
    assert first["id"] != second["id"]
    assert again == [first, second]


async def test_a_file_that_was_sent_and_then_grew_is_sent_from_where_it_ended(edge: Edge, tmp_path: Path) -> None:
    file = tmp_path / "room.csv"
    file.write_text("when,device,temperature\n2026-05-01,grown-1,1\n")
    assert (await send(edge, file, *MEASURED)).code == 0
    with file.open("a") as more:
        more.write("2026-05-02,grown-1,2\n")
    ended = await send(edge, file, *MEASURED)
    assert (ended.code, "Going on after line 2" in ended.told, "accepted 2" in ended.told) == (0, True, True)
    assert [event["data"]["temperature"] for event in await sent(edge, "grown-1")] == [1, 2]


async def test_the_note_of_another_sending_is_not_taken_for_this_one(edge: Edge, tmp_path: Path) -> None:
    file = tmp_path / "room.csv"
    file.write_text("when,device,temperature\n2026-05-01,other-1,1\n")
    assert (await send(edge, file, *MEASURED, "--url", edge.url + "/")).code == 0
    ended = await send(edge, file, *MEASURED)
    assert "Starting over: the options or the address are not those of last time" in ended.told
    assert "accepted 1" in ended.told
    assert len(await sent(edge, "other-1")) == 2


async def test_lines_that_are_events_are_sent_byte_for_byte_and_bad_ones_are_counted_with_the_first_line(
    edge: Edge, tmp_path: Path
) -> None:
    good = b'{ "type":"acme.x","id":"1","subject":"raw-1","data":{"price":21.50,"emoji":"\\ud83d\\ude00"}}'
    bad = b'{"type":"acme.x","subject":"raw-2","data":%b}'
    file = ndjson(
        tmp_path / "events.ndjson",
        good, bad % b"18446744073709551616", bad % b"1e400", bad % b'"\\ud800"', b"", bad % b"NaN",
        an_event(subject="raw-2", data={"state": 7}), an_event(subject="raw-1"),
    )  # fmt: skip
    ended = await send(edge, file)
    assert ended.code == 1
    assert "accepted 2 · rejected 5 · retried 0" in ended.told
    for line in (
        "2 number_out_of_range, first: line 2: 18446744073709551616 is not kept.",
        "1 text_not_storable, first: line 4: ",
        "1 malformed_event, first: line 6: NaN is not JSON",
        "1 schema_violation, first: line 7 /data/state: ",
    ):
        assert f"\n  {line}" in ended.told
    values = [record.value for record in await edge.records() if record.key in (b"raw-1", b"raw-2")]
    assert values[0] == good
    assert len(values) == 2


async def test_what_is_too_large_for_the_edge_goes_in_smaller_pieces_and_a_single_one_is_counted(
    start_edge: Callable[..., Edge], tmp_path: Path
) -> None:
    edge = start_edge(request_body_bytes_max=2_000)
    events = [an_event(subject="large", id=str(number)) for number in range(50)]
    events[20]["data"]["reason"] = "x" * 3_000
    ended = await send(edge, ndjson(tmp_path / "events.ndjson", *events))
    assert ended.code == 1
    assert "accepted 49 · rejected 1" in ended.told
    assert "1 body_too_large, first: line 21: Send at most 2000 bytes" in ended.told
    assert [event["id"] for event in await sent(edge, "large")] == [str(n) for n in range(50) if n != 20]


async def test_a_line_that_cannot_be_read_stops_it_after_the_good_ones_before_it(edge: Edge, tmp_path: Path) -> None:
    file = tmp_path / "room.csv"
    file.write_text("when,device,temperature\n2026-05-01,torn-1,1\nsoon,torn-1,2\n")
    ended = await send(edge, file, *MEASURED)
    assert (ended.code, "stopped: line 3: when = 'soon' is not a time" in ended.told) == (1, True)
    assert "accepted 1 · rejected 0" in ended.told
    assert "The same command goes on after line 2." in ended.told
    assert len(await sent(edge, "torn-1")) == 1


async def test_bad_lines_are_skipped_and_counted_where_that_is_wanted(edge: Edge, tmp_path: Path) -> None:
    file = tmp_path / "room.csv"
    bad = "".join(f"soon,skip-1,{number}\n" for number in range(8))
    file.write_text(f"when,device,temperature\n2026-05-01,skip-1,1\n{bad}2026-05-02,skip-1,2\nlate,skip-1,3\n")
    ended = await send(edge, file, *MEASURED, "--skip-bad-lines", "--batch-events", "1")
    assert (ended.code, "accepted 2 · rejected 0 · skipped 9 · retried 0" in ended.told) == (0, True), ended.told
    assert "skipped line 3: when = 'soon' is not a time" in ended.told
    assert ended.told.count("skipped line ") == 5
    assert len(await sent(edge, "skip-1")) == 2
    again = await send(edge, file, *MEASURED, "--skip-bad-lines")
    assert "Everything was sent already" in again.told
    assert (again.code, "accepted 2 · rejected 0 · skipped 9" in again.told) == (0, True), again.told


async def test_what_was_rejected_is_sent_again_once_the_file_is_mended_or_when_asked(
    edge: Edge, tmp_path: Path
) -> None:
    file = tmp_path / "room.csv"
    file.write_text("when,device,temperature\n2026-05-01,mend-1,warm\n")
    assert (await send(edge, file, *MEASURED)).code == 1
    again = await send(edge, file, *MEASURED)
    assert ("Everything was sent already" in again.told, again.code) == (True, 1)
    assert "What was rejected is not sent again unless the file or the options change, or with --restart" in again.told
    assert "accepted 0 · rejected 1" in (await send(edge, file, *MEASURED, "--restart")).told
    file.write_text("when,device,temperature\n2026-05-01,mend-1,20.5\n")
    mended = await send(edge, file, *MEASURED)
    assert "Starting over: room.csv has changed" in mended.told
    assert (mended.code, "accepted 1 · rejected 0" in mended.told) == (0, True)


@pytest.mark.parametrize(("silent", "reason"), [(False, "Connection refused"), (True, "timed out")])
async def test_while_the_edge_is_away_it_says_so_and_gives_up_when_its_patience_ends(
    tmp_path: Path, silent: bool, reason: str
) -> None:
    file = tmp_path / "room.csv"
    file.write_text("when,device,temperature\n2026-05-01,away-1,1\n")
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        if silent:
            nobody.listen()  # and never an answer
        url = f"http://127.0.0.1:{nobody.getsockname()[1]}"
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "drm_ingest", "send", file.name, *MEASURED,
            "--url", url, "--key", KEY, "--patience-s", "1",
            cwd=tmp_path, stderr=asyncio.subprocess.PIPE,
        )  # fmt: skip
        told = (await process.communicate())[1].decode()
    assert process.returncode == 1
    assert f"cannot reach {url} (" in told
    assert reason in told
    assert silent or "), trying again in 0.2 s" in told
    assert "(gave up after 1 s)" in told


async def test_wrong_options_are_refused_before_anything_is_sent(edge: Edge, tmp_path: Path) -> None:
    file = tmp_path / "room.csv"
    file.write_text("when,device,temperature\n2026-05-01,zone-1,1\n")
    for zone in ("Europe/Nowhere", "Europe", "../x"):
        ended = await send(edge, file, *MEASURED, "--timezone", zone)
        assert (ended.code, f"there is no time zone '{zone}'" in " ".join(ended.told.split())) == (2, True), ended.told
    ended = await send(edge, file, *MEASURED, "--column", "temprature=temperature")
    assert (ended.code, "line 2: no column 'temprature'; there are when, device, temperature" in ended.told) == (
        1,
        True,
    )


async def test_a_wrong_key_is_said_so_at_once(edge: Edge, tmp_path: Path) -> None:
    ended = await send(edge, ndjson(tmp_path / "events.ndjson", an_event()), key="wrong")
    assert ended.code == 1
    assert "answers 401 unauthenticated: No valid credential. " in ended.told
    assert "Check --key or DRM_SENDER_KEY." in ended.told
    assert "{" not in ended.told


async def test_without_a_key_or_an_address_it_says_what_is_missing(edge: Edge, tmp_path: Path) -> None:
    file = ndjson(tmp_path / "events.ndjson", an_event())
    keyless = await send(edge, file, key="")
    assert (keyless.code, "no key: set DRM_SENDER_KEY or --key" in keyless.told) == (2, True)
    lost = await send(edge, file, "--url", "edge.example")
    assert (lost.code, "'edge.example' is no address" in lost.told) == (1, True)


async def test_at_a_rate_it_keeps_the_recordings_pace_and_cuts_batches_by_time(edge: Edge, tmp_path: Path) -> None:
    events = [
        an_event(subject="paced", time=f"2026-05-01T08:{minute:02}:{second:02}Z")
        for minute in (0, 1, 2)
        for second in range(5)
    ]
    file = ndjson(tmp_path / "events.ndjson", *events, an_event(subject="paced", time="some day"))
    before = (await edge.metrics())['drm_requests_total{status="200",transport="http"}']
    started = time.monotonic()
    ended = await send(edge, file, "--rate", "200")  # a minute in 0.3 s
    assert time.monotonic() - started > 0.6
    assert "accepted 15 · rejected 1" in ended.told
    after = (await edge.metrics())['drm_requests_total{status="200",transport="http"}']
    assert after - before == 3
    assert (await sent(edge, "paced")) == events


async def test_it_waits_as_long_as_the_edge_asks_while_kafka_is_stopped_and_loses_nothing(
    start_edge: Callable[..., Edge], spare_kafka: Callable[[], Kafka], tmp_path: Path
) -> None:
    kafka = spare_kafka()
    edge = start_edge(
        kafka_bootstrap=kafka.bootstrap, produce_deadline_s=1.5, produce_request_timeout_s=1, retry_after_s=3
    )
    events = [an_event(subject=f"held-{number % 5}") for number in range(200)]
    kafka.signal(signal.SIGSTOP)
    process = await start(edge, ndjson(tmp_path / "events.ndjson", *events), "--batch-events", "50")
    assert process.stderr is not None
    told = ""
    async with asyncio.timeout(30):
        while "trying again" not in told:
            line = await process.stderr.readline()
            assert line, told
            told += line.decode()
    assert "answers 503 not_acknowledged: " in told
    assert told.rstrip().endswith("trying again in 3.0 s")
    kafka.signal(signal.SIGCONT)
    _, rest = await process.communicate()
    assert process.returncode == 0, rest.decode()
    assert "accepted 200 · rejected 0 · retried " in rest.decode()
    found = [event["id"] for event in await sent(edge, *(f"held-{number}" for number in range(5)))]
    assert set(found) == {event["id"] for event in events}
