"""The context processor: a user's signals become the keys and values that every decoder block reads."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from model.config import OneRecConfig


@dataclass(frozen=True, slots=True)
class ContextKV:
    """Computed once per request and shared by all beams and blocks.

    keys, values: one tensor [B, G, N, dh] per set; with S=1 values[j] is keys[j], the same storage.
    mask [B, 1, 1, N]: True where a token may be read; the profile token (first) always may.
    """

    keys: tuple[Tensor, ...]
    values: tuple[Tensor, ...]
    mask: Tensor


class ContextProcessor(nn.Module):
    """Per-item projection only: no attention among the context items (arXiv 2508.20900, section 3.1).

    One sequence of up to four pathways (arXiv 2506.13695: [profile; short-term; positive feedback; long-term] with a
    learned vector per place). Both papers leave open what follows, and here it is so:

    - Item encoder: the embeddings of an item's semantic ids are concatenated and mapped to the width S·Lkv·G·dh,
      linearly or through one hidden LeakyReLU layer (`encoder_dim`). All pathways share it, so that an item is
      encoded once, whoever met it and however; a pathway is told by what is added to the encoding.
    - Places: behind the history's newest item (place 0) come the older ones, then the liked ones, newest first, with
      places of their own. Attention does not see the order of its keys, only these vectors.
    - Short-term and long-term are one history without overlap: the newest `short_term` items share a mark. Marks start
      at zero: a pathway differs from another only as far as training says so.
    - Positive feedback is taken from the whole history, also from before context_len, which is what it is good for. An
      item may be in the history and among the liked: dropping it there would make one pathway depend on another.
    - Profile: features are categorical, hashed to `profile_features` buckets, and their vectors, of the projected
      width and from zero, are added to the learned profile token: it stays one token, as in V1. A value never seen in
      training adds (but for collisions) nothing. Without any history the profile token still is a context.
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
        self.short_term = nn.Parameter(torch.zeros(width)) if config.short_term else None
        self.positive = nn.Parameter(torch.zeros(width)) if config.positive_len else None
        self.positive_recency = nn.Embedding(config.positive_len, width) if config.positive_len else None
        self.features = nn.Embedding(config.profile_features, width) if config.profile_features else None
        heads = config.kv_groups * config.head_dim
        self.norms = nn.ModuleList(nn.RMSNorm(config.head_dim, eps=config.norm_eps) for _ in range(width // heads))

    def reset_pathways(self) -> None:
        """Places small, so that what an item is counts more than where it stands; marks and features at zero."""
        nn.init.normal_(self.recency.weight, std=0.1)
        nn.init.normal_(self.profile, std=0.5)
        if self.positive_recency is not None:
            nn.init.normal_(self.positive_recency.weight, std=0.1)
        if self.features is not None:
            nn.init.zeros_(self.features.weight)
        for mark in (self.short_term, self.positive):
            if mark is not None:
                nn.init.zeros_(mark)

    def encode_items(self, codes: Tensor) -> Tensor:
        """Semantic ids [..., levels] -> item encodings [..., S·Lkv·G·dh], the same wherever the item stands."""
        x = torch.cat([table(codes[..., level]) for level, table in enumerate(self.embed)], dim=-1)
        if self.hidden is not None:
            x = functional.leaky_relu(self.hidden(x))
        out: Tensor = self.project(x)
        return out

    def place_table(self) -> Tensor:
        """What is added at each place [context_len + positive_len, width]: recency, and the pathway's mark.

        Places 0.. are the history's, from context_len on the liked items'.
        """
        rows = self.recency.weight
        if self.short_term is not None:
            newest = self.config.short_term
            rows = torch.cat([rows[:newest] + self.short_term, rows[newest:]])
        if self.positive_recency is not None and self.positive is not None:
            rows = torch.cat([rows, self.positive_recency.weight + self.positive])
        return rows

    def chunks(self, items: Tensor, places: Tensor | None = None, features: Tensor | None = None) -> list[Tensor]:
        """Item encodings [B, T, width] -> S·Lkv normed chunks [B, 1+T, G, dh]: j·S is set j's key, j·S+1 its value.

        Row by row: no token depends on another. places, features: as in `ContextTokens`.
        """
        batch, length, _ = items.shape
        table = self.place_table()
        placed = items + (table[: self.config.context_len][:length] if places is None else table[places])
        tokens = torch.cat([self._profile(batch, features).to(placed.dtype), placed], dim=1)
        parts = tokens.view(batch, length + 1, -1, self.config.kv_groups, self.config.head_dim)
        return [norm(parts[:, :, i]) for i, norm in enumerate(self.norms)]

    def keys_values(self, chunks: list[Tensor], readable: Tensor) -> ContextKV:
        """Chunks [B, N, G, dh] and readable [B, N] -> keys and values of every set."""
        normed = [chunk.transpose(1, 2) for chunk in chunks]
        split = self.config.kv_split
        return ContextKV(tuple(normed[::split]), tuple(normed[split - 1 :: split]), readable[:, None, None, :])

    def assemble(
        self, items: Tensor, valid: Tensor, places: Tensor | None = None, features: Tensor | None = None
    ) -> ContextKV:
        """Item encodings [B, T, width], and the rest of their `ContextTokens` -> keys and values of every set."""
        readable = functional.pad(valid, (1, 0), value=True)
        return self.keys_values(self.chunks(items, places, features), readable)

    def forward(
        self, codes: Tensor, valid: Tensor, places: Tensor | None = None, features: Tensor | None = None
    ) -> ContextKV:
        """Semantic ids [B, T, levels] (T may be 0), and the rest of their `ContextTokens`."""
        return self.assemble(self.encode_items(codes), valid, places, features)

    def _profile(self, batch: int, features: Tensor | None) -> Tensor:
        """The profile token [B, 1, width]."""
        learned = self.profile.expand(batch, 1, -1)
        if self.features is None or features is None:
            return learned
        token = learned
        for column in features.unbind(1):  # one after the other: the sum must not depend on how long the padding is
            token = token + (self.features(column.clamp_min(0)) * (column >= 0)[:, None])[:, None]
        return token
