from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from model.data import IntArray, Row, from_rows
from model.evaluate import evaluate
from model.split import Split, leave_one_out
from tests.bench.ranking import (
    ONEREC,
    RANKS,
    REFERENCE,
    ROOT,
    Run,
    difference,
    merged,
    origins,
    places,
    settings_of,
    stored,
    summary,
    write,
)


def _split() -> Split:
    rows = [
        Row(f"u{user}", f"i{(user + step) % 30}", 100.0 * step + user, 0.0) for user in range(12) for step in range(5)
    ]
    return leave_one_out(from_rows(rows, {f"i{item}": "" for item in range(30)}))


def _by_index(histories: list[IntArray], k: int) -> IntArray:
    """The unseen items in the order of their index."""
    return np.array([[item for item in range(30) if item not in history][:k] for history in histories])


def _run(name: str, seed: int, places_: str) -> Run:
    return Run(name, seed, "{}", places_, places_, 1.0)


def test_places_of_a_ranker_give_the_metrics_of_evaluate() -> None:
    split = _split()
    run = _run("any", 1, places(_by_index, split, validation=False))
    found = evaluate(_by_index, split, 10)
    assert "-" in run.places
    assert set(run.places) & set(RANKS)
    assert run.gains().mean(axis=0) == pytest.approx([found.hit_rate, found.ndcg])


def test_summary_reports_mean_and_standard_deviation_over_seeds_and_the_gap_over_users() -> None:
    runs = [_run(REFERENCE, 1, "0---"), _run(REFERENCE, 2, "0-1-"), _run("new", 1, "00--"), _run("new", 2, "0012")]
    lines, numbers = summary(runs)
    assert numbers["new_hr10"] == 0.75
    assert numbers["new_hr10_std"] == pytest.approx(math.sqrt(0.125), abs=1e-5)
    assert numbers["new_ndcg10"] == pytest.approx((4 + 1 / math.log2(3) + 0.5) / 8, abs=1e-5)
    per_user = [0.0, 1.0, 0.0, 0.5]
    assert numbers["new_hr10_over_sasrec"] == np.mean(per_user)
    assert numbers["new_hr10_over_sasrec_error"] == pytest.approx(np.std(per_user, ddof=1) / 2, abs=1e-5)
    assert sum("±" in line for line in lines) == 2


def test_difference_compares_common_seeds_only() -> None:
    ours = [_run("new", 1, "00"), _run("new", 3, "--")]
    found = difference(ours, [_run(REFERENCE, 1, "0-")])
    assert found is not None
    assert found[0] == 0.5
    assert difference(ours, [_run(REFERENCE, 2, "0-")]) is None


def test_runs_written_are_the_runs_read_again(tmp_path: Path) -> None:
    path, runs = tmp_path / "ranking.json", [_run(REFERENCE, 1, "0-9"), replace(_run("new", 2, "-1-"), train_s=2.5)]
    setting = {"hardware": "h", "versions": "v", "commit": "c", "command": "python x"}
    write(path, setting, runs)
    assert stored(path) == [replace(run, origin="h; v; commit c; `python x`") for run in runs]
    write(path, setting | {"commit": "d"}, stored(path))
    assert {run.origin for run in stored(path)} == {"h; v; commit c; `python x`"}, "runs keep where they were made"
    assert stored(tmp_path / "absent.json") == []
    assert json.loads(path.read_text())["numbers"]["new_hr10"] == pytest.approx(1 / 3, abs=1e-5)
    assert "| new | 0.3333 |" in path.with_suffix(".md").read_text()


def test_merged_keeps_the_last_run_of_a_seed_and_only_the_last_settings() -> None:
    old, new = _run("a", 1, "0-"), replace(_run("a", 2, "-0"), settings="{1}")
    again = replace(new, places="00")
    found = merged([_run("b", 5, "--"), _run("b", 3, "--"), old, new, again], ["a", "b"])
    assert [(run.recommender, run.seed, run.places) for run in found] == [
        ("a", 2, "00"),
        ("b", 3, "--"),
        ("b", 5, "--"),
    ]


def test_origins_name_the_seeds_that_were_made_in_one_place() -> None:
    runs = [replace(_run("a", seed, "0"), origin="here" if seed < 3 else "there") for seed in (1, 2, 3)]
    assert origins([*runs, replace(_run("b", 1, "0"), origin="here")]) == [
        "- a (1, 2), b (1): here.",
        "- a (3): there.",
    ]


@pytest.mark.parametrize("name", [*ONEREC, REFERENCE])
def test_kept_results_are_of_the_presets_as_they_are(name: str) -> None:
    kept = [run.settings for run in stored(ROOT / "tests/bench/results/ranking.json") if run.recommender == name]
    assert len(kept) == 5
    assert set(kept) == {json.dumps(settings_of(name, quick=False), sort_keys=True)}
