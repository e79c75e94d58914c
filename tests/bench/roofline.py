"""The roofline of one decode: what each call must do, what that takes at the measured ceilings, and what it takes.

    python tests/bench/roofline.py [--preset P --batch B --width W --context N] [--arms fp8 bf16] [--out FILE]

Ceilings (copy bandwidth, the best dense product in BF16 and in FP8) are measured in the same run and the same way.
Each call's operations and bytes follow from its arguments' shapes (kernel_work.py); its floor is the larger of
operations at the ceiling of its format and bytes at the ceiling of copying. Its time is that between two events on the
device, the launches queued behind a kernel that only waits, so that no time of the host is in it. "other" is what no
known call accounts for; calls that run side by side are each counted whole. The sum of the rows is compared with the
decode replayed as one CUDA graph after the same pause; without pauses, as decode.py measures, a card at its power limit
lowers its clock: that is shown beside it. Needs PyTorch with CUDA and Triton; matplotlib for the plot. --out FILE.json
also writes FILE.md and FILE.png. The last line is one JSON object of flat numbers.
"""

from __future__ import annotations

import argparse
import contextlib
import inspect
import json
import statistics
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from device_time import ROUNDS, after_pause, after_pauses, times_ms
from kernel_work import CALLS, METHODS, Work, added, is_eight, methods, missing, moved, product


@dataclass(frozen=True, slots=True)
class Ceilings:
    """Measured in this run, per second: bytes copied (read and written), operations of the best dense product."""

    byte: float
    bf16_flop: float
    fp8_flop: float

    def floor_s(self, work: Work) -> float:
        """The least time for a call."""
        return max(work.byte / self.byte, work.flop / (self.fp8_flop if work.eight else self.bf16_flop))


@dataclass(frozen=True, slots=True)
class Row:
    """All calls of one name in one decode. bound: what sets most of the floor."""

    name: str
    calls: int
    flop: float
    byte: float
    floor_s: float
    spent_s: float
    eight: bool
    bound: str

    @property
    def share(self) -> float:
        """Of the roof: floor over time."""
        return self.floor_s / self.spent_s if self.spent_s else 0.0


def rows_of(calls: Sequence[tuple[Work, float]], whole_s: float, ceilings: Ceilings) -> list[Row]:
    """One row per name, the longest first, then "other": what the calls leave of a whole decode run the same way."""
    names = dict.fromkeys(work.name for work, _ in calls)
    rows = []
    for name in names:
        mine = [(work, spent) for work, spent in calls if work.name == name]
        by_flop = sum(work.flop / (ceilings.fp8_flop if work.eight else ceilings.bf16_flop) for work, _ in mine)
        by_byte = sum(work.byte / ceilings.byte for work, _ in mine)
        rows.append(
            Row(
                name=name,
                calls=len(mine),
                flop=sum(work.flop for work, _ in mine),
                byte=sum(work.byte for work, _ in mine),
                floor_s=sum(ceilings.floor_s(work) for work, _ in mine),
                spent_s=sum(spent for _, spent in mine),
                eight=mine[0][0].eight,
                bound="compute" if by_flop > by_byte else "memory",
            )
        )
    rows.sort(key=lambda row: -row.spent_s)
    left = max(0.0, whole_s - sum(row.spent_s for row in rows))
    return [*rows, Row("other", 0, 0.0, 0.0, 0.0, left, False, "–")]


def table(rows: Sequence[Row], graph_s: float, sustained_s: float) -> str:
    """Markdown: every row, their sum, and the decode as one graph after a pause and without pauses."""
    lines = [
        "| call | format | calls | TFLOP | GB | bound by | floor ms | measured ms | gap ms | share of the roof |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in [*rows, total(rows)]:
        share = f"{row.share:.0%}" if row.floor_s else "–"
        lines.append(
            f"| {row.name} | {'FP8' if row.eight else 'BF16'} | {row.calls} | {row.flop / 1e12:.2f} "
            f"| {row.byte / 1e9:.2f} | {row.bound} | {1e3 * row.floor_s:.2f} | {1e3 * row.spent_s:.2f} "
            f"| {1e3 * (row.spent_s - row.floor_s):.2f} | {share} |"
        )
    off = total(rows).spent_s / graph_s - 1
    lines += ["", f"The same decode as one CUDA graph: {1e3 * graph_s:.2f} ms; the sum is {off:+.1%} off."]
    lines += ["", f"Without pauses, at the clock that the card's power allows then: {1e3 * sustained_s:.2f} ms."]
    return "\n".join(lines)


def total(rows: Sequence[Row]) -> Row:
    """The column sums."""
    calls, flop, byte = (sum(getattr(row, name) for row in rows) for name in ("calls", "flop", "byte"))
    floor, spent = sum(row.floor_s for row in rows), sum(row.spent_s for row in rows)
    return Row("sum", calls, flop, byte, floor, spent, any(row.eight for row in rows), "–")


def numbers(arm: str, rows: Sequence[Row], graph_s: float, sustained_s: float, ceilings: Ceilings) -> dict[str, float]:
    """Flat figures of one arm."""
    whole = total(rows)
    peak = ceilings.fp8_flop if whole.eight else ceilings.bf16_flop
    return {
        f"{arm}_graph_ms": 1e3 * graph_s,
        f"{arm}_sustained_ms": 1e3 * sustained_s,
        f"{arm}_sum_ms": 1e3 * whole.spent_s,
        f"{arm}_sum_over_graph": whole.spent_s / graph_s,
        f"{arm}_floor_ms": 1e3 * whole.floor_s,
        f"{arm}_floor_share": whole.floor_s / graph_s,
        f"{arm}_peak_share": whole.flop / graph_s / peak,
    }


def plot(path: Path, arms: Mapping[str, Sequence[Row]], ceilings: Ceilings, title: str) -> None:
    """Rate against intensity: both roofs as lines, a point for each call, as large as its share of the time."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.2 * len(arms), 5.6), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(1, len(arms), squeeze=False, sharey=True)[0]
    figure.suptitle(title)
    for axis, (arm, rows) in zip(axes, arms.items(), strict=True):
        points = [row for row in rows if row.spent_s and row.flop and row.byte]
        low, high = 1.0, 1e4
        for name, roof, style in (("BF16", ceilings.bf16_flop, "--"), ("FP8", ceilings.fp8_flop, "-")):
            if name == "FP8" and not any(row.eight for row in points):
                continue
            ridge = roof / ceilings.byte
            label = f"{name} products, {roof / 1e12:.0f} TFLOP/s"
            axis.plot(
                [low, ridge, high],
                [low * ceilings.byte / 1e12, roof / 1e12, roof / 1e12],
                style,
                color="0.35",
                label=label,
            )
        whole = sum(row.spent_s for row in rows)
        lines = ["calls with products, the longest first:"]
        for place, row in enumerate(points, start=1):
            colour = "tab:red" if row.eight else "tab:blue"
            x, y = row.flop / row.byte, row.flop / row.spent_s / 1e12
            area = 60 + 900 * row.spent_s / whole
            axis.scatter(x, y, s=area, color=colour, alpha=0.45, linewidths=0)
            away = (0.0, (-1) ** place * ((area / 3.14) ** 0.5 + 7))
            axis.annotate(str(place), (x, y), xytext=away, textcoords="offset points", ha="center", va="center", size=8)
            axis.scatter(x, y, s=5, color="0.15")
            lines.append(f"{place}  {row.name}: {1e3 * row.spent_s:.1f} ms, {row.share:.0%} of the roof")
        axis.text(0.03, 0.97, "\n".join(lines), transform=axis.transAxes, va="top", fontsize=8)
        axis.set(xscale="log", yscale="log", xlim=(low, high), ylim=(1.0, 30 * ceilings.fp8_flop / 1e12))
        axis.set(xlabel="operations per byte", title=f"{arm}: red in FP8, blue in 16 bit; area is time")
        axis.grid(True, which="major", color="0.9")
        axis.legend(loc="lower right", fontsize=8, title=f"copy {ceilings.byte / 1e12:.1f} TB/s", title_fontsize=8)
    axes[0].set_ylabel("TFLOP/s")
    figure.savefig(path, dpi=130)


def counted(count: Callable[..., Work], config: Any, given: Mapping[str, Any], out: Any, name: str) -> Work:
    """The call's work; where its arguments are no longer those that `count` knows, the bytes of whatever they are."""
    try:
        return count(config, given, out)
    except (KeyError, AttributeError, ValueError, TypeError, IndexError) as error:
        return Work(
            f"{name} (not counted: {error!r})", 0.0, moved(*given.values(), out), is_eight(tuple(given.values()))
        )


class Recorder:
    """Puts two device events around every known call of a decode, and keeps its work."""

    def __init__(self, config: Any) -> None:
        import torch

        self._torch, self._config = torch, config
        self.calls: list[tuple[Work, Any, Any]] = []
        self._tokens = 0

    def around(self, count: Callable[..., Work], call: Callable[..., Any]) -> Callable[..., Any]:
        """The call with events around it. Calls inside known calls are part of them."""
        signature = inspect.signature(call)

        def wrapped(*args: Any, **kwargs: Any) -> Any:
            if self._inside:
                return call(*args, **kwargs)
            began, ended = (self._torch.cuda.Event(enable_timing=True) for _ in range(2))
            self._inside = True
            began.record()
            try:
                out = call(*args, **kwargs)
            finally:
                self._inside = False
            ended.record()
            bound = signature.bind(*args, **kwargs)
            bound.apply_defaults()
            given = dict(bound.arguments)
            if call.__name__ == "choose":
                self._tokens = out.share.numel()
            given["real_rows"] = self._tokens
            self.calls.append((counted(count, self._config, given, out, call.__name__), began, ended))
            return out

        return wrapped

    _inside = False

    @contextlib.contextmanager
    def patched(self, decoder: Any) -> Iterator[None]:
        """The engine's module and this decoder's arithmetic with events around everything known."""
        from model.engine import decode as module

        kept = {name: getattr(module, name) for name in CALLS if hasattr(module, name)}
        kernels = [(owner, name, getattr(owner, name)) for owner, name in methods()]
        arithmetic = decoder.arithmetic

        class Watched:
            """The arithmetic with its products watched."""

            def __getattr__(self, name: str) -> Any:
                return getattr(arithmetic, name)

        watched = Watched()
        watched.product = self.around(product, arithmetic.product)  # type: ignore[attr-defined]
        watched.queries = self.around(product, arithmetic.queries)  # type: ignore[attr-defined]
        watched.own_product = self.around(product, arithmetic.own_product)  # type: ignore[attr-defined]
        watched.add_product = self.around(added, arithmetic.add_product)  # type: ignore[attr-defined]
        try:
            for name, count in CALLS.items():
                if name in kept:
                    setattr(module, name, self.around(count, kept[name]))
            for owner, name, call in kernels:
                setattr(owner, name, self.around(METHODS[name], call))
            decoder.arithmetic = watched
            yield
        finally:
            decoder.arithmetic = arithmetic
            for name, value in kept.items():
                setattr(module, name, value)
            for owner, name, call in kernels:
                setattr(owner, name, call)


def measured(decoder: Any, run: Callable[[], object], ceilings: Ceilings) -> list[Row]:
    """Rows of one decode: the median over some rounds of each call's time."""
    rounds, wholes, works = [], [], []
    for _ in range(ROUNDS + 1):
        recorder = Recorder(decoder.config)
        with recorder.patched(decoder):
            wholes.append(after_pause(run))
        rounds.append([start.elapsed_time(end) / 1e3 for _, start, end in recorder.calls])
        works = [work for work, _, _ in recorder.calls]
    spent = [statistics.median(times) for times in zip(*rounds[1:], strict=True)]
    return rows_of(list(zip(works, spent, strict=True)), statistics.median(wholes[1:]), ceilings)


def found_ceilings() -> Ceilings:
    """The best of `decode_kernels.py`'s simplest calls, after pauses as everything here."""
    from decode_kernels import SUSTAINED, ceilings

    best = {"copy": 0.0, "bf16": 0.0, "fp8": 0.0}
    for name, work, unit, call in ceilings():
        if SUSTAINED in name:
            continue
        kind, rate = name.split()[0], work / after_pauses(call)
        print(f"{name}: {rate:.0f} {unit}/s", flush=True)
        best[kind] = max(best[kind], rate)
    return Ceilings(best["copy"] * 1e9, best["bf16"] * 1e12, best["fp8"] * 1e12)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="moe-4b")
    parser.add_argument("--batch", type=int, default=28)
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--context", type=int, default=3072)
    parser.add_argument("--arms", nargs="+", choices=("fp8", "bf16"), default=["fp8", "bf16"])
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    import torch
    from decode_arms import contexts, kernel_table
    from decode_plain import captured
    from provenance import commit

    from model.engine import decode as module
    from model.engine.arithmetic import SixteenBit
    from quant.kernels.eight_bit import EightBit

    with torch.inference_mode():
        ceilings = found_ceilings()
        torch.cuda.empty_cache()
        weights, key = contexts(args.preset, args.batch, args.context)
        lengths = torch.full((args.batch,), args.context, dtype=torch.int32, device="cuda")
        arms: dict[str, list[Row]] = {}
        flat: dict[str, float] = {f"ceiling_{name}": value for name, value in asdict(ceilings).items()}
        text = [f"No call of these names in the engine: {', '.join(gone)}.\n"] if (gone := missing(module)) else []
        for arm in args.arms:
            decoder = module.Decoder(weights, EightBit() if arm == "fp8" else SixteenBit())  # type: ignore[arg-type]
            context = decoder.arithmetic.context(key, key, lengths)

            def run(decoder: Any = decoder, context: Any = context) -> Any:
                out = decoder.decode((context,), args.width)
                return out.codes, out.scores

            run()
            arms[arm] = measured(decoder, run, ceilings)
            graph = captured(run)
            graph_s, sustained_s = after_pauses(graph), statistics.median(times_ms(graph, 20)) / 1e3
            text.append(f"## {arm}\n\n{table(arms[arm], graph_s, sustained_s)}\n")
            print(text[-1], flush=True)
            flat |= numbers(arm, arms[arm], graph_s, sustained_s, ceilings)
            kernel_table(graph, arm)
            del graph, decoder, context, run
            torch.cuda.empty_cache()
    label = f"{args.preset}, {args.batch} requests, beam {args.width}, context {args.context}"
    about = {
        "gpu": torch.cuda.get_device_name(), "torch": torch.__version__, "commit": commit(), "workload": label,
    }  # fmt: skip
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        kept = {
            "about": about,
            "numbers": flat,
            "rows": {arm: [asdict(row) for row in rows] for arm, rows in arms.items()},
        }
        args.out.write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")
        head = f"# Roofline: {label}\n\n{about['gpu']}, torch {about['torch']}, commit {about['commit']}\n\n"
        args.out.with_suffix(".md").write_text(head + "\n".join(text), encoding="utf-8")
        try:
            plot(args.out.with_suffix(".png"), arms, ceilings, f"{label}; {about['gpu']}")
        except ImportError as error:
            print(f"no plot: {error}")
    print(json.dumps(flat | about))


if __name__ == "__main__":
    main()
