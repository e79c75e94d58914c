from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from model.config import OneRecConfig
from model.context import ContextKV
from model.decoder import CausalSelfAttention, CrossAttention, LazyDecoder
from model.onerec import OneRecV2


def _attend(query: Tensor, keys: list[Tensor], values: list[Tensor]) -> Tensor:
    """softmax(q·k/√dh) over a list of vectors, by loops."""
    scores = [math.exp(float(query @ key) / math.sqrt(query.shape[0])) for key in keys]
    parts = [score / sum(scores) * value for score, value in zip(scores, values, strict=True)]
    return torch.stack(parts).sum(0)


@pytest.mark.parametrize("groups", [1, 2, 4])
@torch.no_grad()
def test_cross_attention_equals_loops_over_heads_groups_and_items(groups: int, toy_config: OneRecConfig) -> None:
    config = dataclasses.replace(toy_config, kv_groups=groups)
    torch.manual_seed(groups)
    cross = CrossAttention(config)
    x, key, value = torch.randn(2, 3, 16), torch.randn(2, groups, 5, 4), torch.randn(2, groups, 5, 4)
    mask = torch.rand(2, 1, 1, 5) < 0.6
    mask[..., 0] = True
    got = cross(x, key, value, mask)
    for b in range(2):
        readable = [n for n in range(5) if mask[b, 0, 0, n]]
        for row in range(3):
            query = (cross.wq.weight @ x[b, row]).view(4, 4)
            heads = []
            for head in range(4):
                group = head // (4 // groups)
                heads.append(
                    _attend(query[head], [key[b, group, n] for n in readable], [value[b, group, n] for n in readable])
                )
            torch.testing.assert_close(got[b, row], cross.wo.weight @ torch.cat(heads), atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_self_attention_is_causal_and_equals_loops(toy_config: OneRecConfig) -> None:
    torch.manual_seed(0)
    attention = CausalSelfAttention(toy_config)
    x = torch.randn(2, 3, 16)
    got, _ = attention(x, None)
    for b in range(2):
        q, k, v = ((attention.wqkv.weight @ x[b].T).T.view(3, 3, 4, 4)).permute(1, 0, 2, 3)
        for t in range(3):
            heads = [
                _attend(q[t, h], [k[s, h] for s in range(t + 1)], [v[s, h] for s in range(t + 1)]) for h in range(4)
            ]
            torch.testing.assert_close(got[b, t], attention.wo.weight @ torch.cat(heads), atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_self_attention_token_by_token_equals_all_at_once(toy_config: OneRecConfig) -> None:
    torch.manual_seed(1)
    attention = CausalSelfAttention(toy_config)
    x = torch.randn(2, 3, 16)
    whole, _ = attention(x, None)
    cache = None
    for t in range(3):
        part, cache = attention(x[:, t : t + 1], cache)
        torch.testing.assert_close(part[:, 0], whole[:, t], atol=1e-6, rtol=1e-5)


def _random_context(config: OneRecConfig, seed: int = 0) -> ContextKV:
    generator = torch.Generator().manual_seed(seed)
    shape = (2, config.kv_groups, 5, config.head_dim)
    keys = tuple(torch.randn(shape, generator=generator) for _ in range(config.kv_sets))
    values = tuple(torch.randn(shape, generator=generator) for _ in range(config.kv_sets))
    return ContextKV(keys, values, torch.ones(2, 1, 1, 5, dtype=torch.bool))


@torch.no_grad()
def test_decoder_block_adds_cross_then_self_then_ffn_in_this_order(toy_config: OneRecConfig) -> None:
    config = dataclasses.replace(toy_config, n_layers=1, kv_sets=1)
    torch.manual_seed(2)
    decoder = LazyDecoder(config).eval()
    block, context = decoder.blocks[0], _random_context(config)
    h = torch.randn(2, 1, 3, 16)
    got, _ = decoder(h, context)
    for b in range(2):
        x = h[b, 0]
        key, value, mask = context.keys[0][b : b + 1], context.values[0][b : b + 1], context.mask[b : b + 1]
        x = x + block.cross(block.norm_cross(x)[None], key, value, mask)[0]
        x = x + block.self_attn(block.norm_self(x)[None], None)[0][0]
        x = x + block.ffn(block.norm_ffn(x))
        torch.testing.assert_close(got[b, 0], x, atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_decoder_block_l_reads_set_floor_l_times_sets_over_layers(toy_config: OneRecConfig) -> None:
    config = dataclasses.replace(toy_config, n_layers=5, kv_sets=2)
    torch.manual_seed(3)
    decoder = LazyDecoder(config).eval()
    context, h = _random_context(config), torch.randn(2, 1, 1, 16)
    x = h
    for layer, block in enumerate(decoder.blocks):
        j = math.floor(layer * 2 / 5)
        x, _ = block(x, context.keys[j], context.values[j], context.mask, None)
    torch.testing.assert_close(decoder(h, context)[0], x)


@torch.no_grad()
def test_decoder_beams_of_one_request_do_not_see_each_other(toy_config: OneRecConfig) -> None:
    torch.manual_seed(4)
    decoder = LazyDecoder(toy_config).eval()
    context = _random_context(toy_config)
    h = torch.randn(2, 4, 3, 16)
    together, _ = decoder(h, context)
    for beam in range(4):
        torch.testing.assert_close(
            decoder(h[:, beam : beam + 1], context)[0][:, 0], together[:, beam], atol=1e-5, rtol=1e-4
        )


def test_decoder_holds_no_context_key_or_value_weights(
    make_model: Callable[..., OneRecV2], toy_config: OneRecConfig
) -> None:
    linears = {
        name.split("blocks.0.")[1]: tuple(module.weight.shape)
        for name, module in make_model(toy_config).named_modules()
        if isinstance(module, torch.nn.Linear) and "blocks.0." in name
    }
    assert linears == {
        "cross.wq": (16, 16),
        "cross.wo": (16, 16),
        "self_attn.wqkv": (48, 16),
        "self_attn.wo": (16, 16),
        "ffn.gate_up": (48, 16),
        "ffn.down": (16, 24),
    }
