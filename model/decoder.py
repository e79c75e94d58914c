"""The lazy decoder: blocks that read a ready-made context and keep no key or value weights for it."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from model.config import OneRecConfig
from model.context import ContextKV
from model.experts import MixtureOfExperts, SwiGLU

SelfKV = tuple[Tensor, Tensor]
"""Keys and values of the generated tokens so far, each [B·R, H, t, dh]."""


class CrossAttention(nn.Module):
    """Grouped-query attention over the context; query and output weights only."""

    def __init__(self, config: OneRecConfig) -> None:
        super().__init__()
        self.groups, self.head_dim = config.kv_groups, config.head_dim
        self.wq = nn.Linear(config.d_model, config.d_model, bias=False)
        self.wo = nn.Linear(config.d_model, config.d_model, bias=False)

    def forward(self, x: Tensor, key: Tensor, value: Tensor, mask: Tensor) -> Tensor:
        """x [B, Q, d], key and value [B, G, N, dh], mask [B, 1, 1, N] -> [B, Q, d].

        Nothing is causal here, so the query heads of one group are folded into the query length: the keys
        are never repeated, neither over heads nor over beams.
        """
        batch, length, width = x.shape
        q = self.wq(x).view(batch, length, self.groups, -1, self.head_dim)
        heads = q.shape[3]
        q = q.permute(0, 2, 1, 3, 4).reshape(batch, self.groups, length * heads, self.head_dim)
        out = functional.scaled_dot_product_attention(q, key, value, attn_mask=mask)
        out = out.view(batch, self.groups, length, heads, self.head_dim).permute(0, 2, 1, 3, 4)
        mixed: Tensor = self.wo(out.reshape(batch, length, width))
        return mixed


class CausalSelfAttention(nn.Module):
    """Attention over the tokens of one beam: BOS and at most levels-1 codes."""

    def __init__(self, config: OneRecConfig) -> None:
        super().__init__()
        self.head_dim = config.head_dim
        self.wqkv = nn.Linear(config.d_model, 3 * config.d_model, bias=False)
        self.wo = nn.Linear(config.d_model, config.d_model, bias=False)

    def forward(self, x: Tensor, past: SelfKV | None) -> tuple[Tensor, SelfKV]:
        """x [M, T, d] after `past` of t tokens -> ([M, T, d], keys and values of all t+T tokens)."""
        rows, new, width = x.shape
        qkv = self.projected(x).view(rows, new, 3, -1, self.head_dim).permute(2, 0, 3, 1, 4)
        q, k, v = qkv[0], qkv[1], qkv[2]
        if past is not None:
            k, v = torch.cat([past[0], k], dim=2), torch.cat([past[1], v], dim=2)
        total = k.shape[2]
        mask = None
        if new > 1:
            mask = torch.ones(new, total, dtype=torch.bool, device=x.device).tril(total - new)
        out = functional.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        mixed: Tensor = self.wo(out.transpose(1, 2).reshape(rows, new, width))
        return mixed, (k, v)

    def projected(self, x: Tensor) -> Tensor:
        """x [M, T, d] -> queries, keys and values of all heads [M, T, 3d]."""
        qkv: Tensor = self.wqkv(x)
        return qkv


class LazyDecoderBlock(nn.Module):
    """Pre-norm cross attention, causal self attention, feed-forward, each added to the residual stream."""

    def __init__(self, config: OneRecConfig, layer: int) -> None:
        super().__init__()
        d, eps = config.d_model, config.norm_eps
        self.norm_cross, self.norm_self, self.norm_ffn = (nn.RMSNorm(d, eps=eps) for _ in range(3))
        self.cross = CrossAttention(config)
        self.self_attn = CausalSelfAttention(config)
        self.ffn: nn.Module = MixtureOfExperts(config) if config.is_moe_layer(layer) else SwiGLU(d, config.ffn_dim)
        self.dropout = nn.Dropout(config.dropout)

    def forward(
        self, h: Tensor, key: Tensor, value: Tensor, mask: Tensor, past: SelfKV | None
    ) -> tuple[Tensor, SelfKV]:
        """h [B, R, T, d]: R beams with T new tokens each, all reading the same context of their request."""
        batch, beams, new, width = h.shape
        read = self.cross(self.norm_cross(h).view(batch, beams * new, width), key, value, mask)
        h = h + self.dropout(read.view(h.shape))
        mixed, cache = self.self_attn(self.norm_self(h).view(batch * beams, new, width), past)
        h = h + self.dropout(mixed.view(h.shape))
        return h + self.dropout(self.ffn(self.norm_ffn(h))), cache


class LazyDecoder(nn.Module):
    """The stack of blocks; block l reads context set floor(l·Lkv/L)."""

    def __init__(self, config: OneRecConfig) -> None:
        super().__init__()
        self.config = config
        self.blocks = nn.ModuleList(LazyDecoderBlock(config, layer) for layer in range(config.n_layers))

    def forward(self, h: Tensor, context: ContextKV, past: list[SelfKV] | None = None) -> tuple[Tensor, list[SelfKV]]:
        """h [B, R, T, d] -> the same shape, and each block's self-attention cache."""
        caches: list[SelfKV] = []
        for layer, block in enumerate(self.blocks):
            index = self.config.kv_set_of(layer)
            before = None if past is None else past[layer]
            h, cache = block(h, context.keys[index], context.values[index], context.mask, before)
            caches.append(cache)
        return h, caches
