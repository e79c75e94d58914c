"""A picture of how training went."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from model.errors import ModelError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SUFFIXES = (".png", ".svg", ".pdf")
SMOOTHING = 0.02


def smoothed(losses: Sequence[float], weight: float = SMOOTHING) -> list[float]:
    """The exponential moving average from the first value on."""
    out: list[float] = []
    for loss in losses:
        out.append(loss if not out else out[-1] + weight * (loss - out[-1]))
    return out


def picture_path(path: Path | str) -> Path:
    """The path of a picture; raises ModelError for a suffix that is none of SUFFIXES."""
    path = Path(path)
    if path.suffix not in SUFFIXES:
        raise ModelError(f"path: {path} must end in one of {', '.join(SUFFIXES)}")
    return path


def blank_figure(height_in: float) -> Figure:
    """Seven inches wide. Without pyplot, which keeps figures in a global and picks a window system."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, height_in), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def plot_losses(
    path: Path | str,
    step_losses: Sequence[float],
    validation_losses: Sequence[float] = (),
) -> None:
    """Draw the loss of each step, its moving average, and the validation loss at each epoch's end (nats per token).

    There is one validation loss per epoch, or none. The suffix of `path` chooses the format. Raises ModelError for an
    unknown suffix or without any loss.
    """
    path = picture_path(path)
    if not step_losses:
        raise ModelError("step_losses: nothing to draw")
    figure = blank_figure(height_in=4)
    axes = figure.add_subplot()
    steps = range(1, len(step_losses) + 1)
    axes.plot(steps, step_losses, linewidth=0.6, alpha=0.35, color="tab:blue", label="each step")
    axes.plot(steps, smoothed(step_losses), color="tab:blue", label="moving average")
    if validation_losses:
        per_epoch = len(step_losses) / len(validation_losses)
        ends = [per_epoch * (index + 1) for index in range(len(validation_losses))]
        axes.plot(ends, validation_losses, "o-", color="tab:orange", label="validation")
    axes.set(xlabel="optimizer step", ylabel="loss (nats per token)")
    axes.grid(visible=True, alpha=0.3)
    axes.legend()
    figure.savefig(path)
