import hypothesis.strategies as st
from hypothesis import example, given

from drm_ingest.event import identity_source, published_source

subjects = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=40)
sources = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)


@given(subjects, sources)
@example("meter 7", "")
@example("a%20b", "")
@example("a%20b", "/devices/a%20b")
@example("meter-7", "/devices/meter-8")
def test_the_source_that_counts_is_read_back_from_the_one_published(subject: str, source: str) -> None:
    published = published_source(subject, source)
    assert published, "CloudEvents wants a source"
    assert identity_source(subject, published) == source


@given(subjects)
def test_spelling_out_a_devices_own_source_means_leaving_it_out(subject: str) -> None:
    assert identity_source(subject, published_source(subject, "")) == ""
    assert identity_source(subject, None) == ""


def test_the_source_of_a_device_is_a_uri_reference() -> None:
    assert published_source("meter 7/ü", "") == "/devices/meter%207%2F%C3%BC"
    assert published_source("meter-7", "") == "/devices/meter-7"
