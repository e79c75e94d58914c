"""Floors, sums and the plot from canned calls."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from kernel_work import Work, norm
from roofline import Ceilings, counted, numbers, plot, rows_of, table, total

CEILINGS = Ceilings(byte=4e12, bf16_flop=700e12, fp8_flop=1300e12)
CALLS = [
    (Work("experts up", 8e12, 3e9, True), 9e-3),
    (Work("experts up", 0.1e12, 0.3e9, True), 0.4e-3),
    (Work("experts down", 4e12, 2e9, True), 5e-3),
    (Work("cross attention", 7e12, 2e9, True), 9e-3),
    (Work("linear 1408→1408", 3e12, 2e9, True), 4e-3),
    (Work("linear 1408→4224", 4e12, 3e9, True), 4.5e-3),
    (Work("head", 0.7e12, 0.6e9, False), 1.2e-3),
    (Work("self attention", 0.02e12, 4e9, False), 2e-3),
    (Work("add and norm", 0.0, 8e9, False), 3e-3),
]


def test_a_floor_is_the_slower_of_both_ceilings() -> None:
    assert CEILINGS.floor_s(Work("x", 1.3e12, 4e9, True)) == pytest.approx(1e-3)
    assert CEILINGS.floor_s(Work("x", 1.4e12, 4e9, False)) == pytest.approx(2e-3)
    assert CEILINGS.floor_s(Work("x", 0.0, 8e9, False)) == pytest.approx(2e-3)


def test_rows_sum_their_calls_and_the_rest_is_other() -> None:
    rows = rows_of(CALLS, 0.04, CEILINGS)
    first = rows[0]
    assert (first.name, first.calls, first.bound) == ("experts up", 2, "compute")
    assert first.spent_s == pytest.approx(9.4e-3)
    assert first.floor_s == pytest.approx(8.1e12 / 1300e12)
    assert {row.name: row.bound for row in rows}["add and norm"] == "memory"
    assert rows[-1].name == "other"
    assert rows[-1].spent_s == pytest.approx(0.04 - 38.1e-3)
    assert total(rows).spent_s == pytest.approx(0.04)
    assert rows_of(CALLS, 0.0, CEILINGS)[-1].spent_s == 0.0


def test_the_table_compares_the_sum_with_the_graph() -> None:
    text = table(rows_of(CALLS, 0.04, CEILINGS), 0.038, 0.041)
    assert "| sum | FP8 | 9 | 26.82 |" in text
    assert "the sum is +5.3% off" in text
    assert "Without pauses, at the clock that the card's power allows then: 41.00 ms." in text


def test_the_figures_are_flat() -> None:
    found = numbers("fp8", rows_of(CALLS, 0.04, CEILINGS), 0.038, 0.041, CEILINGS)
    assert found["fp8_sum_over_graph"] == pytest.approx(0.04 / 0.038)
    assert found["fp8_sustained_ms"] == pytest.approx(41)
    assert found["fp8_peak_share"] == pytest.approx(26.82e12 / 0.038 / 1300e12)
    assert 0 < found["fp8_floor_share"] < 1


def test_a_call_with_other_arguments_is_still_in_the_table() -> None:
    given = {"hidden": torch.zeros(8, 8)}
    work = counted(norm, None, given, torch.zeros(4), "add_norm")
    assert work.name == "add_norm (not counted: KeyError('h'))"
    assert (work.flop, work.byte) == (0.0, 4 * 64 + 4 * 4)


def test_the_plot_is_drawn(tmp_path: Path) -> None:
    rows = rows_of(CALLS, 0.04, CEILINGS)
    wide = [(Work(work.name, work.flop, 2 * work.byte, False), 1.7 * spent) for work, spent in CALLS]
    plot(tmp_path / "roofline.png", {"fp8": rows, "bf16": rows_of(wide, 0.07, CEILINGS)}, CEILINGS, "canned numbers")
    assert (tmp_path / "roofline.png").stat().st_size > 20_000
