"""Sample-ratio mismatch: are users split as they should be? An always-valid Dirichlet-multinomial e-process."""

from __future__ import annotations

import math
from collections.abc import Sequence

from scipy.special import gammaln

from stats.errors import StatsError

WARN_LOG_E = math.log(100)
"""Evidence at which people are told."""

INVALID_LOG_E = math.log(1000)
"""Evidence at which the experiment is invalid (alpha 0.001)."""


def concentration_for(delta: float) -> float:
    """The prior concentration k = 1 / (4 delta²) that is most sensitive to a share off by `delta` (0.01: 2,500)."""
    if not 0 < delta < 1:
        raise StatsError("delta", f"a deviation of a share lies strictly between 0 and 1, got {delta}")
    return 1 / (4 * delta * delta)


def log_e_srm(counts: Sequence[int], shares: Sequence[float], *, concentration: float) -> float:
    """ln E of the counts of first exposures against the planned shares: ln B(kθ + n) - ln B(kθ) - Σ n_j ln θ_j.

    counts, shares: one entry an arm; one assignment a user. Multiply E (add ln E) over phases with different shares.
    Source: Lindon & Malek 2011.03567. Raises StatsError on counts or shares that cannot be.
    """
    if len(counts) != len(shares) or len(counts) < 2:
        raise StatsError("counts", f"{len(counts)} counts for {len(shares)} shares; both need one entry for each arm")
    if any(count < 0 for count in counts):
        raise StatsError("counts", f"a count cannot be negative, got {list(counts)}")
    if any(share <= 0 for share in shares) or not math.isclose(math.fsum(shares), 1, rel_tol=1e-9):
        raise StatsError("shares", f"shares are positive and sum to 1, got {list(shares)}")
    if not concentration > 0:
        raise StatsError("concentration", f"must be positive, got {concentration}")
    log_e = float(gammaln(concentration) - gammaln(concentration + sum(counts)))
    for count, share in zip(counts, shares, strict=True):
        prior = concentration * share
        log_e += float(gammaln(prior + count) - gammaln(prior)) - count * math.log(share)
    return log_e
