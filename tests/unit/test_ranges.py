"""Who held which role when is a function of the set of identity events, and agrees with a look at each moment."""

import uuid
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta

from hypothesis import given
from hypothesis import strategies as st

from drm_ingest.pipeline.attach.ranges import Said, Span, ranges

NOON = datetime(2026, 11, 20, 12, tzinfo=UTC)
HOUR = timedelta(hours=1)
ADA, BO, CY = (uuid.UUID(int=number) for number in (1, 2, 3))
PARTIES = (ADA, BO, CY)
ROLES = ("user", "owner")

times = st.integers(0, 8).map(lambda number: NOON + number * HOUR)
bounds = st.none() | times


def said(at: float, linked: bool, party: uuid.UUID | None, role: str = "user", sequence: str | None = None) -> Said:
    return Said(NOON + at * HOUR, linked, party, role, role == "owner", sequence)


def shown(spans: Iterable[Span]) -> list[tuple[str, uuid.UUID, float | None, float | None]]:
    def hours(at: datetime | None) -> float | None:
        return None if at is None else (at - NOON) / HOUR

    return [(span.role, span.party, hours(span.starts), hours(span.ends)) for span in spans]


@st.composite
def any_said(draw: st.DrawFn) -> Said:
    role, linked = draw(st.sampled_from(ROLES)), draw(st.booleans())
    party = draw(st.sampled_from(PARTIES if linked else (*PARTIES, None)))
    sequence = draw(st.none() | st.sampled_from(["2", "9", "10"]))
    # Of one content there is one hash, and of one hash one content.
    hash_ = draw(st.binary(min_size=1, max_size=1)) + (b"" if party is None else party.bytes) + role.encode()
    return Said(draw(times), linked, party, role, role == "owner", sequence, hash_, "app")


@st.composite
def any_span(draw: st.DrawFn) -> Span:
    starts, ends = draw(bounds), draw(bounds)
    if starts is not None and ends is not None and starts >= ends:
        starts = None
    return Span(draw(st.sampled_from(ROLES)), draw(st.sampled_from(PARTIES)), starts, ends)


many = st.lists(any_said(), max_size=12)
spans = st.lists(any_span(), max_size=3)
claims = st.sampled_from([None, timedelta(0), 2 * HOUR])


def derive(
    events: Iterable[Said], windows: Sequence[Span] = (), stated: Sequence[Span] = (), claim: timedelta | None = None
) -> list[Span]:
    return ranges(events, windows=windows, stated=stated, exclusive={"owner"}, claim=claim)


@given(many.flatmap(lambda events: st.tuples(st.just(events), st.permutations(events))), spans, spans, claims)
def test_the_order_of_arrival_changes_nothing(
    events: tuple[list[Said], list[Said]], windows: list[Span], stated: list[Span], claim: timedelta | None
) -> None:
    first, second = events
    assert derive(first, windows, stated, claim) == derive(second, windows, stated, claim)


@given(many, st.data())
def test_repeats_change_nothing(events: list[Said], data: st.DataObject) -> None:
    repeats = data.draw(st.lists(st.sampled_from(events), max_size=5)) if events else []
    assert derive([*events, *repeats]) == derive(events)


@given(many, spans, spans, claims)
def test_no_two_of_a_party_overlap_and_of_an_exclusive_role_no_two_at_all_nor_with_what_people_stated(
    events: list[Said], windows: list[Span], stated: list[Span], claim: timedelta | None
) -> None:
    found = derive(events, windows, stated, claim)
    assert all(span.first < span.last for span in found)
    for number, span in enumerate(found):
        for other in [*found[number + 1 :], *stated]:
            if span.role == other.role and (span.role == "owner" or span.party == other.party):
                assert span.last <= other.first or other.last <= span.first


@given(many)
def test_at_each_moment_they_hold_it_whom_the_last_word_on_them_let(events: list[Said]) -> None:
    """The naive way: of each party and role, the last thing said that bears on it."""
    found = derive(events, claim=timedelta(0))
    for half in range(-1, 19):
        at = NOON + half * HOUR / 2
        held = Counter((span.role, span.party) for span in found if span.first <= at < span.last)
        expected: Counter[tuple[str, uuid.UUID]] = Counter()
        for role in ROLES:
            for party in PARTIES:
                bearing = [
                    each
                    for each in sorted(events, key=lambda each: each.order)
                    if each.at <= at
                    and each.role == role
                    and (each.party in (party, None) or (each.linked and role == "owner"))
                ]
                if bearing and bearing[-1].linked and bearing[-1].party == party:
                    expected[role, party] = 1
        assert held == expected


@given(many, spans)
def test_in_a_window_events_say_nothing_of_its_party_and_role(events: list[Said], windows: list[Span]) -> None:
    for span in derive(events, windows, claim=None):
        for window in windows:
            if (span.role, span.party) == (window.role, window.party):
                assert span.last <= window.first or window.last <= span.first


@given(many, st.sampled_from([None, 2 * HOUR]))
def test_a_claim_only_ever_lets_the_first_user_begin_earlier_and_takes_from_nobody(
    events: list[Said], claim: timedelta | None
) -> None:
    without, with_it = derive(events, claim=timedelta(0)), derive(events, claim=claim)
    earlier = [span for span in with_it if span not in without]
    assert len(earlier) <= 1
    for span in earlier:
        assert span.began_by is not None
        assert span.role == "user"
        assert replace(span, starts=span.began_by.at) in without
        assert min(each.at for each in events if each.linked and each.role == "user") == span.began_by.at
        for other in with_it:
            if other.party != span.party and other.first < span.began_by.at:
                assert other.last <= span.first


def test_who_leaves_at_the_moment_another_comes_takes_nobody_along() -> None:
    assert shown(derive([said(0, True, ADA), said(1, True, BO), said(1, False, None)], claim=timedelta(0))) == [
        ("user", ADA, 0, 1), ("user", BO, 1, None),
    ]  # fmt: skip


def test_of_one_moment_the_sequence_decides_as_a_number_would() -> None:
    events = [said(0, True, ADA), said(1, False, ADA, sequence="10"), said(1, True, ADA, sequence="9")]
    assert shown(derive(events, claim=timedelta(0))) == [("user", ADA, 0, 1)]
    events = [said(0, True, ADA), said(1, False, ADA, sequence="9"), said(1, True, ADA, sequence="10")]
    assert shown(derive(events, claim=timedelta(0))) == [("user", ADA, 0, 1), ("user", ADA, 1, None)]


def test_taking_a_device_over_ends_its_owner_and_signing_in_ends_nobody() -> None:
    events = [said(0, True, ADA, "owner"), said(2, True, BO, "owner"), said(0, True, ADA), said(2, True, BO)]
    assert shown(derive(events, claim=timedelta(0))) == [
        ("owner", ADA, 0, 2), ("owner", BO, 2, None), ("user", ADA, 0, None), ("user", BO, 2, None),
    ]  # fmt: skip


def test_a_claim_that_reaches_to_where_the_calendar_begins_has_no_start() -> None:
    early = replace(said(0, True, ADA), at=datetime(2, 6, 1, tzinfo=UTC))
    (span,) = derive([early], claim=timedelta(days=366))
    assert span.starts is None
    (span,) = derive([early], claim=timedelta(days=30))
    assert span.starts == datetime(2, 5, 2, tzinfo=UTC)


def test_a_claim_stops_where_somebody_owned_the_device() -> None:
    owned = [Span("owner", BO, None, NOON - 5 * HOUR)]
    assert shown(derive([said(0, True, ADA)], stated=owned, claim=None)) == [("user", ADA, -5, None)]
    assert shown(derive([said(0, True, ADA)], stated=owned, claim=2 * HOUR)) == [("user", ADA, -2, None)]
    owned = [Span("owner", BO, None, None)]
    assert shown(derive([said(0, True, ADA)], stated=owned, claim=None)) == [("user", ADA, 0, None)]
    owned = [Span("owner", ADA, None, None)]
    assert shown(derive([said(0, True, ADA)], stated=owned, claim=None)) == [("user", ADA, None, None)]


def test_who_signs_in_at_the_beginning_of_time_claims_no_more_than_there_is() -> None:
    dawn = replace(said(0, True, ADA), at=datetime(1, 1, 1, 1, tzinfo=UTC))
    assert shown(derive([dawn], claim=2 * HOUR)) == [("user", ADA, None, None)]
