"""The design's tables: a few seeded runs of each here, the whole of them where `simulation` tests are asked for."""

from __future__ import annotations

from pathlib import Path

import pytest

from stats.simulation import canary, design, gating, growing, mismatch, peeking, ramp
from stats.simulation.expected import outside
from stats.simulation.jobs import Batch, Table
from stats.simulation.rates import merged
from stats.simulation.runner import TABLES, document, main, run, simulate


def test_peeking_at_a_naive_test_is_caught_and_the_valid_ones_hold() -> None:
    cells = merged(peeking.run(0.0, Batch(100, (1, k))) for k in range(3))
    assert cells["z, impressions, 100 peeks", "A/A"].value > 0.85
    assert cells["z, users, 100 peeks", "A/A"].interval()[0] > 0.25
    for method in ("always valid, tau at N", "reflection at N, closed form", "hybrid at N", peeking.REFLECTION):
        assert cells[method, "A/A"].interval()[0] < 0.05, method


def test_reflection_with_an_exact_last_look_has_the_power_of_obrien_fleming() -> None:
    cells = merged(peeking.run(1.0, Batch(100, (2, k))) for k in range(4))
    assert cells[peeking.REFLECTION, "1 MDE"].value > cells[peeking.LAN_DEMETS, "1 MDE"].value - 0.02
    assert cells["always valid, tau at N", "1 MDE"].value < cells[peeking.REFLECTION, "1 MDE"].value - 0.15


def test_the_gate_promotes_rarely_at_the_edge_and_rolls_back_twice_the_margin() -> None:
    edge = gating.run(-1.0, Batch(200, (3, 0)))
    harm = gating.run(-2.0, Batch(100, (3, 1)))
    assert edge["-1 margin (edge of H0)", gating.PROMOTE].value <= 0.05
    assert edge["-1 margin (edge of H0)", "z, 50 peeks"].value > 0.2
    assert harm["-2 margins", gating.ROLL_BACK].value > 0.8
    assert harm["-2 margins", gating.PROMOTE].hits == 0


def test_the_variance_floor_cures_a_small_arm() -> None:
    cells = canary.run("lognormal, s = 2", Batch(60, (4, 0)))
    assert cells["lognormal, s = 2", "false worse, no floor, from 20"].value > 0.25
    assert cells["lognormal, s = 2", canary.FLOOR].value <= 0.05
    assert cells["lognormal, s = 2", canary.PROMOTE].value <= 0.05


def test_pooling_an_unequal_ramp_is_caught_and_strata_hold() -> None:
    cells = ramp.run(40_000, Batch(40, (5, 0)))
    assert cells["40k users a phase", ramp.POOLED].value > 0.12
    assert cells["40k users a phase", ramp.STRATIFIED].value <= 0.05
    assert cells["40k users a phase", ramp.EQUAL].value <= 0.05


def test_a_split_off_by_a_point_is_always_found() -> None:
    fair, off = mismatch.run(0.5, Batch(500, (6, 0))), mismatch.run(0.51, Batch(100, (6, 1)))
    assert fair["fair", "chi-square at every look, .01"].value > 0.08
    assert fair["fair", "e-process, k = 2,500"].hits <= 2
    assert off["51.0% in the first arm", "e-process, k = 2,500"].hits == 100


def test_users_who_keep_acting_are_safe_in_closed_cohorts() -> None:
    cells = growing.run_ctr(growing.COHORT, Batch(200, (7, 0)))
    assert cells[growing.COHORT, growing.INFORMATION].value <= 0.05
    assert cells[growing.COHORT, growing.PEEK].value > 0.2
    rolling = growing.run_ctr(growing.ROLLING, Batch(20, (7, 1)))
    assert rolling[growing.ROLLING, growing.PEEK].value > 0.8


def test_the_same_seed_gives_the_same_document_and_another_another() -> None:
    small = Table("x", "t", "c", "n", lambda _quick: [*mismatch.jobs(True)[:1]], lambda _rates: ["too high"])
    rates = [merged(run(job, seed) for job in small.jobs(True)) for seed in (1, 1, 2)]
    texts = [document([small], {"x": one}, quick=True, seed=1)[0] for one in rates]
    assert texts[0] == texts[1] != texts[2]
    assert "Claims broken" in texts[0]


def test_the_command_writes_a_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "simulate.md"
    assert main(["--quick", "--tables", "3f", "--jobs", "1", "--out", str(out)]) == 0
    text = out.read_text(encoding="utf-8")
    assert "| fair |" in text
    assert "(design .017)" in text
    assert "0 claims broken" in capsys.readouterr().err
    assert main(["--tables", "9z"]) == 2


@pytest.mark.simulation
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("table", TABLES, ids=[table.key for table in TABLES])
def test_every_claim_of_a_table_holds_in_full(table: Table) -> None:
    rates = simulate([table], quick=False, workers=2, seed=1)[table.key]
    assert not table.broken(rates)
    if table.key in {"3a", "3b", "3d", "3e", "3f"}:
        marked = outside(rates, table.expected)
        assert len(marked) <= max(1, len(table.expected) // 20), marked


def test_the_exact_design_table_agrees_with_the_published_costs() -> None:
    cells = design.run(0.05, 1, 0.8, Batch(1, (0,)))
    row = "1-sided 0.05, power 0.8"
    published = {"reflection": 1.11, "hybrid": 1.10, "always valid": 1.77}
    for name, cost in published.items():
        assert cells[row, f"{name}: largest"].mean_stop == pytest.approx(cost, abs=0.04)
