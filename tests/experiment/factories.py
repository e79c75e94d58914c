"""Specifications, arms and looks, built for the tests of the decision core."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import numpy as np

from experiment.metrics import COLUMNS, METRICS
from experiment.ramp import new_experiment
from experiment.spec import ExperimentSpec
from experiment.state import ArmAggregate, ExperimentRow, LookInput, State
from stats.moments import Moments

NOW = datetime(2026, 11, 23, 12, 0, tzinfo=UTC)

Totals = Mapping[str, np.ndarray]
"""Column of the fold -> one value per closed user."""

DOCUMENT: dict[str, Any] = {
    "key": "fp8-vs-bf16",
    "control": {"arm": "bf16", "variant": "bf16"},
    "treatments": [{"arm": "fp8", "variant": "fp8"}],
    "ramp": {
        "steps": [
            {"coverage": share, "min_users_per_arm": 20, "min_duration_s": 60}
            for share in (0.01, 0.05, 0.10, 0.25, 0.5)
        ]
    },
    "metrics": [
        {
            "name": "ctr",
            "role": "guardrail",
            "margin": 0.05,
            "planning": {"baseline": 0.1, "relative_sd": 1.2, "users_per_arm": 4000},
        },
        {
            "name": "watch_time",
            "role": "guardrail",
            "margin": 0.10,
            "planning": {"baseline": 60, "relative_sd": 1.5, "users_per_arm": 4000},
        },
    ],
    "limits": [
        {"name": "error_share", "max": 0.02, "min_requests": 50},
        {"name": "slow_share", "max": 0.10, "min_requests": 50},
    ],
    "minimums": {"users_per_arm": 200, "clicks_per_arm": 50, "duration_s": 3600},
    "max_duration_s": 100_000,
}


def running_row(spec: ExperimentSpec, **changes: Any) -> ExperimentRow:
    began = datetime(2026, 11, 23, 0, 0, tzinfo=UTC)
    row = replace(new_experiment(spec, began), state=State.RUNNING, started_at=began, step_started_at=began)
    return replace(row, **changes)


def visitors(users: int, rng: np.random.Generator, ctr: float = 0.1, watch_s: float = 60.0) -> dict[str, np.ndarray]:
    """Per-user totals with very unequal activity: a few users bring most of the impressions."""
    impressions = rng.geometric(0.05, users)
    clicks = rng.binomial(impressions, np.clip(ctr * rng.gamma(4.0, 0.25, users), 0, 1))
    totals = {name: np.zeros(users) for name in COLUMNS}
    totals |= {"requests": np.ceil(impressions / 10), "impressions": impressions, "clicks": clicks}
    totals["watch_s"] = rng.gamma(0.6, watch_s / 0.6, users)
    return {name: values.astype(float) for name, values in totals.items()}


def aggregate(arm: str, totals: Totals, exposed: Sequence[int] | None = None, **more: float) -> ArmAggregate:
    """An arm whose users' windows have all closed. more: totals over all exposed users that differ from the sums."""
    users = next(iter(totals.values())).shape[0]
    moments = {}
    for name, metric in METRICS.items():
        numerator = np.sum([totals[column] for column in metric.numerator], axis=0)
        denominator = totals[metric.denominator] if metric.denominator else np.ones(users)
        moments[name] = (
            Moments.from_values(numerator, denominator) if metric.denominator else Moments.from_values(numerator)
        )
    sums = {name: float(values.sum()) for name, values in totals.items()} | more
    return ArmAggregate(arm, list(exposed or [0, 0, 0, 0, users]), users, moments, sums)


def look_at(row: ExperimentRow, arms: Sequence[ArmAggregate]) -> LookInput:
    return LookInput(row, {arm.arm: arm for arm in arms}, NOW, orphans=0, late=0)
