"""A kernel may start while the one before it on the stream still ends (CUDA's programmatic dependent launch).

The launch asks for it by OVERLAPPED, and the kernel's first statement is `in_turn()`: it lets the next kernel come as
soon as there is room, and waits until everything before it is done and visible. So launching, and what a kernel sets up
for itself, is hidden behind its predecessor. Every kernel that is launched so must begin so, for whoever waits for it
has then waited for all before it, too. Only what no kernel of a decode writes, a matrix, may be read earlier.
"""

# mypy: allow-untyped-defs, allow-untyped-decorators, allow-untyped-calls
# (kernels are typed by Triton, not by Python)

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch
import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

OVERLAPPED = {"launch_pdl": True}
"""Options of a launch."""

A = TypeVar("A")
B = TypeVar("B")


class SideBySide:
    """Two kernels at once, where neither needs the other and one leaves most of a multiprocessor idle.

    The one aside goes first where both want to begin a block. Each decoder has its own, for its second stream belongs
    to the capture of the graph that is made with it. Of what is made there the memory comes from that stream: whoever
    makes it again on this stream comes after all that read it.
    """

    def __init__(self, device: torch.device) -> None:
        self._stream = torch.cuda.Stream(device, priority=-1) if device.type == "cuda" else None

    def both(self, aside: Callable[[], A], here: Callable[[], B]) -> tuple[A, B]:
        """What both calls return; everything that is launched afterwards comes after all that they launch."""
        if self._stream is None:
            return aside(), here()
        current = torch.cuda.current_stream(self._stream.device)
        self._stream.wait_stream(current)
        with torch.cuda.stream(self._stream):
            first = aside()
        second = here()
        current.wait_stream(self._stream)
        return first, second


_ON_DEVICE = tl.constexpr(not triton.knobs.runtime.interpret)


@triton.jit
def in_turn():
    """Let the next kernel come, wait for the last."""
    if _ON_DEVICE:
        gdc_launch_dependents()
        gdc_wait()
