"""Where tests of the engine's kernels run: on a GPU, or on a CPU under Triton's interpreter (TRITON_INTERPRET=1)."""

from __future__ import annotations

import os

import pytest
import torch

GPU = torch.cuda.is_available()
DEVICE = "cuda" if GPU else "cpu"

GPU_OR_INTERPRETER = [
    pytest.mark.gpu,
    pytest.mark.skipif(not GPU and os.environ.get("TRITON_INTERPRET") != "1", reason="no CUDA device"),
]
"""Marks of a module whose tests run on either."""
