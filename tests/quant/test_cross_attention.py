from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from model.config import OneRecConfig
from model.decoder import CrossAttention
from quant.cross_attention import Fp8CrossAttention, narrow_attention, straight_weights
from quant.primitives import sqnr_db


def drawn(queries: int = 24, tokens: int = 40) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """q, key, value of two requests with two groups each, and a mask that hides the second's last ten tokens."""
    generator = torch.Generator().manual_seed(0)
    q, key, value = (torch.randn(2, 2, size, 16, generator=generator) for size in (queries, tokens, tokens))
    mask = torch.ones(2, 1, 1, tokens, dtype=torch.bool)
    mask[1, ..., -10:] = False
    return q, key, value, mask


def test_attention_through_eight_bits_is_near_the_exact_one() -> None:
    q, key, value, mask = drawn()
    for values in (value, key):
        exact = functional.scaled_dot_product_attention(q, key, values, attn_mask=mask)
        assert 22.0 < sqnr_db(exact, narrow_attention(q, key, values, mask)) < 40.0


def test_weights_are_near_powers_of_two_and_held_by_e4m3() -> None:
    scores = torch.linspace(-12.0, 0.0, 4001)[None]
    weights = straight_weights(scores)
    assert torch.equal(weights.to(torch.float8_e4m3fn).float(), weights)
    assert bool((weights.diff(dim=-1) >= 0).all())
    ratio = weights / torch.exp2(scores + 7.0)
    assert float(ratio.max()) < 1.0615 * 1.065  # the straight line, then half a code
    assert float(ratio.min()) > 0.935
    assert straight_weights(torch.tensor([[0.0, -20.0, -torch.inf]])).tolist() == [[128.0, 0.0, 0.0]]


def test_padding_changes_nothing_whatever_it_holds() -> None:
    q, key, value, mask = drawn()
    before = narrow_attention(q, key, value, mask)
    for part in (key, value):
        part[1, :, -10:] = 1e6
    assert torch.equal(narrow_attention(q, key, value, mask), before)


def test_one_readable_token_is_returned_as_rounded() -> None:
    q, key, value, mask = drawn()
    mask[:] = False
    mask[..., 3] = True
    out = narrow_attention(q, key, value, mask)
    assert sqnr_db(value[:, :, 3:4].expand_as(out), out) > 28.0
    assert torch.equal(out[:, :, 0], out[:, :, 5])


def test_a_head_with_large_values_does_not_hurt_its_neighbour() -> None:
    q, key, value, mask = drawn()
    exact = functional.scaled_dot_product_attention(q, key, value, attn_mask=mask)
    value[:, 0] *= 1e5
    assert sqnr_db(exact[:, 1], narrow_attention(q, key, value, mask)[:, 1]) > 22.0


def test_the_module_shares_the_plain_ones_parameters_and_answers_like_it() -> None:
    torch.manual_seed(0)
    config = OneRecConfig(64, 1, 4, kv_groups=2, context_len=8, ffn_dim=64, sid_embed_dim=8)
    plain = CrossAttention(config).requires_grad_(False)
    narrow = Fp8CrossAttention(plain)
    assert narrow.state_dict().keys() == plain.state_dict().keys()
    assert narrow.wq is plain.wq
    x, mask = torch.randn(2, 6, 64), torch.ones(2, 1, 1, 9, dtype=torch.bool)
    key = torch.randn(2, 2, 9, 16)
    assert 22.0 < sqnr_db(plain(x, key, key, mask), narrow(x, key, key, mask)) < 40.0
    half = narrow.bfloat16()(x.bfloat16(), key.bfloat16(), key.bfloat16(), mask)
    assert half.dtype == torch.bfloat16
