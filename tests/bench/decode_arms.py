"""One arm of the decode benchmark in a process of its own: build, capture, time, and compare with the arms before.

    python tests/bench/decode_arms.py --arm fp8 --preset moe-4b --batch 28 [--rounds N] [--profile] [--beams DIR]

Weights are random with the variances of training's start, contexts are normalised random keys; both come from one
seed, so every arm answers the same questions. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from decode_plain import captured, compiled, decode
from decode_torchao import with_torchao
from device_time import after_pauses, times_ms
from torch import Tensor

from model.config import PRESETS
from model.counting import decode_flops
from model.engine.arithmetic import SixteenBit
from model.engine.decode import Decoder
from model.engine.weights import DecoderWeights, random_weights
from quant.kernels.eight_bit import EightBit

ARMS = ("compiled", "torchao", "eager", "bf16", "fp8")
Run = Callable[[], tuple[Tensor, Tensor]]


def contexts(preset: str, batch: int, length: int) -> tuple[DecoderWeights, Tensor]:
    """Weights and keys [B, G, N, dh], the same for every arm."""
    config = PRESETS[preset]
    device = torch.device("cuda")
    weights = random_weights(config, device, torch.Generator(device).manual_seed(1))
    noise = torch.Generator(device).manual_seed(2)
    shape = (batch, config.kv_groups, length, config.head_dim)
    key = torch.randn(shape, device=device, dtype=torch.bfloat16, generator=noise)
    return weights, torch.nn.functional.rms_norm(key, (config.head_dim,))


def arm_of(name: str, weights: DecoderWeights, key: Tensor, width: int) -> Run:
    """A call that decodes the whole batch once."""
    if name == "compiled":
        return compiled(weights, key, width)
    if name == "torchao":
        return compiled(with_torchao(weights), key, width)
    if name == "eager":
        return lambda: decode(weights, key, width)
    decoder = Decoder(weights, SixteenBit() if name == "bf16" else EightBit())  # type: ignore[arg-type]
    lengths = torch.full((key.shape[0],), key.shape[2], dtype=torch.int32, device=key.device)
    context = decoder.arithmetic.context(key, key, lengths)

    def run() -> tuple[Tensor, Tensor]:
        out = decoder.decode((context,), width)
        return out.codes, out.scores

    return captured(run)


def kernel_table(run: Run, title: str) -> list[tuple[str, int, float]]:
    """(kernel, calls, ms) of one call, the longest first; printed as a table.

    A kernel may wait on the device until those before it are done: what counts is by how much each moves the end.
    """
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CUDA]) as trace:
        run()
        torch.cuda.synchronize()
    with tempfile.TemporaryDirectory() as folder:
        written = Path(folder, "trace.json")
        trace.export_chrome_trace(str(written))
        events = json.loads(written.read_text())["traceEvents"]
    on_device = [event for event in events if event.get("cat") in {"kernel", "gpu_memset", "gpu_memcpy"}]
    found: dict[str, list[float]] = {}
    done = 0.0
    for event in sorted(on_device, key=lambda event: float(event["ts"]) + float(event["dur"])):
        began, ended = float(event["ts"]), float(event["ts"]) + float(event["dur"])
        found.setdefault(event["name"], []).append((ended - max(began, done)) / 1e3)
        done = ended
    rows = sorted(((name, len(spent), sum(spent)) for name, spent in found.items()), key=lambda row: -row[2])
    print(f"\n| {title}: kernel | calls | ms | median us | longest us |\n|---|---|---|---|---|")
    for name, calls, spent in rows[:22]:
        shown = sorted(found[name])
        print(f"| {name[:90]} | {calls} | {spent:.3f} | {1e3 * shown[calls // 2]:.1f} | {1e3 * shown[-1]:.1f} |")
    print(f"| all kernels | {sum(row[1] for row in rows)} | {sum(row[2] for row in rows):.3f} | | |")
    return rows


def overlap(folder: Path, name: str, label: str, codes: Tensor) -> dict[str, float]:
    """Share of each request's beams that this arm has in common with the arms that ran before, beam sets kept."""
    packed = (codes * torch.tensor([8192**2, 8192, 1], device=codes.device)).sum(-1).cpu().numpy()
    out = {}
    for other in sorted(folder.glob(f"{label}.*.npy")):
        theirs = np.load(other)
        shared = [np.intersect1d(a, b).size / a.size for a, b in zip(packed, theirs, strict=True)]
        out[f"overlap_with_{other.stem.split('.')[-1]}"] = float(np.mean(shared))
    np.save(folder / f"{label}.{name}.npy", packed)
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--arm", choices=ARMS, required=True)
    parser.add_argument("--preset", choices=sorted(PRESETS), default="moe-4b")
    parser.add_argument("--batch", type=int, default=28)
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--context", type=int, default=3072)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--profile", action="store_true")
    parser.add_argument("--beams", type=Path)
    args = parser.parse_args()
    if args.arm == "torchao" and importlib.util.find_spec("torchao") is None:
        raise SystemExit("torchao is not installed: this arm is left out")
    began = time.perf_counter()
    # torchao's tensors count their versions, which tensors of the inference mode do not have
    with torch.no_grad() if args.arm == "torchao" else torch.inference_mode():
        weights, key = contexts(args.preset, args.batch, args.context)
        run = arm_of(args.arm, weights, key, args.width)
        ready_s = time.perf_counter() - began
        times = times_ms(run, args.rounds)
        paused_s = after_pauses(run)
        codes, scores = run()
        if not bool(scores.isfinite().all()):
            raise SystemExit(f"{args.arm}: {int((~scores.isfinite()).sum())} scores are not finite")
        result: dict[str, float | str] = {
            "arm": args.arm,
            "latency_ms": statistics.median(times),
            "after_pause_ms": 1e3 * paused_s,
            "fastest_ms": times[0],
            "slowest_ms": times[-1],
            "queries_per_s": args.batch / statistics.median(times) * 1e3,
            "tflop": decode_flops(PRESETS[args.preset], args.batch, args.width, args.context) / 1e12,
            "ready_s": ready_s,
            "memory_gib": torch.cuda.max_memory_allocated() / 2**30,
            "best_score": float(scores[:, 0].mean()),
        }
        if args.beams:
            label = f"{args.preset}-{args.batch}-{args.width}-{args.context}"
            result |= overlap(args.beams, args.arm, label, codes)
        if args.profile:
            kernel_table(run, args.arm)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
