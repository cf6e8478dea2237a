"""Whatever arrives, in whatever mode: a refusal or an outcome for every event, never anything else."""

import gzip
import json
from typing import Any

import msgspec
import orjson
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from tests.unit.admitting import DEVICE, EVENT, RECEIPT, SENDER, admit, event

from drm_ingest.edge.admit import Admitted
from drm_ingest.errors import EventCode, Refusal
from drm_ingest.event import Assigned, Envelope, content_hash

ADMIT = admit(request_events_max=50, event_bytes_max=2000, event_depth_max=10)
FEW = settings(derandomize=True, suppress_health_check=list(HealthCheck))
REMARKS = {EventCode.UNCLASSIFIED_TYPE, EventCode.TIME_ASSUMED, EventCode.TIME_CLAMPED, EventCode.ID_ASSIGNED}

content_types = st.sampled_from(
    [b"application/json", b"application/cloudevents+json", b"application/cloudevents-batch+json", b"application/jsonl",
     b"application/x+json", b"application/json; charset=utf-8", b"", b"text/plain"]
) | st.binary(max_size=20)  # fmt: skip
encodings = st.sampled_from([b"", b"", b"", b"gzip", b"zstd"]) | st.binary(max_size=8)
texts = st.sampled_from(
    ["", "x" * 250, "2026-11-22T10:00:00Z", "9999-12-31T23:59:59-01:00", "party:", "party:crm:1", "1.0", "\0", "\ud800"]
) | st.text(max_size=12)
headers = st.none() | st.dictionaries(
    st.sampled_from(["type", "id", "subject", "time", "specversion", "data"]) | st.text(max_size=8),
    texts | st.text(alphabet='%09aAfF"\\é€', max_size=12),
    max_size=5,
)
leaves = st.none() | st.booleans() | st.integers() | st.floats() | texts
json_values = st.recursive(
    leaves, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts, inner, max_size=4), max_leaves=12
)
names = st.sampled_from([*EVENT, "dataschema", "datacontenttype", "data_base64", "sequence", "sender", "channel"])


def lenient(value: object) -> bytes:
    """Python's own encoder writes what is interesting here: NaN, huge integers, lone surrogates."""
    return json.dumps(value).encode()


@st.composite
def events(draw: st.DrawFn) -> bytes:
    """Like an event, with some of it wrong."""
    changes = draw(st.dictionaries(names | st.text(max_size=5), json_values, max_size=3))
    left_out = draw(st.sets(names, max_size=2))
    whole = lenient({name: value for name, value in (EVENT | changes).items() if name not in left_out})
    twice = draw(st.none() | st.tuples(names, json_values))
    return whole if twice is None else b"{%b,%b" % (lenient(dict([twice]))[1:-1], whole[1:])


@st.composite
def bodies(draw: st.DrawFn) -> bytes:
    """Arrays and lines of events, cut and spoilt."""
    some = draw(st.lists(events() | st.binary(max_size=20), max_size=4))
    body = draw(st.sampled_from([b"[%b]", b"%b", b" [ %b ]\n"])) % draw(st.sampled_from([b",", b"\n"])).join(some)
    if draw(st.booleans()) and body:
        at = draw(st.integers(0, len(body) - 1))
        body = body[:at] + draw(st.binary(max_size=3)) + body[at + draw(st.integers(0, 3)) :]
    return body


def check(admitted: Admitted) -> None:
    """Every event has exactly one outcome, and every record is what the next stage relies on."""
    by_index: dict[int, set[str]] = {}
    for result in admitted.results:
        by_index.setdefault(result.index, set()).add(result.status)
        assert (result.code in REMARKS) == (result.status == "accepted")
    rejected = {index for index, statuses in by_index.items() if statuses == {"rejected"}}
    assert all(len(statuses) == 1 for statuses in by_index.values())
    assert [result.index for result in admitted.results] == sorted(result.index for result in admitted.results)
    assert rejected <= set(range(admitted.received))
    assert len(admitted.records) + len(rejected) == admitted.received

    answer = orjson.loads(admitted.answer("request-1"))
    assert answer["accepted"] == len(admitted.records)
    assert len(answer["results"]) == len(admitted.results)

    for key, value, record_headers in admitted.records:
        whole = orjson.loads(value)
        assert value.startswith(b"{")
        assert value.endswith(b"}")
        assert b"\\u0000" not in value.replace(b"\\\\", b"")
        envelope = msgspec.json.decode(value, type=Envelope)
        by_name = dict(record_headers)
        assigned = msgspec.json.decode(by_name.get("assigned", b"{}"), type=Assigned)
        assert key.decode() == (envelope.subject or assigned.subject) == (whole.get("subject") or assigned.subject)
        assert envelope.id or assigned.id
        assert envelope.type
        data = b"" if envelope.data is msgspec.UNSET else bytes(envelope.data)
        assert by_name["content-hash"] == content_hash(envelope.type, envelope.time, data)


@FEW
@given(body=bodies() | events() | st.binary(max_size=60), content_type=content_types, encoding=encodings, ce=headers)
@example(body=b"[" * 100_000, content_type=b"application/json", encoding=b"", ce=None)
@example(body=b'{"a":' * 100_000, content_type=b"application/jsonl", encoding=b"", ce=None)
@example(body=b"[" * 1900, content_type=b"application/json", encoding=b"", ce={"type": "x"})
def test_any_body_in_any_mode_is_refused_or_every_event_has_one_outcome(
    body: bytes, content_type: bytes, encoding: bytes, ce: dict[str, str] | None
) -> None:
    if encoding == b"gzip" and len(body) % 2:
        body = gzip.compress(body)
    for credential in (SENDER, DEVICE):
        refusal = None
        try:
            admitted = ADMIT.body(
                content_type=content_type, content_encoding=encoding, ce_headers=ce,
                body=body, credential=credential, receipt=RECEIPT,
            )  # fmt: skip
        except Refusal as refused:
            refusal = refused
        if refusal is None:
            check(admitted)
        else:
            assert refusal.problem.status in {400, 413, 415}
            orjson.dumps(refusal.body("request-1"))


@FEW
@given(raws=st.lists(events() | st.binary(max_size=40) | json_values.map(lenient), max_size=6))
def test_any_events_one_by_one_have_one_outcome_each(raws: list[bytes]) -> None:
    for credential in (SENDER, DEVICE):
        admitted = ADMIT.events(raws, credential, RECEIPT)
        assert admitted.received == len(raws)
        check(admitted)


@FEW
@given(changes=st.dictionaries(names, texts | st.none(), max_size=4), more=st.binary(max_size=3))
def test_a_bad_event_never_harms_the_one_beside_it(changes: dict[str, Any], more: bytes) -> None:
    odd = lenient(EVENT | changes) + more
    admitted = ADMIT.events([event(), odd, event(id="a-2")], SENDER, RECEIPT)
    values = [value for _, value, _ in admitted.records]
    assert values[0] == event()
    assert values[-1] == event(id="a-2")
