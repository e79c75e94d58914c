"""What a specification will do, before it starts: production's own gate on experiments whose truth is known.

Users arrive as the ramp lets them in, their values are drawn with the planned baseline and noise, and every look goes
through `judge` and `after_look`, which is all that a look of the service does between reading and writing.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import numpy as np
from numpy.typing import NDArray

from experiment.controller import after_look, judge
from experiment.errors import SpecError
from experiment.metrics import METRICS
from experiment.ramp import Action, act, new_experiment
from experiment.spec import ExperimentSpec, MetricSpec
from experiment.state import ArmAggregate, ExperimentRow, LookInput, State
from stats.moments import Moments
from stats.simulation.rates import Rate

DAY_S = 86_400.0
MOST_LOOKS = 200
"""Of one simulated run. The service looks more often; its guarantees do not depend on how often."""

_START = datetime(2000, 1, 1, tzinfo=UTC)
_PER_USER = 20.0  # units of a ratio's denominator that every user has
_POOL = 1 << 17  # values to draw from, with replacement; their mean is the baseline exactly

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Scenario:
    """A truth: the relative effect of the treatment on each metric (0 where it is not named), in words and numbers."""

    name: str
    effects: dict[str, float]


@dataclass(frozen=True, slots=True)
class Outcome:
    """How often the runs of a scenario ended how. days: from the start to the end, mean over the runs that decided."""

    scenario: Scenario
    promoted: Rate
    rolled_back: Rate
    undecided: Rate
    days: float


def scenarios(spec: ExperimentSpec, loss: float | None = None) -> list[Scenario]:
    """No effect; each guardrail at its margin exactly (a promotion is an error); each beyond it.

    loss: the relative loss of the last kind, positive; twice each margin unless given.
    """
    found = [Scenario("no effect", {})]
    guardrails = [metric for metric in spec.metrics if metric.role == "guardrail"]
    for metric in guardrails:
        worse = -1.0 if METRICS[metric.name].increasing else 1.0
        found.append(Scenario(f"{metric.name} worse by its margin", {metric.name: worse * (metric.margin or 0.0)}))
    for metric in guardrails:
        worse = -1.0 if METRICS[metric.name].increasing else 1.0
        beyond = loss if loss is not None else 2 * (metric.margin or 0.0)
        found.append(Scenario(f"{metric.name} worse by {100 * beyond:g} %", {metric.name: worse * min(beyond, 1.0)}))
    better = [metric.name for metric in spec.metrics if metric.role == "success"]
    return found + [Scenario(f"{name} better by 10 %", {name: 0.1}) for name in better]


def selftest(
    spec: ExperimentSpec,
    users_per_day: float,
    runs: int = 100,
    seed: int = 0,
    loss: float | None = None,
    progress: Callable[[str, int, int], None] | None = None,
) -> Iterator[Outcome]:
    """Run every scenario. users_per_day: new users of the whole service. progress: (scenario, runs done, runs).

    Raises SpecError naming the field when the traffic or the number of runs makes no sense.
    """
    if not users_per_day > 0:
        raise SpecError("users_per_day", f"must be positive, got {users_per_day}")
    if runs < 1:
        raise SpecError("runs", f"must be at least 1, got {runs}")
    if loss is not None and not 0 < loss <= 1:
        raise SpecError("loss", f"must lie above 0 and at most 1, got {loss}")
    deciding = tuple(metric for metric in spec.metrics if metric.role != "quality")
    spec = spec.model_copy(update={"metrics": deciding})
    rng = np.random.default_rng(seed)
    pools = {metric.name: _pool(metric, rng) for metric in deciding}
    for scenario in scenarios(spec, loss):
        ends = []
        for run in range(runs):
            ends.append(_run(spec, scenario, users_per_day, pools, rng))
            if progress is not None:
                progress(scenario.name, run + 1, runs)
        yield _outcome(scenario, ends)


def _outcome(scenario: Scenario, ends: Sequence[ExperimentRow]) -> Outcome:
    rows = [row for row in ends if row.state in {State.PROMOTED, State.ROLLED_BACK}]
    promoted = sum(row.state is State.PROMOTED for row in rows)
    days = [(row.ended_at - row.started_at).total_seconds() / DAY_S for row in rows if row.ended_at and row.started_at]
    return Outcome(
        scenario,
        Rate(promoted, len(ends)),
        Rate(len(rows) - promoted, len(ends)),
        Rate(len(ends) - len(rows), len(ends)),
        float(np.mean(days)) if days else float("nan"),
    )


def _run(
    spec: ExperimentSpec,
    scenario: Scenario,
    users_per_day: float,
    pools: dict[str, Floats],
    rng: np.random.Generator,
) -> ExperimentRow:
    """One experiment from its start to its end, or as it stands when its time is over: that decides nothing."""
    row = act(new_experiment(spec, _START), Action.START, _START)
    effects = {arm.arm: scenario.effects for arm in spec.treatments} | {spec.control.arm: {}}
    crowds = {arm.arm: _Crowd(spec, effects[arm.arm], pools, rng) for arm in spec.arms}
    every_s = max(spec.look_interval_s, spec.max_duration_s / MOST_LOOKS)
    share = spec.layer.end - spec.layer.start
    for look in range(1, math.ceil(spec.max_duration_s / every_s)):
        elapsed_s = look * every_s
        arriving = users_per_day * share * spec.ramp.steps[row.step].coverage * every_s / DAY_S
        arms = {name: crowd.later(name, arriving, row.step, elapsed_s) for name, crowd in crowds.items()}
        now = _START + timedelta(seconds=elapsed_s)
        seen = LookInput(row, arms, now, orphans=0, late=0)
        evidence, verdict, reasons = judge(seen, now)
        row = after_look(seen, evidence, verdict, reasons, now)
        if row.state.is_final:
            break
    return row


class _Crowd:
    """The users of one arm: who came, whose window has closed, and what those did."""

    def __init__(
        self, spec: ExperimentSpec, effects: dict[str, float], pools: dict[str, Floats], rng: np.random.Generator
    ) -> None:
        self._spec, self._effects, self._pools, self._rng = spec, effects, pools, rng
        self._by_phase = [0] * len(spec.ramp.steps)
        self._waiting: deque[tuple[float, int]] = deque()
        self._moments = {name: Moments.empty() for name in pools}
        self._closed = 0

    def later(self, arm: str, arriving: float, phase: int, now_s: float) -> ArmAggregate:
        """The arm after about `arriving` more users have come; each look's users arrive at the look."""
        came = int(self._rng.poisson(arriving))
        self._by_phase[phase] += came
        self._waiting.append((now_s + self._spec.exposure_window_s, came))
        closing = 0
        while self._waiting and self._waiting[0][0] <= now_s:
            closing += self._waiting.popleft()[1]
        self._close(closing)
        return ArmAggregate(arm, tuple(self._by_phase), self._closed, dict(self._moments), self._totals())

    def _close(self, users: int) -> None:
        self._closed += users
        for name, pool in self._pools.items():
            x = pool[self._rng.integers(0, pool.size, users)] * (1.0 + self._effects.get(name, 0.0))
            is_ratio = METRICS[name].kind == "ratio"
            more = Moments.from_values(x * _PER_USER, np.full(users, _PER_USER)) if is_ratio else Moments.from_values(x)
            self._moments[name] = self._moments[name] + more

    def _totals(self) -> dict[str, float]:
        """Clicks for the burn-in, requests without a failure for the limits."""
        clicks = self._moments["ctr"].sx if "ctr" in self._moments else float("inf")
        return {"requests": float(sum(self._by_phase)), "clicks": clicks}


def _pool(metric: MetricSpec, rng: np.random.Generator) -> Floats:
    """Gamma values with the planned mean and noise: never negative, skewed, many small and few large."""
    plan = metric.planning
    shape = 1.0 / plan.relative_sd**2
    values = rng.gamma(shape, plan.baseline / shape, _POOL)
    return np.asarray(values * (plan.baseline / values.mean()))
