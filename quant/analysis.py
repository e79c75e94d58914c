"""Whether a model fits into eight bits: how its layers spread, which stand out, and what follows for the recipe.

The FP8 paper (arXiv 2603.11486) reads variance, AbsMax and AbsP99 of weights and activations and finds a traditional
ranker far from, and OneRec-V2 close to, a language model. This says the same of any model, layer by layer.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from quant.analysis_plot import plot_magnitudes
from quant.distribution import Spread, weights_of
from quant.histogram import Magnitudes, total
from quant.report import LayerReport
from quant.table import Table, table

OUTLIER_RATIO = 20.0
"""AbsMax over AbsP99 from which a layer is named. A million normal values have 1.9, a million Laplacian ones 3.5."""

LOW_DB = 20.0
"""Output SQNR below which a layer should stay in 16 bits: a tenth of its output's root mean square is noise."""


@dataclass(frozen=True, slots=True)
class LayerAnalysis:
    """One layer; its activations, when any were seen, are what it multiplies."""

    report: LayerReport
    weight: Spread
    weight_magnitudes: Magnitudes
    activation: Spread | None
    activation_magnitudes: Magnitudes | None

    @classmethod
    def of(cls, layer: nn.Module, inputs: Tensor | None, report: LayerReport) -> LayerAnalysis:
        """Of a plain layer."""
        weights = weights_of(layer)
        return cls(
            report,
            Spread.of(*weights),
            Magnitudes.of(*weights),
            None if inputs is None else Spread.of(inputs),
            None if inputs is None else Magnitudes.of(inputs),
        )

    def outlier(self) -> str | None:
        """Why the layer stands out, and what to do about it; None when it does not."""
        output = self.report.output_sqnr_db
        seen = [("weights", self.weight.outlier_ratio)]
        if self.activation is not None:
            seen.append(("activations", self.activation.outlier_ratio))
        far = [f"{what}' AbsMax is {ratio:.0f} times AbsP99" for what, ratio in seen if ratio > OUTLIER_RATIO]
        low = output is not None and output < LOW_DB
        if low:
            far.append(f"output SQNR is {output:.1f} dB")
        if not far:
            return None
        if low:
            return f"{'; '.join(far)}: keep it in 16 bits (`keep` of the recipe)"
        return f"{'; '.join(far)}: stays in E4M3, whose steps are relative, and its output has {_db(output)}"


@dataclass(frozen=True, slots=True)
class Analysis:
    """A model's layers. `remarks` are sentences for the report."""

    model: str
    layers: tuple[LayerAnalysis, ...]
    remarks: tuple[str, ...] = ()

    def outliers(self) -> dict[str, str]:
        """Name -> reason and advice."""
        found = {layer.report.layer: layer.outlier() for layer in self.layers}
        return {name: reason for name, reason in found.items() if reason is not None}

    def weights(self) -> Magnitudes:
        """Of all layers."""
        return total([layer.weight_magnitudes for layer in self.layers])

    def activations(self) -> Magnitudes:
        """Of all layers."""
        return total([layer.activation_magnitudes for layer in self.layers if layer.activation_magnitudes is not None])

    def extremes(self) -> dict[str, float]:
        """The largest figure of any layer, which decides whether a format fits."""
        acted = [layer.activation for layer in self.layers if layer.activation is not None]
        out: dict[str, float] = {}
        for what, spreads in (("weight", [layer.weight for layer in self.layers]), ("activation", acted)):
            for field in Spread.__slots__:
                out[f"{what}_{field}"] = max((getattr(spread, field) for spread in spreads), default=0.0)
        heard = [layer.report.output_sqnr_db for layer in self.layers if layer.report.output_sqnr_db is not None]
        out["output_sqnr_db_min"] = min(heard, default=math.inf)
        return out

    def table(self) -> Table:
        """One row per layer."""
        rows = []
        for layer in self.layers:
            cells = [layer.report.layer]
            for spread in (layer.weight, layer.activation):
                values = (None,) * 3 if spread is None else (spread.variance, spread.absmax, spread.absp99)
                cells += [_short(value) for value in values]
            rows.append([*cells, _db(layer.report.output_sqnr_db)])
        columns = [f"{what} {figure}" for what in ("weights", "activations") for figure in FIGURES]
        return table(self.model, ["layer", *columns, "output SQNR"], rows)

    def to_dict(self) -> dict[str, Any]:
        """JSON values; histograms as counts from 1e-12 upwards, ten bins a decade."""
        raw = asdict(self)
        raw["outliers"], raw["extremes"] = self.outliers(), self.extremes()
        return {key: _plain(value) for key, value in raw.items()}


FIGURES = ("variance", "AbsMax", "AbsP99")

PAPER = (
    "The FP8 paper (arXiv 2603.11486) names variances about 1e7 and AbsMax above 1,000 for a traditional ranker, and",
    "variances below 0.1 for OneRec-V2. Read weights and activations apart: behind an RMSNorm activations have a",
    "variance near 1 whatever the model, so only weights, and what is not normed, can stay below 0.1; and a ranker is",
    "wide where unscaled features (seconds since 1970, counters, sums) meet its first layer, not in its other weights.",
)

RULE = (
    f"A layer is named when AbsMax is more than {OUTLIER_RATIO:.0f} times AbsP99, or when its output keeps less than",
    f"{LOW_DB:.0f} dB of signal over quantisation noise. Only the latter asks for 16 bits: E4M3 rounds by relative",
    "steps, from the scale's largest value down to 1/28,672 of it, so a lone large value costs its row nothing until",
    "the others leave that span. Embeddings, norms, the router, the context's projections and the heads stay in 16",
    "bits by rule.",
)


def write_analysis(folder: Path, analyses: Sequence[Analysis]) -> None:
    """analysis.json, analysis.md and, where matplotlib is installed, analysis.png."""
    folder.mkdir(parents=True, exist_ok=True)
    content = json.dumps([analysis.to_dict() for analysis in analyses], indent=1, allow_nan=False)
    (folder / "analysis.json").write_text(content + "\n", encoding="utf-8")
    drawn = plot_magnitudes(
        folder / "analysis.png",
        {analysis.model: (analysis.weights(), analysis.activations()) for analysis in analyses},
    )
    (folder / "analysis.md").write_text(markdown(analyses, picture="analysis.png" if drawn else None), encoding="utf-8")


def markdown(analyses: Sequence[Analysis], picture: str | None = None) -> str:
    """The whole report."""
    rows = []
    for analysis in analyses:
        found = analysis.extremes()
        rows.append([analysis.model, *(_short(value) for value in found.values())])
    columns = [f"{what} {figure}" for what in ("weights", "activations") for figure in FIGURES]
    summary = table("", ["model, largest of any layer", *columns, "lowest output SQNR, dB"], rows)
    lines = ["# Distribution of weights and activations", "", summary.markdown(), ""]
    if picture:
        lines += [f"![Magnitudes of weights and activations]({picture})", ""]
    lines += [*PAPER, "", *RULE, ""]
    for analysis in analyses:
        lines += [f"## {analysis.model}", "", *(f"{remark}\n" for remark in analysis.remarks)]
        named = [f"- `{name}`: {reason}" for name, reason in analysis.outliers().items()]
        lines += [*(named or ["No layer stands out."]), "", analysis.table().markdown(), ""]
    return "\n".join(lines)


def _short(value: float | None) -> str:
    return "–" if value is None else f"{value:.3g}"


def _db(value: float | None) -> str:
    return "–" if value is None else f"{value:.1f} dB"


def _plain(value: Any) -> Any:
    """The same without infinities, which JSON lacks."""
    if isinstance(value, dict):
        return {key: _plain(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
