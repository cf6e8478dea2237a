"""From a body to events: what is taken, what is refused whole and with which code, and the answer."""

import gzip
import sys
from collections.abc import Callable

import msgspec
import orjson
import pytest
from tests.unit.admitting import (
    ABSENT,
    EVENT,
    READER,
    RECEIPT,
    SENDER,
    admit,
    codes,
    event,
    only_value,
    raw_event,
    refusal,
    rejected,
    send,
)

from drm_ingest.errors import Refusal

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

# -- modes -----------------------------------------------------------------------------------------------------------


def test_structured_mode_takes_one_event() -> None:
    assert only_value(send(event(), "application/cloudevents+json; charset=UTF-8")) == event()
    assert rejected(b"[%b]" % event(), "application/cloudevents+json") == ("not_an_object", None)


def test_batched_mode_takes_an_array() -> None:
    events = [event(id=str(n)) for n in range(3)]
    admitted = send(b"[ %b ]" % b" ,\n".join(events), "application/cloudevents-batch+json")
    assert [value for _, value, _ in admitted.records] == events
    assert refusal(event(), "application/cloudevents-batch+json").problem.code == "malformed_json"


def test_plain_json_takes_an_array_or_one_event() -> None:
    for body in (event(), b"\n[%b]" % event(), b" " + event()):
        assert only_value(send(body)) == event()


def test_an_empty_array_is_accepted_and_holds_nothing() -> None:
    for content_type in ("application/json", "application/cloudevents-batch+json"):
        admitted = send(b"[]", content_type)
        assert (admitted.received, admitted.records, admitted.all_rejected) == (0, [], False)
        assert orjson.loads(admitted.answer("r")) == {"request_id": "r", "accepted": 0, "results": []}


@pytest.mark.parametrize("content_type", ["application/x-ndjson", "application/jsonl", "application/ndjson"])
def test_lines_are_events_blank_lines_are_not_and_a_bad_line_is_one_rejected_event(content_type: str) -> None:
    body = b"\n%b\r\n\n  \n{broken\n%b" % (event(), event(id="a-2"))
    admitted = send(body, content_type)
    assert admitted.received == 3
    assert [value for _, value, _ in admitted.records] == [event(), event(id="a-2")]
    [result] = admitted.results
    assert (result.index, result.code) == (1, "malformed_event")


def test_a_content_type_nobody_knows_is_415_and_names_those_that_are_taken() -> None:
    for content_type in (
        "",
        "text/plain",
        "application/x-www-form-urlencoded",
        "application/cloudevents+avro",
        "x",
        ";",
    ):
        refused = refusal(event(), content_type)
        assert (refused.problem.code, refused.problem.status) == ("unsupported_media_type", 415)
        assert "application/cloudevents+json" in refused.detail


def test_a_charset_other_than_utf_8_is_415() -> None:
    for charset in ("utf-8", "UTF-8", '"utf-8"', "us-ascii"):
        assert send(event(), f"application/json; charset={charset}").records
    assert refusal(event(), "application/json; charset=iso-8859-1").problem.code == "unsupported_media_type"


# -- binary mode -----------------------------------------------------------------------------------------------------


BINARY = {"specversion": "1.0", "type": "device.measurement", "subject": "meter-7", "id": "a-1", "time": EVENT["time"]}


def test_binary_mode_becomes_the_structured_form_with_data_as_sent() -> None:
    body = b'{"temperature": 21.50}'
    for content_type in ("application/json", "application/json; charset=utf-8", ""):
        admitted = send(body + b"\n", content_type, headers=BINARY)
        value = only_value(admitted)
        expected = BINARY | ({"datacontenttype": content_type} if ";" in content_type else {})
        assert value == orjson.dumps(expected)[:-1] + b',"data":' + body + b"}"
        assert not admitted.results


def test_binary_mode_keeps_the_type_of_data_that_is_json_of_another_name() -> None:
    admitted = send(b"[]", "application/senml+json", headers=BINARY | {"type": "acme.senml"})
    assert orjson.loads(only_value(admitted))["datacontenttype"] == "application/senml+json"


def test_data_in_binary_mode_that_is_not_json_is_415() -> None:
    for content_type in ("text/plain", "application/octet-stream", "application/x-ndjson"):
        assert refusal(b"1", content_type, headers=BINARY).problem.code == "unsupported_media_type"


def test_binary_mode_without_a_body_has_no_data() -> None:
    assert "data" not in orjson.loads(only_value(send(b"", "", headers=BINARY | {"type": "acme.ping"})))
    assert rejected(b"", "", headers=BINARY) == ("schema_violation", "/data")


def test_header_values_are_unquoted_and_percent_decoded_once() -> None:
    headers = BINARY | {"subject": "Euro%20%E2%82%AC%20%f0%9f%98%80", "id": r'"a \"b\" %2541"', "place": "50%25"}
    value = orjson.loads(only_value(send(b'{"temperature":1}', headers=headers)))
    assert (value["subject"], value["id"], value["place"]) == ("Euro € 😀", 'a "b" %41', "50%")


def test_header_values_that_are_not_utf_8_are_refused() -> None:
    for text in ("%C0%A0", "%ff", "\xff", "€"):
        headers = BINARY | {"subject": text}
        assert rejected(b'{"temperature":1}', headers=headers) == ("text_not_storable", "/subject")


def test_what_follows_the_data_in_binary_mode_is_not_taken_for_attributes() -> None:
    refused = refusal(b'{"temperature":1},"subject":"somebody-else"', headers=BINARY)
    assert (refused.problem.code, refused.members["position"]) == ("malformed_json", 17)


def test_headers_cannot_bring_data_or_name_its_type_twice() -> None:
    for name in ("data", "datacontenttype", "data_base64", "Data", ""):
        code, _ = rejected(b'{"temperature":1}', headers=BINARY | {name: "1"})
        assert code == "attribute_invalid"
    assert rejected(b"{}", headers=BINARY | {"sender": "me"}) == ("attribute_reserved", "/sender")


def test_structured_content_types_win_over_headers() -> None:
    assert only_value(send(event(), "application/cloudevents+json", headers=BINARY | {"id": "other"})) == event()


def test_binary_data_is_held_to_the_rules_of_data() -> None:
    def code(body: bytes) -> str:
        return rejected(body, headers=BINARY | {"type": "acme.x"}, event_bytes_max=1000)[0]

    assert code(b"[1e400]") == "number_out_of_range"
    assert code(b"[18446744073709551616]") == "number_out_of_range"
    assert code(b'"\xff"') == "text_not_storable"
    assert code(b'"\\u0000"') == "text_not_storable"
    assert code(b"[" * 400 + b"]" * 400) == "too_deep"
    assert code(b'"%b"' % (b"x" * 2000)) == "event_too_large"
    assert refusal(b'{"a":', headers=BINARY).problem.code == "malformed_json"


# -- whole bodies that cannot be read --------------------------------------------------------------------------------


def test_truncated_json_is_400_with_its_position() -> None:
    for content_type in ("application/json", "application/cloudevents+json"):
        for body in (event()[:-1], event()[:20]):
            refused = refusal(body, content_type)
            assert (refused.problem.code, refused.problem.status) == ("malformed_json", 400)
            assert refused.members["position"] == len(body)
    assert refusal(b"[%b" % event()).members["position"] == len(event()) + 1
    assert refusal(b'[{"a" 1}]').members["position"] == 6
    assert refusal(b"[%b]]" % event()).problem.code == "malformed_json"


def test_an_empty_body_is_400() -> None:
    for content_type in ("application/json", "application/cloudevents+json", "application/cloudevents-batch+json"):
        assert refusal(b" \n", content_type).problem.code == "malformed_json"


def test_ten_thousand_levels_are_refused_in_every_mode() -> None:
    deep = raw_event(b"[" * 10_000 + b"]" * 10_000)
    for content_type in ("application/json", "application/cloudevents+json"):
        assert refusal(deep, content_type).problem.code == "malformed_json"
    assert refusal(b"[%b]" % deep).problem.code == "malformed_json"
    assert rejected(deep, "application/jsonl")[0] == "too_deep"
    admitted = admit().events([deep], SENDER, RECEIPT)
    assert codes(admitted) == ["too_deep"]


def test_too_many_events_are_413() -> None:
    events = [event(id=str(n)) for n in range(3)]
    for body, content_type in (
        (b"[%b]" % b",".join(events), "application/json"),
        (b"\n".join(events), "application/jsonl"),
    ):
        assert len(send(body, content_type, request_events_max=3).records) == 3
        refused = refusal(body, content_type, request_events_max=2)
        assert (refused.problem.code, refused.problem.status, refused.members) == ("too_many_events", 413, {"limit": 2})
    with pytest.raises(Refusal):
        admit(websocket_message_events_max=2).events(events, SENDER, RECEIPT)


@pytest.mark.parametrize(
    ("body", "content_type", "code"),
    [
        (b"[" + b"{}," * 1_000_000 + b"{}]", "application/json", "too_many_events"),
        (b'[{"a":"\\ud800"},' + b"{}," * 1_000_000 + b"{}]", "application/json", "too_many_events"),
        (b"[" + b"1," * 1_000_000 + b"1]", "application/json", "malformed_json"),
        (b"\n" * 1_000_000, "application/jsonl", "too_many_events"),
    ],
)
def test_a_million_elements_are_refused_without_being_kept(body: bytes, content_type: str, code: str) -> None:
    assert refusal(body, content_type).problem.code == code


def test_a_large_array_of_large_events_is_taken() -> None:
    events = [event(type="acme.x", data=[1] * 800, id=str(n)) for n in range(100)]
    admitted = send(b"[%b]" % b",".join(events), request_events_max=1000)  # more commas than are cut apart uncounted
    assert [value for _, value, _ in admitted.records] == events


def test_a_reader_may_not_send() -> None:
    assert refusal(event(), credential=READER).problem.code == "forbidden"
    with pytest.raises(Refusal):
        admit().events([event()], READER, RECEIPT)


# -- compressed ------------------------------------------------------------------------------------------------------


def test_compressed_bodies_are_taken() -> None:
    assert only_value(send(gzip.compress(event()), encoding="gzip")) == event()


# -- events that come one by one -------------------------------------------------------------------------------------


def test_events_cut_apart_already_are_judged_alike() -> None:
    raws = msgspec.json.decode(b"[%b, %b]" % (event(), event(id=ABSENT)), type=list[msgspec.Raw])
    admitted = admit().events(
        [raws[0], memoryview(event(id="a-2")), b" %b\n" % event(id="a-3"), b"{", b""], SENDER, RECEIPT
    )
    assert [value for _, value, _ in admitted.records] == [event(), event(id="a-2"), event(id="a-3")]
    assert [(result.index, result.code) for result in admitted.results] == [
        (3, "malformed_event"),
        (4, "malformed_event"),
    ]


# -- the answer ------------------------------------------------------------------------------------------------------


def test_the_answer_to_events_in_order_has_no_results() -> None:
    assert orjson.loads(send(event()).answer('re"q')) == {"request_id": 're"q', "accepted": 1, "results": []}


def test_the_answer_names_what_was_refused() -> None:
    admitted = send(b"[%b,%b]" % (event(), event(id="a-2", data={"temperature": "warm"})))
    answer = orjson.loads(admitted.answer("r"))
    assert answer.keys() == {"request_id", "accepted", "results"}
    assert answer["accepted"] == 1
    [result] = answer["results"]
    assert result.keys() == {"index", "id", "status", "code", "pointer", "detail"}
    assert (result["index"], result["id"], result["status"], result["code"]) == (
        1,
        "a-2",
        "rejected",
        "schema_violation",
    )


def test_where_all_is_refused_the_answer_is_a_problem_with_the_results() -> None:
    admitted = send(b"[1,2]")
    assert admitted.all_rejected
    answer = orjson.loads(admitted.answer("r"))
    assert (answer["status"], answer["code"], answer["accepted"]) == (422, "all_rejected", 0)
    assert [result["index"] for result in answer["results"]] == [0, 1]


@pytest.mark.parametrize(("compress", "name"), [(gzip.compress, "gzip"), (zstd.compress, "zstd")])
@pytest.mark.parametrize("content_type", ["application/json", "application/x-ndjson"])
def test_a_compressed_body_that_does_not_say_so_is_told_which_header_is_missing(
    compress: Callable[[bytes], bytes], name: str, content_type: str
) -> None:
    refused = refusal(compress(event()), content_type)
    assert refused.problem.code == "malformed_encoding"
    assert refused.detail == f"The body is compressed; set Content-Encoding: {name}."
