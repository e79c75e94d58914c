from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from quant.fidelity import Fidelity
from quant.parity import KERNEL_CONTROL, Accuracy, Agreement, ParityReport
from tests.bench import parity_random
from tests.bench.parity import key, markdown, trained_tables
from tests.bench.parity_random import quantised, random_recommender


def made(hit_rate: float, overlap: float) -> ParityReport:
    """A report whose FP8 has that accuracy and overlap; BF16 has 0.20, the control 0.98."""
    accuracies = {
        name: Accuracy(rate, 0.1, 10, 5, 0.5) for name, rate in (("bf16", 0.2), ("fp8", hit_rate), ("other", 0.2))
    }
    pairs = {"fp8 against bf16": overlap, KERNEL_CONTROL: 0.98}
    agreements = tuple(Agreement(name, 10, 5, share, 0.1, 0.9) for name, share in pairs.items())
    near = tuple(Fidelity(name, {"decoder.blocks.0": 25.0}, 0.03, 0.5, 1e-3) for name in pairs)
    return ParityReport(accuracies, agreements, agreements, near)


def test_the_two_claims_are_judged_by_the_seeds_and_by_the_control() -> None:
    good = {"e4m3": [made(0.2, 0.9), made(0.2, 0.89)]}
    tables, numbers = trained_tables(good)
    assert numbers["e4m3_hit_rate_within_seeds_std"] == 1.0
    assert abs(numbers["e4m3_overlap_points_below_control"] - 8.5) < 1e-9
    assert numbers["e4m3_overlap_within_margin"] == 1.0
    assert [each.rows[0][0] for each in tables] == ["bf16", "fp8 (e4m3) against bf16", "decoder.blocks.0"]
    _, numbers = trained_tables({"e4m3": [made(0.1, 0.8), made(0.1, 0.8)]})
    assert numbers["e4m3_hit_rate_within_seeds_std"] == numbers["e4m3_overlap_within_margin"] == 0.0
    text = markdown({"hardware": "h", "versions": "v", "commit": "c", "command": "x"}, tables)
    assert "## tiny on MovieLens-100K, 2 seeds: agreement" in text


def test_labels_become_flat_names() -> None:
    assert key("fp8 (e4m3) against bf16") == "fp8_e4m3_against_bf16"


def test_random_models_have_unique_ids_and_quantised_copies_leave_them_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parity_random, "N_ITEMS", 200)
    config = parity_random.config_of("tiny")
    plain = random_recommender(replace(config, codebook_size=256), torch.device("cpu"))
    other = quantised(plain, parity_random.RECIPES["e4m3"])
    assert type(plain.model.get_submodule("decoder.blocks.0.cross.wq")) is torch.nn.Linear
    assert other.model.heads is not plain.model.heads
    assert other.model.get_parameter("heads.0.weight") is plain.model.get_parameter("heads.0.weight")
    assert plain.rank([[1, 2]], 4)[0].shape == other.rank([[1, 2]], 4)[0].shape


def test_scaling_compares_three_ways_without_a_trained_model(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parity_random, "N_ITEMS", 200)
    small = replace(parity_random.MOE_SMALL, d_model=48, n_layers=3, ffn_dim=48, expert_dim=48, codebook_size=256)
    monkeypatch.setattr(parity_random, "MOE_SMALL", small)
    shown, numbers = parity_random.scaling(None, torch.device("cpu"))
    assert [row[:2] for row in shown.rows] == [("random", scales) for scales in parity_random.SCALINGS]
    assert all(28.0 < value < 36.0 for name, value in numbers.items() if name.endswith("weight_db"))
