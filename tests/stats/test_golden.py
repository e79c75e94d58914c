"""Against the peers' own code: equal to 1e-9 where definitions coincide, and different as explained where they do not.

The cases are in golden/<peer>.json, each with its package and version; golden/make.py makes them anew.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.special import ndtri

from stats.contrast import difference
from stats.cuped import adjusted_means, adjusted_ratios
from stats.estimate import Estimate, mean, ratio
from stats.evalues import p_value
from stats.mixture import confidence_sequence, critical_z, log_e_one_sided, log_e_two_sided, optimal_x
from stats.moments import Moments
from stats.multiple import holm
from stats.power import Plan
from stats.quantile import band_radius
from stats.rare import log_e_more_errors
from stats.simulation.rates import Rate
from stats.srm import log_e_srm

GOLDEN = Path(__file__).parent / "golden"
DATA = json.loads((GOLDEN / "data.json").read_text())
CASES = [
    case
    for peer in ("gbstats", "tea_tasting", "savvi", "confseq")
    for case in json.loads((GOLDEN / f"{peer}.json").read_text())
]
Case = dict[str, Any]


def name(case: Case) -> str:
    return f"{case['package']}-{case['quantity']}"


def estimate(case: Case, arm: str) -> Estimate:
    values = DATA[case["data"]][arm]
    found = (
        ratio(Moments.from_values(values["x"], values["y"]))
        if "y" in values
        else mean(Moments.from_values(values["x"]))
    )
    assert found is not None
    return found


def pair(case: Case) -> list[float]:
    t, c = estimate(case, "treatment"), estimate(case, "control")
    return [c.value, t.value, t.variance + c.variance]


def arm(case: Case) -> list[float]:
    found = estimate(case, case["arm"])
    return [found.value, found.variance]


def sequential(case: Case) -> tuple[float, float, float]:
    """(d, V, tau²) of a gbstats test: its clock is users, tuned to N*, so tau² = x* V N / N*."""
    found, given = difference(estimate(case, "treatment"), estimate(case, "control")), case["inputs"]
    x = optimal_x(given["alpha"], sided=2) * given["users"] / given["tuning"]
    return found.d, found.variance, x * found.variance


def gbstats_sequence(case: Case) -> list[float]:
    return list(confidence_sequence(*sequential(case), case["inputs"]["alpha"]))


def gbstats_p(case: Case) -> float:
    return p_value(log_e_two_sided(*sequential(case)))


def covariate(case: Case, which: str) -> Moments:
    values = DATA[case["data"]][which]
    if "y" not in values:
        return Moments.from_values(values["x"], c=values["pre_x"])
    before = [
        np.concatenate([DATA[case["data"]][a][column] for a in ("treatment", "control")])
        for column in ("pre_x", "pre_y")
    ]
    score = np.array(values["pre_x"]) - before[0].sum() / before[1].sum() * np.array(values["pre_y"])
    return Moments.from_values(values["x"], values["y"], score)


def cuped(case: Case) -> list[float]:
    adjust = adjusted_ratios if "y" in DATA[case["data"]]["control"] else adjusted_means
    found = adjust(covariate(case, "treatment"), covariate(case, "control"))
    assert found is not None
    return [found.control.value, found.treatment.value, found.treatment.variance + found.control.variance]


def cuped_difference(case: Case) -> list[float]:
    control, treatment, variance = cuped(case)
    return [treatment - control, variance]


def upper_limit(case: Case) -> float:
    found = difference(estimate(case, "treatment"), estimate(case, "control"))
    return found.d + math.sqrt(found.variance) * float(-ndtri(case["inputs"]["alpha"]))


def confseq_log_e(case: Case) -> float:
    """Their martingale s with intrinsic time v is an effect s / v with variance 1 / v; tau² = x* / v_opt."""
    given = case["inputs"]
    tau2 = optimal_x(given["alpha_opt"], sided=given["sided"]) / given["v_opt"]
    log_e = log_e_one_sided if given["sided"] == 1 else log_e_two_sided
    return log_e(given["z"] / math.sqrt(given["v"]), 1 / given["v"], tau2)


def confseq_bound(case: Case) -> float:
    given = case["inputs"]
    tau2, v, alpha = (
        optimal_x(given["alpha_opt"], sided=given["sided"]) / given["v_opt"],
        given["v"],
        given["alpha_opt"],
    )
    if given["sided"] == 1:
        return critical_z(tau2 * v, alpha) * math.sqrt(v)
    return confidence_sequence(0.0, 1 / v, tau2, alpha)[1] * v


def beta_binomial(case: Case) -> float:
    given = case["inputs"]
    p = given["p"]
    r = given["v_opt"] / optimal_x(given["alpha_opt"], sided=1) - p * (1 - p)
    return log_e_more_errors(given["hits"], given["misses"], share=p, concentration=r / (p * (1 - p)))


def needed_users(case: Case) -> float:
    """n of an ordinary test that finds a standardised effect: 2 (drift / effect)²."""
    given = case["inputs"]
    return 2 * (Plan("fixed", given["alpha"], given["power"], given["sided"]).drift / given["effect"]) ** 2


OURS: dict[str, Callable[[Case], Any]] = {
    "ratio": arm,
    "mean": arm,
    "confidence_sequence": gbstats_sequence,
    "e_value_p": gbstats_p,
    "cuped_mean": cuped_difference,
    "upper_limit": upper_limit,
    "ratio_pair": pair,
    "mean_pair": pair,
    "cuped_ratio": cuped,
    "cuped_pair": cuped,
    "holm": lambda case: holm(case["inputs"]["p"]),
    "users_per_arm": needed_users,
    "wilson": lambda case: list(Rate(case["inputs"]["hits"], case["inputs"]["runs"]).interval()),
    "srm_log_e": lambda case: log_e_srm(**case["inputs"]),
    "log_e": confseq_log_e,
    "bound": confseq_bound,
    "band_radius": lambda case: band_radius(
        case["inputs"]["n"], case["inputs"]["alpha"], start=case["inputs"]["start"]
    ),
    "beta_binomial": beta_binomial,
}


@pytest.mark.parametrize("case", [case for case in CASES if not case["why"]], ids=name)
def test_where_definitions_coincide_the_numbers_do(case: Case) -> None:
    assert OURS[case["quantity"]](case) == pytest.approx(case["value"], rel=1e-9, abs=1e-9)


@pytest.mark.parametrize("case", [case for case in CASES if case["why"] and "cuped" in case["quantity"]], ids=name)
def test_pooling_theta_within_arms_differs_a_little_as_explained(case: Case) -> None:
    ours = OURS[case["quantity"]](case)
    assert ours != pytest.approx(case["value"], rel=1e-6), "the explanation is out of date"
    assert ours == pytest.approx(case["value"], rel=0.05), case["why"]


@pytest.mark.parametrize("case", [c for c in CASES if c["why"] and c["quantity"] == "users_per_arm"], ids=name)
def test_a_rejection_on_the_wrong_side_is_no_power(case: Case) -> None:
    assert needed_users(case) > case["value"]
    assert needed_users(case) == pytest.approx(case["value"], rel=1e-6)


def test_the_peers_one_sided_upper_limit_is_on_the_wrong_side() -> None:
    case = next(case for case in CASES if case["quantity"] == "upper_limit")
    d = difference(estimate(case, "treatment"), estimate(case, "control")).d
    assert case["value"] < d < upper_limit(case)
    assert 2 * d - case["value"] == pytest.approx(upper_limit(case), rel=0.02), "Student's t against the normal"


def test_every_case_names_its_package_and_version() -> None:
    assert {case["package"] for case in CASES} == {"gbstats", "tea-tasting", "statsmodels", "savvi", "confseq"}
    assert all(case["version"][0].isdigit() for case in CASES)
    assert len(CASES) > 80
