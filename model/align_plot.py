"""A picture of how post-training went."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from model.errors import ModelError
from model.gbpo import AlignStep
from model.train_plot import blank_figure, picture_path, smoothed


def plot_alignment(path: Path | str, steps: Sequence[AlignStep]) -> None:
    """Above: the loss of each step and its moving average. Below: how the policy moves on what it is taught.

    Below are the mean log ratios of the policy to the one that showed the items: what was liked should become more
    likely, what was disliked less so. The suffix of `path` chooses the format. Raises ModelError for an unknown suffix
    or without steps.
    """
    path = picture_path(path)
    if not steps:
        raise ModelError("steps: nothing to draw")
    figure = blank_figure(height_in=6)
    above, below = figure.subplots(2, sharex=True)
    lines = (
        (above, "loss", "tab:blue", [step.loss for step in steps]),
        (below, "liked", "tab:green", [step.liked for step in steps]),
        (below, "disliked", "tab:red", [step.disliked for step in steps]),
    )
    for axes, label, colour, values in lines:
        known = [(place, value) for place, value in enumerate(values, start=1) if math.isfinite(value)]
        if known:
            places, kept = zip(*known, strict=True)
            axes.plot(places, kept, linewidth=0.6, alpha=0.35, color=colour)
            axes.plot(places, smoothed(kept), color=colour, label=label)
    above.set(ylabel="loss")
    below.set(xlabel="optimizer step", ylabel="log(π / π of the log)")
    for axes in (above, below):
        axes.grid(visible=True, alpha=0.3)
        if axes.lines:
            axes.legend()
    figure.savefig(path)
