"""Moments: centring, merging and delta updates give what a rebuild from raw values gives."""

from __future__ import annotations

import json
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stats.errors import StatsError
from stats.moments import Moments

NAMES = ("mean_x", "mean_y", "mean_c", "m_xx", "m_yy", "m_xy", "m_cc", "m_xc", "m_yc")
counts = st.integers(0, 10_000)
users = st.lists(st.tuples(counts, counts, counts), min_size=0, max_size=40)


def rebuild(rows: list[tuple[int, int, int]]) -> Moments:
    x, y, c = np.array(rows, dtype=float).reshape(-1, 3).T
    return Moments.from_values(x, y, c)


def squares(m: Moments, letter: str) -> float:
    """The uncentred sum of squares: the scale on which a centred product can be known at all."""
    return getattr(m, f"m_{letter}{letter}") + m.n * getattr(m, f"mean_{letter}") ** 2


def assert_same(a: Moments, b: Moments, rel: float = 1e-12, history: Moments | None = None) -> None:
    """Equal to `rel` of the raw products of b, or of `history` where values have since left."""
    assert a.n == b.n
    at_most = history or b
    for name in NAMES:
        scale = (squares(at_most, name[2]) * squares(at_most, name[3])) ** 0.5 if name[:2] == "m_" else 0.0
        assert getattr(a, name) == pytest.approx(getattr(b, name), rel=rel, abs=rel * max(scale, 1.0)), name


@given(users, users)
def test_merge_is_commutative_exactly(a: list, b: list) -> None:
    assert rebuild(a) + rebuild(b) == rebuild(b) + rebuild(a)


@given(users, users, users)
def test_merge_is_associative_and_equals_rebuild(a: list, b: list, c: list) -> None:
    left = (rebuild(a) + rebuild(b)) + rebuild(c)
    assert_same(left, rebuild(a) + (rebuild(b) + rebuild(c)))
    assert_same(left, rebuild(a + b + c))


@given(users, st.randoms(use_true_random=False))
def test_incremental_updates_equal_rebuild(rows: list, rng) -> None:
    """Enrol everybody with nothing, then let each user's totals grow in a random order, then forget the last one."""
    moments = Moments.empty()
    current = [(0.0, 0.0, float(c)) for _, _, c in rows]
    for value in current:
        moments = moments.replace_user(None, value)
    for i in rng.sample(range(len(rows)), len(rows)):
        moments = moments.replace_user(current[i], rows[i])
        current[i] = rows[i]
    assert_same(moments, rebuild(rows))
    if rows:
        assert_same(moments.replace_user(rows[-1], None), rebuild(rows[:-1]), history=moments)


def test_ten_thousand_updates_stay_within_1e_12() -> None:
    rng = np.random.default_rng(7)
    x, y, c = rng.poisson((1, 20, 3), (500, 3)).astype(float).T
    moments = Moments.from_values(x, y, c)
    for user in rng.integers(0, 500, 10_000):
        old = (x[user], y[user], c[user])
        y[user] += 1
        x[user] += rng.random() < 0.1
        moments = moments.replace_user(old, (x[user], y[user], c[user]))
    fresh = Moments.from_values(x, y, c)
    for name in NAMES:
        assert getattr(moments, name) == pytest.approx(getattr(fresh, name), rel=1e-12), name


@given(users)
def test_raw_sums_of_counts_give_the_same_moments(rows: list) -> None:
    x, y, c = np.array(rows, dtype=float).reshape(-1, 3).T
    sums = (x.sum(), y.sum(), x @ x, y @ y, x @ y, c.sum(), c @ c, x @ c, y @ c)
    assert_same(Moments.from_sums(len(rows), *map(float, sums)), rebuild(rows), rel=1e-13)


def test_raw_sums_of_large_integers_lose_nothing() -> None:
    """The naive ss - s²/n has no digit left here; the exact rational answer has all of them."""
    values = [2**24 + k for k in (0, 1, 2, 3)]
    sx, sxx = sum(values), sum(v * v for v in values)
    exact = Fraction(sxx) - Fraction(sx) ** 2 / 4
    moments = Moments.from_sums(4, sx, 4, sxx, 4, sx)
    assert moments.m_xx == pytest.approx(float(exact), rel=1e-15)
    assert moments.m_yy == 0


def test_values_far_from_zero_keep_their_variance() -> None:
    moments = Moments.from_values(np.array([1e12, 1e12 + 1, 1e12 + 2]))
    assert moments.m_xx == pytest.approx(2.0, rel=1e-12)
    halves = Moments.from_values(np.array([1e12])) + Moments.from_values(np.array([1e12 + 1, 1e12 + 2]))
    assert halves.m_xx == pytest.approx(2.0, rel=1e-12)


def test_a_mean_has_denominator_one() -> None:
    moments = Moments.from_values(np.array([1.0, 2.0, 6.0]))
    assert (moments.n, moments.mean_x, moments.mean_y, moments.m_yy, moments.m_xy) == (3, 3.0, 1.0, 0.0, 0.0)
    assert moments.m_xx == pytest.approx(14.0)


def test_dict_round_trip_is_exact_through_json() -> None:
    moments = Moments.from_values(np.array([0.1, 0.2, 0.7]), np.array([3.0, 1.0, 2.0]), np.array([1 / 3, 0.0, 5.0]))
    assert Moments.from_dict(json.loads(json.dumps(moments.to_dict()))) == moments


def test_dict_with_a_wrong_key_is_refused_by_name() -> None:
    values = Moments.empty().to_dict()
    values["m_zz"] = values.pop("m_xx")
    with pytest.raises(StatsError, match="m_xx"):
        Moments.from_dict(values)


@pytest.mark.parametrize(
    ("call", "field"),
    [
        (lambda: Moments.from_values(np.zeros((2, 2))), "x"),
        (lambda: Moments.from_values(np.zeros(2), np.zeros(3)), "y"),
        (lambda: Moments.from_values(np.zeros(2), None, np.array([0.0, np.nan])), "c"),
        (lambda: Moments.from_sums(2, 10.0, 2, 1.0, 2, 10.0), "sxx"),
        (lambda: Moments.from_sums(0, 1.0, 0, 1.0, 0, 0), "n"),
        (lambda: Moments.from_sums(-1, 0, 0, 0, 0, 0), "n"),
        (lambda: Moments.from_sums(2, float("nan"), 0, 0, 0, 0), "moments"),
        (lambda: Moments.empty().replace_user((1.0, 1.0, 0.0), None), "old"),
        (lambda: Moments.from_values(np.array([1.0, 1.0, 1.0])).replace_user((9.0, 1.0, 0.0), None), "old"),
    ],
)
def test_impossible_moments_are_refused_with_the_field(call, field: str) -> None:
    with pytest.raises(StatsError) as caught:
        call()
    assert caught.value.field == field
