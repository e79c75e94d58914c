"""Keys and values of a batch of histories, from item indices, in one pass over the tokens."""

# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators, allow-untyped-calls
# (kernels are typed by Triton, not by Python)

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from model.context import ContextProcessor
from model.engine.overlap import OVERLAPPED, in_turn


@dataclass(frozen=True, slots=True, eq=False)
class History:
    """What turns histories into keys and values: a model's context processor, ready to run.

    encoded [items, S·Lkv·G·dh]: every item's encoding; None: made for each history from codes [items, levels].
    """

    processor: ContextProcessor
    codes: Tensor
    encoded: Tensor | None = None

    def keys_and_values(self, items: Tensor, lengths: Tensor) -> tuple[tuple[Tensor, Tensor], ...]:
        """items [B, N] indices, newest first, padded with -1; lengths [B] int32 tokens, the profile's included.

        Returns (keys, values), each [B, G, N+1, dh], of every set; one tensor where values are keys. Tokens from a
        request's length on are zero, so that neither scales nor sums know how far a batch was padded. The numbers
        are those of `ContextProcessor.assemble`.
        """
        config = self.processor.config
        index: Tensor | None
        if self.encoded is None:
            fresh = self.processor.encode_items(self.codes[items.clamp_min(0).long()])
            table, index = fresh.view(-1, self.processor.config.context_width), None
        else:
            table, index = self.encoded, items.contiguous()
        chunks = _place(table, index, items.shape[1], lengths, self.processor)
        split = config.kv_split
        return tuple((chunks[j * split], chunks[j * split + split - 1]) for j in range(config.kv_sets))


def _place(
    table: Tensor, index: Tensor | None, length: int, lengths: Tensor, processor: ContextProcessor
) -> tuple[Tensor, ...]:
    """The S·Lkv normalised chunks, each [B, G, N+1, dh]; index None: row b·N + n of the table."""
    config = processor.config
    batch, groups, head_dim = lengths.shape[0], config.kv_groups, config.head_dim
    chunks = config.context_width // (groups * head_dim)
    gamma = torch.stack([norm.weight for norm in processor.norms])  # type: ignore[misc]
    out = torch.empty(chunks, batch, groups, length + 1, head_dim, dtype=table.dtype, device=table.device)
    _tokens[(length + 1, batch)](
        table,
        index,
        processor.recency.weight,
        processor.profile,
        gamma,
        lengths,
        out,
        length,
        config.norm_eps,
        CHUNKS=chunks,
        GROUPS=groups,
        GROUPS_BLOCK=triton.next_power_of_2(groups),
        HEAD_DIM=head_dim,
        num_warps=4,
        **OVERLAPPED,
    )
    return out.unbind(0)


@triton.jit
def _tokens(
    table, index, recency, profile, gamma, lengths, out, length, eps,
    CHUNKS: tl.constexpr, GROUPS: tl.constexpr, GROUPS_BLOCK: tl.constexpr, HEAD_DIM: tl.constexpr,
):  # fmt: skip
    """One token: add its recency, or take the profile, and normalise every head of every chunk."""
    in_turn()
    token, request, batch = tl.program_id(0), tl.program_id(1), tl.num_programs(1)
    readable = token < tl.load(lengths + request)
    place = (request * length + token - 1).to(tl.int64)
    item = token > 0
    source = place
    if index is not None:
        source = tl.load(index + place, item & readable, 0).to(tl.int64)
    group, within = tl.arange(0, GROUPS_BLOCK)[:, None], tl.arange(0, HEAD_DIM)[None, :]
    inside = (group < GROUPS) & (within < HEAD_DIM)
    width: tl.constexpr = CHUNKS * GROUPS * HEAD_DIM
    for chunk in tl.static_range(CHUNKS):
        at = (chunk * GROUPS + group) * HEAD_DIM + within
        x = tl.load(table + source * width + at, inside & item & readable, 0.0).to(tl.float32)
        x += tl.load(recency + (token - 1) * width + at, inside & item & readable, 0.0).to(tl.float32)
        x += tl.load(profile + at, inside & (token == 0), 0.0).to(tl.float32)
        x = x.to(out.dtype.element_ty).to(tl.float32)
        scale = tl.rsqrt(tl.sum(x * x, 1) / HEAD_DIM + eps)
        y = x * scale[:, None] * tl.load(gamma + chunk * HEAD_DIM + within).to(tl.float32)
        to = ((chunk * batch + request).to(tl.int64) * GROUPS + group) * (length + 1) + token
        tl.store(out + to * HEAD_DIM + within, y.to(out.dtype.element_ty), inside)
