"""Buckets: bit for bit those of GrowthBook's hash v2, uniform, and independent between experiments."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import chi2_contingency, chisquare

from experiment.assign import MAX_USER_ID_LENGTH, bucket, checked, fnv1a32
from experiment.errors import InvalidUserError


@pytest.mark.parametrize(
    ("data", "digest"),
    [
        (b"", 0x811C9DC5),
        (b"a", 0xE40C292C),
        (b"b", 0xE70C2DE5),
        (b"foobar", 0xBF9CF968),
        (b"hello", 0x4F9F2CAB),
    ],
)
def test_fnv1a32_is_the_published_hash(data: bytes, digest: int) -> None:
    assert fnv1a32(data) == digest


@pytest.mark.parametrize(
    ("seed", "user", "expected"),
    [
        ("seed", "a", 0.0505),
        ("seed", "b", 0.2696),
        ("foo", "ab", 0.2575),
        ("foo", "def", 0.2019),
        ("89123klj", "8952klfjas09ujkasdf", 0.1240),
        ("90850943850283058242805", "123", 0.7516),
        ("()**(%$##$%#$#", '___)((*":&', 0.0128),
    ],
)
def test_bucket_is_bit_compatible_with_growthbook_version_two(seed: str, user: str, expected: float) -> None:
    assert bucket(seed, user) == expected


def test_bucket_hashes_utf8() -> None:
    seed, user = "größe", "用户-7"
    inner = str(fnv1a32((seed + user).encode("utf-8")))
    assert bucket(seed, user) == fnv1a32(inner.encode()) % 10_000 / 10_000


def test_buckets_of_sequential_ids_are_uniform() -> None:
    buckets = np.array([bucket("uniform", f"user-{number}") for number in range(100_000)])
    counts, _ = np.histogram(buckets, bins=100, range=(0.0, 1.0))
    assert chisquare(counts).pvalue > 1e-4


def test_two_experiments_split_independently_even_with_similar_seeds() -> None:
    """The older hash puts the same users together 88 % of the time for these two seeds."""
    table = np.zeros((2, 2))
    for number in range(20_000):
        user = f"{number}"
        table[int(bucket("exp-1", user) < 0.5), int(bucket("exp-9", user) < 0.5)] += 1
    assert chi2_contingency(table).pvalue > 1e-4


@pytest.mark.parametrize("user", ["", " ", "\t\n", "u" * (MAX_USER_ID_LENGTH + 1), None, 7, b"bytes"])
def test_what_is_no_user_id_is_refused_and_never_bucketed(user: object) -> None:
    with pytest.raises(InvalidUserError):
        checked(user)  # type: ignore[arg-type]
