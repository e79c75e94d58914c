"""What the engine's selection computes, in plain torch: the definition that its kernels are tested against.

A beam is a node of the trie. A child is legal when some item under it was not seen. A candidate's score is its
beam's score plus log softmax of its logit over the whole codebook, and -inf when it is illegal; of equal scores the
lowest beam · codebook + code comes first. A score of -inf leads to the node without children.
"""

from __future__ import annotations

import torch
from torch import Tensor

from model.beam import Beams
from model.context import ContextKV
from model.engine.limits import WORD
from model.engine.prefixes import Prefixes
from model.onerec import OneRecV2


def legal_codes(prefixes: Prefixes, level: int, nodes: Tensor, used: Tensor | None) -> Tensor:
    """Nodes [B, R] of the level above, used [B, M] ascending nodes of this one -> [B, R, codebook] bool."""
    start, end = (prefixes.first[level][nodes.long() + step].long() for step in (0, 1))
    child = start[..., None] + torch.arange(prefixes.fan_out[level], device=nodes.device)
    legal = child < end[..., None]
    child = child.clamp_max(prefixes.codes[level].shape[0] - 1)
    if used is not None and used.shape[1]:
        flat = child.flatten(1).to(torch.int32)
        count = torch.searchsorted(used, flat, right=True) - torch.searchsorted(used, flat)
        legal = legal & (prefixes.items_under[level][flat.long()] > count).view(legal.shape)
    out = torch.zeros(*nodes.shape, prefixes.codebook + 1, dtype=torch.bool, device=nodes.device)
    code = torch.where(legal, prefixes.codes[level][child].long(), prefixes.codebook)
    return out.scatter_(-1, code, True)[..., : prefixes.codebook]


def packed(legal: Tensor) -> Tensor:
    """[B, R, codebook] bool -> [B·R, codebook / 32] int32: bit c % 32 of word c / 32 says whether code c is legal."""
    bits = legal.view(-1, legal.shape[-1] // WORD, WORD).to(torch.int64)
    words = (bits << torch.arange(WORD, device=legal.device)).sum(-1)
    return torch.where(words >= 2**31, words - 2**32, words).to(torch.int32)


def select(logits: Tensor, scores: Tensor, k: int, legal: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """logits [B·R, C], scores [B, R], legal [B, R, C] -> the k best (scores, beams, codes), each [B, k]."""
    batch, beams = scores.shape
    total = scores[..., None] + torch.log_softmax(logits.float(), dim=-1).view(batch, beams, -1)
    if legal is not None:
        total = total.masked_fill(~legal, -torch.inf)
    best = total.flatten(1).sort(dim=1, descending=True, stable=True)
    index = best.indices[:, :k]
    return best.values[:, :k], index // logits.shape[1], index % logits.shape[1]


def descend(prefixes: Prefixes, level: int, nodes: Tensor, scores: Tensor, beams: Tensor, codes: Tensor) -> Tensor:
    """Of each chosen (beam, code) [B, k] the child that it leads to, int32; n_l where the score is -inf."""
    parents = nodes.gather(1, beams).long()
    start, end = (prefixes.first[level][parents + step].long() for step in (0, 1))
    child = start[..., None] + torch.arange(prefixes.fan_out[level], device=nodes.device)
    last = prefixes.codes[level].shape[0]
    found = (child < end[..., None]) & (prefixes.codes[level][child.clamp_max(last - 1)] == codes[..., None])
    node = torch.where(found, child, last).amin(-1)
    return torch.where(scores == -torch.inf, last, node).to(torch.int32)


def search(model: OneRecV2, context: ContextKV, prefixes: Prefixes, width: int, seen: Tensor | None = None) -> Beams:
    """`model.beam.beam_search` by the engine's rules: always `width` columns, -1 and -inf where nothing is left."""
    hidden, caches = model.start(context)
    batch = hidden.shape[0]
    scores = torch.zeros(batch, 1, device=hidden.device)
    nodes = prefixes.roots(batch)
    used = None if seen is None else prefixes.used(seen)
    for level in range(prefixes.levels):
        logits = model.logits(hidden, level).float().flatten(0, 1)
        legal = legal_codes(prefixes, level, nodes, None if used is None else used[level])
        rows = nodes.shape[1]
        scores, beams, codes = select(logits, scores, min(width, rows * prefixes.codebook), legal)
        nodes = descend(prefixes, level, nodes, scores, beams, codes)
        if level + 1 < prefixes.levels:
            index = (beams + rows * torch.arange(batch, device=beams.device)[:, None]).flatten()
            followed = [(key[index], value[index]) for key, value in caches]
            hidden, caches = model.advance(codes, level, context, followed)
    return Beams(prefixes.items(nodes), scores)
