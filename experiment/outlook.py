"""How long it may take yet: from the variance that was measured, not from the one that was planned. Shown, never used.

Nothing here enters a decision: whoever stops or widens a run because of it changes neither e-value nor guarantee.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from datetime import datetime, timedelta

from experiment.evidence import Evidence, MetricEvidence
from experiment.explain import seconds
from experiment.state import ExperimentRow, State
from stats.power import Plan, days, detectable_effect, supportable_margin, users_per_arm

DAY_S = 86_400.0


@dataclass(frozen=True, slots=True)
class Outlook:
    """One guardrail or success metric of one treatment, if the truth is `no effect` and power is to be .8.

    users, needed: closed users per arm now, and as many as the proof takes (None: a success metric needs an effect).
    detectable: the relative effect that the present users find; margin_now: the smallest margin that they can prove.
    days: until `needed` users have closed at the present rate, 0 if they have; expected_at likewise. None where
    nothing can be said: no users yet, no new users, or the run has ended.
    """

    metric: str
    arm: str
    users: int
    needed: int | None
    detectable: float | None
    margin_now: float | None
    days: float | None
    expected_at: str | None

    @property
    def text(self) -> str:
        """The same for people."""
        parts = [f"{self.metric} of {self.arm}: {self.users:,} closed users in the smaller arm"]
        if self.needed is not None:
            parts.append(f"about {self.needed:,} would prove the margin if nothing has changed")
        if self.margin_now is not None:
            parts.append(f"the present ones could prove a margin of {100 * self.margin_now:.2g} %")
        if self.days is not None:
            parts.append("enough have closed" if self.days == 0 else f"{seconds(self.days * DAY_S)} to go at this rate")
        return ", ".join(parts)


def outlook(row: ExperimentRow, evidence: Evidence) -> list[Outlook]:
    """One for every metric that decides."""
    guardrails = sum(metric.role == "guardrail" for metric in row.spec.metrics)
    plan = Plan(alpha=row.spec.alpha.promote, guardrails=max(guardrails, 1), comparisons=len(row.spec.treatments))
    per_day = _closing_per_day(row, evidence)
    return [_of(metric, row, plan, per_day) for metric in evidence.metrics if metric.role in {"guardrail", "success"}]


def _of(metric: MetricEvidence, row: ExperimentRow, plan: Plan, per_day: float | None) -> Outlook:
    users = min(metric.control.users, metric.treatment.users)
    noise = _noise(metric)
    if noise is None:
        return Outlook(metric.metric, metric.arm, users, None, None, None, None, None)
    needed = math.ceil(users_per_arm(noise, metric.margin, plan)) if metric.margin else None
    left = None
    if needed is not None and per_day is not None:
        left = days(needed - users, per_day) if needed > users else 0.0
    at = None if left is None or row.watermark is None else _later(row.watermark, left)
    margin_now = supportable_margin(noise, users, plan)
    return Outlook(
        metric.metric, metric.arm, users, needed, detectable_effect(noise, users, plan), margin_now, left, at
    )


def _noise(metric: MetricEvidence) -> float | None:
    """c² = n V / R² of control's users."""
    value, variance, users = metric.control.value, metric.control.variance, metric.control.users
    if not value or not variance or not users or not metric.treatment.users:
        return None
    return users * variance / value**2


def _closing_per_day(row: ExperimentRow, evidence: Evidence) -> float | None:
    """New users of the smallest arm a day at the present step: as many windows will close a day."""
    if row.state not in {State.RUNNING, State.PAUSED} or row.watermark is None or row.step_started_at is None:
        return None
    elapsed_s = (row.watermark - row.step_started_at).total_seconds()
    fewest = min(evidence.exposed_in_step.values())
    return fewest / elapsed_s * DAY_S if fewest and elapsed_s > 0 else None


def _later(since: datetime, count: float) -> str | None:
    try:
        return (since + timedelta(days=count)).isoformat()
    except OverflowError:
        return None
