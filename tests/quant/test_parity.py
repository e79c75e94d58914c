from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from model.data import Interactions
from model.recommender import Recommender
from model.split import Split
from quant.errors import QuantError
from quant.load import load_recommender, quantize_checkpoint
from quant.parity import CONTROL, KERNEL_CONTROL, KERNELS, agreement, compare, parity
from quant.recipes import DEFAULT_RECIPE, FAULT_RECIPE, RECIPES

N_USERS = 30


@pytest.fixture(scope="module")
def split(dense_dir: Path) -> Split:
    """Users whose held-out item is what the plain model itself puts first: HR@10 of the plain model is 1."""
    plain = Recommender.load(dense_dir, dtype=torch.float32)
    rng = np.random.default_rng(0)
    train = tuple(rng.choice(len(plain.catalogue), size=8, replace=False).astype(np.int64) for _ in range(N_USERS))
    items, _ = plain.rank([row.tolist() for row in train], 32)
    test = items[:, 0].numpy()
    nothing = np.zeros(0, dtype=np.int64)
    ids = plain.catalogue.ids
    interactions = Interactions(
        users=tuple(f"u{user}" for user in range(N_USERS)),
        items=ids,
        user=nothing,
        item=nothing,
        timestamp=np.zeros(0),
        value=np.zeros(0),
        titles=("",) * len(ids),
        genres=((),) * len(ids),
    )
    return Split(interactions, train, np.full(N_USERS, -1, dtype=np.int64), test)


def test_report_has_three_variants_three_pairs_and_a_control(dense_dir: Path, split: Split, tmp_path: Path) -> None:
    quantize_checkpoint(dense_dir, tmp_path / "fp8", RECIPES[DEFAULT_RECIPE])
    report = parity(dense_dir, tmp_path / "fp8", split)
    assert list(report.accuracies) == ["fp32", "bf16", "fp8"]
    assert report.accuracies["fp32"].hit_rate == 1.0
    by_name = {pair.name: pair for pair in report.agreements}
    assert by_name[CONTROL].overlap >= by_name["fp8 against fp32"].overlap > 0.6
    assert len(report.agreement_table().rows) == 3
    assert [row[0] for row in report.accuracy_table().rows] == ["fp32", "bf16", "fp8"]
    json.dumps(report.to_dict(), allow_nan=False)


def test_a_thorough_report_has_beams_and_nearness_beside_other_kernels(
    dense_dir: Path, split: Split, tmp_path: Path
) -> None:
    quantize_checkpoint(dense_dir, tmp_path / "fp8", RECIPES[DEFAULT_RECIPE])
    report = parity(dense_dir, tmp_path / "fp8", split, thorough=True)
    names = ["fp8 against bf16", "fp8 against fp32", CONTROL, KERNEL_CONTROL]
    for found in (report.agreements, report.beams, report.fidelities):
        assert [pair.name for pair in found] == names
    assert KERNELS in report.accuracies
    assert {pair.k for pair in report.beams} == {32}
    fp8, control = report.fidelities[0], report.fidelities[3]
    assert min(control.layers.values()) > min(fp8.layers.values()) + 10.0
    assert report.beams[3].overlap > report.beams[0].overlap
    json.dumps(report.to_dict(), allow_nan=False)


def test_a_faulty_variant_loses_the_hits(dense_dir: Path, split: Split, tmp_path: Path) -> None:
    quantize_checkpoint(dense_dir, tmp_path / "bad", RECIPES[FAULT_RECIPE])
    variants = {"plain": Recommender.load(dense_dir, dtype=torch.float32), "bad": load_recommender(tmp_path / "bad")}
    report = compare(variants, [("bad", "bad", "plain")], split, k=10)
    assert report.accuracies["bad"].hit_rate < 0.5
    assert report.agreements[0].top1_changed > 0.7


def test_another_catalogue_is_refused(dense_dir: Path, split: Split) -> None:
    plain = Recommender.load(dense_dir)
    plain.catalogue = type(plain.catalogue)(("other",), ("",), ((),))
    with pytest.raises(QuantError, match="plain: its catalogue"):
        compare({"plain": plain}, [], split, k=1)


def rows(*lists: list[int]) -> np.ndarray:
    return np.array(lists, dtype=np.int64)


def test_agreement_of_hand_made_rankings() -> None:
    one = rows([1, 2, 3, 4], [5, 6, 7, 8])
    same = agreement("same", one, one)
    assert (same.overlap, same.top1_changed) == (1.0, 0.0)
    assert same.rank_biased_overlap == pytest.approx(1.0)
    apart = agreement("apart", one, one + 100)
    assert (apart.overlap, apart.top1_changed, apart.rank_biased_overlap) == (0.0, 1.0, 0.0)
    swapped = agreement("swapped", one, rows([2, 1, 3, 4], [5, 6, 7, 9]))
    assert swapped.overlap == pytest.approx((1.0 + 0.75) / 2)
    assert swapped.top1_changed == 0.5


def test_rank_biased_overlap_equals_the_published_formula() -> None:
    """RBO_ext by hand for k=3, p=0.9: shares 0, 1 and 2/3 of depths 1, 2 and 3."""
    found = agreement("x", rows([1, 2, 3]), rows([2, 1, 9]))
    p = 0.9
    expected = 2 / 3 * p**3 + (1 - p) / p * (0.0 * p + 1.0 * p**2 + 2 / 3 * p**3)
    assert found.rank_biased_overlap == pytest.approx(expected)


def test_missing_places_never_agree() -> None:
    assert agreement("x", rows([1, -1, -1]), rows([1, -1, -1])).overlap == pytest.approx(1 / 3)


def test_rankings_of_other_shapes_are_refused() -> None:
    with pytest.raises(QuantError, match="cannot be compared"):
        agreement("x", rows([1, 2]), rows([1, 2, 3]))
