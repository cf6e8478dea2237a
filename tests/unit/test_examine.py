"""The quick looks at an event say what the slow one says."""

import json
import time
from typing import Any

import hypothesis.strategies as st
import pytest
from hypothesis import example, given

from drm_ingest.errors import Rejected
from drm_ingest.examine import examine, refuse_too_deep, refuse_unstorable

digits = st.text("0123456789", min_size=1, max_size=25).map(lambda text: text.lstrip("0") or "0")
numbers = st.tuples(
    st.sampled_from(["", "-"]),
    digits,
    st.just("") | st.text("0123456789", min_size=1, max_size=25).map(".{}".format),
    st.just("") | st.tuples(st.sampled_from(["e", "E", "e+", "e-"]), digits.map(lambda text: text[:5])).map("".join),
).map("".join)
texts = st.text(alphabet='[]{}"\\a,:', max_size=6)
nested = st.recursive(
    texts | st.integers(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts, inner, max_size=4),
    max_leaves=20,
)


@example(["0e1001"], ",")
@example(["0e+9999"], ",")
@example(["0e10000"], ",")
@example(["0e-1000"], ",")
@given(st.lists(numbers, min_size=1, max_size=3), st.sampled_from([",", " , ", ",\n"]))
def test_a_number_is_refused_as_soon_as_it_is_looked_at(some: list[str], comma: str) -> None:
    value = f'{{"data":[{comma.join(some)}]}}'.encode()
    refused = None
    try:
        refuse_unstorable(value)
    except Rejected as rejected:
        refused = rejected.code
    slowly = examine(value)
    if refused is not None:
        assert slowly is not None
        assert slowly.code == refused
    elif slowly is not None:  # what is infinite, the decoder of `data` refuses
        assert any(abs(float(number)) == float("inf") for number in some)


@given(nested, st.integers(1, 6))
def test_nesting_is_counted_outside_of_texts(data: Any, depth_max: int) -> None:
    value = json.dumps(data).encode()
    if depth(data) <= depth_max:
        refuse_too_deep(value, depth_max)
    else:
        with pytest.raises(Rejected):
            refuse_too_deep(value, depth_max)


def test_a_text_without_an_end_is_looked_at_once() -> None:
    value = b"[" * 70 + b'"' + b'\\"' * 120_000
    started = time.process_time()
    with pytest.raises(Rejected, match="malformed_event"):
        refuse_too_deep(value, 64)
    assert time.process_time() - started < 1  # looking on from each quote took minutes


@pytest.mark.parametrize("brackets", [b"[" * 100_000 + b"]" * 100_000, b"[" * 200_000, b"[[],[]," * 40_000])
def test_levels_are_counted_as_fast_as_an_event_is_read(brackets: bytes) -> None:
    seconds = []
    for _ in range(3):  # the least counts: on a busy machine the caches are also those of others
        started = time.process_time()
        with pytest.raises(Rejected):
            refuse_too_deep(brackets, 64)
        seconds.append(time.process_time() - started)
    assert min(seconds) < 0.1


def depth(data: Any) -> int:
    inner = data.values() if isinstance(data, dict) else data if isinstance(data, list) else None
    return 0 if inner is None else 1 + max(map(depth, inner), default=0)
