"""Every decoder has an answer to whatever it is given: a value, or its own refusal, and never another exception."""

import contextlib
import gzip
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orjson
import pytest
from aiokafka import ConsumerRecord
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from tests.unit.admitting import EVENT, RECEIPT, SENDER, admit
from tests.unit.test_admit_anything import bodies, content_types, encodings, events, headers, lenient

from drm_ingest.device.recording import BadRow, Recording
from drm_ingest.edge.decompress import decompress
from drm_ingest.edge.message import CLOSE_REASON_BYTES_MAX, Closing, Message, Single, message_of, single_of
from drm_ingest.errors import Refusal
from drm_ingest.event import HEADER_ASSIGNED, HEADER_CONTENT_HASH, HEADER_RECEIPT
from drm_ingest.pipeline.attach.decode import Decoder
from drm_ingest.pipeline.attach.decode import Unreadable as UnreadableForAttach
from drm_ingest.pipeline.enrich.ingress import IngressReader
from drm_ingest.pipeline.enrich.ingress import Unreadable as UnreadableForEnrich
from drm_ingest.settings import Settings

MANY = settings(derandomize=True, suppress_health_check=list(HealthCheck))
DEEP = b"[" * 100_000
ADMIT = admit(request_events_max=50, event_bytes_max=2000, event_depth_max=10)
LIMITS = Settings(request_body_bytes_max=1000, request_decompressed_bytes_max=1000, request_compressed_members_max=5)
MESSAGE: dict[str, Any] = {"seq": 1, "events": [EVENT], "hello": {"key": "k", "sent_at": "2026-11-22T10:00:00Z"}}
ENRICHED = EVENT | {
    "occurredat": "2026-11-22T10:00:00Z",
    "receivedat": "2026-11-22T10:00:00Z",
    "timequality": "sent",
    "contenthash": "00" * 16,
    "sender": "fleet",
}
NO_SUCH_FIELD = st.text(max_size=5)
odd: st.SearchStrategy[Any] = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=6), st.just([]), st.just({"a": 1})
)


@st.composite
def like(draw: st.DrawFn, whole: dict[str, Any]) -> bytes:
    """Like that object, with some of it wrong, and spoilt."""
    changes = draw(st.dictionaries(st.sampled_from([*whole]) | NO_SUCH_FIELD, odd, max_size=3))
    text = lenient(whole | changes)
    if draw(st.booleans()):
        at = draw(st.integers(0, len(text)))
        text = text[:at] + draw(st.binary(max_size=3)) + text[at + draw(st.integers(0, 3)) :]
    return text


@MANY
@given(raw=like(MESSAGE) | events() | st.binary(max_size=60))
@example(raw=DEEP)
@example(raw=b'{"seq": 1, "events": ["\\ud800", "\\\\ud800", "\\ud83d\\ude00", "\\u')
def test_a_websocket_message_is_read_or_closes_its_connection(raw: bytes) -> None:
    for read, kind in ((message_of, Message), (single_of, Single)):
        closing = None
        try:
            assert isinstance(read(raw), kind)
        except Closing as closed:
            closing = closed
        if closing is not None:
            assert closing.code in (1003, 1007)
            assert len(closing.reason.encode()) <= CLOSE_REASON_BYTES_MAX


@MANY
@given(text=st.text(alphabet='\\udD8cC0fnx"', max_size=40))
def test_of_a_message_only_lone_surrogates_are_changed(text: str) -> None:
    raw = b'{"seq": 1, "events": ["%b"]}' % text.encode()
    try:
        [event] = message_of(raw).events or []
    except Closing:
        return
    assert len(bytes(event)) == len(text) + 2
    with contextlib.suppress(orjson.JSONDecodeError):
        assert orjson.loads(b'"%b"' % text.encode()) == orjson.loads(event)


@MANY
@given(
    encoding=st.sampled_from([b"gzip", b"zstd", b"x-gzip", b"br", b",", b""]) | st.binary(max_size=6),
    body=st.binary(max_size=80),
)
@example(encoding=b"gzip", body=gzip.compress(b"a" * 1000)[:-1])
def test_a_body_is_decompressed_or_refused(encoding: bytes, body: bytes) -> None:
    for sent in (body, gzip.compress(body) + body, b"\x28\xb5\x2f\xfd" + body):
        status = None
        try:
            assert len(decompress(encoding, sent, LIMITS)) <= 1000 or sent == body
        except Refusal as refusal:
            status = refusal.problem.status
        assert status in (None, 400, 413, 415)


@MANY
@given(body=bodies() | events() | st.binary(max_size=60), content_type=content_types, encoding=encodings, ce=headers)
@example(body=b"[%b]" % b",".join([lenient(EVENT)] * 51), content_type=b"application/json", encoding=b"", ce=None)
def test_a_body_admitted_in_slices_comes_to_the_same(
    body: bytes, content_type: bytes, encoding: bytes, ce: dict[str, str] | None
) -> None:
    request: dict[str, Any] = {
        "content_type": content_type, "content_encoding": encoding, "ce_headers": ce,
        "body": gzip.compress(body) if encoding == b"gzip" else body, "credential": SENDER, "receipt": RECEIPT,
    }  # fmt: skip
    told: list[object] = []
    for work in (lambda: ADMIT.body(**request), lambda: last_of(ADMIT.in_slices(**request))):
        try:
            admitted = work()
            results = [(result.index, result.status, result.code) for result in admitted.results]
            told.append((admitted.received, admitted.accepted, admitted.record_bytes, results))
        except Refusal as refusal:
            told.append((refusal.problem.code, refusal.detail))
    assert told[0] == told[1]


def last_of(work: Any) -> Any:
    try:
        while True:
            next(work)
    except StopIteration as done:
        return done.value


def a_record(value: bytes | None, **record_headers: bytes | None) -> "ConsumerRecord[bytes, bytes]":
    named = [(name.replace("_", "-"), header) for name, header in record_headers.items()]
    return ConsumerRecord("t", 0, 0, 0, 0, b"", value, None, 0, 0, tuple(named))


RECEIVED = orjson.dumps({"received_at": "2026-11-22T10:00:00Z", "request_id": "r", "sender": "fleet"})
assert (HEADER_RECEIPT, HEADER_CONTENT_HASH, HEADER_ASSIGNED) == ("receipt", "content-hash", "assigned")


@MANY
@given(
    value=like(EVENT) | st.binary(max_size=60) | st.none(),
    receipt=like(json.loads(RECEIVED)) | st.binary(max_size=20) | st.just(RECEIVED) | st.none(),
    assigned=like({"id": "1", "subject": "s", "source": ""}) | st.none(),
    content_hash=st.binary(max_size=17) | st.just(b"x" * 16) | st.none(),
)
@example(value=DEEP, receipt=RECEIVED, assigned=b"{}", content_hash=b"x" * 16)
@example(value=lenient(EVENT), receipt=DEEP, assigned=b"{}", content_hash=b"x" * 16)
@example(value=lenient(EVENT), receipt=RECEIVED, assigned=DEEP, content_hash=b"x" * 16)
def test_a_record_of_the_ingress_topic_is_read_or_unreadable(
    value: bytes | None, receipt: bytes | None, assigned: bytes | None, content_hash: bytes | None
) -> None:
    with contextlib.suppress(UnreadableForEnrich):
        IngressReader().read(a_record(value, receipt=receipt, assigned=assigned, content_hash=content_hash))


@MANY
@given(value=like(ENRICHED) | st.binary(max_size=60) | st.none())
@example(value=DEEP)
@example(value=lenient(ENRICHED)[:-1] + b',"x":' + DEEP)
def test_a_record_of_an_events_topic_is_a_row_or_unreadable(value: bytes | None) -> None:
    with contextlib.suppress(UnreadableForAttach):
        Decoder().row(a_record(value))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("recordings")


@MANY
@given(
    content=st.binary(max_size=80) | like(EVENT) | st.lists(events(), max_size=3).map(b"\n".join),
    suffix=st.sampled_from([".csv", ".ndjson", ".csv.gz", ".ndjson.gz"]),
    zipped=st.booleans(),
    columns=st.sampled_from([{}, {"type": "a"}, {"type": "a", "time_column": "time", "id_column": "id"}]),
)
@example(content=DEEP, suffix=".ndjson", zipped=False, columns={})
@example(content=b'{"type": "a", "time": "2026-11-22T10:00:00Z"}', suffix=".ndjson.gz", zipped=True, columns={})
def test_a_recording_is_read_or_its_bad_lines_are_told(
    folder: Path, content: bytes, suffix: str, zipped: bool, columns: dict[str, str]
) -> None:
    path = folder / f"recording{suffix}"
    path.write_bytes(gzip.compress(content) if zipped else content)
    recording = Recording(path, **columns)  # type: ignore[arg-type]

    def all_of(read: Iterator[Any]) -> None:
        with contextlib.suppress(BadRow):
            for line, event in read:
                assert line > 0
                assert "type" in event

    all_of(recording.events(on_bad=lambda line, bad: None))
    all_of(recording.events())
    assert recording.lines() >= 0
