from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from model.errors import ModelError
from model.semantic_ids import Tokenizer, fit_tokenizer, quantise, resolve_collisions


def test_quantise_follows_the_nearest_centroid_of_the_residual_at_every_level() -> None:
    generator = torch.Generator().manual_seed(0)
    vectors, centroids = torch.randn(9, 3, generator=generator), torch.randn(2, 4, 3, generator=generator)
    codes, rest = quantise(vectors, centroids)
    for row in range(9):
        residual = vectors[row]
        for level in range(2):
            distances = [float((residual - centre).square().sum()) for centre in centroids[level]]
            assert int(codes[row, level]) == distances.index(min(distances))
            residual = residual - centroids[level][codes[row, level]]
        torch.testing.assert_close(rest[row], residual)


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 27), st.integers(0, 10_000))
def test_every_item_gets_its_own_id_even_when_ids_are_scarce(n_items: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    vectors = rng.integers(0, 3, size=(n_items, 2)).astype(np.float32)
    tokenizer, quality = fit_tokenizer(vectors, levels=3, codebook_size=3, seed=seed)
    assert len({tuple(row) for row in tokenizer.codes.tolist()}) == n_items
    assert 0.0 <= quality.collision_rate < 1.0
    assert all(0.0 < share <= 1.0 for share in quality.utilisation)


def test_collisions_move_the_worse_fitting_item_to_the_nearest_free_last_code() -> None:
    centroids = torch.tensor([[[0.0], [10.0]], [[0.0], [1.0]]])
    points = torch.tensor([[0.3], [0.1]])
    codes = resolve_collisions(points, torch.tensor([[0, 0], [0, 0]]), centroids)
    assert codes.tolist() == [[0, 1], [0, 0]]


def test_collisions_leave_the_prefix_only_when_it_is_full() -> None:
    centroids = torch.tensor([[[0.0], [10.0]], [[0.0], [1.0]]])
    points = torch.tensor([[0.1], [0.2], [0.3]])
    codes = resolve_collisions(points, torch.zeros(3, 2, dtype=torch.int64), centroids)
    assert codes[0].tolist() == [0, 0]
    assert codes[1].tolist() == [0, 1]
    assert int(codes[2, 0]) == 1


def test_fit_reports_perfect_reconstruction_of_separable_items() -> None:
    grid = np.array(list(itertools.product([0.0, 100.0], [0.0, 10.0], [0.0, 1.0])), dtype=np.float32)
    tokenizer, quality = fit_tokenizer(grid @ np.ones((3, 1), np.float32), levels=3, codebook_size=2, seed=0)
    assert quality.reconstruction < 1e-6
    assert quality.collision_rate == 0.0
    assert quality.entropy_bits == pytest.approx((1.0, 1.0, 1.0))
    assert tokenizer.n_items == 8


def test_fit_refuses_more_items_than_ids() -> None:
    with pytest.raises(ModelError, match="codebook_size"):
        fit_tokenizer(np.zeros((9, 2), np.float32), levels=3, codebook_size=2, seed=0)


@pytest.mark.parametrize(
    ("codes", "reason"), [([[0, 1], [0, 1]], "share"), ([[0, 2]], "outside"), ([[0]], "do not fit")]
)
def test_tokenizer_refuses_impossible_codes(codes: list[list[int]], reason: str) -> None:
    with pytest.raises(ModelError, match=reason):
        Tokenizer(torch.tensor(codes), torch.zeros(2, 2, 1))
