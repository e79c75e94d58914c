"""The same model in the same precision by other kernels: what agreement can be had without changing any number format.

Mathematically nothing changes. What does is where a fusing engine differs from an eager one: products are summed in two
halves in float32, a gated product is taken before its factors are rounded to 16 bits, attention is written out with
float32 scores and 16-bit weights, norms are float32 throughout. Weights, and whatever passes from one layer to the
next, have the model's dtype as before.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn
from torch.nn import functional

from model.decoder import CausalSelfAttention, CrossAttention, SelfKV
from model.experts import MixtureOfExperts, SwiGLU
from model.onerec import OneRecV2
from model.recommender import Recommender


def in_other_kernels(recommender: Recommender) -> Recommender:
    """A copy whose decoder and heads compute by the kernels of this file; weights are shared."""
    shared = {id(value): value for value in [*recommender.model.parameters(), *recommender.model.buffers()]}
    other = copy.copy(recommender)
    other.model = copy.deepcopy(recommender.model, shared)
    rewire(other.model)
    return other


def rewire(model: OneRecV2) -> None:
    """Exchange the layers of decoder and heads in place."""
    for name, module in list(model.named_modules()):
        kind = KINDS.get(type(module))
        if kind is not None and name.startswith(("decoder", "heads", "head_norms")):
            module.__class__ = kind  # the same parameters under the same names: only `forward` differs


class HalvesLinear(nn.Linear):
    """Two products of half the inner width each, added in float32, rounded once."""

    def forward(self, x: Tensor) -> Tensor:
        """x [..., K] -> [..., N]."""
        out = product(x, self.weight)
        return (out if self.bias is None else out + self.bias.float()).to(x.dtype)


class WideNorm(nn.RMSNorm):
    """Everything in float32, rounded once."""

    def forward(self, x: Tensor) -> Tensor:
        """x [..., d] -> the same shape."""
        wide = x.float()
        out = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + (self.eps or 0.0)) * self.weight.float()
        return out.to(x.dtype)


class FusedSwiGLU(SwiGLU):
    """Gate and up stay float32 until they are multiplied, as in the epilogue of a fused product."""

    def forward(self, x: Tensor) -> Tensor:
        """x [..., d] -> [..., d]."""
        return gated(x, self.gate_up.weight, self.down.weight).to(x.dtype)


class FusedExperts(MixtureOfExperts):
    """The same for experts, whose weighted sum is float32, too."""

    def forward(self, x: Tensor) -> Tensor:
        """x [..., d] -> [..., d]."""
        flat = x.reshape(-1, x.shape[-1])
        chosen, weights = self.route(flat)
        out = torch.zeros_like(flat) if self.shared is None else self.shared(flat)
        out = out.float()
        for expert in range(self.gate_up.shape[0]):
            token, slot = (chosen == expert).nonzero(as_tuple=True)
            if token.numel():
                part = gated(flat[token], self.gate_up[expert], self.down[expert])
                out = out.index_add(0, token, part * weights[token, slot, None].float())
        return out.to(x.dtype).reshape(x.shape)


class ExplicitCross(CrossAttention):
    """Scores, softmax and sums written out."""

    def forward(self, x: Tensor, key: Tensor, value: Tensor, mask: Tensor) -> Tensor:
        """x [B, Q, d], key and value [B, G, N, dh], mask [B, 1, 1, N] -> [B, Q, d]."""
        batch, length, width = x.shape
        q = self.wq(x).view(batch, length, self.groups, -1, self.head_dim)
        heads = q.shape[3]
        q = q.permute(0, 2, 1, 3, 4).reshape(batch, self.groups, length * heads, self.head_dim)
        out = attention(q, key, value, mask)
        out = out.view(batch, self.groups, length, heads, self.head_dim).permute(0, 2, 1, 3, 4)
        mixed: Tensor = self.wo(out.reshape(batch, length, width))
        return mixed


class ExplicitSelf(CausalSelfAttention):
    """The same among the tokens of a beam."""

    def forward(self, x: Tensor, past: SelfKV | None) -> tuple[Tensor, SelfKV]:
        """As in the plain module."""
        rows, new, width = x.shape
        q, k, v = self.wqkv(x).view(rows, new, 3, -1, self.head_dim).permute(2, 0, 3, 1, 4)
        if past is not None:
            k, v = torch.cat([past[0], k], dim=2), torch.cat([past[1], v], dim=2)
        total = k.shape[2]
        mask = torch.ones(new, total, dtype=torch.bool, device=x.device).tril(total - new)
        out = attention(q, k, v, mask)
        mixed: Tensor = self.wo(out.transpose(1, 2).reshape(rows, new, width))
        return mixed, (k, v)


KINDS: dict[type[nn.Module], type[nn.Module]] = {
    nn.Linear: HalvesLinear,
    nn.RMSNorm: WideNorm,
    SwiGLU: FusedSwiGLU,
    MixtureOfExperts: FusedExperts,
    CrossAttention: ExplicitCross,
    CausalSelfAttention: ExplicitSelf,
}


def product(x: Tensor, weight: Tensor) -> Tensor:
    """x [..., K] · weight [N, K]ᵀ in float32, the halves of K one after the other."""
    half = x.shape[-1] // 2
    first = functional.linear(x[..., half:].float(), weight[:, half:].float())
    return first + functional.linear(x[..., :half].float(), weight[:, :half].float())


def gated(x: Tensor, gate_up: Tensor, down: Tensor) -> Tensor:
    """down(silu(gate)·up) in float32, its input to `down` rounded to x's dtype."""
    gate, up = product(x, gate_up).chunk(2, dim=-1)
    return product((functional.silu(gate) * up).to(x.dtype), down)


def attention(q: Tensor, key: Tensor, value: Tensor, mask: Tensor) -> Tensor:
    """softmax(q·kᵀ/√dh)·v in q's dtype; weights are rounded to it before the second product."""
    scores = (q.float() @ key.float().transpose(-1, -2)) * q.shape[-1] ** -0.5
    weights = torch.softmax(scores.masked_fill(~mask, -torch.inf), dim=-1).to(q.dtype)
    return (weights.float() @ value.float()).to(q.dtype)
