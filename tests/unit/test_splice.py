"""What enrichment adds to an event leaves alone what its sender wrote."""

import json
from datetime import UTC, datetime
from typing import Any

import hypothesis.strategies as st
import msgspec
from hypothesis import example, given

from drm_ingest.pipeline.splice import fragment, splice, without

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | texts,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts, inner, max_size=4),
    max_leaves=8,
)
spaces = st.text(" \t\r\n", max_size=4)


@st.composite
def objects(draw: st.DrawFn) -> bytes:
    """JSON as people write it: any white space, escaped or plain text, `}` in every place it may stand."""
    members = draw(st.dictionaries(texts, values, min_size=1, max_size=5))
    ascii_only, indent = draw(st.booleans()), draw(st.sampled_from([None, 0, 2]))
    return (draw(spaces) + json.dumps(members, ensure_ascii=ascii_only, indent=indent) + draw(spaces)).encode()


def raw(event: bytes) -> list[tuple[str, bytes]]:
    """The members of an object, in order, with the bytes of their values."""
    return [(name, bytes(value)) for name, value in msgspec.json.decode(event, type=dict[str, msgspec.Raw]).items()]


@given(objects(), texts, texts)
@example(b'{"data":"}"}  \n', "a", "b")
@example(b'{"data":{}}', '"}', "\\")
def test_attributes_are_added_behind_what_was_sent(event: bytes, first: str, second: str) -> None:
    added = fragment(ours=first), fragment(theirs=second, nothing=None)
    result = splice(event, added)
    assert json.loads(result) == json.loads(event) | {"ours": first, "theirs": second}
    if not {"ours", "theirs"} & json.loads(event).keys():
        assert raw(result)[:-2] == raw(event), "not a byte of a value changes"
    assert result.startswith(event.rstrip()[:-1])


@given(objects(), st.sets(texts, max_size=3))
def test_members_can_be_left_out_and_the_bytes_of_the_others_stay(event: bytes, names: set[str]) -> None:
    names = names | set(list(json.loads(event))[:1])
    assert raw(without(event, names)) == [(name, value) for name, value in raw(event) if name not in names]


def test_a_number_keeps_its_digits() -> None:
    event = b'{"id":null,"data":{"a":1.10,"b":12345678901234567890123,"c":1e2,"d":-0.0}}'
    assert without(event, {"id"}) == b'{"data":{"a":1.10,"b":12345678901234567890123,"c":1e2,"d":-0.0}}'


def test_nothing_to_add_adds_nothing() -> None:
    assert fragment(model=None) == b""
    assert splice(b'{"a":1}', (b"", b"")) == b'{"a":1}'


def test_times_are_written_as_cloudevents_has_them() -> None:
    time = datetime(2026, 11, 22, 10, 0, 0, 250_000, tzinfo=UTC)
    assert fragment(at=time) == b',"at":"2026-11-22T10:00:00.250000Z"'


def test_a_fragment_is_readable_whatever_is_in_it() -> None:
    attributes: dict[str, Any] = {"a": '\x00\x1f"\\/\u2028é😀', "b": True}
    assert json.loads(b'{"x":1' + fragment(**attributes) + b"}") == {"x": 1, **attributes}
