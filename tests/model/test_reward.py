from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from model.errors import ModelError
from model.reward import DurationBuckets, WatchHistory, advantages, engagement, threshold

seconds = st.floats(0.0, 7200.0)
watched = st.lists(st.tuples(seconds, seconds), max_size=30)


def _bucket(duration: float, beta: float, eps: float) -> int:
    """The n with beta^n <= d + eps < beta^(n+1), found by counting."""
    n, value = 0, duration + eps
    while value >= beta:
        value, n = value / beta, n + 1
    while value < 1.0:
        value, n = value * beta, n - 1
    return n


@pytest.mark.parametrize("beta", [1.5, 2.0, 10.0])
def test_bucket_is_the_floor_of_the_logarithm_of_duration_and_eps(beta: float) -> None:
    durations = [0.0, 0.3, 0.99, 1.0, 1.6, 7.0, 8.0, 8.1, 30.0, 99.9, 100.0, 101.0, 3600.0]
    got = DurationBuckets(beta).of(np.array(durations)).tolist()
    assert got == [_bucket(duration, beta, 1e-6) for duration in durations]


@given(watched, st.lists(st.tuples(seconds, seconds), min_size=1, max_size=10))
def test_engagement_equals_the_percentile_counted_by_loops(
    history: list[tuple[float, float]], shown: list[tuple[float, float]]
) -> None:
    past = WatchHistory(np.array([d for d, _ in history]), np.array([p for _, p in history]))
    buckets = DurationBuckets()
    got = engagement(past, np.array([d for d, _ in shown]), np.array([p for _, p in shown]), buckets)

    def number(duration: float) -> int:
        return int(buckets.of(np.array([duration]))[0])

    for q, (duration, played) in zip(got, shown, strict=True):
        peers = [p for d, p in history if number(d) == number(duration)]
        if peers:
            assert q == sum(p <= played for p in peers) / len(peers)
        else:
            assert math.isnan(q)


def test_engagement_judges_like_durations_and_not_absolute_playing_time() -> None:
    past = WatchHistory(np.array([4.0, 5.0, 6.0, 300.0, 310.0, 320.0]), np.array([1.0, 2.0, 3.0, 100.0, 200.0, 300.0]))
    short, long = engagement(past, np.array([5.0, 310.0]), np.array([5.0, 150.0]))
    assert short == 1.0
    assert long == pytest.approx(1 / 3)


def _threshold(scores: list[float], share: float) -> float:
    """The largest score that more than share·n items reach."""
    known = [score for score in scores if not math.isnan(score)]
    reached = [score for score in known if sum(other >= score for other in known) > share * len(known)]
    return max(reached, default=math.inf)


@given(st.lists(st.sampled_from([0.0, 0.25, 0.5, 0.75, 0.9, 1.0, math.nan]), max_size=40), st.sampled_from([0.25, 0.5]))
def test_threshold_equals_the_largest_score_that_more_than_the_share_reach(scores: list[float], share: float) -> None:
    assert threshold(scores, share) == _threshold(scores, share)


@given(st.lists(st.floats(0.0, 1.0), min_size=1, max_size=60, unique=True))
def test_advantage_without_ties_picks_exactly_the_top_quarter(scores: list[float]) -> None:
    got = advantages(np.array(scores), np.zeros(len(scores), dtype=bool)).tolist()
    best = sorted(scores, reverse=True)[: len(scores) // 4]
    assert got == [1.0 if score in best else 0.0 for score in scores]


@given(
    st.lists(st.tuples(st.sampled_from([0.1, 0.5, 0.7, 0.9, math.nan]), st.booleans()), min_size=1, max_size=40),
)
def test_advantage_equals_the_stated_cases(samples: list[tuple[float, bool]]) -> None:
    scores = [score for score, _ in samples]
    tau = _threshold(scores, 0.25)
    got = advantages(np.array(scores), np.array([negative for _, negative in samples])).tolist()
    for value, (score, negative) in zip(got, samples, strict=True):
        if score > tau and not negative:
            assert value == 1.0
        elif negative:
            assert value == -1.0
        else:
            assert value == 0.0


def test_advantage_of_a_disliked_best_item_is_minus_one() -> None:
    got = advantages(np.array([1.0, 0.2, 0.1, 0.3]), np.array([True, False, False, False]))
    assert got.tolist() == [-1.0, 0.0, 0.0, 0.0]


@pytest.mark.parametrize("field", ["beta", "eps"])
@pytest.mark.parametrize("value", [0.0, -1.0, math.nan, math.inf])
def test_buckets_impossible_values_are_refused(field: str, value: float) -> None:
    with pytest.raises(ModelError, match=field):
        DurationBuckets(**{field: value})


@pytest.mark.parametrize(
    ("durations", "played", "named"),
    [([1.0, -1.0], [1.0, 1.0], "duration_s"), ([1.0], [math.nan], "played_s"), ([1.0, 2.0], [1.0], "played_s")],
)
def test_watch_history_impossible_values_are_refused(durations: list[float], played: list[float], named: str) -> None:
    with pytest.raises(ModelError, match=named):
        WatchHistory(np.array(durations), np.array(played))


def test_reward_of_ill_fitting_batches_is_refused() -> None:
    past = WatchHistory(np.array([1.0]), np.array([1.0]))
    with pytest.raises(ModelError, match="played_s"):
        engagement(past, np.array([1.0, 2.0]), np.array([1.0]))
    with pytest.raises(ModelError, match="disliked"):
        advantages(np.array([0.5, 0.6]), np.array([True]))
    with pytest.raises(ModelError, match="share"):
        threshold([0.5], 1.0)
