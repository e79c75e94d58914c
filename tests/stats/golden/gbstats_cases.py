"""What gbstats says of the golden users; run by make.py inside its environment."""

from __future__ import annotations

import json
from importlib.metadata import version
from pathlib import Path

from gbstats.frequentist.tests import (
    FrequentistConfig,
    OneSidedTreatmentLesserTTest,
    SequentialConfig,
    SequentialTwoSidedTTest,
    TwoSidedTTest,
)
from gbstats.models.statistics import RatioStatistic, RegressionAdjustedStatistic, SampleMeanStatistic, compute_theta

DATA = json.loads((Path(__file__).parent / "data.json").read_text())


def sample(values):
    return SampleMeanStatistic(n=len(values), sum=sum(values), sum_squares=sum(v * v for v in values))


def dot(a, b):
    return sum(p * q for p, q in zip(a, b, strict=True))


def ratio(arm):
    return RatioStatistic(
        n=len(arm["x"]),
        m_statistic=sample(arm["x"]),
        d_statistic=sample(arm["y"]),
        m_d_sum_of_products=dot(arm["x"], arm["y"]),
    )


def adjusted(arm, theta):
    return RegressionAdjustedStatistic(
        n=len(arm["x"]),
        post_statistic=sample(arm["x"]),
        pre_statistic=sample(arm["pre_x"]),
        post_pre_sum_of_products=dot(arm["x"], arm["pre_x"]),
        theta=theta,
    )


def case(quantity, value, data, why="", **more):
    return {
        "package": "gbstats",
        "version": version("gbstats"),
        "quantity": quantity,
        "data": data,
        "value": value,
        "why": why,
        **more,
    }


def sequential(control, treatment, tuning, alpha, data, kind):
    config = SequentialConfig(difference_type="absolute", alpha=alpha, sequential_tuning_parameter=tuning)
    test = SequentialTwoSidedTTest(control, treatment, config)
    inputs = {"kind": kind, "alpha": alpha, "tuning": tuning, "users": control.n + treatment.n}
    yield case("confidence_sequence", [float(end) for end in test.confidence_interval], data, inputs=inputs)
    yield case("e_value_p", float(test.p_value), data, inputs=inputs)


def cases():
    clicks, spend = DATA["clicks"], DATA["spend"]
    for name, arm in clicks.items():
        yield case("ratio", [ratio(arm).mean, ratio(arm).variance / ratio(arm).n], "clicks", arm=name)
    for name, arm in spend.items():
        yield case("mean", [sample(arm["x"]).mean, sample(arm["x"]).variance / len(arm["x"])], "spend", arm=name)
    for tuning in (50.0, 5000.0):
        for alpha in (0.05, 0.01):
            yield from sequential(
                ratio(clicks["control"]), ratio(clicks["treatment"]), tuning, alpha, "clicks", "ratio"
            )
            yield from sequential(
                sample(spend["control"]["x"]), sample(spend["treatment"]["x"]), tuning, alpha, "spend", "mean"
            )
    a, b = adjusted(spend["control"], 0.0), adjusted(spend["treatment"], 0.0)
    theta = compute_theta(a, b)
    test = TwoSidedTTest(
        adjusted(spend["control"], theta),
        adjusted(spend["treatment"], theta),
        FrequentistConfig(difference_type="absolute"),
    )
    yield case(
        "cuped_mean",
        [float(test.point_estimate), float(test.variance)],
        "spend",
        "theta is pooled over the joined arms, so the difference between the arms' means is part of it; ours is pooled "
        "within arms. It vanishes with users as 1/n.",
        inputs={"theta": theta},
    )
    lesser = OneSidedTreatmentLesserTTest(
        sample(spend["control"]["x"]), sample(spend["treatment"]["x"]), FrequentistConfig(difference_type="absolute")
    )
    yield case(
        "upper_limit",
        float(lesser.confidence_interval[1]),
        "spend",
        "the limit is subtracted where it has to be added: it lies BELOW the estimate and hardly ever covers the truth",
        inputs={"alpha": 0.05},
    )


print(json.dumps(list(cases())))
