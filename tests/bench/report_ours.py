"""Our side of report.py: everything that is said of ten metrics of two arms, from their sums alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from stats.bound import relative_bound
from stats.contrast import difference, noninferiority
from stats.cuped import adjusted_means
from stats.estimate import Estimate, mean, ratio
from stats.evalues import latch, p_value
from stats.mixture import confidence_sequence, log_e_one_sided, log_e_two_sided, optimal_x
from stats.moments import Moments
from stats.relative import relative_interval
from stats.srm import concentration_for, log_e_srm

ALPHA = 0.05
MARGIN = 0.02
USERS = 20_000
TUNING = 5000.0
"""gbstats' default: the number of users at which its sequence is tightest."""

Sums = dict[str, float]
Kind = Literal["mean", "ratio", "cuped"]
KINDS: tuple[Kind, ...] = ("ratio",) * 4 + ("mean",) * 4 + ("cuped",) * 2


@dataclass(frozen=True, slots=True)
class Metric:
    """One metric as a store would hand it over: raw sums of both arms and the mixture variance fixed at creation."""

    name: str
    kind: Kind
    treatment: Sums
    control: Sums
    tau2: float
    latched: float = 0.0


def estimates(kind: Kind, treatment: Sums, control: Sums) -> tuple[Estimate, Estimate]:
    """From sums to a value with its variance, for both arms."""
    t, c = Moments.from_sums(**treatment), Moments.from_sums(**control)
    if kind == "cuped":
        adjusted = adjusted_means(t, c)
        assert adjusted is not None
        return adjusted.treatment, adjusted.control
    estimate = ratio if kind == "ratio" else mean
    found = estimate(t), estimate(c)
    assert found[0] is not None
    assert found[1] is not None
    return found


def report(metrics: Sequence[Metric]) -> dict[str, Any]:
    """JSON-ready. Of each metric what the gate reads and what people read; of the split, its e-value."""
    exposed = [int(metrics[0].treatment["n"]), int(metrics[0].control["n"])]
    log_e = log_e_srm(exposed, [0.5, 0.5], concentration=concentration_for(0.01))
    return {
        "metrics": [metric_report(metric) for metric in metrics],
        "srm": {"log_e": log_e, "p_value": p_value(log_e)},
    }


def metric_report(metric: Metric) -> dict[str, Any]:
    """Both arms, absolute and relative difference with always-valid limits, bound against the margin, evidence."""
    t, c = estimates(metric.kind, metric.treatment, metric.control)
    tau2, contrast, within = metric.tau2, difference(t, c), noninferiority(t, c, MARGIN)
    differs = log_e_two_sided(contrast.d, contrast.variance, tau2)
    promote = log_e_one_sided(within.d, within.variance, tau2)
    rollback = log_e_one_sided(within.harm.d, within.harm.variance, tau2)
    latched = latch(metric.latched, promote)
    return {
        "metric": metric.name,
        "treatment": [t.value, *confidence_sequence(t.value, t.variance, tau2 / 2, ALPHA)],
        "control": [c.value, *confidence_sequence(c.value, c.variance, tau2 / 2, ALPHA)],
        "difference": [contrast.d, *confidence_sequence(contrast.d, contrast.variance, tau2, ALPHA)],
        "relative": [t.value / c.value - 1, *relative_interval(t, c, tau2, ALPHA)],
        "bound": relative_bound(t, c, tau2, ALPHA),
        "harm_bound": relative_bound(t, c, tau2, ALPHA, increasing=False),
        "log_e_differs": differs,
        "log_e_promote": promote,
        "log_e_rollback": rollback,
        "p_value_differs": p_value(differs),
        "p_value_promote": p_value(latched),
    }


def metrics(seed: int = 0) -> list[Metric]:
    """Ten metrics of clicks with impressions, of spend, and of spend with its time before, as raw sums.

    tau² is set where gbstats' clock of users has it, so that both sides draw the same sequence.
    """
    rng = np.random.default_rng(seed)
    made = []
    for number, kind in enumerate(KINDS):
        control, treatment = (_sums(rng, kind, lift) for lift in (1.0, 1.02))
        t, c = estimates(kind, treatment, control)
        tau2 = optimal_x(ALPHA, sided=2) * 2 * USERS / TUNING * (t.variance + c.variance)
        made.append(Metric(f"{kind}-{number}", kind, treatment, control, tau2))
    return made


def _sums(rng: np.random.Generator, kind: Kind, lift: float) -> Sums:
    taste = rng.beta(2, 18, USERS)
    if kind == "ratio":
        y = 1.0 + rng.poisson(rng.lognormal(2.5, 0.8, USERS))
        return _raw(rng.binomial(y.astype(np.int64), taste * lift), y, np.zeros(USERS))
    x = np.round(lift * 10 * taste * rng.lognormal(0, 0.5, USERS), 2)
    before = np.round(10 * taste * rng.lognormal(0, 0.5, USERS), 2) if kind == "cuped" else np.zeros(USERS)
    return _raw(x, np.ones(USERS), before)


def _raw(x: NDArray[Any], y: NDArray[np.float64], c: NDArray[np.float64]) -> Sums:
    products = {"sx": x, "sy": y, "sxx": x * x, "syy": y * y, "sxy": x * y}
    products |= {"sc": c, "scc": c * c, "sxc": x * c, "syc": y * c}
    return {"n": x.size} | {name: float(values.sum()) for name, values in products.items()}
