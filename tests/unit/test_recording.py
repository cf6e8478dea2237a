"""A recording becomes events: the same ids each time, times in UTC, numbers as numbers."""

import gzip
from datetime import UTC, datetime
from pathlib import Path

import pytest

from drm_ingest.device.recording import BadRow, Recording
from drm_ingest.device.send import Line


def test_a_csv_line_becomes_an_event_with_an_id_made_of_file_and_line_and_checksum(tmp_path: Path) -> None:
    path = tmp_path / "room.csv"
    path.write_text("\ufeffwhen,device,celsius,note\n2026-05-01 08:00:00,t-1,21.5,\n2026-05-01 08:01:00,t-2,22,ok\n")
    recording = Recording(
        path, type="device.measurement", subject_column="device", time_column="when", columns={"celsius": "temperature"}
    )
    assert list(recording.events()) == [
        (
            2,
            {
                "id": "room.csv:2:f5d0f1c6",
                "type": "device.measurement",
                "subject": "t-1",
                "time": "2026-05-01T08:00:00Z",
                "data": {"temperature": 21.5},
            },
        ),
        (
            3,
            {
                "id": "room.csv:3:79172a9f",
                "type": "device.measurement",
                "subject": "t-2",
                "time": "2026-05-01T08:01:00Z",
                "data": {"temperature": 22},
            },
        ),
    ]


def test_reading_on_after_a_line_gives_the_lines_behind_it_under_the_same_ids(tmp_path: Path) -> None:
    path = tmp_path / "room.csv.gz"
    with gzip.open(path, "wt") as file:
        file.write("v\n1\n2\n3\n")
    recording = Recording(path, type="t", subject="d")
    whole = list(recording.events())
    assert [line for line, _ in whole] == [2, 3, 4]
    assert list(recording.events(after_line=2)) == whole[1:]
    assert recording.lines() == 3


@pytest.mark.parametrize("passed", ["75", "0:01:15", "00:01:15.0", "0 days 00:01:15"])
def test_a_recording_that_tells_time_passed_is_placed_after_its_start(tmp_path: Path, passed: str) -> None:
    path = tmp_path / "ride.csv"
    path.write_text(f"time,speed\n{passed},3\n")
    recording = Recording(
        path, type="t", subject="d", time_column="time", starts_at=datetime(2026, 5, 1, 8, tzinfo=UTC)
    )
    [(_, event)] = recording.events()
    assert event["time"] == "2026-05-01T08:01:15Z"


def test_a_local_time_is_read_in_its_zone_and_an_offset_wins_over_it(tmp_path: Path) -> None:
    path = tmp_path / "a.ndjson"
    path.write_text('{"at": "2026-07-01T12:00:00", "v": 1}\n\n{"at": "2026-07-01T12:00:00+01:00", "v": 2}\n')
    recording = Recording(path, type="t", subject="d", time_column="at", timezone="Europe/Vienna")
    assert [event["time"] for _, event in recording.events()] == ["2026-07-01T10:00:00Z", "2026-07-01T11:00:00Z"]


def test_a_line_that_is_an_event_already_is_sent_as_it_is_with_an_id_if_it_has_none(tmp_path: Path) -> None:
    path = tmp_path / "events.ndjson"
    path.write_text('{"type": "a", "id": "1"}\n{"type": "b"}\n')
    assert [event for _, event in Recording(path).events()] == [
        {"type": "a", "id": "1"},
        {"id": "events.ndjson:2:7e2032cb", "type": "b"},
    ]


def test_the_text_of_an_event_is_kept_digit_for_digit(tmp_path: Path) -> None:
    texts = ['{"type":"t","id":"1","data":{"v":21.50,"n":18446744073709551616}}', '{ "type":"t","data":"\\ud800"}']
    path = tmp_path / "events.ndjson"
    path.write_text("\n".join(texts))
    (_, first), (_, second) = Recording(path).events()
    assert isinstance(first, Line)
    assert isinstance(second, Line)
    assert first.text.decode() == texts[0]
    assert second.text.decode() == f'{{"id":"{second["id"]}",' + texts[1][1:]


def test_two_files_of_one_name_make_different_ids(tmp_path: Path) -> None:
    ids = set()
    for number, name in enumerate(["monday", "tuesday", "again"]):
        folder = tmp_path / name
        folder.mkdir()
        (folder / f"{'x' * 120}.csv").write_text(f"v\n{number % 2}\n")
        [(_, event)] = Recording(folder / f"{'x' * 120}.csv", type="t", subject="d").events()
        ids.add(event["id"])
        assert len(event["id"]) == 100
    assert len(ids) == 2


def test_a_cell_that_names_no_device_leaves_it_to_the_default(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("v,device,kind\n1,,\n2\n")
    recording = Recording(path, type="t", type_column="kind", subject="d", subject_column="device")
    assert [(event["type"], event["subject"]) for _, event in recording.events()] == [("t", "d")] * 2


@pytest.mark.parametrize(
    ("text", "name", "says"),
    [
        ("t,v\nsoon,1\n", "a.csv", "line 2: t = 'soon' is not a time"),
        ("v\n1\n", "a.csv", "line 2: no column 'device'; there are v"),
        ("{oh\n", "a.ndjson", "line 1: not JSON"),
        ("[1]\n", "a.ndjson", "line 1: not a JSON object"),
        ('{"device":"d"}\n' + "[" * 100_000, "a.ndjson", "line 2: not JSON"),
        ("device\nd\nstra\udcdfe\n", "a.csv", "line 3: not UTF-8"),
        ("device\n" + "x" * 200_000, "a.csv", "after line 0: field larger than field limit"),
    ],
)
def test_a_line_that_cannot_be_an_event_is_named_with_its_reason(
    tmp_path: Path, text: str, name: str, says: str
) -> None:
    path = tmp_path / name
    path.write_bytes(text.encode(errors="surrogateescape"))
    recording = (
        Recording(path, type="t", subject="d", time_column="t")
        if "t,v" in text
        else Recording(path, type="t", subject_column="device")
    )
    with pytest.raises(BadRow, match=f"^{says}"):
        list(recording.events())


def test_a_cell_that_tells_of_no_value_leaves_the_name_out(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("a,b,c\n1,nil,\n")
    [(_, event)] = Recording(path, type="t", subject="d", absent=("nil",)).events()
    assert event["data"] == {"a": 1}


def test_text_that_spells_no_number_that_can_be_kept_stays_text(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    large = "89440000000000000000", "9" * 5000
    path.write_text(f"a,b,c,d,e,f\nnan,1e400,007,-1.5e3,{','.join(large)}\n")
    [(_, event)] = Recording(path, type="t", subject="d").events()
    assert event["data"] == {"a": "nan", "b": "1e400", "c": "007", "d": -1500.0, "e": large[0], "f": large[1]}


def test_bad_lines_may_be_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "a.ndjson"
    path.write_bytes(b'{"v": 1}\n{oh\n[1]\n{"v": "\xff"}\n\n{"v": 2}\n')
    bad: list[tuple[int, str]] = []
    recording = Recording(path, type="t", subject="d")
    read = list(recording.events(on_bad=lambda line, why: bad.append((line, str(why)))))
    assert [(line, event["data"]) for line, event in read] == [(1, {"v": 1}), (6, {"v": 2})]
    assert [line for line, _ in bad] == [2, 3, 4]
    assert all(why.startswith(f"line {line}: not ") for line, why in bad)
    assert recording.lines() == 5


def test_an_object_may_leave_out_some_of_the_columns_but_not_all(tmp_path: Path) -> None:
    path = tmp_path / "a.ndjson"
    path.write_text('{"a": 1}\n{"b": 2}\n{"c": 3}\n')
    events = Recording(path, type="t", subject="d", columns={"a": "a", "b": "b"}).events()
    assert [next(events)[1]["data"], next(events)[1]["data"]] == [{"a": 1}, {"b": 2}]
    with pytest.raises(BadRow, match="line 3: no column 'a'; there are c"):
        next(events)


def test_a_column_that_tells_the_time_may_be_data_as_well(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("at,v\n2026-05-01,1\n")
    recording = Recording(path, type="t", subject="d", time_column="at", columns={"at": "measured_at", "v": "v"})
    [(_, event)] = recording.events()
    assert event["data"] == {"measured_at": "2026-05-01", "v": 1}
