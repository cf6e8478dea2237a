"""What the edge admits, enrich reads, and what enrich writes, attach reads: one identity and one hash all the way."""

import json
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import hypothesis.strategies as st
from aiokafka import ConsumerRecord
from hypothesis import given

from drm_ingest.edge.admit import Admit
from drm_ingest.edge.credentials import Credential
from drm_ingest.edge.judge import Record
from drm_ingest.event import Receipt, content_hash, identity_key, published_source
from drm_ingest.kafka.writer import Delivery, Headers, Writer
from drm_ingest.metrics import Metrics
from drm_ingest.pipeline.attach.decode import Decoder
from drm_ingest.pipeline.brake import Brake
from drm_ingest.pipeline.enrich.context import Context
from drm_ingest.pipeline.enrich.remembered import Remembered
from drm_ingest.pipeline.enrich.steps import Steps
from drm_ingest.pipeline.enrich.user_agent import UserAgents
from drm_ingest.postgres.store.rows import Row
from drm_ingest.schema import Schemas
from drm_ingest.settings import Settings

SETTINGS = Settings()
SCHEMAS = Schemas.load()
USER_AGENTS = UserAgents(10)
RECEIVED = datetime(2026, 11, 22, 10, 0, tzinfo=UTC)


class Collected(Writer):
    """A writer that keeps what is appended."""

    def append(
        self, topic: str, partition: int, key: bytes, value: bytes, headers: Headers, delivery: Delivery
    ) -> None:
        self.records = [*getattr(self, "records", []), (topic, partition, key, value, headers)]

    records: list[tuple[str, int, bytes, bytes, Headers]]


texts = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=12)
subjects = st.sampled_from(["m1", "party:crm:778", "a b/ü", "/devices/m1", "%41"]) | texts
sources = st.sampled_from(["", "urn:gw:1", "/devices/m1", "/devices/a%20b%2F%C3%BC", "/devices/%2541"]) | texts
zones = st.integers(-23 * 60 - 59, 23 * 60 + 59).map(lambda minutes: timezone(timedelta(minutes=minutes)))
times = st.datetimes(min_value=datetime(1, 1, 1), max_value=datetime.max, timezones=zones).map(datetime.isoformat)
values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats() | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=6,
)
TWICE = {
    b"type": b'"com.example.a"', b"id": b'"e-1"', b"subject": b'"m1"', b"source": b'"urn:gw"', b"sequence": b'"1"',
    b"time": b'"2026-11-22T10:00:00Z"', b"specversion": b'"1.0"', b"dataschema": b'"1.0"', b"data": b"1",
    b"own": b'"x"', b"traceparent": b'"t"',
}  # fmt: skip
events = st.fixed_dictionaries(
    {"type": st.sampled_from(["com.example.a", "app.example"]) | texts},
    optional={
        "id": texts | st.none(),
        "subject": subjects | st.none(),
        "source": sources | st.none(),
        "time": times
        | st.none()
        | st.sampled_from(["2026-11-22t10:00:00z", "2016-12-31T23:59:60Z", "2026-11-22T23:59:60Z"]),
        "specversion": st.just("1.0"),
        "sequence": texts | st.none(),
        "own": texts | st.integers() | st.none(),
        "data": values,
    },
)


@given(
    st.lists(st.tuples(events, st.booleans(), st.sampled_from([None, 1])), min_size=1, max_size=4),
    st.integers(-(10**9), 10**9),
    st.sampled_from([None, "m1"]),
)
def test_what_one_stage_takes_the_next_can_read(
    made: list[tuple[dict[str, Any], bool, int | None]], clock_offset_ms: int, device: str | None
) -> None:
    receipt = Receipt(RECEIVED, "r", "fleet", clock_offset_ms=clock_offset_ms, user_agent="okhttp/4.9.0")
    bodies = [json.dumps(event, ensure_ascii=ascii_, indent=indent).encode() for event, ascii_, indent in made]
    admitted = Admit(SETTINGS, SCHEMAS).events(bodies, Credential("k", "fleet", "sender", device), receipt)

    ids = {result.index: result.id for result in admitted.results}
    refused = {result.index for result in admitted.results if result.status == "rejected"}
    accepted = [(index, event) for index, (event, _, _) in enumerate(made) if index not in refused]
    assert len(accepted) == len(admitted.records)
    for (index, event), record in zip(accepted, admitted.records, strict=True):
        row = passed_on(record)
        subject = event.get("subject") or device or ""
        source = event.get("source") or ("fleet" if subject.startswith("party:") else "")
        if source == published_source(subject, ""):
            source = ""
        assert row.key == identity_key(subject, source, event.get("id") or ids[index] or "")
        assert row.content_hash == dict(record[2])["content-hash"]
        if "data" not in event:
            assert row.content_hash == content_hash(event["type"], event.get("time"), b"")


firsts = st.sampled_from(
    [b"null", b'""', b'"%b"' % (b"x" * 400), b'"2026-11-22T10:00:00"', b'"garbage"', b'"\xff"', b'"\\ud800"', b'"\x01"',
     b"1e400", b'{"a":"\\q"}', b"[]", b"1", b'"0001-01-01T00:00:00Z"']
)  # fmt: skip


@given(
    st.lists(st.tuples(st.sampled_from(sorted(TWICE)), firsts), min_size=1, max_size=3),
    st.sampled_from([(b"data", b"data"), (b"data", b"d\\u0061ta")]),
)
def test_of_an_attribute_given_twice_every_stage_takes_the_last(
    before: list[tuple[bytes, bytes]], renamed: tuple[bytes, bytes]
) -> None:
    """Whatever the first says: the event is refused, or it arrives, and any reader of JSON can read it."""
    first = b"".join(b'"%b":%b,' % (name, value) for name, value in before).replace(*renamed)
    last = b",".join(b'"%b":%b' % item for item in TWICE.items())
    receipt = Receipt(RECEIVED, "r", "fleet")
    admitted = Admit(SETTINGS, SCHEMAS).events(
        [b"{" + first + last + b"}"], Credential("k", "fleet", "sender", None), receipt
    )
    for record in admitted.records:
        row = passed_on(record)
        assert row.key == identity_key("m1", "urn:gw", "e-1")
        assert row.content_hash == content_hash("com.example.a", "2026-11-22T10:00:00Z", b"1")


def passed_on(record: Record) -> Row:
    """Take a record of the edge through enrich to a row of attach."""
    key, value, headers = record
    read = ConsumerRecord("drm.ingress", 1, 0, 0, 1, key, value, None, 0, 0, tuple(headers))
    writer = Collected(SETTINGS, Metrics("enrich"))
    steps = Steps(SETTINGS, SCHEMAS, writer, USER_AGENTS, Brake(SETTINGS))
    done = steps.enrich([read], {key: Context(key.decode(), (), 1, 1.0)}, Remembered(10), Delivery(lambda _: None), 1)
    assert done.enriched == 1, writer.records
    topic, partition, _, enriched, written = writer.records[0]
    json.loads(enriched.decode())
    return Decoder().row(ConsumerRecord(topic, partition, 0, 0, 1, key, enriched, None, 0, 0, tuple(written)))
