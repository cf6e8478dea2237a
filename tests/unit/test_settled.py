"""What is derived beyond what is settled is what is derived from all there is, whatever was settled and comes late."""

import uuid
from collections import Counter
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, cast

from hypothesis import event, given
from hypothesis import strategies as st

from drm_ingest.pipeline.attach.link import derived
from drm_ingest.pipeline.attach.ranges import Span
from drm_ingest.postgres.relations.evidence import Known, SettledUntil

NOON = datetime(2026, 11, 20, 12, tzinfo=UTC)
HOUR = timedelta(hours=1)
PARTIES = [uuid.UUID(int=number) for number in (1, 2, 3)]
ROLES = ("user", "owner")
Row = dict[str, Any]

times = st.integers(0, 12).map(lambda number: NOON + number * HOUR)


@st.composite
def any_event(draw: st.DrawFn) -> Row:
    role, linked = draw(st.sampled_from(ROLES)), draw(st.booleans())
    party = draw(st.sampled_from(PARTIES if linked else [*PARTIES, None]))
    return {
        "linked": linked, "role": role, "method": None, "occurred_at": draw(times), "sender": "app",
        "sequence": draw(st.none() | st.sampled_from(["2", "10"])), "usable": draw(st.integers(0, 9)) > 0,
        "content_hash": uuid.UUID(int=draw(st.integers(0, 2**128 - 1))), "refused": "It is odd.", "due": False,
        "everybody": party is None, "is_role": True, "party": party,
        "party_kind": None if party is None else "customer",
        "exclusive": None if party is None else role == "owner",
    }  # fmt: skip


@st.composite
def any_stated(draw: st.DrawFn) -> Row:
    starts, ends = draw(st.none() | times), draw(st.none() | times)
    if starts is not None and ends is not None and starts >= ends:
        starts = None
    return row(Span(draw(st.sampled_from(ROLES)), draw(st.sampled_from(PARTIES)), starts, ends), derived=False)


@st.composite
def any_word(draw: st.DrawFn) -> Row:
    held = draw(any_stated())
    ends = held["valid_to"] or NOON + 20 * HOUR
    everybody = draw(st.booleans())
    but = draw(st.lists(st.sampled_from(PARTIES), max_size=1)) if everybody else []
    party = None if everybody else held["party"]
    return {"role": held["role"], "party": party, "but": but, "starts": held["valid_from"], "ends": ends}


def row(span: Span, *, derived: bool) -> Row:
    return {
        "role": span.role, "exclusive": span.role == "owner", "party": span.party, "party_kind": "customer",
        "valid_from": span.starts, "valid_to": span.ends, "derived": derived, "asserted_by": "app", "reason": None,
    }  # fmt: skip


def holds(spans: Sequence[Span]) -> Counter[tuple[str, uuid.UUID, datetime | None, datetime | None]]:
    return Counter((span.role, span.party, span.starts, span.ends) for span in spans)


def known(events: list[Row], open_: list[Row], words: list[Row], settled: SettledUntil | None = None) -> Known:
    # Rows of Postgres are read by name, as these are.
    return Known(cast("Any", events), cast("Any", open_), cast("Any", words), settled)


@given(
    st.lists(any_event(), max_size=14), st.lists(any_event(), min_size=1, max_size=3),
    st.lists(any_event(), max_size=2), st.lists(any_stated(), max_size=1), st.lists(any_word(), max_size=2),
    st.sampled_from([None, timedelta(0), 2 * HOUR]),
)  # fmt: skip
def test_what_comes_late_changes_what_reaches_beyond_it_and_that_is_derived_as_from_all(
    before: list[Row],
    late: list[Row],
    gone: list[Row],
    stated: list[Row],
    words: list[Row],
    claim: timedelta | None,
) -> None:
    """Of those that are gone nobody has the reference any more: they are due too, and say nothing now."""
    was = derived(known([*before, *gone], stated, words), claim)
    now = [{**each, "usable": False} for each in gone]
    all_ = derived(known([*before, *late, *now], stated, words), claim)
    assert was is not None
    assert all_ is not None
    until = min(each["occurred_at"] for each in (*late, *gone))
    first = [each for each in before if each["linked"] and each["usable"] and each["role"] == "user"]
    if claim != timedelta(0) and not any(each["occurred_at"] < until for each in first):
        return  # nothing is settled
    roles = sorted({each["role"] for each in (*late, *gone)})

    def beyond(role: str, ends: datetime | None) -> bool:
        return role in roles and (ends is None or ends >= until)

    rows = [*stated, *(row(span, derived=True) for span in was)]
    open_ = [each for each in rows if beyond(each["role"], each["valid_to"])]
    tail = derived(
        known(
            [each for each in (*before, *late, *now) if beyond(each["role"], each["occurred_at"])],
            open_,
            [word for word in words if word["role"] in roles and word["ends"] > until],
            SettledUntil(until, roles),
        ),
        claim,
    )
    event("more is needed" if tail is None else "told")
    if tail is not None:
        assert holds(tail) == holds([span for span in all_ if beyond(span.role, span.ends)])
        untouched = [span for span in was if not beyond(span.role, span.ends)]
        assert holds(untouched) == holds([span for span in all_ if not beyond(span.role, span.ends)])


def one(linked: bool, party: uuid.UUID, at: int, usable: bool = True) -> Row:
    return {
        "linked": linked, "role": "user", "method": None, "occurred_at": NOON + at * HOUR, "sender": "app",
        "sequence": None, "usable": usable, "content_hash": uuid.UUID(int=at), "refused": "It names nobody.",
        "due": True, "everybody": False, "is_role": True, "party": party, "party_kind": "customer", "exclusive": False,
    }  # fmt: skip


def test_more_is_needed_where_somebody_may_be_signed_in_behind_what_a_person_stated() -> None:
    ada, bo, _ = PARTIES
    stated = row(Span("user", ada, NOON + HOUR, NOON + 4 * HOUR), derived=False)
    goes_on = row(Span("user", ada, NOON + 4 * HOUR, None), derived=True)
    for at, tells in ((1, True), (2, False), (4, False), (5, True)):
        reaching = [each for each in (stated, goes_on) if at < 5 or each is goes_on]
        if at == 1:
            reaching = [row(Span("user", ada, NOON, NOON + HOUR), derived=True), *reaching]
        found = derived(known([one(True, bo, at)], reaching, [], SettledUntil(NOON + at * HOUR, ["user"])), None)
        assert (found is not None) == tells, at


def test_more_is_needed_where_a_sign_out_is_taken_back_as_who_signed_in_is_not_told_any_more() -> None:
    ada, _, _ = PARTIES
    was = row(Span("user", ada, NOON, NOON + 2 * HOUR), derived=True)
    until = SettledUntil(NOON + 2 * HOUR, ["user"])
    assert derived(known([one(False, ada, 2, usable=False)], [was], [], until), None) is None
    found = derived(known([one(False, ada, 2)], [was], [], until), None)
    assert [(span.starts, span.ends) for span in found or ()] == [(NOON, NOON + 2 * HOUR)]
