from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.sparse as sp

from model.item_embeddings import cooccurrence, genre_matrix, item_embeddings, ppmi
from model.split import Split


def test_cooccurrence_weighs_pairs_by_one_over_their_distance() -> None:
    counts = cooccurrence([np.array([0, 1, 2, 0])], 3, window=2).toarray()
    assert counts.tolist() == [[0.0, 1.5, 1.5], [1.5, 0.0, 1.0], [1.5, 1.0, 0.0]] or counts[0, 1] == 1.0 + 0.5
    np.testing.assert_allclose(counts, counts.T)
    assert cooccurrence([np.array([1])], 3, window=2).nnz == 0


def test_ppmi_equals_its_definition_by_loops() -> None:
    counts = np.array([[0.0, 4.0, 1.0], [4.0, 0.0, 0.0], [1.0, 0.0, 2.0]])
    got = ppmi(sp.csr_array(counts)).toarray()
    for a in range(3):
        for b in range(3):
            p, pa, pb = counts[a, b] / 12, counts[a].sum() / 12, counts[b].sum() / 12
            expected = max(0.0, math.log(p / (pa * pb))) if p else 0.0
            assert got[a, b] == np.float64(expected) or abs(got[a, b] - expected) < 1e-12


def test_genre_matrix_has_unit_rows_and_zero_rows_for_the_unknown() -> None:
    rows = genre_matrix([("b", "a"), (), ("b",)])
    np.testing.assert_allclose(rows, [[0.5**0.5, 0.5**0.5], [0, 0], [0, 1]], atol=1e-6)


def test_item_embeddings_repeat_and_know_neighbours(toy_split: Split) -> None:
    first, again = item_embeddings(toy_split, dim=6, window=2), item_embeddings(toy_split, dim=6, window=2)
    np.testing.assert_array_equal(first, again)
    index = {name: i for i, name in enumerate(toy_split.interactions.items)}
    near = first[index["i4"], :6] @ first[index["i5"], :6]
    far = first[index["i4"], :6] @ first[index["i14"], :6]
    assert near > far + 0.2


def test_item_embeddings_read_no_held_out_interaction(toy_split: Split) -> None:
    changed = Split(toy_split.interactions, toy_split.train, toy_split.validation[::-1], toy_split.test[::-1])
    np.testing.assert_array_equal(item_embeddings(toy_split, dim=4), item_embeddings(changed, dim=4))


def test_item_embeddings_of_large_and_small_catalogues_span_the_same_space(
    toy_split: Split, monkeypatch: pytest.MonkeyPatch
) -> None:
    dense = item_embeddings(toy_split, dim=5, window=2)[:, :5]
    monkeypatch.setattr("model.item_embeddings.DENSE_ITEMS", 0)
    lanczos = item_embeddings(toy_split, dim=5, window=2)[:, :5]
    np.testing.assert_allclose(dense @ dense.T, lanczos @ lanczos.T, atol=1e-4)
