"""Rates, their intervals, and when a simulated figure counts as the design's."""

from __future__ import annotations

import pytest
from statsmodels.stats.proportion import proportion_confint

from stats.simulation.expected import Expected, column, markdown, outside, row
from stats.simulation.jobs import above, batches
from stats.simulation.rates import Rate, merged


@pytest.mark.parametrize(("hits", "runs"), [(0, 50), (3, 100), (100, 100), (950, 1000)])
def test_the_interval_is_wilsons(hits: int, runs: int) -> None:
    assert Rate(hits, runs).interval() == pytest.approx(proportion_confint(hits, runs, method="wilson"), abs=1e-12)


def test_batches_cover_all_runs_with_seeds_of_their_own() -> None:
    jobs = batches(lambda batch: {("r", "c"): Rate(0, batch.runs)}, 250, 100, (7, 8))
    assert [job.batch.runs for job in jobs] == [100, 100, 50]
    assert len({job.batch.seed for job in jobs}) == 3
    assert merged(job.work(job.batch) for job in jobs) == {("r", "c"): Rate(0, 250)}


def test_a_cell_far_from_the_design_is_marked_and_a_near_one_is_not() -> None:
    expected = row("A/A", ["good", "bad", "none"], [0.05, 0.05, None], 2000)
    rates = {("A/A", "good"): Rate(105, 2000), ("A/A", "bad"): Rate(300, 2000), ("A/A", "none"): Rate(1, 2)}
    assert [line.split(":")[0] for line in outside(rates, expected)] == ["A/A / bad"]
    table = markdown(rates, "truth", expected)
    assert "**≠ design .050**" in table
    assert "(design .050)" in table
    assert table.splitlines()[0] == "| truth | good | bad | none |"


def test_mean_stops_are_held_against_the_design_too() -> None:
    expected = column("gate", ["0"], [(0.5, 0.7)], 5000)["0", "gate"]
    assert expected.agrees(Rate(2500, 5000, 0.71 * 5000))
    assert not expected.agrees(Rate(2500, 5000, 0.80 * 5000))
    assert Expected(0.0, 2000).agrees(Rate(0, 2000))
    assert not Expected(0.0, 2000).agrees(Rate(40, 2000))


def test_claims_are_judged_by_the_point() -> None:
    rates = {("A/A", "x"): Rate(51, 1000), ("A/A", "y"): Rate(50, 1000)}
    assert len(above(rates, 0.05, lambda _row, _column: True)) == 1
