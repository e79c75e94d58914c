from __future__ import annotations

import math
from pathlib import Path

import pytest

from model.align_plot import plot_alignment
from model.errors import ModelError
from model.gbpo import AlignStep

STEPS = [AlignStep(-0.1 - 0.01 * i, 0.02 * i, math.nan if i % 3 else -0.01 * i) for i in range(20)]


def test_plot_draws_loss_liked_and_disliked(tmp_path: Path) -> None:
    plot_alignment(tmp_path / "a.svg", STEPS)
    text = (tmp_path / "a.svg").read_text()
    assert all(f"<!-- {label} -->" in text for label in ("liked", "disliked", "loss"))


def test_plot_writes_the_format_that_the_suffix_names_also_where_nothing_is_known(tmp_path: Path) -> None:
    plot_alignment(tmp_path / "a.png", [AlignStep(0.0, math.nan, math.nan)])
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(("name", "steps", "named"), [("a.gif", STEPS, "path"), ("a.png", [], "steps")])
def test_plot_of_nothing_or_of_an_unknown_kind_is_refused(
    name: str, steps: list[AlignStep], named: str, tmp_path: Path
) -> None:
    with pytest.raises(ModelError, match=named):
        plot_alignment(tmp_path / name, steps)
