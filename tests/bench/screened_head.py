"""A head screened in E4M3 beside one with every logit in 16 bit: time, and how near the beams are to those of float32.

    python tests/bench/screened_head.py [--requests 28] [--beams 512] [--codes 8192] [--width 1408]

Needs a Hopper GPU, PyTorch with CUDA and Triton, and no installation of this project. Residuals, matrix and scores are
random; sharper logits have a larger matrix. Times are of a second of one call after the other, as under load. The last
line is one JSON object.
"""

from __future__ import annotations

import argparse
import json

import torch
from torch import Tensor
from torch.nn import functional
from triton.testing import do_bench_cudagraph

from model.engine.head import HeadWeights, PlainHead
from model.engine.norm import add_norm
from model.engine.select import Chosen, select_beams
from quant.kernels.eight_bit import EightBit
from quant.kernels.screened_head import ScreenedHead

SHARPNESS = (1.0, 4.0, 10.0)
"""Standard deviations of the logits."""

_GRAPH_MS = 100
"""Of calls in one CUDA graph, which is launched ten times: launching them one by one would take longer than they do."""


def common(best: Chosen, h: Tensor, weights: HeadWeights, scores: Tensor) -> float:
    """Share of each request's beams that are among the best by float32."""
    batch, beams = scores.shape
    codes, k = weights.matrix.shape[0], best.scores.shape[1]
    x = functional.rms_norm(h.float(), h.shape[1:], weights.norm.float(), weights.eps).view(batch, beams, -1)
    found = 0.0
    for request in range(batch):
        log_p = torch.log_softmax(x[request] @ weights.matrix.float().t(), -1)
        top = (scores[request][:, None] + log_p).flatten().topk(k).indices
        chosen = best.beams[request] * codes + best.codes[request]
        found += float(torch.isin(chosen, top).float().mean()) / batch
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=28)
    parser.add_argument("--beams", type=int, default=512)
    parser.add_argument("--codes", type=int, default=8192)
    parser.add_argument("--width", type=int, default=1408)
    args = parser.parse_args()
    generator = torch.Generator("cuda").manual_seed(1)

    def randn(*shape: int) -> Tensor:
        return torch.randn(*shape, device="cuda", generator=generator)

    found: dict[str, float] = {}
    with torch.inference_mode():
        h, scores = randn(args.requests * args.beams, args.width).bfloat16(), randn(args.requests, args.beams)
        norm, matrix = (1 + 0.1 * randn(args.width)).bfloat16(), randn(args.codes, args.width) * args.width**-0.5
        for sharpness in SHARPNESS:
            weights = HeadWeights(norm, (matrix * sharpness).bfloat16(), 1e-6)
            plain, screened = PlainHead(weights), EightBit().head(weights)
            if not isinstance(screened, ScreenedHead):
                raise SystemExit("this device, or a head of this shape, has no kernel in E4M3")
            if not screened.screens(scores, args.beams):
                raise SystemExit(f"a head of {h.shape[0]} rows is not screened")
            logits = screened.packed.product(add_norm(h, None, norm, weights.eps, eight=True))
            for name, best in (
                ("16 bit", plain.best(h, None, scores, args.beams, None)),
                ("screened", screened.best(h, None, scores, args.beams, None)),
                ("E4M3 alone", select_beams(logits, scores, args.beams)),
            ):
                share = found[f"{name}, sharpness {sharpness:g}"] = common(best, h, weights, scores)
                print(f"logits vary by {sharpness:g}: {name} has {share:.2%} of the beams of float32", flush=True)
        for name, head in (("16 bit", plain), ("screened", screened)):
            call = lambda head=head: head.best(h, None, scores, args.beams, None)  # noqa: E731 - called at once
            spent_ms = float(do_bench_cudagraph(call, rep=_GRAPH_MS, return_mode="median"))
            found[f"{name}, us"] = 1e3 * spent_ms
            print(f"{name}: {1e3 * spent_ms:.0f} us", flush=True)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
