"""Rare errors: when there are too few for a normal limit, each error is a coin that lands on an arm.

Under equal error rates an error belongs to the treatment with probability ρ_T, its share of the exposure (user-hours)
at that time; a rate that varies over time cancels. Count each user-hour with an error once: bursts are not coins.
"""

from __future__ import annotations

import math

from scipy.special import betaincc, betaln

from stats.errors import StatsError


def log_e_more_errors(
    treatment: int, control: int, *, share: float, ratio: float = 1.0, concentration: float = 20.0
) -> float:
    """ln E against H0: the treatment's error rate is at most `ratio` times the control's (evidence of harm).

    share: the treatment's share of exposure, ρ_T. One-sided beta-binomial mixture over the odds above
    ratio × ρ_T / (1 - ρ_T): a Beta prior centred on the edge of H0, cut off below it. Valid at every look, however few
    errors there are. Source: the one-sided beta-binomial mixture of Howard et al. 2021 (1810.08240), section 3.
    """
    return _log_e_above(treatment, control, _edge(share, ratio), concentration)


def log_e_fewer_errors(
    treatment: int, control: int, *, share: float, ratio: float = 1.0, concentration: float = 20.0
) -> float:
    """ln E against H0: the treatment's error rate is at least `ratio` times the control's (non-inferiority)."""
    return _log_e_above(control, treatment, 1 - _edge(share, ratio), concentration)


def _edge(share: float, ratio: float) -> float:
    """The probability that an error is the treatment's when its rate is exactly `ratio` times the control's."""
    if not 0 < share < 1:
        raise StatsError("share", f"the treatment's share of exposure lies strictly between 0 and 1, got {share}")
    if not (ratio > 0 and math.isfinite(ratio)):
        raise StatsError("ratio", f"must be positive and finite, got {ratio}")
    return ratio * share / (ratio * share + 1 - share)


def _log_e_above(hits: int, misses: int, p: float, concentration: float) -> float:
    """ln E of `hits` of hits + misses against every probability up to p."""
    if hits < 0 or misses < 0:
        raise StatsError("errors", f"counts cannot be negative, got {hits} and {misses}")
    if not concentration > 0:
        raise StatsError("concentration", f"must be positive, got {concentration}")
    a, b = concentration * p, concentration * (1 - p)
    above = float(betaincc(a + hits, b + misses, p))
    if above == 0:
        return -math.inf  # E is below the smallest float: rounding it to 0 only loses evidence
    posterior = float(betaln(a + hits, b + misses)) + math.log(above)
    prior = float(betaln(a, b)) + math.log(float(betaincc(a, b, p)))
    return posterior - prior - hits * math.log(p) - misses * math.log1p(-p)
