"""The effect among users whose slate would have differed, and what it means for everybody. Shown, never used.

A user is triggered by the first request, the only one that finds both arms in the same state, so the trigger cannot
depend on the arm. Nothing here enters a decision. Pure.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from experiment.metrics import METRICS
from experiment.state import ArmAggregate, LookInput
from stats.dilution import Triggered, diluted_interval, triggered_share
from stats.estimate import Estimate
from stats.moments import Moments
from stats.relative import relative_interval
from stats.srm import concentration_for, log_e_srm


@dataclass(frozen=True, slots=True)
class Effect:
    """A relative effect (0.05 = 5 % more) with always-valid limits; None where it, or a limit, is not known."""

    value: float | None = None
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True, slots=True)
class TriggeredMetric:
    """One metric. triggered: the effect among triggered users; rest: among the others, where it should be nothing.

    diluted: the effect on everybody that follows if the others are served alike in all of their window. Their first
    slates were the same; `rest` shows whether later ones changed anything.
    """

    metric: str
    arm: str
    triggered: Effect
    rest: Effect
    diluted: Effect

    @property
    def rest_differs(self) -> bool:
        """The limits of the others' effect exclude zero: the dilution leaves something out."""
        low, high = self.rest.low, self.rest.high
        return (low is not None and low > 0) or (high is not None and high < 0)


@dataclass(frozen=True, slots=True)
class TriggeredEvidence:
    """What one look knows of triggered users. All users counted here have closed their window.

    users: triggered ones by arm; compared: those whose slates were compared. share: triggered among compared (None:
    nobody yet). srm_log_e: of the triggered users' split over the arms.
    """

    users: Mapping[str, int]
    compared: Mapping[str, int]
    share: float | None
    srm_log_e: float
    metrics: tuple[TriggeredMetric, ...]

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> TriggeredEvidence:
        """Inverse of `dataclasses.asdict`."""
        metrics = tuple(
            TriggeredMetric(
                one["metric"], one["arm"], *(Effect(**one[part]) for part in ("triggered", "rest", "diluted"))
            )
            for one in fields["metrics"]
        )
        return cls(**{**fields, "metrics": metrics})


def weigh_triggered(look: LookInput, alpha: float, srm_delta: float) -> TriggeredEvidence | None:
    """Evidence about triggered users; None for an experiment that compares no slates.

    alpha: of the limits, each on its own; srm_delta: the deviation that the sample-ratio test is tuned to.
    """
    spec = look.row.spec
    if not spec.shadow:
        return None
    treatment, control = (look.arms[arm.arm] for arm in spec.arms)
    first = spec.metrics[0].name
    users = {arm.arm: _moments(arm.triggered, first).n for arm in (treatment, control)}
    compared = {arm.arm: users[arm.arm] + _moments(arm.rest, first).n for arm in (treatment, control)}
    everybody = sum(compared.values())
    return TriggeredEvidence(
        users=users,
        compared=compared,
        share=sum(users.values()) / everybody if everybody else None,
        srm_log_e=log_e_srm(list(users.values()), [0.5, 0.5], concentration=concentration_for(srm_delta)),
        metrics=tuple(
            _measure(metric.name, treatment, control, look.row.tau2[metric.name], alpha) for metric in spec.metrics
        ),
    )


def _measure(metric: str, treatment: ArmAggregate, control: ArmAggregate, tau2: float, alpha: float) -> TriggeredMetric:
    hit_t, hit_c = _moments(treatment.triggered, metric), _moments(control.triggered, metric)
    rest_t, rest_c = _moments(treatment.rest, metric), _moments(control.rest, metric)
    t, c = METRICS[metric].estimate(hit_t), METRICS[metric].estimate(hit_c)
    return TriggeredMetric(
        metric=metric,
        arm=treatment.arm,
        triggered=_effect(t, c, tau2, alpha),
        rest=_effect(METRICS[metric].estimate(rest_t), METRICS[metric].estimate(rest_c), tau2, alpha),
        diluted=_diluted(metric, t, c, (hit_t + hit_c, rest_t + rest_c), tau2, alpha),
    )


def _effect(t: Estimate | None, c: Estimate | None, tau2: float, alpha: float) -> Effect:
    if t is None or c is None or c.value == 0:
        return Effect()
    return Effect(t.value / c.value - 1, *map(_finite, relative_interval(t, c, tau2, alpha)))


def _diluted(
    metric: str,
    t: Estimate | None,
    c: Estimate | None,
    both: tuple[Moments, Moments],
    tau2: float,
    alpha: float,
) -> Effect:
    """both: the moments of the triggered and of the other users, over both arms."""
    share, rest = triggered_share(*both), METRICS[metric].estimate(both[1])
    if t is None or c is None or share is None or share.value <= 0:
        return Effect()
    if rest is None and share.value == 1:
        rest = Estimate(0.0, 0.0, 1)  # nobody: it has no weight
    if rest is None:
        return Effect()
    found = Triggered(t, c, rest, share)
    value = _finite(found.relative_overall)
    return Effect() if value is None else Effect(value, *map(_finite, diluted_interval(found, tau2, alpha)))


def _moments(of: Mapping[str, Moments], metric: str) -> Moments:
    return of.get(metric, Moments.empty())


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
