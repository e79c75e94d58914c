"""What the serving benchmark says follows from its points; its experiment is one that the service takes."""

from __future__ import annotations

import json
import math
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from random_checkpoints import make_pair, semantic_ids
from serving_clock import Clock, OutOfTimeError, alarm
from serving_numbers import Found, cost_per_1000, numbers, table
from serving_plan import KEY, Plan, fitted, specification
from serving_progress import ReplicaLog

from experiment.spec import load_spec
from model.config import PRESETS
from quant.load import load_recommender


def point(stage: str, arm: str, loop: str, load: float, **more: float) -> dict[str, Any]:
    usual = {"requests": 100, "answered_per_s": load, "p50_ms": 10.0, "p95_ms": 20.0, "p99_ms": 30.0}
    shares = {"error_share": 0.0, "fallback_share": 0.0, "lag_p99_ms": 1.0}
    return {"stage": stage, "arm": arm, "loop": loop, "load": load} | usual | shares | more


FOUND = Found(
    about={"gpu": "some GPU"},
    points=[
        point("bf16 alone", "bf16", "closed", 28, answered_per_s=100.0),
        point("bf16 alone", "bf16", "closed", 56, answered_per_s=120.0),
        point("bf16 alone", "bf16", "open", 30),
        point("bf16 alone", "bf16", "open", 60, p50_ms=11.0, error_share=0.02),
        point("both", "bf16", "closed", 56, answered_per_s=70.0),
        point("both", "fp8", "closed", 56, answered_per_s=75.0),
        point("both", "fp8", "open", 30, fallback_share=0.1),
        point("fp8 alone", "fp8", "closed", 56, answered_per_s=180.0),
        point("fp8 alone", "fp8", "open", 30),
        point("fp8 alone", "fp8", "open", 60, p50_ms=7.0),
    ],
    report={"state": "promoted", "arms": [{"users": 7}, {"users": 8}], "metrics": [{"effect": 0.01, "low": -0.05}]},
)


def test_the_headline_follows_from_the_points() -> None:
    found = numbers(FOUND, 3.6)
    assert (found["bf16_queries_per_s"], found["fp8_queries_per_s"]) == (120.0, 180.0)
    assert (found["bf16_p50_ms"], found["fp8_p50_ms"], found["bf16_rate_per_s"]) == (11.0, 7.0, 60)
    assert found["fp8_over_bf16"] == 1.5
    assert found["both_queries_per_s"] == 145.0
    assert found["bf16_cost_per_1000"] == pytest.approx(1 / 120)
    assert found["bf16_error_share"] == pytest.approx(0.02 / 5)
    assert found["fp8_fallback_share"] == pytest.approx(0.1 / 5)
    assert (found["verdict"], found["users"], found["ctr_effect"], found["gpu"]) == ("promoted", 15, 0.01, "some GPU")
    json.dumps(found, allow_nan=False)


def test_a_run_that_found_nothing_says_nothing() -> None:
    assert numbers(Found(), 3.5) == {"price_per_gpu_hour": 3.5}
    assert cost_per_1000(0.0, 3.5) is None
    assert math.isclose(cost_per_1000(1000.0, 3.6) or 0.0, 0.001)


def test_a_promotion_by_hand_is_called_so() -> None:
    assert numbers(Found(report=FOUND.report, forced=True), 1.0)["verdict"] == "promoted by hand"


def test_the_table_has_every_point() -> None:
    text = table(FOUND.points)
    assert text.count("\n") == len(FOUND.points) + 1
    assert "| fp8 alone | fp8 | open | 60 /s | 60 | 7 | 20 | 30 | 0.00% | 0.00% |" in text


@pytest.mark.parametrize("plan", [Plan(), Plan(margin=0.3)])
def test_the_experiment_is_a_valid_one(plan: Plan) -> None:
    spec = load_spec(specification(plan, 40.0))
    assert (spec.key, spec.minimums.duration_s) == (KEY, 40.0)
    assert [arm.variant for arm in spec.arms] == ["fp8", "bf16"]
    assert spec.ramp.steps[-1].coverage == 0.5


@pytest.mark.parametrize(
    ("left_s", "point_s", "levels"), [(1000.0, 6.0, 4), (240.0, 4.148, 4), (180.0, 3.333, 2), (10.0, 3.0, 1)]
)
def test_points_are_fitted_into_the_time_that_is_left(left_s: float, point_s: float, levels: int) -> None:
    found = fitted(Plan(), left_s)
    assert found.point_s == pytest.approx(point_s, abs=0.01)
    assert found.concurrency == Plan().concurrency[4 - levels :]


def test_the_alarm_ends_what_takes_too_long() -> None:
    with pytest.raises(OutOfTimeError), alarm(0.05):
        time.sleep(10.0)


def test_the_clock_leaves_time_for_a_clean_stop(capsys: pytest.CaptureFixture[str]) -> None:
    clock = Clock(100.0, 25.0)
    assert clock.left_s == pytest.approx(75.0, abs=1.0)
    clock.say("begun")
    assert "s] begun" in capsys.readouterr().err


def test_what_replicas_log_during_the_start_is_said_once_and_whole(tmp_path: Path) -> None:
    old = tmp_path / "worker-0.err"
    old.write_text("crossfade: of an earlier run\n")
    said: list[str] = []
    with ReplicaLog(said.append, tmp_path / "*.err", every_s=0.01):
        with (tmp_path / "worker-1.err").open("w") as file:
            for text in ("crossfade: loaded\nnoise\n", "crossfade: half", " a line\n"):
                file.write(text)
                file.flush()
                time.sleep(0.1)
        file.close()
    assert said == ["loaded", "half a line"]


def test_semantic_ids_are_distinct_and_skewed() -> None:
    codes = semantic_ids(5000, 3, 64, seed=0)
    assert torch.unique(codes, dim=0).shape == (5000, 3)
    sizes = torch.bincount(codes[:, 0], minlength=64)
    assert int(sizes[0]) > 4 * int(sizes[63])


EXPERTS = {"n_experts": 4, "n_shared_experts": 1, "experts_per_token": 2, "expert_dim": 32, "dense_layers": 1}


@pytest.mark.parametrize("more", [{}, EXPERTS])
def test_a_pair_of_checkpoints_answers_alike(more: dict[str, int], tmp_path: Any) -> None:
    config = replace(PRESETS["tiny"], **more)
    folders = make_pair(tmp_path, config, 300, torch.device("cpu"))
    answers = {}
    for name, folder in folders.items():
        recommender = load_recommender(folder)
        answers[name] = {one.item_id for one in recommender.recommend([["i1", "i2"]], 20, 64)[0]}
        assert len(answers[name]) == 20
    assert len(answers["bf16"] & answers["fp8"]) >= 12
