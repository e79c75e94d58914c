from __future__ import annotations

import re
from pathlib import Path

import pytest

from model.errors import ModelError
from model.train_plot import plot_losses, smoothed


def test_smoothed_is_the_moving_average_by_hand() -> None:
    assert smoothed([4.0, 2.0, 2.0], 0.5) == [4.0, 3.0, 2.5]
    assert smoothed([]) == []


def _lines(path: Path) -> list[int]:
    """Points of each polyline of an SVG."""
    return [
        len(re.findall(r"[ML] ", d)) for d in re.findall(r'<g id="line2d_\d+">\s*<path d="([^"]+)"', path.read_text())
    ]


def test_plot_draws_steps_average_and_validation(tmp_path: Path) -> None:
    plot_losses(tmp_path / "loss.svg", [3.0 - 0.01 * (i % 7) - 0.02 * i for i in range(60)], [2.5, 2.1, 2.0])
    text = (tmp_path / "loss.svg").read_text()
    assert "validation" in text
    assert _lines(tmp_path / "loss.svg").count(3) >= 1
    plot_losses(tmp_path / "plain.svg", [3.0, 2.0])
    assert "validation" not in (tmp_path / "plain.svg").read_text()


def test_plot_writes_the_format_that_the_suffix_names(tmp_path: Path) -> None:
    plot_losses(tmp_path / "loss.png", [3.0, 2.0])
    assert (tmp_path / "loss.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(("name", "losses", "named"), [("loss.gif", [1.0], "path"), ("loss.png", [], "step_losses")])
def test_plot_of_nothing_or_of_an_unknown_kind_is_refused(
    name: str, losses: list[float], named: str, tmp_path: Path
) -> None:
    with pytest.raises(ModelError, match=named):
        plot_losses(tmp_path / name, losses)
