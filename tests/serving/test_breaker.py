"""The breaker: closed until enough failures in a row, then one probe at a time, closed again by one success."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.breaker import Breaker


def opened(at_s: float = 100.0, retry_s: float = 1.0) -> Breaker:
    breaker = Breaker(threshold=3, retry_s=retry_s)
    for _ in range(3):
        breaker.failed(at_s)
    return breaker


def test_failures_below_the_threshold_leave_it_closed() -> None:
    breaker = Breaker(threshold=3)
    for now_s in (1.0, 1.1):
        breaker.failed(now_s)
        assert breaker.allows(now_s)
    assert not breaker.is_open


def test_only_failures_in_a_row_count() -> None:
    breaker = Breaker(threshold=3)
    for now_s in range(10):
        breaker.failed(now_s)
        breaker.failed(now_s)
        breaker.succeeded()
    assert not breaker.is_open


@pytest.mark.parametrize(("later_s", "allowed"), [(0.0, False), (0.99, False), (1.0, True), (50.0, True)])
def test_an_open_one_waits_before_it_probes(later_s: float, allowed: bool) -> None:
    breaker = opened(at_s=100.0, retry_s=1.0)
    assert breaker.is_open
    assert breaker.allows(100.0 + later_s) is allowed


def test_of_many_who_ask_one_is_the_probe() -> None:
    breaker = opened(at_s=100.0)
    assert [breaker.allows(102.0) for _ in range(5)] == [True, False, False, False, False]


def test_a_probe_that_never_comes_back_is_followed_by_another() -> None:
    breaker = opened(at_s=100.0, retry_s=1.0)
    assert breaker.allows(101.0)
    assert not breaker.allows(101.9)
    assert breaker.allows(102.0)


def test_a_failed_probe_opens_it_for_another_while() -> None:
    breaker = opened(at_s=100.0, retry_s=1.0)
    assert breaker.allows(101.0)
    breaker.failed(101.5)
    assert [breaker.allows(now_s) for now_s in (102.0, 102.4, 102.5)] == [False, False, True]


def test_one_success_lets_everybody_through() -> None:
    breaker = opened()
    breaker.succeeded()
    assert all(breaker.allows(100.0) for _ in range(5))
    assert not breaker.is_open


@given(
    st.lists(st.tuples(st.sampled_from(["ask", "fail", "succeed"]), st.floats(0, 3)), max_size=60),
    st.integers(1, 5),
)
def test_whatever_happens_a_dead_variant_gets_one_call_in_every_pause(
    happenings: list[tuple[str, float]], threshold: int
) -> None:
    breaker = Breaker(threshold=threshold, retry_s=1.0)
    now_s, in_a_row, last_probe_s = 0.0, 0, float("-inf")
    for what, pause_s in happenings:
        now_s += pause_s
        if what == "fail":
            in_a_row += 1
            breaker.failed(now_s)
        elif what == "succeed":
            in_a_row, last_probe_s = 0, float("-inf")
            breaker.succeeded()
        else:
            allowed = breaker.allows(now_s)
            if in_a_row < threshold:
                assert allowed
            elif allowed:
                assert now_s >= last_probe_s + breaker.retry_s
                last_probe_s = now_s
        assert breaker.is_open == (in_a_row >= threshold)
