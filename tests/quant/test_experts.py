from __future__ import annotations

from dataclasses import replace
from typing import Literal

import pytest
import torch

from model.config import OneRecConfig
from model.experts import MixtureOfExperts
from quant.convert import quantise_layer
from quant.experts import STORED, Fp8Experts
from quant.primitives import E4M3, sqnr_db
from quant.recipes import Fp8Recipe

CONFIG = OneRecConfig(
    d_model=160,
    n_layers=1,
    n_heads=4,
    kv_groups=4,
    context_len=4,
    ffn_dim=64,
    sid_embed_dim=8,
    n_experts=5,
    n_shared_experts=1,
    experts_per_token=2,
    expert_dim=144,
)


def twins(
    shared: int = 1, block: int = 128, scaling: Literal["block", "per_row"] = "block"
) -> tuple[MixtureOfExperts, Fp8Experts]:
    torch.manual_seed(0)
    plain = MixtureOfExperts(replace(CONFIG, n_shared_experts=shared)).requires_grad_(False)
    plain.bias.copy_(torch.linspace(-0.2, 0.2, 5))
    quantised = quantise_layer("ffn", plain, Fp8Recipe("x", expert_block=block, expert_scaling=scaling))
    assert isinstance(quantised, Fp8Experts)
    return plain, quantised


@pytest.mark.parametrize("shared", [0, 1])
def test_answers_of_the_experts_are_close_but_not_equal(shared: int) -> None:
    plain, quantised = twins(shared)
    x = torch.randn(3, 20, 160)
    out = quantised(x)
    assert out.shape == x.shape
    assert 22.0 < sqnr_db(plain(x), out) < 36.0


def test_routing_and_shared_experts_are_untouched() -> None:
    plain, quantised = twins()
    x = torch.randn(50, 160)
    for before, after in zip(plain.route(x), quantised.route(x), strict=True):
        assert torch.equal(before, after)
    assert quantised.shared is plain.shared
    assert plain.gate_up.dtype == torch.float32  # the plain module still works


def test_scales_are_one_per_block_with_ragged_edges() -> None:
    _, quantised = twins()
    assert quantised.gate_up_codes.shape == (5, 288, 160)
    assert quantised.gate_up_scale.shape == (5, 3, 2)
    assert quantised.down_scale.shape == (5, 2, 2)


def test_a_scale_per_row_is_as_near_and_has_the_shape_of_one_column() -> None:
    plain, quantised = twins(scaling="per_row")
    assert quantised.gate_up_scale.shape == (5, 288, 1)
    assert quantised.down_scale.shape == (5, 160, 1)
    x = torch.randn(3, 20, 160)
    assert 22.0 < sqnr_db(plain(x), quantised(x)) < 36.0
    hollow = Fp8Experts.empty_like(plain, None)
    hollow.load_state_dict(quantised.state_dict(), assign=True)
    assert torch.equal(hollow(x), quantised(x))
    gate_up, _ = quantised.dequantised(torch.float32)
    assert torch.equal(quantised.expert("gate_up", 3, torch.float32), gate_up[3])


@pytest.mark.parametrize("shared", [0, 1])
def test_what_experts_give_is_rounded_by_row_before_it_is_summed(shared: int) -> None:
    plain, quantised = twins(shared, scaling="per_row")
    stored = {name: getattr(quantised, name) for name in STORED}
    narrow = Fp8Experts(plain, stored, None, narrow_results=True)
    x = torch.randn(3, 20, 160) * torch.tensor([1e-4, 1.0, 10.0])[:, None, None]
    for wide, near in zip(quantised(x), narrow(x), strict=True):
        assert 29.0 < sqnr_db(wide, near) < 36.0


def test_a_wild_row_does_not_hurt_its_neighbours() -> None:
    plain, _ = twins()
    plain.down[0, 7] *= 1e5
    quantised = quantise_layer("ffn", plain, Fp8Recipe("x", expert_scaling="per_row"))
    assert isinstance(quantised, Fp8Experts)
    _, down = quantised.dequantised(torch.float32)
    assert sqnr_db(plain.down[0, 8:], down[0, 8:]) > 30.0


def test_a_wild_block_does_not_hurt_its_neighbours() -> None:
    plain, _ = twins()
    plain.down[0, :128, :128] *= 1e5
    quantised = quantise_layer("ffn", plain, Fp8Recipe("x"))
    assert isinstance(quantised, Fp8Experts)
    _, down = quantised.dequantised(torch.float32)
    assert sqnr_db(plain.down[0, 128:], down[0, 128:]) > 30.0


def test_casting_keeps_codes_and_scales_of_experts() -> None:
    _, quantised = twins()
    quantised.to(torch.bfloat16)
    assert quantised.gate_up_codes.dtype == quantised.down_codes.dtype == E4M3
    assert quantised.gate_up_scale.dtype == quantised.down_scale.dtype == torch.float32
    assert quantised.router.weight.dtype == torch.bfloat16
    assert quantised(torch.randn(4, 160).bfloat16()).dtype == torch.bfloat16


def test_empty_experts_filled_from_a_state_answer_alike() -> None:
    plain, quantised = twins()
    hollow = Fp8Experts.empty_like(plain, 128)
    assert set(STORED) <= hollow.state_dict().keys()
    hollow.load_state_dict(quantised.state_dict(), assign=True)
    x = torch.randn(6, 160)
    assert torch.equal(hollow(x), quantised(x))
