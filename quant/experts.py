"""A mixture of experts whose weights are stored in E4M3 with one scale per block or per row."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn import functional

from model.experts import MixtureOfExperts
from quant.linear import aside, moved
from quant.ops import fp8_block_linear
from quant.primitives import E4M3, dequantise, spread_blocks, through_e4m3

STORED = ("gate_up_codes", "gate_up_scale", "down_codes", "down_scale")


class Fp8Experts(MixtureOfExperts):
    """The routed experts in E4M3; router, selection bias and shared experts as they were.

    gate_up_codes [E, 2I, d] and down_codes [E, d, I] are E4M3, gate_up_scale and down_scale [E, ceil(rows/block),
    ceil(columns/block)] float32; with block None they are [E, rows, 1], a scale per output channel, and activations
    have one per token. The paper scales weights in 128 × 128 tiles and activations in 1 × 128 runs. narrow_results:
    what an expert gives for a token is rounded through E4M3 before it is weighed and summed. One expert after the
    other, as in the plain module: the reference on every device.
    """

    gate_up_codes: Tensor
    gate_up_scale: Tensor
    down_codes: Tensor
    down_scale: Tensor

    def __init__(
        self, plain: MixtureOfExperts, stored: Mapping[str, Tensor], block: int | None, *, narrow_results: bool = False
    ) -> None:
        """`stored` holds the tensors named in STORED; everything else is taken over from `plain`."""
        nn.Module.__init__(self)  # the plain module's own would allocate its weights
        self.top_k = plain.top_k
        self.router = plain.router
        self.shared = plain.shared
        self.block = block
        self.narrow_results = narrow_results
        self.register_buffer("bias", plain.bias)
        for name in STORED:
            self.register_buffer(name, stored[name])
        self._dequantised: tuple[Tensor, Tensor] | None = None

    @classmethod
    def empty_like(cls, plain: MixtureOfExperts, block: int | None, *, narrow_results: bool = False) -> Self:
        """The same shapes without content, on the meta device: to be filled from a checkpoint."""
        stored: dict[str, Tensor] = {}
        for name, weight in (("gate_up", plain.gate_up), ("down", plain.down)):
            count, rows, columns = weight.shape
            tiles = (rows, 1) if block is None else (-(-rows // block), -(-columns // block))
            stored[f"{name}_codes"] = torch.empty(weight.shape, dtype=E4M3, device="meta")
            stored[f"{name}_scale"] = torch.empty(count, *tiles, device="meta")
        return cls(plain, stored, block, narrow_results=narrow_results)

    def forward(self, x: Tensor) -> Tensor:
        """x [..., d] -> [..., d]."""
        flat = x.reshape(-1, x.shape[-1])
        chosen, weights = self.route(flat)
        gate_up, down = self.dequantised(x.dtype)
        out = torch.zeros_like(flat) if self.shared is None else self._result(self.shared(flat))
        for expert in range(gate_up.shape[0]):
            token, slot = (chosen == expert).nonzero(as_tuple=True)
            if token.numel() == 0:
                continue
            gate, up = fp8_block_linear(flat[token], gate_up[expert], self.block).chunk(2, dim=-1)
            part = self._result(fp8_block_linear(functional.silu(gate) * up, down[expert], self.block))
            out = out.index_add(0, token, part * weights[token, slot, None])
        return out.reshape(x.shape)

    def _result(self, rows: Tensor) -> Tensor:
        """What an expert gives [T, d], as it is kept."""
        return through_e4m3(rows) if self.narrow_results else rows

    def prepare(self, example: Tensor) -> None:
        """Make now what inputs of the example's dtype would make at their first use."""
        self.dequantised(example.dtype)

    def dequantised(self, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Both stacks times their scales, kept from the first use."""
        if self._dequantised is None or self._dequantised[0].dtype != dtype:
            self._dequantised = (self._stack("gate_up", dtype), self._stack("down", dtype))
        return self._dequantised

    def expert(self, part: str, index: int, dtype: torch.dtype) -> Tensor:
        """One expert's `gate_up` or `down` times its scales, made anew."""
        codes, scale = getattr(self, f"{part}_codes")[index], getattr(self, f"{part}_scale")[index]
        spread = scale if self.block is None else spread_blocks(scale, (self.block, self.block), codes.shape)
        return dequantise(codes, spread, dtype)

    def _stack(self, part: str, dtype: torch.dtype) -> Tensor:
        codes: Tensor = getattr(self, f"{part}_codes")
        out = torch.empty(codes.shape, dtype=dtype, device=codes.device)
        for index in range(codes.shape[0]):  # one at a time: no float32 copy of the whole stack beside it
            out[index] = self.expert(part, index, dtype)
        return out

    def _load_from_state_dict(self, *args: Any) -> None:
        self._dequantised = None
        super()._load_from_state_dict(*args)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        with aside(self, STORED) as stored:
            super()._apply(fn, recurse)  # type: ignore[no-untyped-call]  # torch leaves it untyped
        for name, before in stored.items():
            setattr(self, name, moved(before, fn))
        self._dequantised = None
        return self
