from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

from quant.analysis_plot import plot_magnitudes
from quant.histogram import Magnitudes


def test_a_picture_is_drawn_also_of_models_without_activations(tmp_path: Path) -> None:
    nothing = Magnitudes.of(torch.zeros(0))
    some = Magnitudes.of(torch.randn(1000, generator=torch.Generator().manual_seed(0)))
    assert plot_magnitudes(tmp_path / "a.png", {"one": (some, some), "two": (some, nothing)})
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
    assert plot_magnitudes(tmp_path / "b.svg", {"none": (nothing, nothing)})


def test_without_matplotlib_nothing_is_drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    assert not plot_magnitudes(tmp_path / "a.png", {})
    assert not (tmp_path / "a.png").exists()
