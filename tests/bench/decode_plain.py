"""The baseline: the decoder as a good engineer writes it in PyTorch alone, made for torch.compile and CUDA graphs.

No kernel of our own: beams are folded into the query length of one SDPA call per block, experts run as grouped
products (`torch._grouped_mm`) over rows sorted by expert, the self attention over at most three tokens is written
out so that the compiler fuses it, and the whole decode of a batch is one CUDA graph.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

from model.config import OneRecConfig
from model.engine.weights import BlockWeights, DecoderWeights

Past = tuple[tuple[Tensor, Tensor], ...]
"""Of each block the keys and values [B, rows, t, H, dh] of the tokens so far."""


def grouped(rows: Tensor, weight: Tensor, ends: Tensor) -> Tensor:
    """rows [M, K] sorted by expert, weight [E, N, K], ends [E] int32 -> [M, N]."""
    return torch._grouped_mm(rows, weight.transpose(-2, -1), offs=ends)


def swiglu(x: Tensor) -> Tensor:
    """Gate half and up half of the last dimension -> silu(gate) · up."""
    gate, up = x.chunk(2, dim=-1)
    return functional.silu(gate) * up


def feed_forward(x: Tensor, block: BlockWeights, top_k: int) -> Tensor:
    """x [T, d] -> [T, d]: the shared (or dense) expert plus the top-k routed ones."""
    out = torch.zeros_like(x)
    for expert in range(block.shared):
        out = out + functional.linear(swiglu(functional.linear(x, block.up[expert])), block.down[expert])
    if block.router is None or block.router_bias is None:
        return out
    affinity = torch.sigmoid(functional.linear(x, block.router).float())
    chosen = (affinity + block.router_bias).topk(top_k, dim=-1).indices
    weight = affinity.gather(-1, chosen)
    weight = (weight / weight.sum(-1, keepdim=True)).to(x.dtype)
    order = chosen.flatten().argsort(stable=True)
    experts = torch.arange(block.router.shape[0], device=x.device)
    ends = (chosen.flatten()[None] == experts[:, None]).sum(1).cumsum(0).to(torch.int32)
    inner = swiglu(grouped(x[order // top_k], block.up[block.shared :], ends))
    mixed = grouped(inner, block.down[block.shared :], ends)
    place = torch.empty_like(order).scatter_(0, order, torch.arange(order.shape[0], device=x.device))
    return out + (mixed[place].view(-1, top_k, x.shape[-1]) * weight[..., None]).sum(1)


def self_attention(
    qkv: Tensor, past: tuple[Tensor, Tensor] | None, head_dim: int
) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """qkv [B, R, 3d], past keys and values [B, R, t, H, dh] -> (mixed [B, R, d], keys and values of t+1 tokens)."""
    q, k, v = (part.unflatten(-1, (-1, head_dim))[:, :, None] for part in qkv.chunk(3, dim=-1))
    if past is not None:
        k, v = torch.cat([past[0], k], dim=2), torch.cat([past[1], v], dim=2)
    score = (q.float() * k.float()).sum(-1, keepdim=True) * head_dim**-0.5
    out = (torch.softmax(score, dim=2) * v.float()).sum(2).to(qkv.dtype)
    return out.flatten(2), (k, v)


def block_step(
    block: BlockWeights, config: OneRecConfig, h: Tensor, key: Tensor, past: tuple[Tensor, Tensor] | None
) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """One block. h [B, R, d], key [B, H, N, dh] (values are the keys) -> (h, keys and values of t+1 tokens)."""
    d, eps = config.d_model, config.norm_eps
    q = functional.linear(functional.rms_norm(h, (d,), block.norm_cross, eps), block.cross_q)
    q = q.unflatten(-1, (config.n_heads, -1)).transpose(1, 2)
    read = functional.scaled_dot_product_attention(q, key, key).transpose(1, 2).flatten(2)
    h = h + functional.linear(read, block.cross_o)
    qkv = functional.linear(functional.rms_norm(h, (d,), block.norm_self, eps), block.self_qkv)
    mixed, cache = self_attention(qkv, past, config.head_dim)
    h = h + functional.linear(mixed, block.self_o)
    x = functional.rms_norm(h, (d,), block.norm_ffn, eps)
    return h + feed_forward(x.flatten(0, 1), block, config.experts_per_token).view(h.shape), cache


def choose(weights: DecoderWeights, h: Tensor, scores: Tensor, level: int, width: int) -> tuple[Tensor, Tensor, Tensor]:
    """Decoder output [B, R, d] and scores [B, R] -> the best (scores, parent beams, codes), each [B, width]."""
    config = weights.config
    x = functional.rms_norm(h, (config.d_model,), weights.head_norms[level], config.norm_eps)
    log_p = torch.log_softmax(functional.linear(x, weights.heads[level]).float(), dim=-1)
    best, index = (scores[..., None] + log_p).flatten(1).topk(width, dim=1)
    return best, index // config.codebook_size, index % config.codebook_size


def decode(
    weights: DecoderWeights,
    key: Tensor,
    width: int,
    step: Callable[..., tuple[Tensor, tuple[Tensor, Tensor]]] = block_step,
    pick: Callable[..., tuple[Tensor, Tensor, Tensor]] = choose,
) -> tuple[Tensor, Tensor]:
    """key [B, H, N, dh] -> (codes [B, width, levels], scores [B, width]), best first."""
    batch = key.shape[0]
    h = weights.bos.expand(batch, 1, -1)
    scores = torch.zeros(batch, 1, device=key.device)
    codes = torch.empty(batch, 1, 0, dtype=torch.int64, device=key.device)
    past: Past | None = None
    row = torch.arange(batch, device=key.device)[:, None]
    for level in range(weights.config.levels):
        caches = []
        for layer, block in enumerate(weights.blocks):
            h, cache = step(block, weights.config, h, key, None if past is None else past[layer])
            caches.append(cache)
        scores, parent, code = pick(weights, h, scores, level, width)
        codes = torch.cat([codes[row, parent], code[..., None]], dim=-1)
        if level + 1 < weights.config.levels:
            past = tuple((k[row, parent], v[row, parent]) for k, v in caches)
            h = weights.token_embed[level][code]
    return codes, scores


def captured(run: Callable[[], tuple[Tensor, Tensor]], warm_ups: int = 2) -> Callable[[], tuple[Tensor, Tensor]]:
    """`run` as one CUDA graph; calling the result replays it and returns its static outputs.

    A graph reads addresses and keeps nothing alive, so the replay holds `run` with all that it reads.
    """
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(warm_ups):
            run()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = run()

    def replay(_reads: object = run) -> tuple[Tensor, Tensor]:
        graph.replay()
        return out

    return replay


def compiled(weights: DecoderWeights, key: Tensor, width: int) -> Callable[[], tuple[Tensor, Tensor]]:
    """The decode with its blocks and its beam step through torch.compile, then captured whole."""
    torch._dynamo.config.cache_size_limit = 64
    step = torch.compile(block_step, dynamic=False, fullgraph=True)
    pick = torch.compile(choose, dynamic=False, fullgraph=True)
    return captured(lambda: decode(weights, key, width, step, pick))
