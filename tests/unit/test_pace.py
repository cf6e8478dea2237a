"""The lane of imported events yields: to an edge that gets slow, and to workers that are behind."""

from drm_ingest.exchange.pace import LOOK_AGAIN_S, PAUSE_MAX_S, Pace


class Path:
    """A path whose groups get as far as they are told to, and a clock that only sleeping moves."""

    def __init__(self, *lags: dict[str, int | None]) -> None:
        self._lags = list(lags)
        self.now = 0.0
        self.slept: list[float] = []
        self.looks = 0
        self.told: list[str] = []

    def lags(self) -> dict[str, int | None]:
        self.looks += 1
        return self._lags.pop(0) if len(self._lags) > 1 else self._lags[0]

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now += seconds

    def pace(self, *, look: bool = True, share: float = 0.25) -> Pace:
        lags = self.lags if look else None
        return Pace(lags, 1000, share, self.told.append, clock=lambda: self.now, sleep=self.sleep)


def test_the_slower_the_edge_answers_the_longer_the_pause() -> None:
    path = Path({})
    pace = path.pace(look=False)
    for took_s in (0.01, 0.1, 100):
        pace.answered(500, took_s)
    assert [round(pause, 3) for pause in path.slept] == [0.03, 0.3, PAUSE_MAX_S]
    assert path.looks == 0


def test_it_stands_still_while_a_worker_is_too_far_behind() -> None:
    path = Path({"enrich": 0, "attach": 1001}, {"enrich": 0, "attach": 1001}, {"enrich": 0, "attach": 1000})
    path.pace().answered(100, 0.01)
    assert path.slept[1:] == [LOOK_AGAIN_S] * 2
    assert path.told == ["waiting: attach has 1,001 events before it; going on below 1,000"]


def test_it_never_sends_more_than_half_the_bound_without_looking() -> None:
    path = Path({"enrich": 0, "attach": 0})
    pace = path.pace(share=1)
    sent_between: list[int] = []
    unseen = 0
    for _ in range(100):
        looks = path.looks
        unseen += 50
        pace.answered(50, 0.0)
        if path.looks > looks:
            sent_between.append(unseen)
            unseen = 0
    assert max(sent_between) == 500


def test_a_group_that_never_read_anything_is_as_far_behind_as_was_sent() -> None:
    path = Path({"attach": None}, {"attach": None}, {"attach": 0})
    pace = path.pace()
    pace.answered(600, 0.0)
    assert path.looks == 1
    pace.answered(500, 0.0)
    assert path.told == ["waiting: attach has 1,100 events before it; going on below 1,000"]
