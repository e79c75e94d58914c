"""The Open Bandit Dataset as an A/B test: Random in place, Bernoulli Thompson sampling (BTS) to replace it.

What the unit is. ZOZOTOWN drew the policy anew for each user impression (the data's own documentation), not for each
user, and the logs name no users. So the user impression is what was randomised, and it is the unit here: rows of one
timestamp and one profile are the slots of one impression and count together. That is right for this experiment and
would be wrong for one that randomises users. As a check the same is done with the profile as unit: the combination of
the four hashed user features, some 200 to 250 a log, which should hold each user whole (what was hashed is not said).
Both arms share the profiles: where those differ in taste, the sum of the arms' variances is too large, not too small.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr

from experiment.controller import after_look, judge
from experiment.evidence import MetricEvidence, Reading
from experiment.ramp import new_experiment
from experiment.spec import parse_spec
from experiment.state import ArmAggregate, LookInput, State, Verdict
from stats.estimate import Estimate, ratio
from stats.evalues import latch, p_value
from stats.moments import Moments
from stats.power import Plan, relative_noise, users_per_arm
from stats.rare import log_e_more_errors

CAMPAIGNS = ("all", "men", "women")
POLICIES = ("random", "bts")
UNITS = ("impression", "profile")
BEGAN, DAYS = datetime(2019, 11, 24, tzinfo=UTC), 7
MARGIN = 0.1
PLAN = {"baseline": 0.005, "relative_sd": 14.0, "users_per_arm": 10_000}
"""Round figures of before: clicks of half a percent, each impression a coin, as many as the sample has."""


@dataclass(frozen=True, slots=True, eq=False)
class Log:
    """One policy's rows in order of time: hours since the start, click (0 or 1), and the two units' indices."""

    hours: NDArray[np.float64]
    click: NDArray[np.float64]
    impression: NDArray[np.int64]
    profile: NDArray[np.int64]

    def moments(self, unit: str, until_h: float) -> Moments:
        """x = clicks, y = rows of each unit seen by then."""
        seen = int(np.searchsorted(self.hours, until_h))
        index = (self.impression if unit == "impression" else self.profile)[:seen]
        rows = np.bincount(index).astype(float)
        clicks = np.bincount(index, weights=self.click[:seen])
        return Moments.from_values(clicks[rows > 0], rows[rows > 0])


@dataclass(frozen=True, slots=True)
class Outcome:
    """What the gate said of one campaign with one unit.

    effect, low, high: BTS relative to Random, limits always-valid. p_one_look: two-sided z test of the whole week, as
    if nobody had peeked. The other p are always-valid, one-sided, latched over the hours, without any burn-in; p_exact
    is p_not_worse without a normal limit: each click a coin (`stats.rare`). units_needed: in each arm, to prove the
    margin in four cases of five when nothing differs.
    """

    campaign: str
    unit: str
    control: Reading
    treatment: Reading
    rows: Mapping[str, int]
    clicks: Mapping[str, int]
    effect: float
    low: float | None
    high: float | None
    p_one_look: float
    p_superior: float
    p_not_worse: float
    p_exact: float
    p_harm: float
    verdict: str
    reasons: Sequence[str]
    verdict_without_burn_in: str
    units_needed: float

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def parse(content: bytes) -> Log:
    """A log from the CSV of one policy and campaign."""
    rows = [line.split(",", 10) for line in content.decode().splitlines()[1:]]
    hours = np.array([(datetime.fromisoformat(row[1]) - BEGAN) / timedelta(hours=1) for row in rows])
    order = np.argsort(hours, kind="stable")
    profiles = [tuple(rows[at][6:10]) for at in order]
    impressions = [(rows[at][1], profile) for at, profile in zip(order, profiles, strict=True)]
    click = np.array([float(rows[at][4]) for at in order])
    return Log(hours[order], click, _numbered(impressions), _numbered(profiles))


def _numbered(labels: Sequence[object]) -> NDArray[np.int64]:
    number: dict[object, int] = {}
    return np.array([number.setdefault(label, len(number)) for label in labels], dtype=np.int64)


def document(campaign: str, *, burn_in: bool) -> dict[str, Any]:
    """The specification: BTS must not lose more than the margin; burn-in and duration are the platform's defaults."""
    return {
        "key": f"obd-{campaign}",
        "control": {"arm": "random", "variant": "random"},
        "treatments": [{"arm": "bts", "variant": "bts"}],
        "ramp": {"steps": [{"coverage": 0.5}]},
        "metrics": [{"name": "ctr", "role": "guardrail", "margin": MARGIN, "planning": PLAN}],
    } | ({} if burn_in else {"minimums": {"users_per_arm": 2, "clicks_per_arm": 0}})


def judged(
    logs: Mapping[str, Log], campaign: str, unit: str, *, burn_in: bool
) -> tuple[Verdict, list[str], MetricEvidence]:
    """(verdict, its reasons, evidence) at the end of the week, after a look at every hour or at the first decision."""
    spec = parse_spec(document(campaign, burn_in=burn_in))
    row = replace(new_experiment(spec, BEGAN), state=State.RUNNING, started_at=BEGAN, step_started_at=BEGAN)
    for hour in range(1, 24 * DAYS + 1):
        now = BEGAN + timedelta(hours=hour)
        arms = {policy: _aggregate(policy, logs[policy].moments(unit, hour)) for policy in POLICIES}
        seen = LookInput(row, arms, now, orphans=0, late=0)
        evidence, verdict, reasons = judge(seen, now)
        if verdict in {Verdict.PROMOTE, Verdict.ROLLBACK}:
            break
        row = after_look(seen, evidence, verdict, reasons, now)
    return verdict, [reason.text for reason in reasons], evidence.metrics[0]


def _aggregate(policy: str, m: Moments) -> ArmAggregate:
    totals = {"clicks": m.sx, "impressions": m.sy, "requests": float(m.n)}
    return ArmAggregate(policy, [m.n], m.n, {"ctr": m}, totals)


def outcome(logs: Mapping[str, Log], campaign: str, unit: str) -> Outcome:
    """The whole week of one campaign."""
    verdict, reasons, found = judged(logs, campaign, unit, burn_in=True)
    at_once, _, latched = judged(logs, campaign, unit, burn_in=False)
    last = {policy: logs[policy].moments(unit, 24 * DAYS) for policy in POLICIES}
    control, treatment = _estimate(last["random"]), _estimate(last["bts"])
    z = (treatment.value - control.value) / math.sqrt(treatment.variance + control.variance)
    return Outcome(
        campaign, unit, found.control, found.treatment,
        {policy: int(m.sy) for policy, m in last.items()}, {policy: int(m.sx) for policy, m in last.items()},
        treatment.value / control.value - 1, found.low, found.high,
        float(2 * ndtr(-abs(z))),
        p_value(latched.latch.superior), p_value(latched.latch.promote), _p_exact(logs),
        p_value(latched.latch.rollback),
        verdict.value, reasons, at_once.value,
        users_per_arm(relative_noise(control), MARGIN, Plan()),
    )  # fmt: skip


def _p_exact(logs: Mapping[str, Log]) -> float:
    """Not worse than the margin, were each click a coin that lands on an arm by its share of the rows so far."""
    highest = 0.0
    for hour in range(1, 24 * DAYS + 1):
        seen = {policy: int(np.searchsorted(logs[policy].hours, hour)) for policy in POLICIES}
        clicks = {policy: int(logs[policy].click[: seen[policy]].sum()) for policy in POLICIES}
        share = seen["bts"] / (seen["bts"] + seen["random"])
        now = log_e_more_errors(clicks["bts"], clicks["random"], share=share, ratio=1 - MARGIN)
        highest = latch(highest, now)
    return p_value(highest)


def _estimate(m: Moments) -> Estimate:
    estimate = ratio(m)
    if estimate is None:
        raise ValueError("a log without impressions has no CTR")
    return estimate


def campaign_logs(contents: Mapping[str, bytes], campaign: str) -> dict[str, Log]:
    """Policy -> its log of a campaign."""
    return {policy: parse(contents[f"obp/dataset/obd/{policy}/{campaign}/{campaign}.csv"]) for policy in POLICIES}
