"""Feed-forward layers of the decoder: dense SwiGLU and a mixture of SwiGLU experts."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from model.config import OneRecConfig


class SwiGLU(nn.Module):
    """down(silu(gate(x)) · up(x)); gate and up are one Linear whose first half is the gate."""

    def __init__(self, d_model: int, inner: int) -> None:
        super().__init__()
        self.gate_up = nn.Linear(d_model, 2 * inner, bias=False)
        self.down = nn.Linear(inner, d_model, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """x [..., d] -> [..., d]."""
        gate, up = self.gate_up(x).chunk(2, dim=-1)
        out: Tensor = self.down(functional.silu(gate) * up)
        return out


class MixtureOfExperts(nn.Module):
    """Shared experts on every token plus the top-k routed ones, balanced without an auxiliary loss.

    Routing (DeepSeek-V3, arXiv 2412.19437, eq. 12-16): affinity s = sigmoid(x·Wr); the k experts of largest
    s + bias are chosen, but their outputs are weighted by s alone, normalised over the chosen ones. `bias` is a
    buffer that gradients never reach: `rebalance` moves it against the load. The expert weights are stacked as
    [experts, out, in], so that a grouped matrix product can read them in one piece.
    """

    bias: Tensor

    def __init__(self, config: OneRecConfig) -> None:
        super().__init__()
        d, inner, count = config.d_model, config.expert_dim, config.n_experts
        self.top_k = config.experts_per_token
        self.router = nn.Linear(d, count, bias=False)
        self.gate_up = nn.Parameter(torch.empty(count, 2 * inner, d))
        self.down = nn.Parameter(torch.empty(count, d, inner))
        self.shared = SwiGLU(d, inner * config.n_shared_experts) if config.n_shared_experts else None
        self.register_buffer("bias", torch.zeros(count))
        nn.init.normal_(self.gate_up, std=d**-0.5)
        nn.init.normal_(self.down, std=inner**-0.5)

    def route(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """x [T, d] -> (expert indices [T, k], weights [T, k] summing to one)."""
        affinity = torch.sigmoid(self.router(x).float())
        chosen = (affinity + self.bias).topk(self.top_k, dim=-1).indices
        weights = affinity.gather(-1, chosen)
        return chosen, (weights / weights.sum(-1, keepdim=True)).to(x.dtype)

    def forward(self, x: Tensor) -> Tensor:
        """x [..., d] -> [..., d]; the reference, one expert after the other."""
        flat = x.reshape(-1, x.shape[-1])
        chosen, weights = self.route(flat)
        out = torch.zeros_like(flat) if self.shared is None else self.shared(flat)
        for expert in range(self.gate_up.shape[0]):
            token, slot = (chosen == expert).nonzero(as_tuple=True)
            if token.numel() == 0:
                continue
            gate, up = functional.linear(flat[token], self.gate_up[expert]).chunk(2, dim=-1)
            part = functional.linear(functional.silu(gate) * up, self.down[expert])
            out = out.index_add(0, token, part * weights[token, slot, None])
        return out.reshape(x.shape)

    @torch.no_grad()
    def rebalance(self, load: Tensor, rate: float) -> None:
        """Move the selection bias by `rate` times the sign of the load error; load [experts] counts tokens."""
        error = load.float().mean() - load.float()
        self.bias += rate * error.sign()
