"""What the edge admits, enrich reads, and what enrich writes, attach reads: one identity and one hash all the way."""

import json
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import hypothesis.strategies as st
from aiokafka import ConsumerRecord
from hypothesis import given, settings

from drm_ingest.edge.admit import Admit
from drm_ingest.edge.credentials import Credential
from drm_ingest.event import Receipt, content_hash, identity_key, published_source
from drm_ingest.kafka.writer import Delivery, Headers, Writer
from drm_ingest.metrics import Metrics
from drm_ingest.pipeline.context import Context
from drm_ingest.pipeline.decode import Decoder
from drm_ingest.pipeline.remembered import Remembered
from drm_ingest.pipeline.steps import Steps
from drm_ingest.pipeline.user_agent import UserAgents
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
events = st.fixed_dictionaries(
    {"type": st.sampled_from(["com.example.a", "app.example"]) | texts},
    optional={
        "id": texts | st.none(),
        "subject": subjects | st.none(),
        "source": sources | st.none(),
        "time": times | st.none() | st.sampled_from(["2026-11-22t10:00:00z", "2026-11-22T23:59:60Z"]),
        "specversion": st.just("1.0"),
        "sequence": texts | st.none(),
        "own": texts | st.integers() | st.none(),
        "data": values,
    },
)


@settings(max_examples=200)
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
    admitted = Admit(SETTINGS, SCHEMAS, Metrics("edge")).events(
        bodies, Credential("k", "fleet", "sender", device), receipt
    )

    ids = {result.index: result.id for result in admitted.results}
    refused = {result.index for result in admitted.results if result.status == "rejected"}
    accepted = [(index, event) for index, (event, _, _) in enumerate(made) if index not in refused]
    assert len(accepted) == len(admitted.records)
    for offset, ((index, event), (key, value, headers)) in enumerate(zip(accepted, admitted.records, strict=True)):
        record = ConsumerRecord("drm.ingress", 1, offset, 0, 1, key, value, None, 0, 0, tuple(headers))
        writer = Collected(SETTINGS, Metrics("enrich"))
        steps = Steps(SETTINGS, SCHEMAS, writer, USER_AGENTS)
        done = steps.enrich(
            [record], {key: Context(key.decode(), (), 1, 1.0)}, Remembered(10), Delivery(lambda _: None), 1
        )
        assert done.enriched == 1, writer.records
        topic, partition, _, enriched, written = writer.records[0]
        row = Decoder().row(ConsumerRecord(topic, partition, 0, 0, 1, key, enriched, None, 0, 0, tuple(written)))

        subject = event.get("subject") or device or ""
        source = event.get("source") or ("fleet" if subject.startswith("party:") else "")
        if source == published_source(subject, ""):
            source = ""
        assert row.key == identity_key(subject, source, event.get("id") or ids[index] or "")
        assert row.content_hash == dict(headers)["content-hash"]
        if "data" not in event:
            assert row.content_hash == content_hash(event["type"], event.get("time"), b"")
