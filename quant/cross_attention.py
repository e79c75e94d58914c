"""Cross attention over a context in E4M3: what the GPU engine's kernel computes, step by step in torch."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from model.decoder import CrossAttention
from quant.primitives import E4M3_MAX, SCALE_FLOOR, round_in_range

_START, _MOST = 112, 126
"""Codes of E4M3: of the largest attention weight, 2^7, and the greatest that there is, of 448."""

_SCORES = 136.0
"""A row's codes sum up to this, so that no score of keys up to 448 passes 65504, a half's largest number."""


class Fp8CrossAttention(CrossAttention):
    """Queries in E4M3 with a scale per row and head, keys and values with one per request and head.

    The engine's queries have one scale per row: the steps are the same, unless one number of a row may be hundreds of
    times as large as another. Scores are halves, weights are made as the kernel for heads of 128 makes them
    (`quant/kernels/attention.cu`), and the sum that they are divided by is their own; sums are float32. For heads of
    other widths the engine computes powers, which is a little nearer. The kernel rounds the result to E4M3 for the
    product with `wo`; here `wo`, when it is quantised, rounds its own input. Nothing is stored: the parameters are the
    plain ones.
    """

    def __init__(self, plain: CrossAttention) -> None:
        nn.Module.__init__(self)  # the plain module's own would allocate its weights
        self.groups, self.head_dim = plain.groups, plain.head_dim
        self.wq, self.wo = plain.wq, plain.wo

    def forward(self, x: Tensor, key: Tensor, value: Tensor, mask: Tensor) -> Tensor:
        """x [B, Q, d], key and value [B, G, N, dh], mask [B, 1, 1, N] -> [B, Q, d]."""
        batch, length, width = x.shape
        q = self.wq(x).view(batch, length, self.groups, -1, self.head_dim)
        heads = q.shape[3]
        q = q.permute(0, 2, 1, 3, 4).reshape(batch, self.groups, length * heads, self.head_dim)
        out = narrow_attention(q, key, value, mask).to(x.dtype)
        out = out.view(batch, self.groups, length, heads, self.head_dim).permute(0, 2, 1, 3, 4)
        mixed: Tensor = self.wo(out.reshape(batch, length, width))
        return mixed


def narrow_attention(q: Tensor, key: Tensor, value: Tensor, mask: Tensor) -> Tensor:
    """softmax(q·kᵀ/√dh)·v through E4M3, float32. q [B, G, M, dh], key and value [B, G, N, dh], mask [B, 1, 1, N].

    Scales of keys and values are the largest magnitude of the readable tokens: padding, which depends on who else is
    in the batch, changes nothing.
    """
    readable = mask.transpose(-1, -2)  # [B, 1, N, 1]
    q_scale = q.float().abs().sum(dim=-1, keepdim=True).mul_(1.0 / _SCORES).clamp_min_(SCALE_FLOOR)
    queries = round_in_range(q.float() / q_scale)
    keys, key_scale = _round_heads(key, readable)
    values, value_scale = (keys, key_scale) if value is key else _round_heads(value, readable)
    scores = (queries @ keys.transpose(-1, -2)).half().float()
    scores *= q_scale * key_scale * (q.shape[-1] ** -0.5 * math.log2(math.e))
    weights = straight_weights(scores.masked_fill(~mask, -torch.inf))
    return (weights @ values) * (value_scale / weights.sum(dim=-1, keepdim=True))


def straight_weights(scores: Tensor) -> Tensor:
    """Scores [..., N], a row's weights' binary logarithms but for a constant -> those weights as E4M3 holds them.

    A code is eight times the exponent plus eighths of the mantissa, which is the logarithm with straight lines between
    powers of two: the code is taken to be the logarithm, rounded. A weight is up to 6.1 % too large before that, all
    of a row by 4.1 % on average, which falls out with their sum.
    """
    code = (8.0 * (scores - scores.amax(dim=-1, keepdim=True)) + _START).clamp_(0.0, _MOST).round_()
    power = (code / 8.0).floor_()
    eighths = code - 8.0 * power
    subnormal = power == 0
    return torch.where(subnormal, eighths / 512.0, torch.exp2(power - 7.0) * (1.0 + eighths / 8.0))


def _round_heads(x: Tensor, readable: Tensor) -> tuple[Tensor, Tensor]:
    """x [B, G, N, dh] -> (E4M3 values of x / s as float32, s [B, G, 1, 1])."""
    wide = x.float().masked_fill(~readable, 0.0)
    scale = wide.abs().amax(dim=(-2, -1), keepdim=True).mul_(1.0 / E4M3_MAX).clamp_min_(SCALE_FLOOR)
    return round_in_range(wide / scale), scale
