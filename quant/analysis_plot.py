"""A picture of how large weights and activations are."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from quant.histogram import Magnitudes, edges


def plot_magnitudes(path: Path, models: Mapping[str, tuple[Magnitudes, Magnitudes]]) -> bool:
    """Draw each model's share of values by magnitude, weights above activations; False without matplotlib.

    models: name -> (weights, activations). The suffix of `path` chooses the format.
    """
    try:
        # no pyplot: it keeps figures in a global, and picks a window system
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        return False
    figure = Figure(figsize=(8, 5), layout="constrained")
    FigureCanvasAgg(figure)
    both = figure.subplots(2, 1, sharex=True)
    borders = edges()
    low, high = len(borders), 0
    for axes, which, title in zip(both, (0, 1), ("weights", "activations: what the layers multiply"), strict=True):
        for index, (name, parts) in enumerate(models.items()):
            share = parts[which].share()
            present = [at for at, value in enumerate(share) if value > 0.0]
            if present:
                low, high = min(low, present[0]), max(high, present[-1] + 1)
            axes.stairs(share, borders, color=f"C{index}", fill=True, alpha=0.25)
            axes.stairs(share, borders, color=f"C{index}", label=name)
        axes.set(xscale="log", yscale="log" if low < high else "linear", ylabel="share of values", title=title)
        axes.grid(visible=True, alpha=0.3)
    if low < high:
        both[0].set_xlim(borders[max(0, low - 3)], borders[min(len(borders) - 1, high + 3)])
    both[0].legend(loc="upper right")
    both[1].set_xlabel("magnitude (zeros are left out of the picture, not of the shares)")
    figure.savefig(path, dpi=100)
    return True
