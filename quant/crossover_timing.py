"""Measuring the crossover: both products of each size on the device itself, as the engine calls them."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from pathlib import Path

import torch
from torch.nn import functional

from quant.crossover import Crossover, Timing, load_crossover, save_crossover
from quant.primitives import E4M3

CROSSOVER_FILE = "crossover.json"
"""Beside a checkpoint's own files, outside its sums: it belongs to the device, not to the model."""

_KERNELS = 2  # to be raised when products change their speed: what was measured before no longer counts
_CALLS = 20  # in a graph, so that launching is not what is timed
_ROUNDS = 5

_log = logging.getLogger(__name__)


def crossover_for(
    folder: Path | None, device: torch.device, rows: Iterable[int], shapes: Iterable[tuple[int, int]]
) -> Crossover:
    """The rule for these row counts and (inner, outer) shapes: read from `folder`, the rest measured and kept there.

    folder None, or one that cannot be written: measured and kept in memory only.
    """
    name = f"{torch.cuda.get_device_name(device)}, torch {torch.__version__}, kernels {_KERNELS}"
    path = None if folder is None else folder / CROSSOVER_FILE
    known = Crossover() if path is None else load_crossover(path, name)
    missing = known.missing(rows, shapes)
    if not missing:
        return known
    found = known.with_timings(timed(size, device) for size in missing)
    _log.info("crossover on %s: %d products timed", name, len(missing))
    if path is not None:
        try:
            save_crossover(path, name, found)
        except OSError as error:
            _log.warning("crossover: %s cannot be kept: %s", path, error.strerror)
    return found


@torch.inference_mode()
def timed(size: tuple[int, int, int], device: torch.device) -> Timing:
    """Both products of one size (rows, inner, outer), in turns; the fastest of a few rounds, for noise only adds."""
    # Triton is imported from here on only
    from model.engine.norm import Rows
    from quant.kernels.eight_bit import EightBit

    rows, inner, outer = size
    with torch.cuda.device(device):
        x = torch.randn(rows, inner, device=device, dtype=torch.bfloat16)
        weight = torch.randn(outer, inner, device=device, dtype=torch.bfloat16)
        x8, weight8 = Rows(x.to(E4M3), torch.ones(rows, device=device)), EightBit().matrix(weight)

        def narrow() -> None:
            weight8.product(x8)

        def plain() -> None:
            functional.linear(x, weight)

        graphs = _recorded(narrow), _recorded(plain)
        rounds = [[_replayed_us(graph) for graph in graphs] for _ in range(_ROUNDS)]
        fp8_us, bf16_us = (min(times) for times in zip(*rounds, strict=True))
        return Timing(rows, inner, outer, fp8_us, bf16_us)


def _recorded(call: Callable[[], None]) -> torch.cuda.CUDAGraph:
    """_CALLS of it as one graph, warm."""
    side = torch.cuda.Stream()  # type: ignore[no-untyped-call]  # torch leaves it untyped
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        call()
    side.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=side, capture_error_mode="thread_local"):
        for _ in range(_CALLS):
            call()
    graph.replay()
    return graph


def _replayed_us(graph: torch.cuda.CUDAGraph) -> float:
    """One call's share of one replay."""
    began, ended = _event(), _event()
    began.record()
    graph.replay()
    ended.record()
    ended.synchronize()
    return float(began.elapsed_time(ended)) * 1e3 / _CALLS


def _event() -> torch.cuda.Event:
    return torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]  # torch leaves it untyped
