from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from model.catalogue import Catalogue
from model.errors import ModelError
from model.signals import MAX_CHARACTERS, MAX_FEATURES, UserSignals, indexed, profile_buckets, signals_of

TEXT = st.text(min_size=1, max_size=8)


def test_signals_of_a_history_alone_are_that_history() -> None:
    signals = UserSignals(["a"], ["b"])
    assert signals_of(["a", "b"]) == UserSignals(["a", "b"])
    assert signals_of(signals) is signals


def test_signals_are_indexed_whole_and_an_unknown_item_is_named(toy_catalogue: Catalogue) -> None:
    signals = UserSignals(["i2", "i1"], ["i2"], {"age": "56+"}, "u")
    assert indexed(signals, toy_catalogue) == UserSignals([2, 1], [2], {"age": "56+"}, "u")
    with pytest.raises(ModelError, match="unknown item 'zzz'"):
        indexed(UserSignals(["i2"], ["zzz"]), toy_catalogue)


def test_signals_met_is_everything_once() -> None:
    assert UserSignals([3, 1, 3], [1, 7]).met == [3, 1, 7]


@pytest.mark.parametrize(
    "profile",
    [
        {"age": ""},
        {"": "56+"},
        {"age": 56},
        {"age": "x" * (MAX_CHARACTERS + 1)},
        {f"feature {number}": "x" for number in range(MAX_FEATURES + 1)},
    ],
)
def test_signals_with_an_impossible_profile_are_refused(profile: dict[str, str]) -> None:
    with pytest.raises(ModelError, match="profile: "):
        UserSignals([], profile=profile)


@given(st.dictionaries(TEXT, TEXT, max_size=6), st.integers(1, 1000))
@settings(deadline=None)
def test_profile_buckets_are_in_range_ascending_and_free_of_order(profile: dict[str, str], count: int) -> None:
    buckets = profile_buckets(profile, count)
    assert buckets == sorted(set(buckets)) == profile_buckets(dict(reversed(profile.items())), count)
    assert all(0 <= bucket < count for bucket in buckets)
    assert bool(buckets) == bool(profile)
    assert profile_buckets(profile, 0) == []


def test_profile_buckets_tell_name_and_value_apart_and_are_those_of_another_process() -> None:
    assert profile_buckets({"a": "bc"}, 2**60) != profile_buckets({"ab": "c"}, 2**60)
    code = "from model.signals import profile_buckets; print(profile_buckets({'age': '25-34', 'gender': 'F'}, 1024))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=_root())
    assert done.stdout.strip() == str(profile_buckets({"age": "25-34", "gender": "F"}, 1024))


def _root() -> Path:
    return Path(__file__).parents[2]
