"""Records become packed rows; repeats and conflicts within a batch are told apart before Postgres is asked."""

import struct
from datetime import UTC, datetime, timedelta

import asyncpg
import pytest
from aiokafka import ConsumerRecord
from hypothesis import given
from hypothesis import strategies as st
from tests.attaching import NOON, event

from drm_ingest.errors import EventCode
from drm_ingest.event import identity_key
from drm_ingest.pipeline.attach.decode import Decoder, Unreadable
from drm_ingest.postgres.store import days, rows
from drm_ingest.postgres.store.refusals import refuses_row

DAY = timedelta(days=1)

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=60)
times = st.datetimes(timezones=st.just(UTC), min_value=datetime(2, 1, 1), max_value=datetime(9998, 1, 1))


def record(value: bytes | None, offset: int = 0) -> "ConsumerRecord[bytes, bytes]":
    return ConsumerRecord("t", 0, offset, 0, 0, b"", value, None, 0, 0, ())


def fields(packed: bytes) -> list[bytes | None]:
    """The fields of one row in the binary COPY format."""
    (count,) = struct.unpack_from("!h", packed)
    at, found = 2, list[bytes | None]()
    for _ in range(count):
        (length,) = struct.unpack_from("!i", packed, at)
        at += 4
        found.append(None if length < 0 else packed[at : at + length])
        at += max(length, 0)
    assert at == len(packed)
    return found


@given(time=times)
def test_times_are_microseconds_since_2000(time: datetime) -> None:
    assert rows.EPOCH + timedelta(microseconds=rows.microseconds(time)) == time


@given(id_=texts, subject=texts, source=texts, at=times, length=st.sampled_from([0, 1, 4093, 4094, 4095, 70_000]))
def test_a_row_holds_each_field_with_its_length(id_: str, subject: str, source: str, at: datetime, length: int) -> None:
    data = '"' + "x" * length + '"'
    row = Decoder().row(record(event(id_, subject, at=NOON, source=source, data=data, occurredat=at.isoformat())))
    key, _, occurred = fields(row.identity)
    assert key == row.key == identity_key(subject, row_source := fields(row.event)[4].decode(), id_)  # type: ignore[union-attr]
    assert row_source in {source, ""}
    assert occurred == struct.pack("!q", rows.microseconds(at))
    packed = fields(row.event)
    assert len(packed) == len(rows.EVENT_COLUMNS)
    assert packed[0] == occurred
    assert (packed[3], packed[5]) == (subject.encode(), id_.encode())
    assert packed[12] == b"\x01" + data.encode()


def test_texts_that_come_again_are_remembered_up_to_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rows, "_FIELDS_REMEMBERED_MAX", 10)
    decoder = Decoder()
    for number in range(50):
        row = decoder.row(record(event("e", f"meter-{number % 30}")))
        assert fields(row.event)[3] == f"meter-{number % 30}".encode()


async def test_in_a_batch_the_first_of_one_identity_counts() -> None:
    first, conflict, other = event("e-1"), event("e-1", data="2"), event("e-2")
    read = [record(value, offset) for offset, value in enumerate([first, other, first, conflict, b"{", None])]
    decoded = await Decoder().decode(read)
    assert [row.record.offset for row in decoded.rows] == [0, 1]
    assert decoded.duplicates == 1
    assert [row.record.offset for row in decoded.rivals] == [3]
    assert [(dead.record.offset, dead.code) for dead in decoded.dead] == [
        (4, EventCode.UNREADABLE),
        (5, EventCode.UNREADABLE),
    ]


def test_an_unreadable_record_says_why() -> None:
    for value, why in [
        (None, "no value"),
        (b"{", "truncated"),
        (event("e", contenthash="00"), "32 hexadecimal digits"),
        (event("e", occurredat="2026-11-20T12:00:00"), "timezone"),
        (b"[" * 100_000, "."),
    ]:
        with pytest.raises(Unreadable, match=why):
            Decoder().row(record(value))


@given(order=st.permutations(range(8)))
def test_the_day_counts_of_a_batch_do_not_depend_on_its_order(order: list[int]) -> None:
    sequences = [None, "1", "9", "10", "10", "x", "0010", None]
    sent = [event(f"e-{n}", at=NOON + (n % 2) * DAY, sequence=sequences[n], data=f"{n}") for n in range(8)]
    read = [Decoder().row(record(value)) for value in sent]
    first, second = days.fold(read[n] for n in order)
    assert [first, second] == days.fold(read)
    assert fields(first)[1] == fields(second)[1] == struct.pack("!q", 4)


def test_a_month_that_is_just_being_made_is_no_fault_of_the_row() -> None:
    named = asyncpg.CheckViolationError('violates check constraint "device_subject_check"')
    named.constraint_name = "device_subject_check"
    moved = asyncpg.CheckViolationError('new row for relation "event_default" violates partition constraint')
    assert refuses_row(named)
    assert not refuses_row(moved)
