"""How much evidence a decision about a release needs: alpha is spent once over metrics that must agree or may veto.

Promotion is an intersection-union test: EVERY guardrail must be proved non-inferior, so each is tested at the full
alpha. Rollback is a union: ANY guardrail may veto, so alpha is split over them. Both compare latched log e-values.
"""

from __future__ import annotations

import math

from stats.errors import StatsError
from stats.moments import Moments

BURN_IN_USERS = 400
BURN_IN_EVENTS = 100.0


def promote_threshold(alpha: float) -> float:
    """ln(1 / a): what each guardrail's non-inferiority evidence must reach."""
    return rollback_threshold(alpha, 1)


def rollback_threshold(alpha: float, guardrails: int) -> float:
    """ln(K / a): what any one guardrail's evidence of harm must reach when K of them are watched."""
    if not 0 < alpha < 1:
        raise StatsError("alpha", f"must lie strictly between 0 and 1, got {alpha}")
    if guardrails < 1:
        raise StatsError("guardrails", f"at least one metric must be watched, got {guardrails}")
    return math.log(guardrails / alpha)


def burned_in(
    treatment: Moments, control: Moments, *, users: int = BURN_IN_USERS, events: float = BURN_IN_EVENTS
) -> bool:
    """Whether the smaller arm has enough users, and enough of what the numerator counts, for a normal limit to hold."""
    return all(arm.n >= users and arm.sx >= events for arm in (treatment, control))
