"""Sentences about evidence, for people: what was measured, with its limits and the line that it was held against.

All limits are always-valid: they hold at every look together.
"""

from __future__ import annotations

from experiment.evidence import LimitEvidence, MetricEvidence
from experiment.metrics import METRICS
from experiment.spec import ExperimentSpec
from experiment.state import Reason


def about_metric(spec: ExperimentSpec, metric: MetricEvidence, code: str, conclusion: str) -> Reason:
    """`bound` is the one-sided limit that is held against the margin: lower where more is better, upper otherwise."""
    increasing = METRICS[metric.metric].increasing
    signed_margin = None
    if metric.margin is not None:
        signed_margin = -metric.margin if increasing else metric.margin
    text = f"{metric.metric} of {metric.arm} against {spec.control.arm}: {_effect(metric)}"
    if metric.bound is not None and signed_margin is not None:
        side = "at least" if increasing else "at most"
        level = 100 * (1 - spec.alpha.promote)
        text += f", {side} {percent(metric.bound)} with {level:g} % confidence, margin {percent(signed_margin)}"
    users = metric.treatment.users
    return Reason(
        code=code,
        text=f"{text}: {conclusion} ({users:,} users)",
        metric=metric.metric,
        arm=metric.arm,
        estimate=metric.effect,
        bound=metric.bound,
        margin=signed_margin,
        n=users,
    )


def about_limit(limit: LimitEvidence, code: str) -> Reason:
    """A hard limit that was broken."""
    value = limit.value or 0.0
    text = (
        f"{limit.name} of {limit.arm} is {100 * value:.2f} % of {limit.requests:,} requests, "
        f"above the hard limit of {100 * limit.max:g} %"
    )
    return Reason(code, text, limit.name, limit.arm, limit.value, limit.max, limit.max, limit.requests)


def percent(value: float | None) -> str:
    """A signed percentage, `unknown` where there is none."""
    return "unknown" if value is None else f"{100 * value:+.1f} %"


def seconds(value: float) -> str:
    """A duration in the unit that people would use."""
    for unit, length in (("days", 86_400), ("h", 3_600), ("min", 60)):
        if value >= 2 * length:
            return f"{value / length:.3g} {unit}"
    return f"{value:.0f} s"


def _effect(metric: MetricEvidence) -> str:
    if metric.effect is None:
        return "no estimate yet"
    low = "-∞" if metric.low is None else percent(metric.low)
    high = "+∞" if metric.high is None else percent(metric.high)
    return f"{percent(metric.effect)} (95 % limits {low} to {high})"
