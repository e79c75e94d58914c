"""Beam search over the trie of valid items: batched, exact scores, no Python per beam or per request."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from model.context import ContextKV
from model.decoder import SelfKV
from model.errors import ModelError
from model.onerec import OneRecV2
from model.trie import ItemTrie


@dataclass(frozen=True, slots=True, eq=False)
class Beams:
    """items [B, W]: catalogue indices, best first, -1 where nothing was left; scores [B, W]: log p, -inf there."""

    items: Tensor
    scores: Tensor


def beam_search(model: OneRecV2, context: ContextKV, trie: ItemTrie, width: int, seen: Tensor | None = None) -> Beams:
    """The `width` best-scored unseen items that the beam finds, one row per request of `context`.

    A score is the sum over the levels of log softmax over the whole codebook, as in training, so codes that lead
    to no item cost probability but are never followed. seen [B, M]: item indices not to be returned, padded with
    -1; a prefix is dropped as soon as all its items are seen, so min(width, unseen items) items always come back.
    The result is exact (equal to scoring every item) when `width` reaches the number of prefixes.
    """
    if width < 1:
        raise ModelError(f"beam_width: must be at least 1, got {width}")
    hidden, caches = model.start(context)
    batch = hidden.shape[0]
    scores = torch.zeros(batch, 1, device=hidden.device)
    nodes = torch.zeros(batch, 1, dtype=torch.int64, device=hidden.device)
    for level in range(trie.levels):
        log_p = torch.log_softmax(model.logits(hidden, level).float(), dim=-1)
        children, legal = _children(trie, level, nodes)
        codes = trie.codes[level][children]
        if seen is not None and seen.shape[1]:
            legal = legal & _has_unseen(trie, level, children, seen)
        total = (scores[:, :, None] + log_p.gather(-1, codes)).masked_fill(~legal, -torch.inf)
        scores, picked = total.flatten(1).topk(min(width, total[0].numel()), dim=1)
        nodes = children.flatten(1).gather(1, picked)
        if level + 1 < trie.levels:
            chosen = codes.flatten(1).gather(1, picked)
            parent = picked // trie.fan_out[level]
            hidden, caches = model.advance(chosen, level, context, _follow(caches, parent))
    items = torch.where(scores.isfinite(), trie.item_of_leaf[nodes], -1)
    return Beams(items, scores)


def _children(trie: ItemTrie, level: int, nodes: Tensor) -> tuple[Tensor, Tensor]:
    """Nodes [B, R] of the level above -> (children [B, R, fan_out], which of them exist)."""
    start, end = trie.first[level][nodes], trie.first[level][nodes + 1]
    children = start[..., None] + torch.arange(trie.fan_out[level], device=nodes.device)
    legal = children < end[..., None]
    return children.clamp_max(trie.codes[level].shape[0] - 1), legal


def _has_unseen(trie: ItemTrie, level: int, nodes: Tensor, seen: Tensor) -> Tensor:
    """Whether each node [B, R, F] still has an item outside seen [B, M]; duplicates in seen must not occur."""
    beyond = trie.codes[level].shape[0]
    used = torch.where(seen >= 0, trie.node_of_item[level][seen.clamp_min(0)], beyond).sort(dim=1).values
    flat = nodes.flatten(1)
    count = torch.searchsorted(used, flat, right=True) - torch.searchsorted(used, flat)
    return (trie.items_under[level][flat] > count).view(nodes.shape)


def _follow(caches: list[SelfKV], parent: Tensor) -> list[SelfKV]:
    """Reorder caches of B·R rows so that row (b, w) continues beam parent[b, w]."""
    batch = parent.shape[0]
    rows = caches[0][0].shape[0] // batch
    index = (parent + rows * torch.arange(batch, device=parent.device)[:, None]).flatten()
    return [(key[index], value[index]) for key, value in caches]
