"""The context processor: a user's history becomes the keys and values that every decoder block reads."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from model.config import OneRecConfig


@dataclass(frozen=True, slots=True)
class ContextKV:
    """Computed once per request and shared by all beams and blocks.

    keys, values: one tensor [B, G, N+1, dh] per set; with S=1 values[j] is keys[j], the same storage.
    mask [B, 1, 1, N+1]: True where a token may be read; the profile token (first) always may.
    """

    keys: tuple[Tensor, ...]
    values: tuple[Tensor, ...]
    mask: Tensor


class ContextProcessor(nn.Module):
    """Per-item projection only: no attention among the context items (arXiv 2508.20900, section 3.1).

    The paper leaves the item encoder open. Here the embeddings of an item's semantic ids are concatenated and
    mapped to the width S·Lkv·G·dh, linearly or through one hidden LeakyReLU layer (`encoder_dim`); a learned
    vector for the item's recency (0 = newest) is added. A learned profile token comes first, so that a user
    without any history has a context too.
    """

    def __init__(self, config: OneRecConfig) -> None:
        super().__init__()
        self.config = config
        width, hidden = config.context_width, config.encoder_dim
        concat = config.levels * config.sid_embed_dim
        self.embed = nn.ModuleList(
            nn.Embedding(config.codebook_size, config.sid_embed_dim) for _ in range(config.levels)
        )
        self.hidden = nn.Linear(concat, hidden) if hidden else None
        self.project = nn.Linear(hidden or concat, width, bias=False)
        self.recency = nn.Embedding(config.context_len, width)
        self.profile = nn.Parameter(torch.zeros(width))
        heads = config.kv_groups * config.head_dim
        self.norms = nn.ModuleList(nn.RMSNorm(config.head_dim, eps=config.norm_eps) for _ in range(width // heads))

    def encode_items(self, codes: Tensor) -> Tensor:
        """Semantic ids [..., levels] -> item encodings [..., S·Lkv·G·dh], the same wherever the item stands."""
        x = torch.cat([table(codes[..., level]) for level, table in enumerate(self.embed)], dim=-1)
        if self.hidden is not None:
            x = functional.leaky_relu(self.hidden(x))
        out: Tensor = self.project(x)
        return out

    def assemble(self, items: Tensor, valid: Tensor) -> ContextKV:
        """Item encodings [B, N, width], newest first, and valid [B, N] -> keys and values of every set."""
        config = self.config
        batch, length, width = items.shape
        placed = items + self.recency.weight[:length]
        tokens = torch.cat([self.profile.to(placed.dtype).expand(batch, 1, width), placed], dim=1)
        chunks = tokens.view(batch, length + 1, -1, config.kv_groups, config.head_dim)
        # [B, N+1, S·Lkv, G, dh]: chunk j·S is set j's key, chunk j·S+1 its value
        normed = [norm(chunks[:, :, i]).transpose(1, 2) for i, norm in enumerate(self.norms)]
        keys = tuple(normed[:: config.kv_split])
        values = tuple(normed[config.kv_split - 1 :: config.kv_split])
        readable = functional.pad(valid, (1, 0), value=True)
        return ContextKV(keys, values, readable[:, None, None, :])

    def forward(self, codes: Tensor, valid: Tensor) -> ContextKV:
        """Semantic ids [B, N, levels] of the history, newest first (N may be 0), and valid [B, N]."""
        return self.assemble(self.encode_items(codes), valid)
