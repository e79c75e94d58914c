"""Cross attention over a context in E4M3: what the GPU engine's kernel computes, step by step in torch."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from model.decoder import CrossAttention
from quant.primitives import E4M3_MAX, SCALE_FLOOR, round_in_range, round_rows

TOP = 256.0
"""The largest attention weight before rounding: E4M3 then keeps those down to 2^-17 of it."""


class Fp8CrossAttention(CrossAttention):
    """Queries in E4M3 with a scale per row and head, keys and values with one per request and head.

    Softmax and sums are float32; its weights, up to TOP, are rounded to E4M3 and the sum they are divided by is that
    of the exact ones, as in model/engine/cross_attention.py. The kernel rounds the result to E4M3 for the product with
    `wo`; here `wo`, when it is quantised, rounds its own input. Nothing is stored: the parameters are the plain ones.
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
    queries, q_scale = round_rows(q.float())
    keys, key_scale = _round_heads(key, readable)
    values, value_scale = (keys, key_scale) if value is key else _round_heads(value, readable)
    scores = (queries @ keys.transpose(-1, -2)) * (q_scale * key_scale * q.shape[-1] ** -0.5)
    scores = scores.masked_fill(~mask, -torch.inf)
    weights = torch.exp(scores - scores.amax(dim=-1, keepdim=True)) * TOP
    total = weights.sum(dim=-1, keepdim=True)
    return (round_in_range(weights) @ values) * (value_scale / total)


def _round_heads(x: Tensor, readable: Tensor) -> tuple[Tensor, Tensor]:
    """x [B, G, N, dh] -> (E4M3 values of x / s as float32, s [B, G, 1, 1])."""
    wide = x.float().masked_fill(~readable, 0.0)
    scale = wide.abs().amax(dim=(-2, -1), keepdim=True).mul_(1.0 / E4M3_MAX).clamp_min_(SCALE_FLOOR)
    return round_in_range(wide / scale), scale
