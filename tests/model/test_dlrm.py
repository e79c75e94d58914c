from __future__ import annotations

import numpy as np
import pytest
import torch

from model.data import Interactions
from model.dlrm import DLRM, DLRMOptions, auc, train_dlrm
from model.errors import ModelError
from model.split import leave_one_out

OPTIONS = DLRMOptions(negatives=4, heldout_negatives=8, epochs=12, batch_size=64, learning_rate=1e-2)


def test_a_trained_ranker_beats_chance_on_unscaled_features(toy_interactions: Interactions) -> None:
    before = torch.get_rng_state()
    trained = train_dlrm(leave_one_out(toy_interactions), 0, OPTIONS)
    assert torch.equal(torch.get_rng_state(), before)
    assert trained.losses[-1] < 0.8 * trained.losses[0]
    assert trained.heldout.dense[:, 0].max() > 500.0  # seconds, not standard deviations
    assert trained.auc() > 0.6


def test_training_is_repeatable_and_reported(toy_interactions: Interactions) -> None:
    split, steps = leave_one_out(toy_interactions), []
    options = DLRMOptions(epochs=1, batch_size=64)
    one = train_dlrm(split, 3, options, lambda step, all_of_them, _: steps.append((step, all_of_them)))
    assert np.array_equal(one.scores(one.network), (two := train_dlrm(split, 3, options)).scores(two.network))
    assert [step for step, _ in steps] == list(range(1, steps[-1][1] + 1))


def test_folding_changes_the_scale_of_the_features_and_not_the_answer() -> None:
    torch.manual_seed(0)
    network = DLRM(3, (5, 7), DLRMOptions()).double().requires_grad_(False)
    mean, deviation = torch.tensor([9e8, 10.0, -3.0]).double(), torch.tensor([5e6, 3.0, 1e-3]).double()
    raw = mean + deviation * torch.randn(20, 3).double()
    categories = torch.stack([torch.arange(20) % 5, torch.arange(20) % 7], dim=1)
    before = network((raw - mean) / deviation, categories)
    network.fold(mean, deviation)
    torch.testing.assert_close(network(raw, categories), before)


def test_every_pair_of_vectors_meets_once() -> None:
    network = DLRM(3, (5, 7, 2), DLRMOptions(width=4, top=(8, 8)))
    assert network.top[0].in_features == 4 + 6
    assert network(torch.zeros(2, 3), torch.zeros(2, 3, dtype=torch.int64)).shape == (2,)


def test_area_under_the_curve_of_hand_made_scores() -> None:
    clicked = np.array([1, 0, 1, 0], dtype=np.float32)
    assert auc(np.array([4.0, 1.0, 3.0, 2.0]), clicked) == 1.0
    assert auc(np.array([1.0, 4.0, 2.0, 3.0]), clicked) == 0.0
    assert auc(np.array([2.0, 2.0, 2.0, 2.0]), clicked) == 0.5
    assert auc(np.array([3.0, 2.0, 1.0, 1.0]), clicked) == pytest.approx((1 + 1 + 0 + 0.5) / 4)
    with pytest.raises(ModelError, match="clicks and others"):
        auc(np.zeros(2), np.ones(2, dtype=np.float32))


@pytest.mark.parametrize("field", ["width", "negatives", "epochs", "batch_size", "learning_rate"])
def test_an_option_that_cannot_be_is_refused(field: str) -> None:
    with pytest.raises(ModelError, match=field):
        DLRMOptions(**{field: 0})
