"""Sentences about evidence, for people: what was measured, with its limits and the line that it was held against.

All limits are always-valid: they hold at every look together.
"""

from __future__ import annotations

from experiment.evidence import LimitEvidence, MetricEvidence
from experiment.metrics import METRICS
from experiment.spec import ExperimentSpec
from experiment.state import Reason
from experiment.triggered import Effect, TriggeredEvidence, TriggeredMetric


def about_metric(spec: ExperimentSpec, metric: MetricEvidence, code: str, conclusion: str) -> Reason:
    """What was found about non-inferiority: the limit on the harmful side against the margin."""
    bound, margin = metric.bound, _signed(metric, metric.margin)
    side = "at least" if METRICS[metric.metric].increasing else "at most"
    return _about(spec, metric, code, conclusion, bound, margin, side, spec.promote_alpha)


def about_harm(spec: ExperimentSpec, metric: MetricEvidence, code: str, conclusion: str) -> Reason:
    """What was found about harm: the limit on the harmless side, which is beyond the margin when harm is proved."""
    planned = next(one for one in spec.metrics if one.name == metric.metric)
    margin = _signed(metric, planned.margin if planned.harm_margin is None else planned.harm_margin)
    side = "at most" if METRICS[metric.metric].increasing else "at least"
    return _about(spec, metric, code, conclusion, metric.harm_bound, margin, side, spec.rollback_alpha)


def _about(
    spec: ExperimentSpec,
    metric: MetricEvidence,
    code: str,
    conclusion: str,
    bound: float | None,
    margin: float | None,
    side: str,
    alpha: float,
) -> Reason:
    text = f"{metric.metric} of {metric.arm} against {spec.control.arm}: {_effect(metric)}"
    if bound is not None and margin is not None:
        text += f", {side} {percent(bound)} with {100 * (1 - alpha):.4g} % confidence, margin {percent(margin)}"
    users = metric.treatment.users
    return Reason(
        code=code,
        text=f"{text}: {conclusion} ({users:,} users)",
        metric=metric.metric,
        arm=metric.arm,
        estimate=metric.effect,
        bound=bound,
        margin=margin,
        n=users,
    )


def _signed(metric: MetricEvidence, margin: float | None) -> float | None:
    """A margin as the relative effect where it lies."""
    if margin is None:
        return None
    return -margin if METRICS[metric.metric].increasing else margin


def about_limit(limit: LimitEvidence, code: str) -> Reason:
    """A hard limit that was broken."""
    value = limit.value or 0.0
    text = (
        f"{limit.name} of {limit.arm} is {100 * value:.2f} % of {limit.requests:,} requests, "
        f"above the hard limit of {100 * limit.max:g} %"
    )
    return Reason(code, text, limit.name, limit.arm, limit.value, limit.max, limit.max, limit.requests)


def about_triggered(found: TriggeredEvidence) -> list[str]:
    """One sentence for the whole, one for each metric: among triggered users, and diluted to everybody."""
    if found.share is None:
        return ["nobody's slates have been compared yet"]
    compared = sum(found.compared.values())
    told = f"{100 * found.share:.3g} % of {compared:,} users would have seen another slate at their first request"
    return [told, *(_about_triggered(metric) for metric in found.metrics)]


def _about_triggered(metric: TriggeredMetric) -> str:
    text = f"{metric.metric} of {metric.arm}: among them {_limits(metric.triggered)}, diluted {_limits(metric.diluted)}"
    if metric.rest_differs:
        text += f"; but the others differ, too, by {_limits(metric.rest)}, which the dilution leaves out"
    return text


def _limits(effect: Effect) -> str:
    if effect.value is None:
        return "unknown"
    low = "-∞" if effect.low is None else percent(effect.low)
    high = "+∞" if effect.high is None else percent(effect.high)
    return f"{percent(effect.value)} ({low} to {high})"


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
