from __future__ import annotations

from pathlib import Path

import pytest
import torch

from model.recommender import Recommender
from quant.control import KINDS, in_other_kernels
from quant.fidelity import fidelity
from quant.sampling import Positions

POSITIONS = Positions.of([[5, 9, 2, 7], [30]])


@pytest.mark.parametrize("which", ["dense_dir", "experts_dir"])
def test_in_float32_other_kernels_give_the_same_numbers(which: str, request: pytest.FixtureRequest) -> None:
    """The mathematics is equal: what is left is float32's own rounding, some 130 dB below."""
    plain = Recommender.load(request.getfixturevalue(which), dtype=torch.float32)
    near = fidelity("x", in_other_kernels(plain), plain, POSITIONS)
    assert min(near.layers.values()) > 110.0
    assert near.logit_error < 1e-5


@pytest.mark.parametrize("which", ["dense_dir", "experts_dir"])
def test_in_bfloat16_they_differ_by_its_rounding(
    which: str, request: pytest.FixtureRequest, histories: list[list[str]]
) -> None:
    plain = Recommender.load(request.getfixturevalue(which), dtype=torch.bfloat16)
    other = in_other_kernels(plain)
    near = fidelity("x", other, plain, POSITIONS)
    assert 30.0 < min(near.layers.values()) < 60.0
    assert len(other.recommend(histories, 5)) == len(histories)


def test_every_layer_is_exchanged_and_the_original_is_left_alone(experts_dir: Path) -> None:
    plain = Recommender.load(experts_dir)
    before = [type(module) for module in plain.model.modules()]
    other = in_other_kernels(plain)
    assert [type(module) for module in plain.model.modules()] == before
    left = {type(module) for module in other.model.decoder.modules()} & KINDS.keys()
    assert not left
    shared = zip(plain.model.parameters(), other.model.parameters(), strict=True)
    assert all(one is two for one, two in shared)
