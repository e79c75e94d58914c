from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from model.recommender import Recommender
from quant.errors import QuantError
from quant.fidelity import fidelity, fidelity_table
from quant.load import load_recommender, quantize_checkpoint
from quant.recipes import DEFAULT_RECIPE, FAULT_RECIPE, RECIPES
from quant.sampling import Positions

POSITIONS = Positions.of([[5, 9, 2, 7], [30]])


def test_a_model_is_endlessly_near_itself(dense_dir: Path) -> None:
    plain = Recommender.load(dense_dir, dtype=torch.float32)
    found = fidelity("itself", plain, plain, POSITIONS)
    assert set(found.layers.values()) == {math.inf}
    assert list(found.layers)[:4] == [f"decoder.blocks.0{part}" for part in (".cross", ".self_attn", ".ffn", "")]
    assert (found.logit_error, found.logit_error_max, found.divergence) == (0.0, 0.0, 0.0)
    assert not any(module._forward_hooks for module in plain.model.modules())


@pytest.mark.parametrize("which", ["dense_dir", "experts_dir"])
def test_eight_bits_are_near_and_the_fault_is_far(which: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    source: Path = request.getfixturevalue(which)
    plain = Recommender.load(source, dtype=torch.float32)
    near = []
    for name in (DEFAULT_RECIPE, FAULT_RECIPE):
        quantize_checkpoint(source, tmp_path / name, RECIPES[name])
        near.append(fidelity(name, load_recommender(tmp_path / name), plain, POSITIONS))
    assert 18.0 < min(near[0].layers.values()) < 35.0
    assert max(near[1].layers.values()) < 10.0
    assert near[0].logit_error < 0.2 < near[1].logit_error
    assert 0.0 < near[0].divergence < near[1].divergence
    assert [row[0] for row in fidelity_table(near).rows] == [DEFAULT_RECIPE, FAULT_RECIPE]


def test_another_configuration_is_refused(dense_dir: Path) -> None:
    one, two = Recommender.load(dense_dir), Recommender.load(dense_dir)
    two.config = replace(two.config, dropout=0.5)
    with pytest.raises(QuantError, match="x: another configuration"):
        fidelity("x", one, two, POSITIONS)
