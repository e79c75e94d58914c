"""The shape of a OneRec-V2 model, as one frozen value that travels with its checkpoint."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from model.errors import ModelError
from model.stored_fields import stored_fields

PATHWAY_FIELDS = ("profile_features", "short_term", "positive_len", "positive_from")
"""Younger than the first checkpoints: left out of a stored configuration where they have their default."""


@dataclass(frozen=True, slots=True)
class OneRecConfig:
    """Sizes of the context processor, the lazy decoder, its heads and its experts.

    The names in brackets are the paper's (arXiv 2508.20900). Every field is checked when the value is made;
    a wrong one raises `ModelError` naming it.

    The context's pathways are those of OneRec V1 (arXiv 2506.13695): profile, short-term, positive feedback, long-term.
    V2 names the signals and is silent about lengths, overlap and marks. `context.py` says what was chosen and why.
    """

    d_model: int  # [d] width of the decoder's residual stream
    n_layers: int  # [L] decoder blocks
    n_heads: int  # query heads; the head width is d_model / n_heads
    kv_groups: int  # [G] key/value heads of the cross attention (GQA); n_heads = no sharing
    context_len: int  # history items kept, the newest ones: the short-term and the long-term pathway together
    ffn_dim: int  # inner width of the dense SwiGLU; open in the paper, see `_paper`
    sid_embed_dim: int  # width of one semantic-id embedding in the context; 0.05·d_model derived from the paper
    kv_sets: int = 1  # [Lkv] distinct context key/value sets, shared out over the blocks
    kv_split: int = 1  # [S] 1: values are the keys; 2: values have their own projection
    levels: int = 3  # semantic-id tokens per item
    codebook_size: int = 8192  # codes per level
    encoder_dim: int = 0  # hidden width of the item encoder; 0: one linear map without hidden layer
    n_experts: int = 0  # routed experts; 0: every block is dense
    n_shared_experts: int = 0  # experts that see every token
    experts_per_token: int = 0  # routed experts chosen per token
    expert_dim: int = 0  # inner width of one expert
    dense_layers: int = 0  # leading blocks that keep the dense FFN in a mixture-of-experts model
    dropout: float = 0.0  # on the residual branches, in training only
    norm_eps: float = 1e-6
    profile_features: int = 0  # hash buckets of profile features; 0: the profile token is the same for everybody
    short_term: int = 0  # newest items of the history with a mark of their own; the rest is long-term
    positive_len: int = 0  # newest positively rated items, from the whole history, as a pathway of their own
    positive_from: float = 4.0  # an interaction of this value or more is positive; read only with positive_len

    def __post_init__(self) -> None:
        for name in ("d_model", "n_layers", "n_heads", "kv_groups", "context_len", "ffn_dim", "sid_embed_dim"):
            self._at_least(name, 1)
        self._at_least("kv_sets", 1)
        self._at_least("levels", 2)
        self._at_least("codebook_size", 2)
        for name in ("encoder_dim", "n_experts", "n_shared_experts", "experts_per_token", "expert_dim", "dense_layers"):
            self._at_least(name, 0)
        if self.kv_split not in (1, 2):
            raise ModelError(f"kv_split: must be 1 or 2, got {self.kv_split!r}")
        if self.d_model % self.n_heads:
            raise ModelError(f"n_heads: {self.n_heads} does not divide d_model {self.d_model}")
        if self.n_heads % self.kv_groups:
            raise ModelError(f"kv_groups: {self.kv_groups} does not divide n_heads {self.n_heads}")
        if self.kv_sets > self.n_layers:
            raise ModelError(f"kv_sets: {self.kv_sets} sets cannot be read by {self.n_layers} blocks")
        if not 0.0 <= self.dropout < 1.0:
            raise ModelError(f"dropout: must be in [0, 1), got {self.dropout!r}")
        if not self.norm_eps > 0.0:
            raise ModelError(f"norm_eps: must be positive, got {self.norm_eps!r}")
        if self.n_experts:
            self._at_least("expert_dim", 1)
            if not 1 <= self.experts_per_token <= self.n_experts:
                raise ModelError(f"experts_per_token: must be in 1..{self.n_experts}, got {self.experts_per_token}")
        self._check_pathways()

    def _check_pathways(self) -> None:
        for name in ("profile_features", "short_term", "positive_len"):
            self._at_least(name, 0)
        if self.short_term > self.context_len:
            raise ModelError(f"short_term: {self.short_term} items do not fit into context_len {self.context_len}")
        if not math.isfinite(self.positive_from):
            raise ModelError(f"positive_from: must be a finite number, got {self.positive_from!r}")

    def _at_least(self, name: str, least: int) -> None:
        value = getattr(self, name)
        if isinstance(value, bool) or not isinstance(value, int):
            raise ModelError(f"{name}: must be an integer, got {value!r}")
        if value < least:
            raise ModelError(f"{name}: must be at least {least}, got {value}")

    @property
    def head_dim(self) -> int:
        """Width of one attention head [dh]."""
        return self.d_model // self.n_heads

    @property
    def context_width(self) -> int:
        """Width S·Lkv·G·dh that every context item is mapped to."""
        return self.kv_split * self.kv_sets * self.kv_groups * self.head_dim

    @property
    def pathways(self) -> dict[str, int]:
        """Most tokens of each pathway, in the order of the sequence."""
        return {
            "profile": 1,
            "short_term": self.short_term,
            "long_term": self.context_len - self.short_term,
            "positive_feedback": self.positive_len,
        }

    @property
    def context_items(self) -> int:
        """Most items in a context; all that is encoded. The profile token is not."""
        return self.context_len + self.positive_len

    @property
    def context_tokens(self) -> int:
        """Most tokens of a context [N]: what a decoder block may attend to."""
        return sum(self.pathways.values())

    def kv_set_of(self, layer: int) -> int:
        """The context set that block `layer` reads: floor(l·Lkv/L)."""
        return layer * self.kv_sets // self.n_layers

    def is_moe_layer(self, layer: int) -> bool:
        """Whether block `layer` has experts instead of the dense FFN."""
        return self.n_experts > 0 and layer >= self.dense_layers

    def to_dict(self) -> dict[str, Any]:
        """All fields as JSON values.

        Pathway fields at their default are left out, so that digests of models without them are what they were.
        """
        return stored_fields(self, PATHWAY_FIELDS)

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any]) -> OneRecConfig:
        """The inverse of `to_dict`; unknown, missing or ill-typed fields raise `ModelError`."""
        known = {field.name: field for field in fields(cls)}
        unknown = sorted(set(raw) - set(known))
        if unknown:
            raise ModelError(f"{unknown[0]}: unknown field of the model configuration")
        values: dict[str, Any] = {}
        for name, value in raw.items():
            if known[name].type == "float":
                if isinstance(value, bool) or not isinstance(value, int | float):
                    raise ModelError(f"{name}: must be a number, got {value!r}")
                values[name] = float(value)
            else:
                values[name] = value
        try:
            return cls(**values)
        except TypeError as error:
            missing = str(error).split(":", 1)[-1].strip()
            raise ModelError(f"model configuration: missing {missing}") from error


def _paper(d_model: int, n_layers: int, n_heads: int, ffn_dim: int, **more: Any) -> OneRecConfig:
    """A size of the paper's table 5: Lkv=1, S=1, G=H, semantic-id embeddings of 0.05d, 8192 codes.

    The paper is silent about the dense FFN's inner width. Here it is the multiple of 128 that brings the blocks'
    parameters nearest to the label while `training_flops` stays within 5 % of the paper's table 2, where that names
    the size (it decides for 0.1B alone, one step narrower than the label would have it): 3.7 to 4.9 times d.
    """
    sizes: dict[str, Any] = {
        "kv_groups": n_heads,
        "context_len": 512,
        "ffn_dim": ffn_dim,
        "sid_embed_dim": round(0.05 * d_model),
    }
    return OneRecConfig(d_model=d_model, n_layers=n_layers, n_heads=n_heads, **(sizes | more))


PRESETS: dict[str, OneRecConfig] = {
    "tiny": OneRecConfig(
        d_model=64,
        n_layers=2,
        n_heads=4,
        kv_groups=2,
        context_len=20,
        ffn_dim=128,
        sid_embed_dim=32,
        codebook_size=64,
        encoder_dim=128,
    ),
    # chosen on MovieLens-100K's validation items: two levels suffice for few items, one key/value head saves time
    "small": OneRecConfig(
        d_model=128,
        n_layers=2,
        n_heads=4,
        kv_groups=1,
        context_len=50,
        ffn_dim=512,
        sid_embed_dim=128,
        levels=2,
        codebook_size=64,
        encoder_dim=512,
        dropout=0.2,
    ),
    "0.1B": _paper(640, 12, 10, 2944),
    "0.2B": _paper(896, 12, 14, 4352),
    "0.5B": _paper(1408, 14, 11, 5632),
    "1B": _paper(1792, 18, 14, 6784),
    "2B": _paper(2304, 22, 18, 8576),
    "4B": _paper(2944, 26, 23, 11520),
    "8B": _paper(3584, 34, 28, 14720),
    "moe-4b": _paper(
        1408, 14, 11, 5632, n_experts=53, n_shared_experts=1, experts_per_token=3, expert_dim=1408, dense_layers=2
    ),
}
