"""The rules for an event, one by one: what is taken, what is refused and with which code, and what is written."""

import json
from datetime import timedelta
from typing import Any

import msgspec
import pytest
from tests.unit.admitting import (
    ABSENT,
    DEVICE,
    EVENT,
    RECEIPT,
    RECEIVED_AT,
    assigned,
    codes,
    event,
    only_value,
    raw_event,
    refusal,
    rejected,
    send,
)

from drm_ingest.event import Assigned, Receipt, content_hash

# -- what is written -------------------------------------------------------------------------------------------------


def test_a_record_is_the_event_as_sent_under_its_subject() -> None:
    body = (
        b'  {"type" : "device.measurement","subject":"meter-7","id":"1",\n'
        b'"time":"2026-11-22T09:00:00Z","data": {"temperature":21.50}}\r\n'
    )
    admitted = send(body, "application/cloudevents+json")
    [(key, value, headers)] = admitted.records
    assert key == b"meter-7"
    assert value == body.strip()
    assert [name for name, _ in headers] == ["receipt", "content-hash"]
    assert msgspec.json.decode(dict(headers)["receipt"], type=Receipt) == RECEIPT
    assert dict(headers)["content-hash"] == content_hash(
        "device.measurement", "2026-11-22T09:00:00Z", b'{"temperature":21.50}'
    )
    assert not admitted.results


def test_the_hash_is_taken_of_the_bytes_of_data_and_of_nothing_where_there_is_none() -> None:
    for data, bytes_ in ((ABSENT, b""), (None, b"null"), ({"a": 1}, b'{"a":1}')):
        [(_, _, headers)] = send(event(type="acme.x", data=data)).records
        assert dict(headers)["content-hash"] == content_hash("acme.x", EVENT["time"], bytes_)


def test_the_receipt_is_the_same_bytes_for_all_events_of_a_request() -> None:
    admitted = send(b"[%b,%b]" % (event(), event(id="a-2")))
    first, second = (dict(headers)["receipt"] for _, _, headers in admitted.records)
    assert first is second


def test_what_the_writer_needs_room_for_is_told() -> None:
    admitted = send(b"[%b,%b,%b]" % (event(), event(id="a-2", subject="größer"), event(id=ABSENT)))
    assert admitted.record_bytes == sum(
        len(key) + len(value) + sum(len(name) + len(header) for name, header in headers)
        for key, value, headers in admitted.records
    )


# -- one event -------------------------------------------------------------------------------------------------------


def test_what_is_no_object_is_refused() -> None:
    admitted = send(b'[1, "a", null, [], %b]' % event())
    assert codes(admitted) == ["not_an_object"] * 4
    assert len(admitted.records) == 1


def test_an_event_that_is_too_large_is_refused_and_the_others_are_not() -> None:
    admitted = send(b"[%b,%b]" % (event(data={"x": "y" * 500}), event()), event_bytes_max=500)
    assert codes(admitted) == ["event_too_large"]
    assert len(admitted.records) == 1


@pytest.mark.parametrize(("open_", "close"), [(b"[", b"]"), (b'{"a":', b"}")])
def test_depth_counts_the_levels_of_the_event_itself_being_the_first(open_: bytes, close: bytes) -> None:
    def nested(levels: int) -> bytes:
        return event(type="acme.x", data=ABSENT)[:-1] + b',"data":' + open_ * levels + b"1" + close * levels + b"}"

    assert send(nested(63)).records
    assert rejected(nested(64)) == ("too_deep", None)
    assert rejected(nested(900)) == ("too_deep", None)


def test_many_brackets_are_not_depth() -> None:
    assert send(event(type="acme.x", data={"text": "[{" * 100, "pairs": [[n] for n in range(100)]})).records


def test_a_type_is_required() -> None:
    assert rejected(event(type=ABSENT)) == ("attribute_missing", "/type")
    assert rejected(event(type=None)) == ("attribute_missing", "/type")


@pytest.mark.parametrize(
    ("name", "most"),
    [("id", 100), ("type", 200), ("subject", 200), ("source", 300), ("sequence", 200), ("traceparent", 200)],
)
def test_attributes_have_a_length(name: str, most: int) -> None:
    def with_(text: str, **more: object) -> bytes:
        return event(**({"type": "acme.x"} | {name: text} | more))

    for more in ({}, {"extension": "x"}):  # decoded the quick and the careful way
        for letter in ("x", "ä", "😀"):
            assert send(with_(letter * most, **more)).records
            assert rejected(with_(letter * (most + 1), **more)) == ("attribute_invalid", f"/{name}")
        if name == "source":
            assert send(with_("", **more)).records
        else:
            assert rejected(with_("", **more)) == ("attribute_invalid", f"/{name}")


def test_attributes_are_strings() -> None:
    for name in ("id", "type", "subject", "source", "time", "sequence", "traceparent", "dataschema", "datacontenttype"):
        wrongs: list[object] = [1, 1.5, True, [], {}]
        for wrong in wrongs:
            assert rejected(event(**{name: wrong})) == ("attribute_invalid", f"/{name}")


def test_an_attribute_of_null_is_an_absent_one() -> None:
    admitted = send(event(source=None, sequence=None, datacontenttype=None, dataschema=None, data_base64=None))
    assert (len(admitted.records), admitted.results) == (1, [])
    assert rejected(event(subject=None)) == ("subject_missing", "/subject")


def test_only_version_1_0_is_taken() -> None:
    assert send(event(specversion=ABSENT)).records
    for version in ("0.3", "1.1", "", 1.0, None):
        assert rejected(event(specversion=version)) == ("attribute_invalid", "/specversion")


def test_data_is_json() -> None:
    for content_type in ("application/json", "application/json; charset=utf-8", "text/json", "application/senml+json"):
        assert send(event(datacontenttype=content_type)).records
    for content_type in ("text/xml", "application/jsonx", "", "json"):
        assert rejected(event(datacontenttype=content_type)) == ("attribute_invalid", "/datacontenttype")
    assert rejected(event(data_base64="e30=")) == ("attribute_invalid", "/data_base64")


def test_extension_attributes_pass_through() -> None:
    extensions = {"tracestate": "a=1", "partitionkey": "x", "channel": "beta", "level": -3, "flag": True, "gone": None}
    value = event(**extensions)
    assert only_value(send(value)) == value


def test_extension_attributes_have_names_and_types_of_cloudevents() -> None:
    for name in ("deviceId", "device_id", "device-id", "größe", "", "a/b", "x" * 65):
        pointer = "/" + name.replace("/", "~1")
        assert rejected(event(**{name: "x"})) == ("attribute_invalid", pointer)
    wrongs: list[object] = [1.5, [], {}, 2**31, -(2**31) - 1]
    for wrong in wrongs:
        assert rejected(event(level=wrong)) == ("attribute_invalid", "/level")


def test_attributes_of_the_enrichment_are_reserved_however_they_are_spelt() -> None:
    for name in ("occurredat", "receivedat", "contenthash", "ingressposition", "sender", "partyroles", "devicemodel"):
        values: list[object] = ["x", None, {}]
        for value in values:
            assert rejected(event(**{name: value})) == ("attribute_reserved", f"/{name}")
    escaped = event()[:-1] + b',"receiv\\u0065dat":"2026-11-22T10:00:00Z"}'
    assert rejected(escaped) == ("attribute_reserved", "/receivedat")


def test_of_an_attribute_given_twice_the_last_counts() -> None:
    for more in (b"", b',"channel":"beta"'):
        body = event()[:-1] + more + b',"subject":"meter-8","data":{"temperature":5}}'
        [(key, value, headers)] = send(body).records
        assert (key, value) == (b"meter-8", body)
        last = content_hash("device.measurement", EVENT["time"], b'{"temperature":5}')
        assert dict(headers)["content-hash"] == last
        assert json.loads(value)["subject"] == "meter-8"


def test_an_attribute_given_twice_is_right_both_times() -> None:
    for first in (b'"id":5', b'"specversion":null', b'"time":{}', b'"subject":[]'):
        code, _ = rejected(b"{%b," % first + event()[1:])
        assert code == "attribute_invalid"


# -- whose event -----------------------------------------------------------------------------------------------------


def test_an_event_without_a_subject_is_refused() -> None:
    assert rejected(event(subject=ABSENT)) == ("subject_missing", "/subject")


def test_a_credential_of_a_device_is_the_subject_of_its_events() -> None:
    admitted = send(event(subject=ABSENT), credential=DEVICE)
    assert admitted.records[0][0] == b"meter-7"
    assert assigned(admitted) == Assigned(subject="meter-7")
    assert assigned(send(event(subject="meter-7"), credential=DEVICE)) is None


def test_a_credential_of_a_device_writes_for_no_other_subject() -> None:
    for subject in ("meter-8", "party:crm:778"):
        assert rejected(event(subject=subject), credential=DEVICE) == ("subject_forbidden", "/subject")
    for name in (b"subject", b"\\u0073ubject"):
        twice = b'{"%b":"meter-8",' % name + event()[1:]
        assert rejected(twice, credential=DEVICE) == ("attribute_invalid", "/subject")
    inside = event(type="acme.x", data={"subject": "meter-8", "text": 'say "subject"'})
    assert send(inside, credential=DEVICE).records


def test_a_party_is_named_by_its_id_or_by_a_reference() -> None:
    for subject in ("party:crm:778", "party:erp-2:a:b c", "party:01234567-89ab-7cde-8f01-23456789abcd"):
        assert send(event(type="acme.x", subject=subject)).records
    for subject in (
        "party:",
        "party:778",
        "party:crm:",
        "party::778",
        "party:CRM:778",
        "party:crm:" + "x" * 151,
        "party:email:ada@acme.se",
        "party:phone:+46701234567",
    ):
        assert rejected(event(subject=subject)) == ("attribute_invalid", "/subject")


def test_a_source_left_out_is_the_sender_for_a_party_and_stays_out_for_a_device() -> None:
    assert assigned(send(event(source=ABSENT, subject="party:crm:778"))) == Assigned(source="fleet")
    assert assigned(send(event(source=ABSENT))) is None
    assert assigned(send(event(source="", subject="party:crm:778"))) is None


def test_an_id_left_out_is_derived_where_there_is_a_time() -> None:
    first, again = send(event(id=ABSENT)), send(event(id=ABSENT))
    other = send(event(id=ABSENT, data={"temperature": 21.6}))
    given = assigned(first)
    assert given is not None
    assert given.id
    assert given == assigned(again)
    assert given != assigned(other)
    [result] = first.results
    assert (result.status, result.code, result.id) == ("accepted", "id_assigned", given.id)


def test_an_id_left_out_is_random_where_there_is_no_time() -> None:
    first, again = (send(event(id=ABSENT, time=ABSENT)) for _ in range(2))
    assert assigned(first) != assigned(again)
    assert codes(first) == ["time_assumed", "id_assigned"]


# -- time ------------------------------------------------------------------------------------------------------------


def test_a_time_has_an_offset_and_the_form_of_rfc_3339() -> None:
    for time in (
        "2026-11-22T10:00:00Z", "2026-11-22T10:00:00.123456789+05:30", "1970-01-01T00:00:00Z", "2016-12-31T23:59:60Z",
        "1990-12-31T15:59:60.9-08:00", "2015-06-30t23:59:60z",
    ):  # fmt: skip
        assert not send(event(time=time)).results
    for time in (
        "2026-11-22T10:00:00", "2026-11-22", "yesterday", "", "1700000000", "2026-13-01T00:00:00Z",
        "2016-12-31T23:59:61Z", "2016-12-30T23:59:60Z", "2016-12-31T22:59:60Z", "2016-12-31T23:59:60",
        "2016-12-31T23:59:60+02:00", "9999-12-31T23:59:60Z",
        "2026-02-30T00:00:00Z", "2026-11-22T25:00:00Z", "0001-01-01T00:00:00+01:00", "0000-01-01T00:00:00Z",
        "0002-01-01T00:00:00+14:00",
    ):  # fmt: skip
        assert rejected(event(time=time)) == ("time_invalid", "/time")


@pytest.mark.parametrize(
    ("time", "says"),
    [
        ("yesterday", "time is not an RFC 3339 time; send time as RFC 3339 with an offset, as in 2026-"),
        ("2026-11-22T10:00:00", "time has no offset from UTC; send time as RFC 3339 with an offset, as in "),
        ("0001-01-01T00:00:00Z", "time lies in year 1 of UTC, as on a clock that was never set; send time as "),
        (1763805600, "time is a string in RFC 3339 with an offset, as in 2026-11-22T10:00:00Z; no number."),
    ],
)  # fmt: skip
def test_a_wrong_time_is_answered_with_how_to_send_it(time: object, says: str) -> None:
    [result] = send(event(time=time)).results
    assert result.detail.startswith(says)


def test_an_assigned_id_tells_whether_a_retry_is_recognised() -> None:
    [derived] = send(event(id=ABSENT)).results
    [_, random] = send(event(id=ABSENT, time=ABSENT)).results
    assert (derived.code, random.code) == ("id_assigned", "id_assigned")
    assert "the same event sent again gets it again" in derived.detail
    assert "a retry of the event would be stored again" in random.detail


def test_an_absent_time_is_assumed_and_said_so() -> None:
    admitted = send(event(time=ABSENT))
    assert codes(admitted) == ["time_assumed"]
    assert assigned(admitted) is None


def test_a_time_more_than_a_day_ahead_is_clamped_and_said_so() -> None:
    def at(ahead: timedelta, **more: Any) -> list[str]:
        return codes(send(event(time=(RECEIVED_AT + ahead).isoformat()), **more))

    assert at(timedelta(hours=24)) == []
    assert at(timedelta(hours=24, seconds=1)) == ["time_clamped"]
    assert at(timedelta(hours=2), event_future_max_s=3600) == ["time_clamped"]
    assert codes(send(event(time="9999-12-31T23:59:59-23:59"))) == ["time_clamped"]


def test_a_time_is_clamped_by_the_corrected_clock() -> None:
    ahead = Receipt(RECEIVED_AT, "r", "fleet", clock_offset_ms=-48 * 3600 * 1000)
    behind = Receipt(RECEIVED_AT, "r", "fleet", clock_offset_ms=48 * 3600 * 1000)
    tomorrow = event(time=(RECEIVED_AT + timedelta(hours=47)).isoformat())
    assert codes(send(tomorrow, receipt=ahead)) == []
    assert codes(send(event(time=RECEIVED_AT.isoformat()), receipt=behind)) == ["time_clamped"]


def test_a_time_that_the_corrected_clock_puts_into_year_1_is_clamped() -> None:
    receipt = Receipt(RECEIVED_AT, "r", "fleet", clock_offset_ms=-1000 * 365 * 86_400_000)
    assert codes(send(event(time="1002-06-01T00:00:00Z"), receipt=receipt)) == []
    assert codes(send(event(time="1000-06-01T00:00:00Z"), receipt=receipt)) == ["time_clamped"]


def test_no_clock_is_too_wrong_to_be_answered() -> None:
    for offset_ms in (10**14, -(10**14)):
        receipt = Receipt(RECEIVED_AT, "r", "fleet", clock_offset_ms=offset_ms)
        for time in ("9999-12-31T23:59:59-23:59", "0002-01-02T00:00:00+23:59", "2026-11-22T10:00:00Z"):
            assert send(event(time=time), receipt=receipt).records


# -- data ------------------------------------------------------------------------------------------------------------


def test_data_that_breaks_its_schema_is_refused_with_pointer_and_detail() -> None:
    admitted = send(event(data={"temperature": "warm"}))
    [result] = admitted.results
    assert (result.code, result.pointer, result.id) == ("schema_violation", "/data/temperature", "a-1")
    assert "number" in result.detail


def test_data_left_out_is_refused_where_the_schema_needs_it() -> None:
    assert rejected(event(data=ABSENT)) == ("schema_violation", "/data")
    assert rejected(event(data=None)) == ("schema_violation", "/data")
    assert send(event(type="acme.x", data=ABSENT)).records


def test_an_unknown_type_is_accepted_and_said_so() -> None:
    admitted = send(event(type="acme.unheard", data=[1, "a", None]))
    assert len(admitted.records) == 1
    assert codes(admitted) == ["unclassified_type"]
    assert not admitted.all_rejected


def test_a_version_of_a_schema_that_is_not_there_is_refused() -> None:
    assert send(event(dataschema="1.0")).records
    for version in ("9.0", "1", "https://example.com/schema"):
        assert rejected(event(dataschema=version)) == ("schema_unknown", "/dataschema")


@pytest.mark.parametrize(
    "number",
    [
        "1e400", "-1e400", "18446744073709551616", "-9223372036854775809", "9" * 400, "1e-400", "1e-20000",
        "0e-16384", "0e+12345", "0e2147483647", "0." + "0" * 400 + "1", "0.1" + "0" * 2000,
    ],
)  # fmt: skip
def test_numbers_that_are_not_kept_are_refused(number: str) -> None:
    for data in (f'{{"temperature":{number}}}', f'{{"temperature": [1, {number}]}}', f'{{"a":{{"b":\t{number}\n}}}}'):
        for type_ in (b"acme.x", b"device.measurement"):
            body = raw_event(data.encode()).replace(b"device.measurement", type_)
            assert rejected(body)[0] == "number_out_of_range"
    batch = b"[%b,%b]" % (event(), raw_event(b'{"temperature":%b}' % number.encode()))
    assert codes(send(batch)) == ["number_out_of_range"]
    code, _ = rejected(event()[:-1] + b',"level":%b}' % number.encode())
    assert code in {"number_out_of_range", "attribute_invalid"}


@pytest.mark.parametrize("number", ["18446744073709551615", "-9223372036854775808", "1e300", "1e-300", "0e-999", "-0",
                                    "0.30000000000000004", "1234567890.1234567890123"])  # fmt: skip
def test_numbers_that_are_kept_are_taken(number: str) -> None:
    data = b'{"temperature":%b}' % number.encode()
    body = raw_event(data).replace(b"device.measurement", b"acme.x")
    assert only_value(send(body)) == body


def test_digits_in_a_string_are_no_number() -> None:
    data = {"iccid": "89491000001234567890", "text": "look: 99999999999999999999, 1e-999 ", "hash": "1e-4005"}
    assert send(event(type="acme.x", data=data, id="99999999999999999999")).records


@pytest.mark.parametrize(
    "where",
    [
        b'{"type":"acme.x","subject":"m","data":{"a":"X"}}',
        b'{"type":"acme.x","subject":"m","data":{"X":1}}',
        b'{"type":"acme.x","subject":"X"}',
        b'{"type":"acme.x","subject":"m","id":"X"}',
        b'{"type":"acmeX","subject":"m"}',
        b'{"type":"acme.x","subject":"m","note":"X"}',
        b'{"type":"acme.x","subject":"m","X":"a"}',
    ],
)
@pytest.mark.parametrize(
    "text",
    [
        b"\\u0000", b"a\\\\\\u0000",
        b"\\ud800", b"\\uDFFF", b"\\ud83dx", b"\\ude00\\ud83d",
        b"\xff", b"\xed\xa0\x80", b"\xc0\x80",
    ],
)  # fmt: skip
def test_text_that_cannot_be_stored_is_refused_wherever_it_is(where: bytes, text: bytes) -> None:
    body = where.replace(b"X", text)
    codes_ = {"text_not_storable", "attribute_invalid"} if b'"X":"a"' in where else {"text_not_storable"}
    for content_type, sent in (
        ("application/json", body), ("application/json", b"[ %b ]" % body), ("application/jsonl", body),
    ):  # fmt: skip
        assert rejected(sent, content_type)[0] in codes_
    # and the event beside it is none the worse for it
    admitted = send(b"[%b,\n%b , %b]" % (event(), body, event(id="a-2")))
    assert [value for _, value, _ in admitted.records] == [event(), event(id="a-2")]
    assert [(result.index, result.status) for result in admitted.results] == [(1, "rejected")]


def test_text_that_only_looks_unstorable_is_taken() -> None:
    for text in (b"\\\\u0000", b"\\\\\\\\u0000", b"\\\\ud800", b"\\ud83d\\ude00", b"\\u00e4", "ä😀".encode()):
        body = raw_event(b'{"a":"%b"}' % text).replace(b"device.measurement", b"acme.x")
        assert only_value(send(body)) == body


@pytest.mark.parametrize("data", [b"01", b"1.", b"nul", b'"\\q"', b'"a\tb"', b"NaN", b"-Infinity", b"[1,]", b"'a'"])
def test_what_is_not_json_is_refused(data: bytes) -> None:
    assert refusal(raw_event(data)).problem.code == "malformed_json"
    assert rejected(raw_event(data), "application/jsonl")[0] == "malformed_event"
