"""From aggregates to evidence: what one look knows, before anything is decided. Pure."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from experiment.metrics import METRICS
from experiment.spec import ExperimentSpec, Limit, MetricSpec
from experiment.state import ArmAggregate, Latch, LookInput
from experiment.triggered import TriggeredEvidence, weigh_triggered
from stats.bound import relative_bound
from stats.contrast import Contrast, difference, noninferiority
from stats.estimate import Estimate
from stats.evalues import latch
from stats.mixture import confidence_sequence, log_e_one_sided, tau2_for
from stats.relative import relative_interval
from stats.srm import concentration_for, log_e_srm

DISPLAY_ALPHA = 0.05
SRM_DELTA = 0.01
"""The share of users gone astray that the sample-ratio test is tuned to."""


@dataclass(frozen=True, slots=True)
class Reading:
    """One arm's value of a metric with its always-valid two-sided limits; None where there is not enough to say.

    variance: of the value, as an estimate.
    """

    value: float | None
    low: float | None
    high: float | None
    users: int
    variance: float | None = None


@dataclass(frozen=True, slots=True)
class MetricEvidence:
    """One metric of one treatment against control.

    effect, low, high: relative to control (0.05 = 5 % more), limits always-valid at 95 %; infinite limits are None.
    bound: the one-sided limit on the harmful side that is held against the margin, at the alpha of one treatment's
    promotion; harm_bound: the one on the other side that is held against the harm margin, at that of one rollback.
    log_e_*: at this look; latch: their running maxima. ready: past the burn-in, so the latch may move.
    """

    metric: str
    arm: str
    role: str
    margin: float | None
    control: Reading
    treatment: Reading
    effect: float | None
    low: float | None
    high: float | None
    bound: float | None
    harm_bound: float | None
    log_e_promote: float
    log_e_rollback: float
    log_e_superior: float
    latch: Latch
    ready: bool


@dataclass(frozen=True, slots=True)
class LimitEvidence:
    """A hard limit: an arm's share of requests against its maximum. value is None below min_requests."""

    name: str
    arm: str
    value: float | None
    requests: int
    max: float

    @property
    def broken(self) -> bool:
        return self.value is not None and self.value > self.max


@dataclass(frozen=True, slots=True)
class Evidence:
    """Everything that a verdict rests on, and `triggered`, which is only shown (None: slates are not compared)."""

    metrics: tuple[MetricEvidence, ...]
    limits: tuple[LimitEvidence, ...]
    srm_log_e: float
    exposed: Mapping[str, int]
    exposed_in_step: Mapping[str, int]
    closed: Mapping[str, int]
    totals: Mapping[str, Mapping[str, float]]
    orphans: int
    late: int
    triggered: TriggeredEvidence | None = None

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready; replayed by `from_dict`."""
        return asdict(self)

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> Evidence:
        """Inverse of `to_dict`; what else a decision stores beside it is ignored."""
        metrics = tuple(_metric_from_dict(metric) for metric in fields["metrics"])
        limits = tuple(LimitEvidence(**limit) for limit in fields["limits"])
        shown = fields.get("triggered")
        triggered = None if shown is None else TriggeredEvidence.from_dict(shown)
        own = {name: value for name, value in fields.items() if name in cls.__dataclass_fields__}
        return cls(**{**own, "metrics": metrics, "limits": limits, "triggered": triggered})


def _metric_from_dict(fields: Mapping[str, Any]) -> MetricEvidence:
    parts = {
        "control": Reading(**fields["control"]),
        "treatment": Reading(**fields["treatment"]),
        "latch": Latch(**fields["latch"]),
    }
    return MetricEvidence(**{**fields, **parts})


def tau2_of(spec: ExperimentSpec) -> dict[str, float]:
    """The mixture variance of every metric, from its planning alone: fixed before the first user, never refitted.

    The planned variance is that of the margin's contrast, V_T + (1 ∓ m)² V_C with V = (relative_sd · baseline)² / n.
    """
    fixed = {}
    for metric in spec.metrics:
        plan = metric.planning
        one_arm = (plan.relative_sd * plan.baseline) ** 2 / plan.users_per_arm
        sign = -1.0 if METRICS[metric.name].increasing else 1.0
        share = 1 + sign * (metric.margin or 0.0)
        fixed[metric.name] = tau2_for(one_arm * (1 + share * share), spec.alpha.promote, sided=1)
    return fixed


def weigh(look: LookInput) -> Evidence:
    """All evidence of one look. The row's latches are carried on; they move only past the burn-in.

    The arms' shares are equal at every step, so the sample-ratio test pools the phases.
    """
    row, spec = look.row, look.row.spec
    arms = [look.arms[arm.arm] for arm in spec.arms]
    control, treatments = arms[-1], arms[:-1]
    exposed = {arm.arm: sum(arm.exposed_by_phase) for arm in arms}
    shares = [1 / len(arms)] * len(arms)
    return Evidence(
        metrics=tuple(_measure(look, metric, arm, control) for metric in spec.metrics for arm in treatments),
        limits=tuple(_check_limit(limit, arm) for limit in spec.limits for arm in arms),
        srm_log_e=log_e_srm(list(exposed.values()), shares, concentration=concentration_for(SRM_DELTA)),
        exposed=exposed,
        exposed_in_step={arm.arm: sum(arm.exposed_by_phase[row.step :]) for arm in arms},
        closed={arm.arm: arm.closed_users for arm in arms},
        totals={arm.arm: dict(arm.totals) for arm in arms},
        orphans=look.orphans,
        late=look.late,
        triggered=weigh_triggered(look, DISPLAY_ALPHA, SRM_DELTA),
    )


def _measure(look: LookInput, metric: MetricSpec, arm: ArmAggregate, control: ArmAggregate) -> MetricEvidence:
    spec, tau2 = look.row.spec, look.row.tau2[metric.name]
    before = look.row.latches.get(latch_key(metric.name, arm.arm), Latch())
    t, c = (METRICS[metric.name].estimate(one.moments[metric.name]) for one in (arm, control))
    ready = _past_burn_in(spec, arm) and _past_burn_in(spec, control)
    effect = low = high = bound = harm_bound = None
    promote = rollback = superior = 0.0
    if t is not None and c is not None:
        promote, rollback, superior = _log_e_values(metric, t, c, tau2)
        if c.value != 0:
            effect = t.value / c.value - 1
            low, high = (_finite(limit) for limit in relative_interval(t, c, tau2, DISPLAY_ALPHA))
            increasing = METRICS[metric.name].increasing
            bound = _finite(relative_bound(t, c, tau2, spec.promote_alpha, increasing=increasing))
            harm_bound = _finite(relative_bound(t, c, tau2, spec.rollback_alpha, increasing=not increasing))
    now = before
    if ready:
        now = Latch(latch(before.promote, promote), latch(before.rollback, rollback), latch(before.superior, superior))
    return MetricEvidence(
        metric=metric.name,
        arm=arm.arm,
        role=metric.role,
        margin=metric.margin,
        control=_reading(c, control.closed_users, tau2),
        treatment=_reading(t, arm.closed_users, tau2),
        effect=effect,
        low=low,
        high=high,
        bound=bound,
        harm_bound=harm_bound,
        log_e_promote=promote,
        log_e_rollback=rollback,
        log_e_superior=superior,
        latch=now,
        ready=ready,
    )


def _log_e_values(metric: MetricSpec, t: Estimate, c: Estimate, tau2: float) -> tuple[float, float, float]:
    """(not worse than the margin, worse than the harm margin, better) as log e-values; 0 without a margin."""
    increasing = METRICS[metric.name].increasing
    better = difference(t, c, increasing=increasing)
    if metric.margin is None:
        return 0.0, 0.0, _log_e(better, tau2)
    harm_margin = metric.margin if metric.harm_margin is None else metric.harm_margin
    within = noninferiority(t, c, metric.margin, increasing=increasing)
    beyond = noninferiority(t, c, harm_margin, increasing=increasing).harm
    return _log_e(within, tau2), _log_e(beyond, tau2), _log_e(better, tau2)


def _log_e(contrast: Contrast, tau2: float) -> float:
    return log_e_one_sided(contrast.d, contrast.variance, tau2)


def _past_burn_in(spec: ExperimentSpec, arm: ArmAggregate) -> bool:
    """Clicks are asked of control only: a treatment that nobody clicks must not stay in the burn-in for that."""
    clicks = arm.totals.get("clicks", 0.0)
    enough = clicks >= spec.minimums.clicks_per_arm or arm.arm != spec.control.arm
    return arm.closed_users >= spec.minimums.users_per_arm and enough


def _reading(estimate: Estimate | None, users: int, tau2: float) -> Reading:
    """An arm's own limits; its variance is about half that of the contrast, and so is its tau²."""
    if estimate is None:
        return Reading(None, None, None, users)
    low, high = confidence_sequence(estimate.value, estimate.variance, tau2 / 2, DISPLAY_ALPHA)
    return Reading(estimate.value, _finite(low), _finite(high), users, estimate.variance)


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _check_limit(limit: Limit, arm: ArmAggregate) -> LimitEvidence:
    requests = int(arm.totals.get("requests", 0))
    value = None
    if requests >= limit.min_requests:
        value = sum(arm.totals.get(column, 0.0) for column in METRICS[limit.name].numerator) / requests
    return LimitEvidence(limit.name, arm.arm, value, requests, limit.max)


def latch_key(metric: str, arm: str) -> str:
    """The key of a metric's latch in the row: one for each treatment."""
    return f"{metric}/{arm}"


def latches(evidence: Evidence) -> dict[str, Latch]:
    """The latches after this look, for the row."""
    return {latch_key(metric.metric, metric.arm): metric.latch for metric in evidence.metrics}
