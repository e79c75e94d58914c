"""The report on real data as Markdown, made of the kept figures and nothing else."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from stats.simulation.expected import markdown, outside
from stats.simulation.rates import Rate, Rates
from tests.bench import cdnow, open_bandit

Document = Mapping[str, Any]
ARMS = {"control": "random", "treatment": "bts"}
P_VALUES = ("p_one_look", "p_superior", "p_not_worse", "p_exact", "p_harm")

ABOUT_OPEN_BANDIT = (
    "ZOZOTOWN, 24 to 30 November 2019, the sample of 10,000 rows for each policy and campaign. The logs name no "
    "users. The policy was drawn anew for each user impression, so that is the unit: rows of one timestamp and one "
    "profile count together. As a check the same with the profile as unit, the combination of four hashed user "
    "features, which should hold each user whole. Both arms have exactly 10,000 rows by the way the sample was drawn, "
    "so a test of the sample ratio would say nothing here."
)
QUESTION = (
    "The gate looked at every hour of the week: may BTS replace Random without losing {margin:.0f} % of CTR? Limits "
    "are always-valid at 95 %. Units needed: in each arm, to prove that margin in four cases of five when nothing "
    "differs."
)
ABOUT_BURN_IN = (
    "What the burn-in of 100 clicks and 400 units holds back, as p-values. One look: two-sided z test at the end of "
    "the week, as if nobody had peeked. The others are always-valid, one-sided and latched over the hours; exact: "
    "without a normal limit, each click a coin that lands on an arm. Where the last column says promote, the burn-in "
    "alone says hold: there is evidence beyond 1/20, from fewer clicks than the gate trusts a normal limit with."
)
ABOUT_CDNOW = (
    "What a customer spent from {split} on; covariate and cap ({quantile:.0f} % of customers lie below it) come from "
    "the time before. {looks} looks, from {first} treated customers on. Nothing was done to anybody, except that for "
    "false promotions the treatment's spend was cut by exactly the margin. One-sided alpha {alpha} (two-sided for the "
    "interval), margin of harm 0; brackets are 95 % intervals (Wilson). {agreeing} of {compared} cells agree with the "
    "design."
)
ABOUT_PLANTED = (
    "The same runs with an error planted. Each must show where it matters: the missing floor in a small arm of a "
    "skewed metric, peeking and orders as units everywhere."
)
ABOUT_CUTS = (
    "Variance of a difference of means that is gone; in brackets relative to the mean squared, which is what a margin "
    "in per cent is paid in (a cap lowers the mean too)."
)


def rates_of(document: Document) -> Rates:
    """The false alarms: (split and metric, which alarm) -> rate."""
    return {(row, column): Rate(hits, runs) for row, column, hits, runs in document["false_alarms"]}


def render(document: Document, complaints: Sequence[str]) -> str:
    """Markdown of what `measure` returned and `main` added; complaints: the claims that do not hold."""
    claims = "Claims: hold." if not complaints else "Claims broken:\n" + "\n".join(f"- {one}" for one in complaints)
    made = f"Made by `{document['command']}` at {document['commit']}, {document['versions']}, data: {document['data']}."
    parts = ["# Real data", made, claims, *_open_bandit(document["open_bandit"]), *_cdnow(document)]
    return "\n\n".join(parts) + "\n"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def _open_bandit(outcomes: Sequence[Document]) -> list[str]:
    head = ["campaign, unit", "units", "clicks", "CTR Random", "CTR BTS", "BTS against Random", "verdict"]
    by_impression = [one for one in outcomes if one["unit"] == "impression"]
    tests = ["one look", "better", "not worse than the margin", "the same, exact", "worse than the margin"]
    return [
        "## Open Bandit Dataset: Random against Bernoulli Thompson sampling (BTS)",
        ABOUT_OPEN_BANDIT,
        QUESTION.format(margin=100 * open_bandit.MARGIN),
        _table([*head, "units needed"], [_outcome(one) for one in outcomes]),
        "The reason, each time, where the unit is the impression:",
        "\n".join(f"- {one['campaign']}: {'; '.join(one['reasons'])}" for one in by_impression),
        ABOUT_BURN_IN,
        _table(
            ["campaign, unit", *tests, "without a burn-in"],
            [
                [_name(one), *(f"{one[p]:.3f}" for p in P_VALUES), str(one["verdict_without_burn_in"])]
                for one in outcomes
            ],
        ),
    ]


def _name(one: Document) -> str:
    return f"{one['campaign']}, {one['unit']}"


def _outcome(one: Document) -> list[str]:
    needed = f"{one['units_needed']:,.0f}" if one["unit"] == "impression" else "-"  # nobody can order more profiles
    low, high = ("unbounded" if one[side] is None else f"{100 * one[side]:+.0f} %" for side in ("low", "high"))
    return [
        _name(one),
        " / ".join(f"{one[arm]['users']:,}" for arm in ARMS),
        " / ".join(str(one["clicks"][policy]) for policy in ARMS.values()),
        *(_reading(one[arm]) for arm in ARMS),
        f"{100 * one['effect']:+.0f} % [{low}, {high}]",
        f"**{one['verdict']}**",
        needed,
    ]


def _reading(arm: Mapping[str, float]) -> str:
    value, low, high = (100 * arm[name] for name in ("value", "low", "high"))
    return f"{value:.2f} % [{low:.2f}, {high:.2f}]"


def _cdnow(document: Document) -> list[str]:
    rates, expected = rates_of(document), cdnow.EXPECTED
    compared = sum(at in rates for at in expected)
    about = ABOUT_CDNOW.format(
        split=f"{cdnow.SPLIT.day} {cdnow.SPLIT:%B %Y}",
        quantile=100 * cdnow.QUANTILE,
        looks=cdnow.LOOKS,
        first=cdnow.FIRST,
        alpha=cdnow.ALPHA,
        agreeing=compared - len(outside(rates, expected)),
        compared=compared,
    )
    runs = max(rate.runs for rate in rates.values())
    cuts = [
        [day, *(f"{100 * of[metric][0]:.1f} % ({100 * of[metric][1]:.1f} %)" for metric in cdnow.MEANS[1:])]
        for day, of in document["variance_cuts"].items()
    ]
    wanted = [f"{100 * cdnow.CUTS[metric]:.0f} %" if metric in cdnow.CUTS else "-" for metric in cdnow.MEANS[1:]]
    return [
        f"## CDNOW: 23,570 customers, re-randomised {runs:,} times a split",
        about,
        markdown({at: rate for at, rate in rates.items() if at[1] in cdnow.GATE}, cdnow.TABLE.corner, expected),
        ABOUT_PLANTED,
        markdown({at: rate for at, rate in rates.items() if at[1] not in cdnow.GATE}, cdnow.TABLE.corner, expected),
        ABOUT_CUTS,
        _table(["covariate and cap from before", *cdnow.MEANS[1:]], [*cuts, [f"the design, {cdnow.SPLIT}", *wanted]]),
    ]
