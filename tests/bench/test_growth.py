"""Plan, exponents, crossovers and the plot of the growth benchmark, from canned times."""

from __future__ import annotations

import itertools
import math
from pathlib import Path
from typing import Any

import growth
import pytest
from growth import AXES, CENTRE, Point, Timed, crossover, numbers, on_axis, plan, plot, slope, table, value_of

from model.config import PRESETS


def canned() -> list[Timed]:
    """BF16 grows in proportion, FP8 has a fixed cost and half the slope."""
    found = []
    for axis, point in plan():
        one = Timed(axis, point, {})
        share = value_of(one) / (4.0 if axis == "preset" else getattr(CENTRE, axis))
        share = 0.25 if point.preset == "moe-4b" and axis == "preset" else share
        found.append(Timed(axis, point, {"bf16": 80.0 * share, "fp8": 4.0 + 46.0 * share}))
    return found


def test_every_point_is_planned_once_and_models_are_made_once() -> None:
    pairs = plan()
    assert len(pairs) == len(set(pairs)) == sum(map(len, AXES.values()))
    presets = [point.preset for _, point in pairs]
    assert sum(a != b for a, b in itertools.pairwise(presets)) == len(set(presets)) - 1
    assert set(presets) <= PRESETS.keys()
    first = [point.batch for axis, point in pairs if axis == "batch"]
    assert first[:2] == [1, 64]


def test_an_exponent_is_the_slope_between_the_ends() -> None:
    timed = [Timed("batch", Point(batch=b, preset="1B"), {"bf16": 3.0 * b**0.5}) for b in (1, 4, 64)]
    assert slope(timed, "bf16") == pytest.approx(0.5)
    assert math.isnan(slope(timed, "fp8"))
    assert math.isnan(slope(timed[:1], "bf16"))


def test_the_crossover_lies_where_both_take_the_same_time() -> None:
    timed = [Timed("batch", Point(batch=b), {"bf16": 2.0 * b, "fp8": 8.0 * b**0.5}) for b in (1, 4, 64)]
    assert crossover(timed) == pytest.approx(16.0)
    assert crossover(timed[:2]) is None
    assert crossover([Timed("batch", Point(batch=b), {"bf16": 2.0, "fp8": 1.0}) for b in (1, 2)]) is None


def test_figures_and_table_cover_every_axis() -> None:
    timed = canned()
    found = numbers(timed)
    for axis in AXES:
        assert found[f"{axis}_bf16_exponent"] == pytest.approx(1.0)
        assert found[f"{axis}_high_speedup"] > 1.5 or axis == "preset"
    assert found["batch_crossover"] == pytest.approx(28 * 4 / 34, rel=0.1)
    assert table(timed).count("\n") == len(timed) + 1
    assert [value_of(one) for one in on_axis(timed, "context")] == [256, 512, 1024, 2048, 3072, 4096]


def test_what_takes_too_long_or_fails_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails_at_64(_decoder: Any, point: Point, _rounds: int) -> float:
        if point.batch == 64:
            raise RuntimeError("out of memory\nand more")
        return float(point.batch)

    monkeypatch.setattr(growth, "decode_ms", fails_at_64)
    timed, missing = growth.measured(60.0, 1, lambda preset: {"bf16": preset, "fp8": preset})
    assert missing == ["batch 64, bf16: out of memory", "batch 64, fp8: out of memory"]
    assert len(timed) == sum(map(len, AXES.values()))
    timed, missing = growth.measured(-1.0, 1, lambda preset: {"bf16": preset})
    assert not timed
    assert len(missing) == sum(map(len, AXES.values()))


def test_the_plot_is_drawn(tmp_path: Path) -> None:
    plot(tmp_path / "growth.png", canned(), "canned numbers")
    assert (tmp_path / "growth.png").stat().st_size > 20_000
