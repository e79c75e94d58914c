"""HR@10 and NDCG@10 on MovieLens-100K: OneRec-V2 beside what it has to beat, over several seeds.

    python tests/bench/ranking.py [--seeds 1 2 3 4 5] [--recommenders NAME ...] [--quick] [--fresh] [--out FILE.json]
        [--merge FILE.json ...]

Leave-one-out over the whole catalogue: each of the 943 users' last film is the test, the one before it the validation,
all films not met before are candidates, for every recommender alike. Settings were chosen on the validation items. A
run that FILE holds already, made with the same settings, is not made again, so that an interrupted benchmark goes on
where it stopped; --merge adds the runs of other FILEs, made elsewhere or at the same time. Each run keeps where it was
made. Writes FILE and a Markdown table beside it; the last line is one JSON object of flat numbers.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from provenance import this_setting
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from model.baselines import ease, item_knn, popularity
from model.catalogue import Catalogue
from model.config import PRESETS
from model.data import IntArray
from model.evaluate import Ranker, ranker_of
from model.movielens import fetch_movielens, load_movielens
from model.recommender import Recommender
from model.sasrec import SASRecOptions, sasrec
from model.split import Split, leave_one_out
from model.train import TrainOptions, train
from model.train_options import PRESET_OPTIONS

ROOT = Path(__file__).resolve().parents[2]
K = 10
BEAM_WIDTH = 64
RANKS = "0123456789"
Report = Callable[[float, str], None]
"""(share done, what to show)"""

ONEREC: dict[str, tuple[str, TrainOptions]] = {
    "OneRec-V2 `tiny`": ("tiny", PRESET_OPTIONS["tiny"]),
    "OneRec-V2 `small`": ("small", PRESET_OPTIONS["small"]),
}
"""Name -> preset and how it is trained."""
LINEAR: dict[str, Callable[[Split], Ranker]] = {"popularity": popularity, "item-kNN": item_knn, "EASE": ease}
"""Without randomness: one run stands for every seed."""
SASREC = {"SASRec, softmax": SASRecOptions(), "SASRec, binary": SASRecOptions(loss="bce", dropout=0.2)}
REFERENCE = "SASRec, softmax"
OPTIONAL = "SASRec, binary"
"""Made only when it is asked for."""


@dataclass(frozen=True, slots=True)
class Run:
    """One trained recommender: places holds, user by user, the rank of the test item as a digit, or a dash.

    train_s: seconds of computing, which others on the same machine do not lengthen much. origin: hardware, versions,
    commit and command that made it.
    """

    recommender: str
    seed: int
    settings: str
    places: str
    validation_places: str
    train_s: float
    origin: str = ""

    def gains(self, *, validation: bool = False) -> npt.NDArray[np.float64]:
        """[users, 2]: hit and discounted gain of each user."""
        ranks = np.array([RANKS.find(place) for place in (self.validation_places if validation else self.places)])
        return np.stack([ranks >= 0, np.where(ranks >= 0, 1.0 / np.log2(np.maximum(ranks, 0) + 2.0), 0.0)], axis=1)


def places(ranker: Ranker, split: Split, *, validation: bool) -> str:
    """The rank of each evaluated user's held-out item, 0 for the first, "-" beyond the tenth."""
    users = split.evaluated_users()
    targets = (split.validation if validation else split.test)[users]
    ranked: IntArray = ranker([split.history(int(user), with_validation=not validation) for user in users], K)
    hit = ranked == targets[:, None]
    return "".join(RANKS[row.argmax()] if row.any() else "-" for row in hit)


def settings_of(name: str, quick: bool) -> Any:
    """Everything that a run's result depends on besides seed, data and code, as plain values."""
    if name in LINEAR:
        return {}
    if name in SASREC:
        return asdict(replace(SASREC[name], epochs=2) if quick else SASREC[name])
    preset, options = ONEREC[name]
    chosen = replace(options, epochs=1) if quick else options
    return {"config": PRESETS[preset].to_dict(), "options": chosen.to_dict(), "beam_width": BEAM_WIDTH}


def build(name: str, split: Split, seed: int, quick: bool, report: Report) -> Ranker:
    """Train the recommender of that name."""
    if name in LINEAR:
        return LINEAR[name](split)
    if name in SASREC:
        options = SASRecOptions(**settings_of(name, quick))
        return sasrec(split, seed, options, lambda epoch, most, loss: report(epoch / most, f"loss {loss:.3f}"))
    found = settings_of(name, quick)
    done = train(
        split,
        PRESETS[ONEREC[name][0]],
        seed,
        TrainOptions(**found["options"]),
        lambda progress: report(progress.step / progress.steps, f"loss {progress.loss:.3f}"),
    )
    recommender = Recommender(done.model, Catalogue.of(split.interactions), done.tokenizer, BEAM_WIDTH)
    return ranker_of(recommender, BEAM_WIDTH)


def measure(name: str, split: Split, seed: int, quick: bool, report: Report, origin: str = "") -> Run:
    """Train and evaluate once."""
    began = time.process_time()
    ranker = build(name, split, seed, quick, report)
    train_s = time.process_time() - began
    found = [places(ranker, split, validation=validation) for validation in (False, True)]
    kept = json.dumps(settings_of(name, quick), sort_keys=True)
    return Run(name, seed, kept, found[0], found[1], round(train_s, 1), origin)


def difference(runs: list[Run], reference: list[Run], *, validation: bool = False) -> tuple[float, float] | None:
    """HR@10 minus the reference's, over the seeds that both have: (mean, standard error over users); None without."""
    seeds = {run.seed for run in runs} & {run.seed for run in reference}
    if not seeds:
        return None
    hits = [
        np.mean([run.gains(validation=validation)[:, 0] for run in group if run.seed in seeds], axis=0)
        for group in (runs, reference)
    ]
    per_user = hits[0] - hits[1]
    return float(per_user.mean()), float(per_user.std(ddof=1) / np.sqrt(per_user.shape[0]))


def summary(runs: list[Run]) -> tuple[list[str], dict[str, float]]:
    """Rows of the Markdown table, and the same as flat numbers."""
    lines = [
        "| recommender | HR@10 | NDCG@10 | validation HR@10 | seeds | s computed | HR@10 over SASRec | on validation |",
        "|---" * 8 + "|",
    ]
    numbers: dict[str, float] = {}
    by_name: dict[str, list[Run]] = {}
    for run in runs:
        by_name.setdefault(run.recommender, []).append(run)
    for name, group in by_name.items():
        scores = np.array([run.gains().mean(axis=0) for run in group])
        by_validation = [
            sum(place != "-" for place in run.validation_places) / len(run.validation_places) for run in group
        ]
        shown, key = [], name.replace("`", "").replace(",", "").replace(" ", "_").lower()
        for column, metric in enumerate(("hr10", "ndcg10")):
            values = scores[:, column].tolist()
            mean, spread = statistics.mean(values), statistics.stdev(values) if len(values) > 1 else 0.0
            numbers |= {f"{key}_{metric}": round(mean, 5), f"{key}_{metric}_std": round(spread, 5)}
            shown.append(f"{mean:.4f} ± {spread:.4f}" if len(group) > 1 else f"{mean:.4f}")
        over = []
        for suffix, validation in (("", False), ("_validation", True)):
            of_others = [] if name in LINEAR or name == REFERENCE else by_name.get(REFERENCE, [])
            compared = difference(group, of_others, validation=validation)
            if compared is None:
                over.append("")
                continue
            gap, error = compared
            label = f"{key}_hr10_over_sasrec{suffix}"
            numbers |= {label: round(gap, 5), f"{label}_error": round(error, 5)}
            over.append(f"{gap:+.4f} ± {error:.4f}")
        seeds = "any" if name in LINEAR else ", ".join(str(run.seed) for run in group)
        taken = statistics.mean(run.train_s for run in group)
        cells = [name, *shown, f"{statistics.mean(by_validation):.4f}", seeds, f"{taken:.0f}", *over]
        lines.append(f"| {' | '.join(cells)} |")
    return lines, numbers


def stored(path: Path | None) -> list[Run]:
    """The runs of an earlier, perhaps interrupted, benchmark."""
    if path is None or not path.is_file():
        return []
    content = json.loads(path.read_text(encoding="utf-8"))
    return with_origin([Run(**raw) for raw in content["runs"]], content)


def merged(runs: list[Run], names: list[str]) -> list[Run]:
    """In the order of `names`, one run of each seed, the last; none with other settings than its recommender's last."""
    settings = {run.recommender: run.settings for run in runs}
    last = {(run.recommender, run.seed): run for run in runs if run.settings == settings[run.recommender]}
    return sorted(last.values(), key=lambda run: ([*names, run.recommender].index(run.recommender), run.seed))


def origin_of(setting: dict[str, str]) -> str:
    """Where a run was made, as one line."""
    return f"{setting['hardware']}; {setting['versions']}; commit {setting['commit']}; `{setting['command']}`"


def with_origin(runs: list[Run], setting: dict[str, str]) -> list[Run]:
    """Runs of a file that names one origin for all of them."""
    return [run if run.origin else replace(run, origin=origin_of(setting)) for run in runs]


def origins(runs: list[Run]) -> list[str]:
    """One line of Markdown per origin, with what was made there."""
    made: dict[str, dict[str, list[str]]] = {}
    for run in runs:
        made.setdefault(run.origin, {}).setdefault(run.recommender, []).append(str(run.seed))
    lines = []
    for origin, groups in made.items():
        which = ", ".join(f"{name} ({', '.join(seeds)})" for name, seeds in groups.items())
        lines.append(f"- {which}: {origin}.")
    return lines


def write(path: Path, setting: dict[str, str], runs: list[Run]) -> None:
    """The JSON and, beside it, the Markdown table."""
    runs = with_origin(runs, setting)
    lines, numbers = summary(runs)
    content = setting | {"numbers": numbers, "runs": [asdict(run) for run in runs]}
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    text = [
        "# Recommendation quality on MovieLens-100K",
        "",
        f"Leave-one-out over the whole catalogue, {len(runs[0].places)} users; mean ± standard deviation over the",
        "seeds. The last columns are mean differences over common seeds ± their standard errors over users, on the",
        "test items and on the validation items, which chose the settings.",
        "",
        *lines,
        "",
        "Made by (seeds):",
        "",
        *origins(runs),
    ]
    path.with_suffix(".md").write_text("\n".join(text) + "\n", encoding="utf-8")


def main() -> None:
    """Train what is missing, one run after the other; write after each."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    names = [*LINEAR, *SASREC, *ONEREC]
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3, 4, 5])
    usual = [name for name in names if name != OPTIONAL]
    parser.add_argument("--recommenders", nargs="+", default=usual, choices=names, metavar="NAME")
    parser.add_argument("--merge", type=Path, nargs="+", metavar="FILE", help="train nothing, add the runs of these")
    parser.add_argument("--quick", action="store_true", help="one or two epochs: checks that it runs, nothing else")
    parser.add_argument("--fresh", action="store_true", help="make every run again")
    parser.add_argument("--data", type=Path, default=ROOT / ".crossfade" / "data", help="where the data is kept")
    parser.add_argument("--out", type=Path, default=ROOT / "tests/bench/results/ranking.json")
    options = parser.parse_args()
    if options.merge:
        others = [run for path in options.merge for run in stored(path)]
        runs = merged([*others, *stored(options.out)], names)  # what is there stays
        write(options.out, this_setting(), runs)
        print(json.dumps(summary(runs)[1]))
        return
    torch.set_num_threads(1)
    console = Console(stderr=True)
    split = leave_one_out(load_movielens(fetch_movielens(options.data, console.print)))
    setting = this_setting()  # before hours of training, during which the checkout may move on
    runs = [] if options.fresh or options.quick else stored(options.out)
    wanted = [
        (name, seed)
        for seed in options.seeds
        for name in options.recommenders
        if name not in LINEAR or seed == options.seeds[0]
    ]
    columns = [TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[shown]}")]
    with Progress(*columns, TimeElapsedColumn(), TimeRemainingColumn(), console=console) as progress:
        every = progress.add_task("all", total=len(wanted), shown="")
        for done, (name, seed) in enumerate(wanted):
            kept = json.dumps(settings_of(name, options.quick), sort_keys=True)
            if not any(run.recommender == name and run.settings == kept and run.seed == seed for run in runs):
                task = progress.add_task(f"{name}, seed {seed}", total=1.0, shown="")

                def report(share: float, shown: str, task: Any = task, done: int = done) -> None:
                    progress.update(task, completed=share, shown=shown)
                    progress.update(every, completed=done + share)

                run = measure(name, split, seed, options.quick, report, origin_of(setting))
                progress.update(task, completed=1.0)
                runs = merged([*runs, run], names)
                if not options.quick:
                    write(options.out, setting, runs)
            progress.update(every, completed=done + 1)
    lines, numbers = summary(runs)
    print("\n".join(lines))
    print(json.dumps(numbers))


if __name__ == "__main__":
    main()
