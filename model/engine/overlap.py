"""A kernel may start while the one before it on the stream still ends (CUDA's programmatic dependent launch).

The launch asks for it by OVERLAPPED, and the kernel's first statement is `in_turn()`: it lets the next kernel come as
soon as there is room, and waits until everything before it is done and visible. So launching, and what a kernel sets up
for itself, is hidden behind its predecessor. Every kernel that is launched so must begin so, for whoever waits for it
has then waited for all before it, too. Only what no kernel of a decode writes, a matrix, may be read earlier.
"""

# mypy: allow-untyped-defs, allow-untyped-decorators, allow-untyped-calls
# (kernels are typed by Triton, not by Python)

from __future__ import annotations

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

OVERLAPPED = {"launch_pdl": True}
"""Options of a launch."""

_ON_DEVICE = tl.constexpr(not triton.knobs.runtime.interpret)


@triton.jit
def in_turn():
    """Let the next kernel come, wait for the last."""
    if _ON_DEVICE:
        gdc_launch_dependents()
        gdc_wait()
