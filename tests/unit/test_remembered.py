import hypothesis.strategies as st
from hypothesis import given

from drm_ingest.pipeline.enrich.remembered import Remembered

batches = st.lists(st.dictionaries(st.integers(0, 200).map(str), st.binary(min_size=16, max_size=16), max_size=20))


def test_the_same_event_is_known_and_another_content_is_not() -> None:
    remembered = Remembered(10)
    remembered.add({"a": b"1" * 16})
    assert remembered.holds("a", b"1" * 16)
    assert not remembered.holds("a", b"2" * 16)
    assert not remembered.holds("b", b"1" * 16)


@given(batches, st.integers(1, 50))
def test_memory_is_bounded_and_the_latest_half_is_always_there(batches: list[dict[str, bytes]], bound: int) -> None:
    remembered = Remembered(bound)
    order: dict[str, bytes] = {}
    for batch in batches:
        remembered.add(batch)
        for identity, content_hash in batch.items():
            order.pop(identity, None)
            order[identity] = content_hash
        assert len(remembered) <= bound + 2 * 20
        for identity, content_hash in list(order.items())[-(bound // 2) :] if bound >= 2 else ():
            assert remembered.holds(identity, content_hash)
