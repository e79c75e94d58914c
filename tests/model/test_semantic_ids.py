from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from model.errors import ModelError
from model.semantic_ids import Tokenizer, assess, extend_tokenizer, fit_tokenizer, quantise


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


def test_fit_refuses_a_vector_that_is_not_finite() -> None:
    vectors = np.zeros((3, 2), np.float32)
    vectors[1, 1] = np.inf
    with pytest.raises(ModelError, match="vectors"):
        fit_tokenizer(vectors, levels=2, codebook_size=2, seed=0)


def _skewed(n: int, seed: int) -> np.ndarray[tuple[int, int], np.dtype[np.float32]]:
    rng = np.random.default_rng(seed)
    return rng.standard_normal((n, 4)).astype(np.float32) * rng.exponential(1.0, (n, 1)).astype(np.float32) ** 2


def test_balanced_fit_uses_the_first_level_more_evenly_at_some_cost_of_reconstruction() -> None:
    vectors = _skewed(400, 0)
    _, plain = fit_tokenizer(vectors, 3, 16, seed=0)
    _, even = fit_tokenizer(vectors, 3, 16, seed=0, balanced=True)
    assert even.entropy_bits[0] == pytest.approx(4.0, abs=1e-6)
    assert even.largest_group[0] == pytest.approx(1 / 16)
    assert plain.entropy_bits[0] < 3.5
    assert plain.largest_group[0] > 2 / 16
    assert even.reconstruction_by_level[0] > plain.reconstruction_by_level[0]


def test_fit_on_a_sample_gives_every_item_an_id_and_nearly_the_same_reconstruction() -> None:
    vectors = np.random.default_rng(1).standard_normal((400, 4)).astype(np.float32)
    whole, sampled = (
        fit_tokenizer(vectors, 3, 8, seed=0, points_per_code=points, max_rounds=rounds)[1]
        for points, rounds in ((None, 50), (20, 10))
    )
    assert sampled.reconstruction != whole.reconstruction
    assert sampled.reconstruction < 1.3 * whole.reconstruction


def test_new_items_get_free_ids_nearest_to_them_and_old_ids_stay() -> None:
    vectors = _skewed(60, 2)
    tokenizer, _ = fit_tokenizer(vectors[:40], 3, 8, seed=0)
    larger = extend_tokenizer(tokenizer, vectors[40:])
    assert torch.equal(larger.codes[:40], tokenizer.codes)
    assert torch.equal(larger.centroids, tokenizer.centroids)
    wanted, _ = quantise(torch.from_numpy(vectors[40:]), tokenizer.centroids)
    taken = {tuple(row) for row in tokenizer.codes.tolist()}
    free = [row for row, code in enumerate(wanted.tolist()) if tuple(code) not in taken]
    assert free, "the data must hold new items whose id is free"
    unclaimed = [row for row in free if wanted.tolist().count(wanted[row].tolist()) == 1]
    assert torch.equal(larger.codes[40:][unclaimed], wanted[unclaimed])


def test_a_new_item_like_an_old_one_moves_aside_however_well_it_fits() -> None:
    centroids = torch.tensor([[[0.0], [10.0]], [[0.0], [1.0]]])
    tokenizer = Tokenizer(torch.tensor([[0, 0]]), centroids)
    larger = extend_tokenizer(tokenizer, np.array([[0.0], [10.2]], np.float32))
    assert larger.codes.tolist() == [[0, 0], [0, 1], [1, 0]]


def test_extension_by_nothing_is_the_same_tokenizer_and_impossible_ones_are_refused() -> None:
    tokenizer, _ = fit_tokenizer(_skewed(7, 3), 3, 2, seed=0)
    assert extend_tokenizer(tokenizer, np.zeros((0, 4), np.float32)) is tokenizer
    with pytest.raises(ModelError, match="only 1 semantic ids are left"):
        extend_tokenizer(tokenizer, np.zeros((2, 4), np.float32))
    with pytest.raises(ModelError, match=r"expected \[new items, 4\]"):
        extend_tokenizer(tokenizer, np.zeros((2, 3), np.float32))
    with pytest.raises(ModelError, match="not finite"):
        extend_tokenizer(tokenizer, np.full((1, 4), np.nan, np.float32))


def test_assess_agrees_with_the_fit_and_sees_new_items_that_fit_worse() -> None:
    vectors = np.random.default_rng(4).standard_normal((200, 4)).astype(np.float32)
    tokenizer, fitted = fit_tokenizer(vectors, 3, 16, seed=0)
    again = assess(tokenizer, vectors)
    assert again.reconstruction == pytest.approx(fitted.reconstruction)
    assert again.collision_rate == pytest.approx(fitted.collision_rate)
    strange = np.concatenate([vectors, 20.0 + vectors[:50]])
    worse = assess(extend_tokenizer(tokenizer, strange[200:]), strange)
    assert worse.collision_rate > 2 * fitted.collision_rate
    assert worse.reconstruction > 2 * fitted.reconstruction
    with pytest.raises(ModelError, match="vectors"):
        assess(tokenizer, vectors[:-1])
