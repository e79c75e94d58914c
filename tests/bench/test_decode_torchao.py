"""The torchao baseline decodes what the plain one decodes, and leaves to 16 bit what it says."""

from __future__ import annotations

import pytest
import torch
from decode_plain import block_step
from decode_torchao import Stack, with_torchao
from torch import Tensor

from model.config import OneRecConfig
from model.engine.weights import random_weights

CONFIG = OneRecConfig(
    d_model=64, n_layers=2, n_heads=4, kv_groups=4, context_len=10, ffn_dim=128, sid_embed_dim=16, codebook_size=64,
    n_experts=4, n_shared_experts=1, experts_per_token=2, expert_dim=32, dense_layers=1,
)  # fmt: skip


def test_every_linear_is_converted_and_no_routed_expert() -> None:
    weights = random_weights(CONFIG, torch.device("cpu"), torch.Generator().manual_seed(0))
    seen: list[tuple[int, ...]] = []

    def convert(weight: Tensor) -> Tensor:
        seen.append(tuple(weight.shape))
        return weight.clone()

    found = with_torchao(weights, convert)
    attention = [(64, 64), (64, 64), (192, 64), (64, 64)]
    assert seen[:6] == [(256, 64), (64, 128), *attention]
    assert seen[6:] == [(64, 64), (64, 32), *attention]
    assert isinstance(found.blocks[1].up, Stack)
    assert found.blocks[1].up[1:].data_ptr() == weights.blocks[1].up[1:].data_ptr()


@pytest.mark.parametrize("layer", [0, 1])
def test_a_block_computes_the_same_with_converted_weights(layer: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def one_by_one(rows: Tensor, weight: Tensor, ends: Tensor) -> Tensor:
        out, start = [], 0
        for expert, end in enumerate(ends.tolist()):
            out.append(rows[start:end] @ weight[expert].T)
            start = end
        return torch.cat(out)

    monkeypatch.setattr("decode_plain.grouped", one_by_one)
    generator = torch.Generator().manual_seed(0)
    weights = random_weights(CONFIG, torch.device("cpu"), generator, torch.float32)
    plain = with_torchao(weights, lambda weight: weight)
    h, key = torch.randn(2, 3, 64, generator=generator), torch.randn(2, 4, 10, 16, generator=generator)
    expected, _ = block_step(weights.blocks[layer], CONFIG, h, key, None)
    found, _ = block_step(plain.blocks[layer], CONFIG, h, key, None)
    assert torch.equal(found, expected)
