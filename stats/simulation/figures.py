"""The figures of the design's own simulations, cell by cell: other code, other seeds, the same questions."""

from __future__ import annotations

from itertools import chain

from stats.simulation.expected import Expectations, Expected, column, row

_EFFECTS = ("A/A", "0.5 MDE", "1 MDE", "1.5 MDE", "2 MDE")
_POWER = {
    "z, users, one look at N": ((0.28, 1.0), (0.79, 1.0), (0.98, 1.0), (1.0, 1.0)),
    "O'Brien-Fleming (Lan-DeMets), 10 looks": ((0.27, 0.95), (0.77, 0.78), (0.98, 0.60), (1.0, 0.46)),
    "O'Brien-Fleming (Lan-DeMets), 100 looks": ((0.27, 0.94), (0.76, 0.75), (0.98, 0.56), (1.0, 0.42)),
    "reflection at N, closed form": ((0.24, 0.94), (0.72, 0.78), (0.97, 0.59), (1.0, 0.46)),
    "hybrid at N": ((0.25, 0.99), (0.75, 0.90), (0.98, 0.69), (1.0, 0.46)),
    "always valid, tau at N": ((0.11, 0.96), (0.50, 0.79), (0.90, 0.55), (0.99, 0.36)),
    "always valid, tau at N/4": ((0.11, 0.95), (0.49, 0.77), (0.88, 0.51), (0.99, 0.32)),
    "always valid, tau = MDE": ((0.11, 0.96), (0.50, 0.79), (0.90, 0.55), (0.99, 0.36)),
}
_NO_EFFECT = {
    "z, impressions, one look": 0.299,
    "z, impressions, 100 peeks": 0.951,
    "z, users, one look at N": 0.047,
    "z, users, 100 peeks": 0.383,
    "O'Brien-Fleming (Lan-DeMets), 10 looks": 0.047,
    "O'Brien-Fleming (Lan-DeMets), 100 looks": 0.047,
    "reflection at N, closed form": 0.042,
    "hybrid at N": 0.038,
    "always valid, tau at N": 0.015,
    "always valid, tau at N/4": 0.023,
    "always valid, tau = MDE": 0.014,
}
_TO_TWICE = ((0.24, 1.79), (0.84, 1.11), (1.0, 0.58))
PEEKING: Expectations = (
    {(name, "A/A"): Expected(value, 20_000) for name, value in _NO_EFFECT.items()}
    | {
        (name, effect): Expected(rate, 4000, 2, stop)
        for name, cells in _POWER.items()
        for effect, (rate, stop) in zip(_EFFECTS[1:], cells, strict=True)
    }
    | {
        ("always valid, tau at N, to 2 N", effect): Expected(rate, 2000, 2, stop)
        for effect, (rate, stop) in zip(_EFFECTS[1:4], _TO_TWICE, strict=True)
    }
)

_TRUTHS = ("-2 margins", "-1.5 margins", "-1 margin (edge of H0)", "-0.5 margins", "+0 margins", "+0.5 margins")
_GATE_STOPS = (0.93, 1.71, 1.95, None, 1.02, 0.55)
GATING: Expectations = {
    at: said
    for name, values, digits in (
        ("z once at N", (0.00, 0.00, 0.052, 0.37, 0.82, 0.99), 2),
        ("z, 50 peeks", (0.05, 0.10, 0.279, 0.64, 0.92, 1.0), 2),
        ("O'Brien-Fleming 50", (0.00, 0.00, 0.051, 0.34, 0.80, 0.98), 2),
        ("reflection", (0.00, 0.00, 0.054, 0.33, 0.79, 0.98), 2),
        ("hybrid", (0.00, 0.00, 0.042, 0.33, 0.79, 0.98), 2),
        ("always valid to N", (0.00, 0.00, 0.017, 0.14, 0.55, 0.91), 2),
        ("always valid to 2 N", (0.00, 0.00, 0.024, 0.29, 0.87, 1.0), 2),
        ("gate: roll back (h = m)", (0.91, 0.32, 0.017, 0.00, 0.00, 0.00), 2),
    )
    for at, said in column(name, _TRUTHS, [(value, None) for value in values], 5000, digits).items()
} | column(
    "gate to 2 N: promote",
    _TRUTHS,
    list(zip((0.00, 0.00, 0.024, 0.29, 0.87, 1.0), _GATE_STOPS, strict=True)),
    5000,
)

_FALSE_WORSE = (
    *(f"false worse, no floor, from {first}" for first in (20, 100, 400, 1000)),
    "false worse, floor, from 20 users",
    "false promote at -5 %, floor",
)
CANARY: Expectations = dict(
    chain.from_iterable(
        row(metric, _FALSE_WORSE, values, 2000).items()
        for metric, values in {
            "CTR 5 %": (0.094, 0.066, 0.041, 0.023, 0.009, 0.006),
            "CTR 0.4 %": (0.386, 0.154, 0.076, 0.035, 0.003, 0.004),
            "lognormal, s = 1": (0.123, 0.088, 0.054, 0.028, 0.011, 0.003),
            "lognormal, s = 2": (0.429, 0.317, 0.195, 0.114, 0.001, 0.000),
            "lognormal, s = 2, capped q99.9": (0.388, 0.264, 0.133, 0.058, 0.003, 0.001),
            "lognormal, s = 2, capped q99": (0.255, 0.116, 0.055, 0.027, 0.009, 0.005),
        }.items()
    )
)

RAMP: Expectations = {
    ("8k users a phase", "arms pooled over phases"): Expected(0.036, 2000),
    ("8k users a phase", "strata (phase), overlap weights"): Expected(0.006, 2000),
    ("40k users a phase", "arms pooled over phases"): Expected(0.313, 1000),
    ("40k users a phase", "strata (phase), overlap weights"): Expected(0.009, 1000),
}

MISMATCH: Expectations = {
    ("fair", "chi-square at every look, .001"): Expected(0.017, 5000),
    ("fair", "chi-square at every look, .01"): Expected(0.125, 5000),
    ("50.5% in the first arm", "chi-square once, .001"): Expected(0.88, 2000, 2),
    ("50.5% in the first arm", "e-process, k = 100"): Expected(0.52, 2000, 2),
    ("50.5% in the first arm", "e-process, k = 2,500"): Expected(0.65, 2000, 2),
    ("50.5% in the first arm", "e-process, k = 10,000"): Expected(0.68, 2000, 2),
    ("51.0% in the first arm", "e-process, k = 100"): Expected(1.0, 2000, 2, 0.25),
    ("51.0% in the first arm", "e-process, k = 2,500"): Expected(1.0, 2000, 2, 0.22),
    ("51.0% in the first arm", "e-process, k = 10,000"): Expected(1.0, 2000, 2, 0.24),
}

_CLOCKS = (
    "user z, every look",
    "sequence on impressions",
    "sequence, time counted in users",
    "sequence, time counted in information",
)
GROWING: Expectations = dict(
    chain.from_iterable(
        row(pattern, _CLOCKS, values, 2500).items()
        for pattern, values in {
            "closed cohorts (what the gate reads)": (0.320, 0.393, 0.014, 0.016),
            "all users in from the start, cumulative CTR": (0.251, 0.163, 0.015, 0.012),
            "staggered entry, cumulative CTR": (0.242, 0.145, 0.017, 0.012),
            "all in, taste drifting by day": (0.235, 0.208, 0.016, 0.011),
            "engagement so far, all in, hourly for 60 days": (0.528, None, 0.064, 0.017),
            "today's CTR only, 100 days": (None, None, 0.145, None),
        }.items()
    )
)
