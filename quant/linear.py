"""A Linear whose weight is stored in E4M3."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Self

import torch
from torch import Tensor, nn

from quant.ops import fp8_linear, runs_on_tensor_cores
from quant.primitives import E4M3, dequantise


class Fp8Linear(nn.Module):
    """y = x · (weight · weight_scale)ᵀ + bias with x rounded per token, see `fp8_linear`.

    weight [N, K] E4M3 and weight_scale [N, 1] float32 are buffers that keep their dtype whatever the module is
    cast to; only devices move them. Where the device cannot multiply FP8, the weights times their scale are made
    once per dtype and kept.
    """

    weight: Tensor
    weight_scale: Tensor

    def __init__(self, weight: Tensor, weight_scale: Tensor, bias: Tensor | None = None) -> None:
        super().__init__()
        self.register_buffer("weight", weight)
        self.register_buffer("weight_scale", weight_scale)
        self.bias = None if bias is None else nn.Parameter(bias, requires_grad=False)
        self._dequantised: Tensor | None = None

    @classmethod
    def empty_like(cls, linear: nn.Linear) -> Fp8Linear:
        """The same shape without content, on the meta device: to be filled from a checkpoint."""
        weight = torch.empty(linear.out_features, linear.in_features, dtype=E4M3, device="meta")
        scale = torch.empty(linear.out_features, 1, dtype=torch.float32, device="meta")
        return cls(weight, scale, None if linear.bias is None else linear.bias.detach().to("meta"))

    @property
    def in_features(self) -> int:
        """Width K of the input."""
        return self.weight.shape[1]

    @property
    def out_features(self) -> int:
        """Width N of the output."""
        return self.weight.shape[0]

    def forward(self, x: Tensor) -> Tensor:
        """x [..., K] -> [..., N] in x's dtype."""
        matrix = None if runs_on_tensor_cores(x, self.weight) else self.dequantised(x.dtype)
        return fp8_linear(x, self.weight, self.weight_scale, self.bias, dequantised=matrix)

    def dequantised(self, dtype: torch.dtype) -> Tensor:
        """The weights times their scale, kept from the first use."""
        if self._dequantised is None or self._dequantised.dtype != dtype:
            self._dequantised = dequantise(self.weight, self.weight_scale, dtype)
        return self._dequantised

    def prepare(self, example: Tensor) -> None:
        """Make now what inputs of the example's dtype and device would make at their first use."""
        if not runs_on_tensor_cores(example, self.weight):
            self.dequantised(example.dtype)

    def extra_repr(self) -> str:
        """As nn.Linear shows itself."""
        return f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}"

    def _load_from_state_dict(self, *args: Any) -> None:
        self._dequantised = None
        super()._load_from_state_dict(*args)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        with aside(self, ("weight", "weight_scale")) as stored:
            super()._apply(fn, recurse)  # type: ignore[no-untyped-call]  # torch leaves it untyped
        for name, before in stored.items():
            setattr(self, name, moved(before, fn))
        self._dequantised = None
        return self


@contextmanager
def aside(module: nn.Module, names: Sequence[str]) -> Iterator[dict[str, Tensor]]:
    """Take these buffers out of a module while it does something to all it has; yields them by name."""
    stored = {name: module.get_buffer(name) for name in names}
    module._buffers.update(dict.fromkeys(names))
    try:
        yield stored
    finally:
        module._buffers.update(stored)


def moved(stored: Tensor, fn: Callable[[Tensor], Tensor]) -> Tensor:
    """Where `fn` moves a tensor, without the cast that it may make of it: casting gigabytes takes long."""
    probe = fn(stored.new_empty(0))
    return fn(stored) if probe.dtype == stored.dtype else stored.to(probe.device)
