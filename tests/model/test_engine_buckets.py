from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from model.engine.buckets import (
    Bucket,
    batch_size,
    beam_width,
    bucket_for,
    history_size,
    ladder,
    most_requests,
    padded,
    served_rows,
)
from model.engine.limits import MOST_BEAMS, MOST_ROWS
from model.errors import ModelError
from model.signals import UserSignals


def test_sizes_are_rounded_up_by_little() -> None:
    assert [batch_size(n) for n in (1, 2, 3, 7, 8, 9, 11, 17, 28, 33)] == [1, 2, 3, 7, 8, 10, 12, 20, 28, 40]
    assert [beam_width(n) for n in (1, 3, 32, 50, 512, 513)] == [1, 4, 32, 64, 512, 1024]
    assert [history_size(n) for n in (0, 64, 65, 512, 3072, 5000)] == [64, 64, 512, 512, 4096, 32768]


@given(batch=st.integers(1, 500), width=st.integers(1, MOST_BEAMS), longest=st.integers(0, 10_000))
def test_a_bucket_holds_what_was_asked_and_is_its_own_bucket(batch: int, width: int, longest: int) -> None:
    bucket = bucket_for(batch, width, longest)
    assert bucket.batch >= batch
    assert bucket.batch <= 1.25 * batch
    assert bucket.width >= width
    assert bucket.history >= longest
    assert bucket_for(bucket.batch, bucket.width, bucket.history) == bucket


@given(most=st.integers(1, 40), width=st.integers(1, 64), context=st.integers(1, 5000), data=st.data())
def test_the_ladder_has_every_bucket_that_can_be_asked_for(
    most: int, width: int, context: int, data: st.DataObject
) -> None:
    buckets = ladder(most, [width, 50], context)
    assert len(set(buckets)) == len(buckets)
    asked = bucket_for(data.draw(st.integers(1, most)), width, data.draw(st.integers(0, context)))
    assert asked in buckets
    assert set(asked.rows) <= set(served_rows(most, [width, 50]))


def test_the_largest_comes_first_so_that_the_others_fit_its_memory() -> None:
    assert ladder(2, [32], 100) == (Bucket(2, 32, 512), Bucket(2, 32, 64), Bucket(1, 32, 512), Bucket(1, 32, 64))


def test_histories_are_placed_newest_first_and_once() -> None:
    bucket = Bucket(batch=3, width=4, history=5)
    asked = padded(bucket, [[1, 2, 3, 2, 9], [7]], context_len=3)
    assert asked.tolist() == [
        [9, 2, 3, 1, 2, 3, 9, -1],
        [7, -1, -1, 7, -1, -1, -1, -1],
        [-1] * 8,
    ]
    assert asked.dtype == torch.int32
    assert padded(bucket, [[1, 2]], context_len=9, filter_seen=False).tolist() == [
        [2, 1, *[-1] * 8],
        [-1] * 10,
        [-1] * 10,
    ]


@pytest.mark.parametrize("width", [0, MOST_BEAMS + 1])
def test_a_width_beyond_the_kernels_is_refused(width: int) -> None:
    with pytest.raises(ModelError, match="beam_width"):
        bucket_for(1, width, 0)


def test_a_launch_has_no_more_rows_than_the_kernels_take() -> None:
    assert most_requests(512) == MOST_ROWS // 512
    assert all(batch_size(most_requests(width)) * beam_width(width) <= MOST_ROWS for width in (1, 50, 512, 1024))


def test_liked_items_are_left_out_of_the_answer_and_of_the_history() -> None:
    bucket = bucket_for(1, 8, 4)
    asked = padded(bucket, [UserSignals([1, 2], liked=[7, 2])], context_len=3)
    context = bucket.context(3)
    assert asked[0, :2].tolist() == [2, 1]
    assert asked[0, context : context + 4].tolist() == [1, 2, 7, -1]
