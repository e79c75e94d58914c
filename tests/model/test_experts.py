from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from torch import Tensor

from model.config import OneRecConfig
from model.experts import MixtureOfExperts, SwiGLU


def _swiglu(x: Tensor, gate_up: Tensor, down: Tensor) -> Tensor:
    inner = down.shape[1]
    gate, up = gate_up[:inner] @ x, gate_up[inner:] @ x
    return down @ torch.tensor([float(g) / (1 + math.exp(-float(g))) * float(u) for g, u in zip(gate, up, strict=True)])


@pytest.fixture
def moe(toy_config: OneRecConfig) -> MixtureOfExperts:
    torch.manual_seed(0)
    sizes = {"n_experts": 6, "n_shared_experts": 1, "experts_per_token": 2, "expert_dim": 8}
    return MixtureOfExperts(dataclasses.replace(toy_config, **sizes))


@torch.no_grad()
def test_swiglu_equals_loops() -> None:
    torch.manual_seed(1)
    layer, x = SwiGLU(6, 5), torch.randn(6)
    torch.testing.assert_close(layer(x), _swiglu(x, layer.gate_up.weight, layer.down.weight), atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_experts_equal_loops_over_tokens(moe: MixtureOfExperts) -> None:
    moe.bias += torch.randn(6)
    x = torch.randn(3, 4, 16)
    got = moe(x)
    for i in range(3):
        for j in range(4):
            token = x[i, j]
            affinity = [1 / (1 + math.exp(-float(row @ token))) for row in moe.router.weight]
            ranked = sorted(range(6), key=lambda e: -(affinity[e] + float(moe.bias[e])))[:2]
            expected = _swiglu(token, moe.shared.gate_up.weight, moe.shared.down.weight)
            for expert in ranked:
                weight = affinity[expert] / sum(affinity[e] for e in ranked)
                expected = expected + weight * _swiglu(token, moe.gate_up[expert], moe.down[expert])
            torch.testing.assert_close(got[i, j], expected, atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_rebalance_lowers_crowded_and_raises_idle_experts_by_the_rate(moe: MixtureOfExperts) -> None:
    moe.rebalance(torch.tensor([10, 2, 0, 4, 4, 4]), rate=0.01)
    torch.testing.assert_close(moe.bias, torch.tensor([-0.01, 0.01, 0.01, 0.0, 0.0, 0.0]))


@torch.no_grad()
def test_rebalance_evens_out_a_skewed_router(moe: MixtureOfExperts) -> None:
    x = torch.randn(400, 16, generator=torch.Generator().manual_seed(2)) + 1.0

    def load() -> Tensor:
        return torch.bincount(moe.route(x)[0].flatten(), minlength=6)

    before = load()
    for _ in range(300):
        moe.rebalance(load(), rate=0.005)
    after = load()
    assert int(after.max()) < 1.2 * 400 * 2 / 6 < int(before.max())


def test_selection_bias_gets_no_gradient_and_no_weight(moe: MixtureOfExperts) -> None:
    assert not moe.bias.requires_grad
    chosen, weights = moe.route(torch.randn(5, 16))
    assert chosen.shape == weights.shape == (5, 2)
    torch.testing.assert_close(weights.sum(1), torch.ones(5))
