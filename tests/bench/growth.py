"""How the time of a decode grows with the batch, the beam, the context and the model, in BF16 and in FP8.

    python tests/bench/growth.py [--quick] [--limit-s S] [--out FILE.json]

One axis at a time around the headline's point (moe-4b, 28 requests, beam 512, 3,072 tokens of context), both engines
at each point, every decode one CUDA graph. What has not begun at --limit-s is left out; the ends of each axis come
first. Needs PyTorch with CUDA and Triton; matplotlib for the plot beside FILE.json. The last line is one JSON object
of flat numbers.
"""

from __future__ import annotations

import argparse
import gc
import itertools
import json
import math
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

ARMS = ("bf16", "fp8")


@dataclass(frozen=True, slots=True)
class Point:
    """One decode."""

    preset: str = "moe-4b"
    batch: int = 28
    width: int = 512
    context: int = 3072


@dataclass(frozen=True, slots=True)
class Timed:
    """One point on one axis: milliseconds by arm."""

    axis: str
    point: Point
    ms: Mapping[str, float]


CENTRE = Point()
SIZES = ("0.1B", "0.5B", "1B", "2B", "4B")
AXES: dict[str, tuple[Any, ...]] = {
    "batch": (1, 2, 4, 8, 16, 28, 64),
    "width": (32, 64, 128, 256, 512),
    "context": (256, 512, 1024, 2048, 3072, 4096),
    "preset": (*SIZES, "moe-4b"),
}
TITLES = {
    "batch": "requests at once",
    "width": "beam width",
    "context": "tokens of context",
    "preset": "parameters, billions",
}
BILLIONS = {"0.1B": 0.1, "0.5B": 0.5, "1B": 1.0, "2B": 2.0, "4B": 4.0, "moe-4b": 4.0}


def plan(axes: Mapping[str, Sequence[Any]] = AXES, centre: Point = CENTRE) -> list[tuple[str, Point]]:
    """(axis, point), by model so that each is made once, the centre's first; on each axis the ends before the rest."""
    found = []
    for axis, values in axes.items():
        points = [(axis, replace(centre, **{axis: value})) for value in values]
        ends = [points[0], points[-1]] if len(points) > 1 else points
        found += [(0 if pair in ends else 1, pair) for pair in points]
    order = sorted(found, key=lambda ranked: (ranked[1][1].preset != centre.preset, ranked[0]))
    return sorted((pair for _, pair in order), key=lambda pair: _model_order(pair[1], centre))


def _model_order(point: Point, centre: Point) -> int:
    return 0 if point.preset == centre.preset else 1 + SIZES.index(point.preset)


def slope(timed: Sequence[Timed], arm: str) -> float:
    """Exponent p of time ~ value^p between the two ends of an axis; NaN with fewer than two points."""
    pairs = sorted((value_of(one), one.ms[arm]) for one in timed if arm in one.ms)
    if len(pairs) < 2:
        return math.nan
    (x0, y0), (x1, y1) = pairs[0], pairs[-1]
    return math.log(y1 / y0) / math.log(x1 / x0)


def value_of(one: Timed) -> float:
    """Where a point stands on its axis."""
    found = getattr(one.point, one.axis)
    return BILLIONS[found] if one.axis == "preset" else float(found)


def crossover(timed: Sequence[Timed]) -> float | None:
    """Where FP8 becomes the faster one, between two points and on logarithmic axes; None when it never does."""
    both = sorted(
        (value_of(one), math.log(one.ms["fp8"] / one.ms["bf16"])) for one in timed if len(one.ms) == len(ARMS)
    )
    for (x0, y0), (x1, y1) in itertools.pairwise(both):
        if y0 >= 0 > y1 and x1 > x0:
            return float(math.exp(math.log(x0) + (math.log(x1) - math.log(x0)) * y0 / (y0 - y1)))
    return None


def on_axis(timed: Sequence[Timed], axis: str) -> list[Timed]:
    """The points of one axis, ascending."""
    return sorted((one for one in timed if one.axis == axis), key=value_of)


def of_a_kind(points: Sequence[Timed]) -> list[Timed]:
    """Without the mixture of experts where it stands among dense models: it lies on no line with them."""
    return [one for one in points if one.axis != "preset" or one.point.preset in SIZES]


def numbers(timed: Sequence[Timed]) -> dict[str, float]:
    """Flat figures: exponents, speed-ups at the ends of each axis, crossovers."""
    out: dict[str, float] = {}
    for axis in AXES:
        points = on_axis(timed, axis)
        line = of_a_kind(points)
        out |= {f"{axis}_{arm}_exponent": found for arm in ARMS if not math.isnan(found := slope(line, arm))}
        both = [one for one in line if len(one.ms) == len(ARMS)]
        for end, one in (("low", both[:1]), ("high", both[-1:])):
            if one:
                out[f"{axis}_{end}_speedup"] = one[0].ms["bf16"] / one[0].ms["fp8"]
        if (where := crossover(line)) is not None:
            out[f"{axis}_crossover"] = where
    return out


def table(timed: Sequence[Timed]) -> str:
    """Markdown."""
    lines = ["| axis | value | BF16 ms | FP8 ms | FP8 is faster by |", "|---|---|---|---|---|"]
    for axis in AXES:
        for one in on_axis(timed, axis):
            shown = [f"{one.ms[arm]:.2f}" if arm in one.ms else "–" for arm in ARMS]
            ratio = f"{one.ms['bf16'] / one.ms['fp8']:.2f}" if len(one.ms) == len(ARMS) else "–"
            lines.append(f"| {TITLES[axis]} | {getattr(one.point, axis)} | {' | '.join(shown)} | {ratio} |")
    return "\n".join(lines)


def plot(path: Path, timed: Sequence[Timed], title: str) -> None:
    """Small multiples, one axis each, both scales logarithmic; the crossover, where there is one, is marked."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 7.5), layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(title)
    for axes, axis in zip(figure.subplots(2, 2, sharey=True).flat, AXES, strict=True):
        points = on_axis(timed, axis)
        dense = of_a_kind(points)
        for arm, colour, mark in (("bf16", "tab:blue", "o"), ("fp8", "tab:red", "s")):
            line = [(value_of(one), one.ms[arm]) for one in dense if arm in one.ms]
            label = f"{arm.upper()}, time ~ value^{slope(dense, arm):.2f}"
            axes.plot([x for x, _ in line], [y for _, y in line], mark + "-", color=colour, label=label)
            for one in points:
                if one not in dense and arm in one.ms:
                    axes.plot(value_of(one), one.ms[arm], mark, color=colour, mfc="none", ms=9)
        if dense != points:
            axes.plot([], [], "o", color="0.3", mfc="none", ms=9, label="moe-4b, 0.5 billion active")
        if (where := crossover(dense)) is not None:
            axes.axvline(where, color="0.4", linestyle=":", label=f"FP8 is faster from {where:.3g} on")
        ticks = sorted({value_of(one) for one in points})
        axes.set(xscale="log", yscale="log", xlabel=TITLES[axis])
        axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
        axes.minorticks_off()
        axes.grid(True, color="0.9")
        axes.legend(fontsize=8)
    for axes in figure.axes[::2]:
        axes.set_ylabel("ms for the whole batch")
    figure.savefig(path, dpi=130)


class Engines:
    """Both engines of one model; another model replaces it."""

    def __init__(self) -> None:
        self._preset, self._decoders, self._config = "", {}, None  # type: ignore[var-annotated]

    def of(self, preset: str) -> Mapping[str, Any]:
        """By arm."""
        import torch

        from model.config import PRESETS
        from model.engine.arithmetic import SixteenBit
        from model.engine.decode import Decoder
        from model.engine.weights import random_weights
        from quant.kernels.eight_bit import EightBit

        if preset != self._preset:
            self._decoders = {}
            gc.collect()
            torch.cuda.empty_cache()
            device = torch.device("cuda")
            weights = random_weights(PRESETS[preset], device, torch.Generator(device).manual_seed(1))
            self._decoders = {
                "bf16": Decoder(weights, SixteenBit()),  # type: ignore[arg-type]
                "fp8": Decoder(weights, EightBit()),
            }
            self._preset = preset
        return self._decoders


def decode_ms(decoder: Any, point: Point, rounds: int) -> float:
    """The median of some replays of one decode."""
    import torch
    from decode_plain import captured
    from device_time import times_ms

    config = decoder.config
    noise = torch.Generator("cuda").manual_seed(2)
    shape = (point.batch, config.kv_groups, point.context, config.head_dim)
    key = torch.randn(shape, device="cuda", dtype=torch.bfloat16, generator=noise)
    key = torch.nn.functional.rms_norm(key, (config.head_dim,))
    lengths = torch.full((point.batch,), point.context, dtype=torch.int32, device="cuda")
    context = decoder.arithmetic.context(key, key, lengths)

    def run() -> Any:
        out = decoder.decode((context,), point.width)
        return out.codes, out.scores

    return statistics.median(times_ms(captured(run, 1), rounds))


def measured(limit_s: float, rounds: int, engines: Callable[[str], Mapping[str, Any]]) -> tuple[list[Timed], list[str]]:
    """All points that there was time for, and what was left out or failed."""
    import torch

    began, known, timed, missing = time.perf_counter(), {}, [], []
    for axis, point in plan():
        if point not in known:
            if time.perf_counter() - began > limit_s:
                missing.append(f"{axis} {getattr(point, axis)}: no time left")
                continue
            known[point] = {}
            for arm, decoder in engines(point.preset).items():
                try:
                    known[point][arm] = decode_ms(decoder, point, rounds)
                except Exception as error:  # one point that does not fit must not hide the others
                    missing.append(f"{axis} {getattr(point, axis)}, {arm}: {str(error).splitlines()[0][:200]}")
                gc.collect()
                torch.cuda.empty_cache()
            shown = ", ".join(f"{arm} {ms:.2f} ms" for arm, ms in known[point].items())
            print(f"[{time.perf_counter() - began:5.0f} s] {point}: {shown}", flush=True)
        timed.append(Timed(axis, point, known[point]))
    return timed, missing


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="three rounds a point instead of ten")
    parser.add_argument("--limit-s", type=float, default=180.0)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    import torch
    from provenance import commit

    with torch.inference_mode():
        timed, missing = measured(args.limit_s, 3 if args.quick else 10, Engines().of)
    about = {"gpu": torch.cuda.get_device_name(), "torch": torch.__version__, "commit": commit()}
    flat = numbers(timed)
    print("\n" + table(timed))
    for line in missing:
        print(f"\nleft out: {line}")
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        points = [
            {"axis": one.axis, **asdict(one.point), **{f"{arm}_ms": ms for arm, ms in one.ms.items()}} for one in timed
        ]
        kept = {"about": about, "numbers": flat, "points": points, "left_out": missing}
        args.out.write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")
        title = f"One decode around moe-4b, 28 requests, beam 512, context 3,072; {about['gpu']}"
        try:
            plot(args.out.with_suffix(".png"), timed, title)
        except ImportError as error:
            print(f"no plot: {error}")
    print(json.dumps(flat | about))


if __name__ == "__main__":
    main()
