"""Where tests of the engine's kernels run: on a GPU, or on a CPU under Triton's interpreter (`make test-kernels`)."""

from __future__ import annotations

import os
from typing import Any

import pytest
import torch

GPU = torch.cuda.is_available()
DEVICE = "cuda" if GPU else "cpu"
INTERPRETED = not GPU and os.environ.get("TRITON_INTERPRET") == "1"

GPU_OR_INTERPRETER = [
    pytest.mark.gpu,
    pytest.mark.skipif(not GPU and not INTERPRETED, reason="no CUDA device"),
]
"""Marks of a module whose tests run on either."""


def multiply_bfloat16_as_numbers() -> None:
    """Triton's interpreter (3.6 to 3.8) takes the bits of bfloat16 for integers in `tl.dot`; after this it does not."""
    import triton.language as tl
    from triton.runtime.interpreter import InterpreterBuilder

    plain = InterpreterBuilder.create_dot

    def create_dot(self: Any, a: Any, b: Any, *rest: Any) -> Any:
        wide = (self.cast_impl(x, tl.float32) if x.dtype.scalar == tl.bfloat16 else x for x in (a, b))
        return plain(self, *wide, *rest)

    InterpreterBuilder.create_dot = create_dot


if INTERPRETED:
    multiply_bfloat16_as_numbers()
