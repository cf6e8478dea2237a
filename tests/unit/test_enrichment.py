"""The steps of enrichment: what goes into a topic for each record of the ingress, and what is a dead letter."""

import json
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import hypothesis.strategies as st
import msgspec
import pytest
from aiokafka import ConsumerRecord
from hypothesis import given
from structlog.testing import capture_logs

from drm_ingest.event import Assigned, Enrichment, Envelope, Receipt, content_hash, identity_source
from drm_ingest.kafka.dead_letters import reason_of
from drm_ingest.kafka.writer import Delivery, Headers, RecordTooLarge, Writer, WriterFull
from drm_ingest.metrics import Metrics
from drm_ingest.pipeline.brake import Brake, Braked
from drm_ingest.pipeline.enrich.context import Context
from drm_ingest.pipeline.enrich.remembered import Remembered
from drm_ingest.pipeline.enrich.steps import Done, Steps
from drm_ingest.pipeline.enrich.user_agent import UserAgents
from drm_ingest.postgres.directory import Row
from drm_ingest.schema import Schemas
from drm_ingest.settings import Settings

RECEIVED = datetime(2026, 11, 22, 10, 0, tzinfo=UTC)
RECEIPT = Receipt(received_at=RECEIVED, request_id="r-1", sender="fleet")
NO_MORE = 1 << 30


class Collected(Writer):
    """A writer that keeps what is appended, with the bounds of the real one."""

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings, Metrics("enrich"))
        self.records: list[tuple[str, int, bytes, bytes, Headers]] = []
        self.room = NO_MORE
        self.record_bytes_max = settings.writer_batch_bytes_max

    def append(
        self, topic: str, partition: int, key: bytes, value: bytes, headers: Headers, delivery: Delivery
    ) -> None:
        if len(key) + len(value) + sum(len(name) + len(text or b"") for name, text in headers) > self.record_bytes_max:
            raise RecordTooLarge
        if not self.room:
            raise WriterFull
        self.room -= 1
        self.records.append((topic, partition, key, value, headers))


SETTINGS = Settings()
SCHEMAS = Schemas.load()
USER_AGENTS = UserAgents(100)


class Bench:
    def __init__(self) -> None:
        self.writer = Collected(SETTINGS)
        self.steps = Steps(SETTINGS, SCHEMAS, self.writer, USER_AGENTS, Brake(SETTINGS))
        self.remembered = Remembered(1000)
        self.contexts: dict[bytes, Context] = {}

    def enrich(self, records: Sequence[ConsumerRecord], bytes_max: int = NO_MORE) -> Done:
        contexts = {r.key: Context(r.key.decode("utf-8", "replace"), (), 1, 1.0) for r in records if r.key is not None}
        return self.steps.enrich(
            records, contexts | self.contexts, self.remembered, Delivery(lambda _: None), bytes_max
        )

    def only(self, record: ConsumerRecord) -> dict[str, Any]:
        """The one event that this record becomes, as readers of its topic see it."""
        done = self.enrich([record])
        assert (done.records, done.enriched, done.dead_letters) == (1, 1, 0), self.writer.records
        return self.last()

    def last(self) -> dict[str, Any]:
        event: dict[str, Any] = json.loads(self.writer.records[-1][3], object_pairs_hook=no_name_twice)
        return event


def no_name_twice(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    assert len({name for name, _ in pairs}) == len(pairs), pairs
    return dict(pairs)


@pytest.fixture
def bench() -> Bench:
    return Bench()


def record(
    value: bytes | dict[str, Any] | None,
    *,
    key: bytes | None = b"m1",
    receipt: Receipt | None = RECEIPT,
    assigned: Assigned | None = None,
    offset: int = 5,
    hash_: bytes = b"\x01" * 16,
) -> ConsumerRecord:
    if isinstance(value, dict):
        value = json.dumps(value).encode()
    headers = [] if receipt is None else [("receipt", msgspec.json.encode(receipt)), ("content-hash", hash_)]
    if assigned is not None:
        headers.append(("assigned", msgspec.json.encode(assigned)))
    return ConsumerRecord("drm.ingress", 2, offset, 0, 1, key, value, None, 0, 0, tuple(headers))


PLAIN = {"id": "1", "type": "device.measurement", "subject": "m1", "time": "2026-11-22T09:59:00Z", "data": {"a": 1}}


def test_an_event_gets_what_cloudevents_wants_and_what_we_know(bench: Bench) -> None:
    assert bench.only(record(PLAIN)) == PLAIN | {
        "specversion": "1.0",
        "source": "/devices/m1",
        "receivedat": "2026-11-22T10:00:00Z",
        "occurredat": "2026-11-22T09:59:00Z",
        "timequality": "sent",
        "contenthash": "01" * 16,
        "sender": "fleet",
        "requestid": "r-1",
        "ingressposition": "2:5",
    }
    topic, partition, key, _, headers = bench.writer.records[0]
    assert (topic, partition, key) == ("drm.events.measurement", 2, b"m1")
    assert headers == [("content-type", b"application/cloudevents+json")]


def test_what_the_sender_set_stays(bench: Bench) -> None:
    sent = PLAIN | {"specversion": "1.0", "source": "urn:gw:1", "sequence": "7", "traceparent": "00-1-2-03", "own": "x"}
    assert bench.only(record(sent)).items() >= sent.items()


def test_what_the_edge_assigned_is_written_into_the_event(bench: Bench) -> None:
    event = bench.only(
        record({"type": "device.status", "data": 1}, assigned=Assigned(id="a-1", subject="m1"), key=b"m1")
    )
    assert event.items() >= {"id": "a-1", "subject": "m1", "source": "/devices/m1"}.items()


@pytest.mark.parametrize("empty", [None, ""])
def test_an_attribute_without_a_value_is_replaced_and_not_there_twice(bench: Bench, empty: str | None) -> None:
    sent = PLAIN | {"id": empty, "source": empty, "specversion": empty, "sequence": None}
    event = bench.only(record(sent, assigned=Assigned(id="a-1")))
    assert event.items() >= {"id": "a-1", "source": "/devices/m1", "specversion": "1.0", "sequence": None}.items()


def test_a_fact_about_a_party_has_its_sender_as_source(bench: Bench) -> None:
    sent = {"id": "1", "type": "commerce.purchase", "subject": "party:crm:778", "data": {}}
    for assigned in (Assigned(source="fleet"), None):
        event = bench.only(record(sent, key=b"party:crm:778", assigned=assigned))
        bench.remembered = Remembered(1000)
        assert event["source"] == "fleet"
        assert bench.writer.records[-1][0] == "drm.events.commerce"


def test_a_type_without_a_schema_is_marked_and_goes_to_the_unclassified(bench: Bench) -> None:
    event = bench.only(record(PLAIN | {"type": "com.example.new"}))
    assert event["unclassified"] is True
    assert bench.writer.records[0][0] == "drm.events.unclassified"


@pytest.mark.parametrize(
    ("time", "offset_ms", "occurred", "quality"),
    [
        (None, 0, "2026-11-22T10:00:00Z", "assumed"),
        (None, 3_600_000, "2026-11-22T10:00:00Z", "assumed"),
        ("2026-11-22T09:00:00.123456Z", 0, "2026-11-22T09:00:00.123456Z", "sent"),
        ("2016-12-31T23:59:60.25Z", 0, "2016-12-31T23:59:59.999999Z", "sent"),
        ("1990-12-31T15:59:60-08:00", 3_600_000, "1991-01-01T00:59:59.999999Z", "corrected"),
        ("2026-11-22T11:00:00+02:00", 0, "2026-11-22T09:00:00Z", "sent"),
        ("2026-11-22T08:00:00Z", 3_600_000, "2026-11-22T09:00:00Z", "corrected"),
        ("2026-11-22T12:00:00+02:00", -3_600_000, "2026-11-22T09:00:00Z", "corrected"),
        ("1970-01-01T00:00:00Z", 0, "1970-01-01T00:00:00Z", "sent"),
        ("2026-11-23T10:00:00Z", 0, "2026-11-23T10:00:00Z", "sent"),
        ("2026-11-23T10:00:00.000001Z", 0, "2026-11-22T10:00:00Z", "clamped"),
        ("9999-12-31T23:59:59Z", 3_600_000, "2026-11-22T10:00:00Z", "clamped"),
    ],
)
def test_an_event_is_placed_in_time(
    bench: Bench, time: str | None, offset_ms: int, occurred: str, quality: str
) -> None:
    receipt = Receipt(received_at=RECEIVED, request_id="r", sender="s", clock_offset_ms=offset_ms)
    event = bench.only(record(PLAIN | {"time": time}, receipt=receipt))
    assert (event["occurredat"], event["timequality"], event["time"]) == (occurred, quality, time)


def test_the_context_is_that_of_the_time_it_happened(bench: Bench) -> None:
    party = UUID("0198c0de-0000-7000-8000-000000000000")
    sold = RECEIVED - timedelta(hours=1)
    row = Row("m1", "m1", None, "M 7", "1.2", "owner", party, sold, None)
    bench.contexts[b"m1"] = Context("m1", [row], 10, 1.0)
    after = bench.only(record(PLAIN | {"id": "2"}))
    assert (after["devicemodel"], after["devicefirmware"], after["partyroles"]) == ("M 7", "1.2", f"owner:{party}")
    before = bench.only(record(PLAIN | {"time": "2026-11-22T08:00:00Z"}))
    assert before["devicemodel"] == "M 7"
    assert "partyroles" not in before


def test_a_subject_that_postgres_could_not_be_asked_about_is_marked(bench: Bench) -> None:
    bench.contexts[b"m1"] = Context.missing("m1")
    assert bench.only(record(PLAIN))["contextquality"] == "missing"


def test_only_app_events_tell_the_user_agent(bench: Bench) -> None:
    receipt = Receipt(received_at=RECEIVED, request_id="r", sender="s", user_agent="okhttp/4.9.0")
    for type_ in ("app.interaction", "app.something.new"):
        event = bench.only(record(PLAIN | {"type": type_}, receipt=receipt))
        assert (event["useragentfamily"], event["useragentversion"]) == ("okhttp", "4.9.0")
    assert "useragentfamily" not in bench.only(record(PLAIN, receipt=receipt))
    assert "useragentfamily" not in bench.only(record(PLAIN | {"type": "app.interaction", "id": "2"}))


def test_a_retry_is_written_once(bench: Bench) -> None:
    done = bench.enrich([record(PLAIN, offset=5), record(PLAIN, offset=6)])
    assert (done.records, done.enriched, done.duplicates) == (2, 1, 1)
    bench.remembered.add(done.identities)
    again = bench.enrich([record(PLAIN, offset=9), record(PLAIN | {"source": "/devices/m1"}, offset=10)])
    assert (again.records, again.enriched, again.duplicates) == (2, 0, 2)


def test_a_retry_is_written_again_while_nobody_knows_that_the_first_was(bench: Bench) -> None:
    bench.enrich([record(PLAIN, offset=5)])  # not acknowledged, so not remembered
    assert bench.only(record(PLAIN, offset=6))["ingressposition"] == "2:6"


@pytest.mark.parametrize(
    "other", [{"id": "2"}, {"source": "urn:gw:2"}, {"subject": "m2"}], ids=["id", "source", "subject"]
)
def test_another_identity_is_another_event(bench: Bench, other: dict[str, str]) -> None:
    done = bench.enrich([record(PLAIN), record(PLAIN | other, key=other.get("subject", "m1").encode())])
    assert (done.enriched, done.duplicates) == (2, 0)


def test_the_same_identity_with_another_content_goes_on(bench: Bench) -> None:
    done = bench.enrich([record(PLAIN), record(PLAIN, hash_=b"\x02" * 16), record(PLAIN, hash_=b"\x02" * 16)])
    assert (done.enriched, done.duplicates) == (2, 1)


POISON = {
    "empty": (record(b""), "empty"),
    "a tombstone": (record(None), "empty"),
    "truncated": (record(b'{"type":"a"'), "truncated"),
    "not JSON": (record(b"\x00\x01\x02"), "malformed"),
    "an array": (record(b"[]"), "Expected `object`, got `array`"),
    "a number": (record(b"1"), "Expected `object`, got `int`"),
    "an empty object": (record(b"{}"), "missing required field `type`"),
    "no type": (record({"id": "1", "subject": "m1"}), "missing required field `type`"),
    "an empty type": (record(PLAIN | {"type": ""}), "$.type"),
    "a number as id": (record(PLAIN | {"id": 7}), "$.id"),
    "a very long id": (record(PLAIN | {"id": "x" * 101}), "$.id"),
    "a time without offset": (record(PLAIN | {"time": "2026-11-22T10:00:00"}), "$.time"),
    "a leap second in mid-month": (record(PLAIN | {"time": "2016-12-30T23:59:60Z"}), "$.time"),
    "no time at all": (record(PLAIN | {"time": "yesterday"}), "$.time"),
    "a time before time": (record(PLAIN | {"time": "0001-01-01T00:00:00+14:00"}), "never set"),
    "a time before time in UTC": (record(PLAIN | {"time": "0002-01-01T00:00:00+14:00"}), "never set"),
    "an unset clock": (record(PLAIN | {"time": "0001-01-01T00:00:00Z"}), "never set"),
    "no id": (record({"type": "a", "subject": "m1"}), "no id"),
    "no subject": (record({"type": "a", "id": "1"}), "key is not its subject"),
    "another key": (record(PLAIN, key=b"m2"), "key is not its subject"),
    "no key": (record(PLAIN, key=None), "key is not its subject"),
    "no headers": (record(PLAIN, receipt=None), "receipt"),
    "a short hash": (record(PLAIN, hash_=b"1"), "content-hash"),
    "NUL": (record(PLAIN | {"data": "a\0b"}), "NUL"),
    "NUL behind a backslash": (record(PLAIN | {"data": "\\\0"}), "NUL"),
    "NUL in a name": (record(PLAIN | {"data": {"\0": 1}}), "NUL"),
    "a lone surrogate": (record(b'{"type":"a","id":"1","subject":"m1","data":"\\ud800, and more"}'), "malformed"),
    "invalid UTF-8": (record(b'{"type":"a","id":"1","subject":"m1","data":"\xff"}'), "utf-8"),
    "too deep": (record(b'{"type":"a","data":' + b"[" * 100_000), "recursion"),
    "too large": (record(PLAIN | {"data": "x" * SETTINGS.writer_batch_bytes_max}), "too large for a batch"),
}


@pytest.mark.parametrize("name", POISON)
def test_poison_is_a_dead_letter_and_the_next_event_goes_on(bench: Bench, name: str) -> None:
    poison, detail = POISON[name]
    done = bench.enrich([poison, record(PLAIN, offset=6)])
    assert (done.records, done.enriched, done.dead_letters) == (2, 1, 1)
    topic, _, key, value, headers = bench.writer.records[0]
    assert (topic, key) == ("drm.dead-letters", poison.key or b"")
    assert value == (poison.value or b"")[: SETTINGS.writer_batch_bytes_max // 2]
    read = ConsumerRecord(topic, 0, 0, 0, 1, key, value, None, 0, 0, tuple(headers))
    reason = reason_of(read)
    assert (reason["stage"], reason["code"], reason["offset"]) == ("enrich", "unreadable", "5")
    assert detail in reason["detail"]
    assert bench.last()["id"] == "1"


@pytest.mark.parametrize("fine", ["\\u0000", "a\\\\u0000", "😀", "\ufffd", "\\ud800"])
def test_what_only_looks_like_poison_goes_on(bench: Bench, fine: str) -> None:
    assert bench.only(record(PLAIN | {"data": fine}))["data"] == fine


@pytest.mark.parametrize("header", [b"", b"{", b"[]", b'{"received_at":"x"}', b"\xff", b"[" * 100_000])
def test_a_header_that_cannot_be_read_is_no_reason_to_stop(bench: Bench, header: bytes) -> None:
    good = record(PLAIN)
    broken = [(("receipt", header), ("content-hash", b"1" * 16))]
    if b"received_at" not in header:
        broken.append((*good.headers, ("assigned", header)))
    for headers in broken:
        poison = ConsumerRecord("drm.ingress", 2, 5, 0, 1, b"m1", good.value, None, 0, 0, headers)
        done = bench.enrich([poison])
        assert (done.records, done.enriched, done.dead_letters) == (1, 0, 1)


def test_a_dead_letter_that_no_batch_can_hold_is_kept_in_part(bench: Bench) -> None:
    huge = record(b"x" * 1_000_000, key=b"k" * 100_000)
    huge = ConsumerRecord("t", 2, 5, 0, 1, huge.key, huge.value, None, 0, 0, (("h", b"y" * 1_000_000),))
    done = bench.enrich([huge])
    assert (done.records, done.dead_letters) == (1, 1)
    assert bench.writer.records[0][3] == b"x" * (SETTINGS.writer_batch_bytes_max // 2)


def test_it_stops_where_the_writer_is_full_and_goes_on_from_there(bench: Bench) -> None:
    records = [record(PLAIN | {"id": str(n)}, offset=n) for n in range(5)] + [record(b"poison", offset=5)]
    bench.writer.room = 3
    first = bench.enrich(records)
    assert (first.records, first.enriched) == (3, 3)
    bench.writer.room = 2
    second = bench.enrich(records[3:])
    assert (second.records, second.enriched, second.dead_letters) == (2, 2, 0)
    bench.writer.room = 1
    assert bench.enrich(records[5:]).dead_letters == 1


def test_it_takes_no_more_than_it_is_allowed_at_a_time_but_always_one(bench: Bench) -> None:
    records = [record(PLAIN | {"id": str(n)}, offset=n) for n in range(5)]
    assert bench.enrich(records, bytes_max=1).records == 1


def test_a_defect_that_one_event_meets_buries_only_that_one(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    context = Context("m1", (), 1, 1.0)
    monkeypatch.setattr(Context, "at", lambda self, _: b"" if self is not context else 1 / 0)
    bench.contexts[b"m1"] = context
    with capture_logs() as logs:
        done = bench.enrich([record(PLAIN), record(PLAIN | {"subject": "m2"}, key=b"m2")])
    assert (done.records, done.enriched, done.dead_letters) == (2, 1, 1)
    assert [(entry["event"], entry["offset"]) for entry in logs] == [("a defect", 5)]


def test_a_defect_that_every_event_meets_moves_nothing_and_is_logged_once(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Context, "at", lambda *_: 1 / 0)
    with capture_logs() as logs, pytest.raises(Braked, match=r"1000 of the last 1000.*ZeroDivisionError"):
        bench.enrich([record(PLAIN | {"id": str(n)}) for n in range(1000)])
    assert bench.writer.records == []
    assert len(logs) == 1


def test_many_dead_letters_among_many_more_events_are_buried(bench: Bench) -> None:
    records = [record(b"poison" if n % 10 == 0 else PLAIN | {"id": str(n)}, offset=n) for n in range(1000)]
    done = bench.enrich(records)
    assert (done.records, done.enriched, done.dead_letters) == (1000, 900, 100)


texts = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1, max_size=30)
values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats(allow_nan=False, allow_infinity=False)
    | texts,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts, inner, max_size=4),
    max_leaves=8,
)  # fmt: skip
times = st.datetimes(min_value=datetime(2, 1, 2), max_value=datetime(9999, 12, 30), timezones=st.just(UTC)).map(
    lambda time: time.isoformat()
)


@st.composite
def events(draw: st.DrawFn) -> tuple[dict[str, Any], bytes, Assigned]:
    subject, id_, source = draw(texts), draw(texts), draw(texts | st.none())
    if subject.startswith("party:"):
        source = source or "s"
    members: dict[str, Any] = {"type": draw(st.sampled_from(["device.measurement", "app.interaction"]) | texts)}
    assigned = Assigned()
    for name, value in (("id", id_), ("subject", subject), ("source", source)):
        if value is not None and draw(st.booleans()):
            members[name] = value
        elif value is not None:
            setattr(assigned, name, value)
    for name, choices in (("specversion", st.just("1.0")), ("time", times), ("data", values), ("ext", values)):
        if draw(st.booleans()):
            members[name] = draw(choices)
    names = draw(st.permutations(list(members)))
    event = json.dumps({name: members[name] for name in names}, ensure_ascii=draw(st.booleans()))
    return (
        members | {"id": id_, "subject": subject, "source": source},
        (event + draw(st.text(" \n", max_size=2))).encode(),
        assigned,
    )


@given(events())
def test_any_event_is_enriched_readably_and_its_data_is_not_touched(
    given_event: tuple[dict[str, Any], bytes, Assigned],
) -> None:
    expected, sent, assigned = given_event
    bench = Bench()
    subject, id_ = expected["subject"], expected["id"]
    enriched = bench.only(record(sent, key=subject.encode(), assigned=assigned))
    value = bench.writer.records[0][3]

    envelope, enrichment = msgspec.json.decode(value, type=Envelope), msgspec.json.decode(value, type=Enrichment)
    assert (envelope.type, envelope.id, envelope.subject, envelope.specversion) == (
        expected["type"], id_, subject, "1.0",
    )  # fmt: skip
    assert identity_source(subject, envelope.source) == identity_source(subject, expected["source"])
    assert enrichment.ingressposition == "2:5"
    assert envelope.data == msgspec.json.decode(sent, type=Envelope).data
    added = set(Enrichment.__struct_fields__) | {"id", "subject", "source", "specversion"}
    assert {name: v for name, v in enriched.items() if name not in added} == {
        name: v for name, v in json.loads(sent).items() if name not in added
    }


def test_the_hash_of_the_content_passes_through() -> None:
    bench = Bench()
    digest = content_hash("device.status", None, b"1")
    assert (
        bench.only(record({"type": "device.status", "id": "1", "subject": "m1", "data": 1}, hash_=digest))[
            "contenthash"
        ]
        == digest.hex()
    )


@given(st.data())
def test_whatever_is_in_the_topic_becomes_an_event_or_a_dead_letter(data: st.DataObject) -> None:
    """No defect is met: pieces of a good record are replaced, cut or overwritten."""

    def spoilt(good: bytes) -> bytes | None:
        kind = data.draw(st.sampled_from(["kept", "kept", "cut", "overwritten", "inserted", "anything", "null"]))
        if kind == "anything":
            return data.draw(st.binary(max_size=50))
        place = data.draw(st.integers(0, len(good)))
        piece = data.draw(
            st.sampled_from([b"\\u0000", b"\\ud800", b"\xff", b"\0", b"null", b"[", b"}", b'"', b"1e999", b"-"])
        )
        return {
            "kept": good,
            "cut": good[:place],
            "overwritten": good[:place] + piece + good[place + len(piece) :],
            "inserted": good[:place] + piece + good[place:],
            "null": None,
        }[kind]

    good = record(PLAIN | {"source": "s"}, assigned=Assigned(id="a"))
    headers = tuple((name, spoilt(value)) for name, value in good.headers)
    headers = headers[: data.draw(st.integers(0, 3))]
    spoilt_record = ConsumerRecord("t", 2, 5, 0, 1, spoilt(b"m1"), spoilt(good.value or b""), None, 0, 0, headers)
    bench = Bench()
    done = bench.enrich([spoilt_record])
    assert (done.records, done.enriched + done.dead_letters) == (1, 1)
    _, _, _, value, written = bench.writer.records[0]
    if done.enriched:
        assert json.loads(value)["ingressposition"] == "2:5"
    else:
        assert "could not cope" not in dict(written)["dead-letter-detail"].decode(), written
