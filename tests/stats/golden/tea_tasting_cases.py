"""What tea-tasting and statsmodels say of the golden users; run by make.py inside their environment."""

from __future__ import annotations

import json
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pandas as pd
import tea_tasting as tt
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.power import NormalIndPower
from statsmodels.stats.proportion import proportion_confint

DATA = json.loads((Path(__file__).parent / "data.json").read_text())
THETA = (
    "theta comes from the joined arms (the difference between their means is part of it); ours is pooled within arms. "
    "It vanishes with users as 1/n."
)


def case(package, quantity, value, why="", **more):
    return {
        "package": package,
        "version": version(package),
        "quantity": quantity,
        "value": value,
        "why": why,
        **more,
    }


def frame(name):
    arms = DATA[name]
    parts = [pd.DataFrame(arms[arm]).assign(variant=k) for k, arm in enumerate(("control", "treatment"))]
    return pd.concat(parts)


def analysed(name, metric):
    """(control, treatment, variance of the effect): the variance from the effect and its normal statistic."""
    found = tt.Experiment(m=metric).analyze(frame(name))["m"]
    return [found.control, found.treatment, (found.effect_size / found.statistic) ** 2]


def cases():
    plain = {"use_t": False, "equal_var": False}
    yield case("tea-tasting", "ratio_pair", analysed("clicks", tt.RatioOfMeans("x", "y", **plain)), data="clicks")
    yield case("tea-tasting", "mean_pair", analysed("spend", tt.Mean("x", **plain)), data="spend")
    metric = tt.RatioOfMeans("x", "y", numer_covariate="pre_x", denom_covariate="pre_y", **plain)
    why = (
        THETA + " Its covariate is the pre-period RATIO, linearised in each arm; ours the score about one common R_pre."
    )
    yield case("tea-tasting", "cuped_ratio", analysed("clicks", metric), why, data="clicks")
    yield case("tea-tasting", "cuped_pair", analysed("spend", tt.Mean("x", "pre_x", **plain)), THETA, data="spend")
    p = [0.011, 0.02, 0.3, 0.04, 0.8]
    yield case("statsmodels", "holm", list(multipletests(p, method="holm")[1]), inputs={"p": p})
    for sided, alpha, power in ((1, 0.05, 0.8), (2, 0.05, 0.9), (1, 0.025, 0.95)):
        alternative = "larger" if sided == 1 else "two-sided"
        n = NormalIndPower().solve_power(0.1, alpha=alpha, power=power, alternative=alternative)
        why = "it counts rejections on the wrong side as power, too: 1e-7 here" if sided == 2 else ""
        inputs = {"sided": sided, "alpha": alpha, "power": power, "effect": 0.1}
        yield case("statsmodels", "users_per_arm", float(np.asarray(n)), why, inputs=inputs)
    for hits, runs in ((3, 100), (95, 2000)):
        limits = [float(end) for end in proportion_confint(hits, runs, method="wilson")]
        yield case("statsmodels", "wilson", limits, inputs={"hits": hits, "runs": runs})


print(json.dumps(list(cases())))
