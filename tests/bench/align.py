"""Post-training in a simulated loop: a policy shows slates, viewers react, the log is learned from, again and again.

    python tests/bench/align.py [--rounds N] [--seeds S ...] [--quick] [--data FOLDER] [--out FILE.json]

The preset `tiny` is trained on MovieLens-100K. In each round it shows slates to a quarter of the users; who watched
what for how long goes through the service's own SQL store, is read back by its own reader and learned from by
`serving.alignment`, as `crossfade align` does it. Another quarter of the users only measures: the reward of fresh
slates (known tastes, no noise), the share of items among ids generated without the trie, and HR@10 on held-out items.
Beside GBPO stand a plain policy ratio (pi / pi_old, no bound) and no training at all, with the same seeds. The last
line is one JSON object of flat numbers. Arms that FILE holds and this call does not make are kept.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import torch
from ablations import trie_of_all_ids
from align_world import World
from provenance import this_setting
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from experiment.events import Interaction, Kind, Record, Served
from experiment.feedback import Span
from experiment.store.engine import create_engine
from experiment.store.events_sql import SqlEventLog
from experiment.store.feedback_sql import SqlFeedbackLog
from experiment.store.migrate import upgrade
from model.beam import beam_search
from model.catalogue import Catalogue
from model.checkpoint import save
from model.config import PRESETS, OneRecConfig
from model.evaluate import evaluate, ranker_of
from model.gbpo import AlignOptions, Objective, gbpo_loss
from model.movielens import fetch_movielens, load_movielens
from model.recommender import Recommender
from model.split import Split, leave_one_out
from model.train import TrainOptions, train
from serving.alignment import align_checkpoint

ROOT = Path(__file__).resolve().parents[2]
VARIANT = "policy"
WIDE = 32
BATCH = 64
START = datetime(2026, 1, 2, tzinfo=UTC)
Row = dict[str, float]


def plain_ratio(log_prob: torch.Tensor, old_log_prob: torch.Tensor, advantage: torch.Tensor) -> torch.Tensor:
    """-mean(pi / pi_old · A): no bound on the ratio of what was disliked."""
    return -((log_prob - old_log_prob).exp() * advantage).mean()


OPTIONS = AlignOptions(epochs=2, batch_size=512, learning_rate=1e-4)
SUPERVISED = "GBPO beside the supervised stage"
ARMS: dict[str, Objective | None] = {
    "GBPO": gbpo_loss,
    SUPERVISED: gbpo_loss,
    "plain ratio": plain_ratio,
    "no training": None,
}


@dataclass(frozen=True, slots=True)
class Loop:
    """How large a simulation is. Without the trie, `samples` ids are drawn for each of `probes` users, and beams of the
    widths `beams` are searched."""

    rounds: int = 6
    requests: int = 4
    k: int = 10
    samples: int = 100
    beams: tuple[int, ...] = (10, 512)
    probes: int = 64
    options: AlignOptions = OPTIONS


class Simulation:
    """One policy in one world: shows, measures, learns. A quarter of the users is shown slates, another measures."""

    def __init__(self, split: Split, world: World, checkpoint: Path, folder: Path, loop: Loop, seed: int) -> None:
        self._split, self._world, self._loop, self._seed = split, world, loop, seed
        self._checkpoint, self._folder = checkpoint, folder
        engine = create_engine(f"sqlite:///{folder / 'crossfade.db'}")
        upgrade(engine)
        self._log, self._feedback = SqlEventLog(engine), SqlFeedbackLog(engine)
        users = split.evaluated_users()
        self._viewers, self._measured = users[::4], users[1::4]
        names = split.interactions.items
        self._durations = dict(zip(names, world.duration_s.tolist(), strict=True))
        self._requests = 0

    def measure(self, turn: int) -> Row:
        """The policy as it stands. The measuring users' histories are cut anew in each round."""
        recommender, rng = (
            Recommender.load(self._checkpoint, beam_width=WIDE),
            np.random.default_rng((self._seed, turn)),
        )
        histories = [self._cut(int(user), rng) for user in self._measured]
        slates = self._slates(recommender, histories, self._loop.k)
        quality = evaluate(ranker_of(recommender, WIDE), self._split, 10)
        return {
            "reward": self._world.reward(self._measured.tolist(), [[item for item, _ in slate] for slate in slates]),
            **legality(recommender, histories[: self._loop.probes], self._loop.samples, self._loop.beams, seed=turn),
            "hr": quality.hit_rate,
            "ndcg": quality.ndcg,
        }

    def show(self, turn: int) -> None:
        """A round of slates for the viewers, and all that they do with them, into the store. Each next request of a
        viewer shows what follows: a feed that repeats what was played little would teach that to be common."""
        recommender, rng = (
            Recommender.load(self._checkpoint, beam_width=WIDE),
            np.random.default_rng((self._seed, turn + 1, 1)),
        )
        histories = [self._cut(int(user), rng) for user in self._viewers]
        found = self._slates(recommender, histories, self._loop.requests * self._loop.k)
        for request in range(self._loop.requests):
            records: list[Record] = []
            page = slice(request * self._loop.k, (request + 1) * self._loop.k)
            at = START + timedelta(days=turn, hours=request)
            for user, history, items in zip(self._viewers.tolist(), histories, found, strict=True):
                slate = items[page]
                viewings = self._world.watch(user, [item for item, _ in slate], rng)
                records += self._records(user, history, slate, [(v.played_s, v.dismissed) for v in viewings], at)
            self._log.append(records)

    def learn(self, turn: int, objective: Objective) -> None:
        """From this round's feedback to the next policy."""
        target = self._folder / f"policy-{turn + 1}"
        span = Span(since=START + timedelta(days=turn), variant=VARIANT)
        align_checkpoint(
            self._checkpoint, target, self._feedback, span, self._loop.options, self._seed + turn, self._durations,
            objective=objective,
        )  # fmt: skip
        self._checkpoint = target

    def _cut(self, user: int, rng: np.random.Generator) -> list[int]:
        """The user's training history up to a random place in its second half."""
        history = self._split.train[user]
        return history[: int(rng.integers(len(history) // 2, len(history) + 1))].tolist()

    def _slates(self, recommender: Recommender, histories: list[list[int]], top: int) -> list[list[tuple[int, float]]]:
        """(item, log probability) of the best `top` unseen items, best first: what a replica answers."""
        found: list[list[tuple[int, float]]] = []
        for begin in range(0, len(histories), BATCH):
            items, scores = recommender.rank(histories[begin : begin + BATCH], max(top, WIDE))
            for row, values in zip(items[:, :top].tolist(), scores[:, :top].tolist(), strict=True):
                found.append([(item, score) for item, score in zip(row, values, strict=True) if item >= 0])
        return found

    def _records(
        self,
        user: int,
        history: list[int],
        slate: list[tuple[int, float]],
        viewings: list[tuple[float, bool]],
        at: datetime,
    ) -> list[Record]:
        """A request and its events as the gateway writes them, of a user outside every experiment."""
        names, self._requests = self._split.interactions.items, self._requests + 1
        request, viewer = f"r{self._requests}", f"u{user}"
        served = Served(
            request_id=request, user_id=viewer, experiment=None, run=None, arm=None, bucket=None, phase=None,
            served_variant=VARIANT, table_version=1, reason="DEFAULT", fallback=None, failed=False, slow=False,
            forced=False, latency_ms=1.0, received_at=at, history=tuple(names[item] for item in history),
            slate=tuple((names[item], round(score, 6)) for item, score in slate),
        )  # fmt: skip
        records: list[Record] = [served]
        for place, ((item, _), (played_s, dismissed)) in enumerate(zip(slate, viewings, strict=True)):
            events = [(Kind.IMPRESSION, 1.0), (Kind.WATCH, played_s), *([(Kind.DISMISS, 1.0)] if dismissed else [])]
            for kind, value in events:
                event_id = f"{request}/{place}/{kind}"
                records.append(Interaction(event_id, kind, request, viewer, names[item], place, value, at, at))
        return records


@torch.inference_mode()
def legality(
    recommender: Recommender, histories: list[list[int]], samples: int, beams: tuple[int, ...], seed: int
) -> Row:
    """Shares of ids that are items, without the trie: among `samples` drawn per user, and in beams of these widths."""
    free, item_of_id = trie_of_all_ids(recommender)
    drawn: list[torch.Tensor] = []
    found: dict[int, list[torch.Tensor]] = {width: [] for width in beams}
    generator = torch.Generator().manual_seed(seed)
    for begin in range(0, len(histories), BATCH):
        context = recommender.context(histories[begin : begin + BATCH])
        drawn.append(item_of_id[_sampled(recommender, context, samples, generator)].flatten() >= 0)
        for width in beams:
            found[width].append((item_of_id[beam_search(recommender.model, context, free, width).items] >= 0).flatten())
    searched = {f"legal_beam_{width}": float(torch.cat(shares).double().mean()) for width, shares in found.items()}
    return {"legal_sampled": float(torch.cat(drawn).double().mean()), **searched}


def _sampled(recommender: Recommender, context: object, samples: int, generator: torch.Generator) -> torch.Tensor:
    """Ids [B, samples] drawn code by code from the policy itself, as numbers in base `codebook_size`."""
    model, size = recommender.model, recommender.config.codebook_size
    hidden, caches = model.start(context)  # type: ignore[arg-type]
    batch = hidden.shape[0]
    ids = torch.zeros(batch, samples, dtype=torch.int64)
    for level in range(recommender.config.levels):
        p = torch.softmax(model.logits(hidden, level).float(), dim=-1)
        rows = p.shape[1]
        codes = torch.multinomial(p.flatten(0, 1), samples // rows, replacement=True, generator=generator)
        codes = codes.view(batch, samples)
        ids = ids * size + codes
        if level + 1 < recommender.config.levels:
            if rows == 1:  # one row a request becomes one row a sample
                caches = [
                    (key.repeat_interleave(samples, 0), value.repeat_interleave(samples, 0)) for key, value in caches
                ]
            hidden, caches = model.advance(codes, level, context, caches)  # type: ignore[arg-type]
    return ids


def run(
    simulation: Simulation, rounds: int, objective: Objective | None, advance: Callable[[Row], None] = lambda _row: None
) -> list[Row]:
    """The row of each round, the first one before any training. None: the policy stays as it is."""
    rows: list[Row] = []
    if objective is not None:
        simulation.show(-1)  # nobody's first watches: percentiles need a history
    for turn in range(rounds + 1):
        rows.append(simulation.measure(turn))
        advance(rows[-1])
        if turn < rounds and objective is not None:
            simulation.show(turn)
            simulation.learn(turn, objective)
    return rows


def trained(split: Split, config: OneRecConfig, seed: int, folder: Path, options: TrainOptions | None = None) -> Path:
    """A checkpoint to start from."""
    result = train(split, config, seed, options)
    save(folder, result.model, config, Catalogue.of(split.interactions), result.tokenizer)
    return folder


COLUMNS = {
    "reward": ("reward of fresh slates", "{:.4f}"),
    "legal_sampled": ("legal ids, sampled", "{:.2%}"),
    "legal_beam_10": ("free beam of 10", "{:.2%}"),
    "legal_beam_512": ("free beam of 512", "{:.2%}"),
    "hr": ("HR@10", "{:.4f}"),
    "ndcg": ("NDCG@10", "{:.4f}"),
}

Results = dict[str, list[list[Row]]]
"""Arm -> seed by seed -> round by round."""


def mean_row(seeds: list[list[Row]], turn: int) -> Row:
    """A round's mean over the seeds."""
    return {name: statistics.fmean(rows[turn][name] for rows in seeds) for name in COLUMNS}


def flat(results: Results) -> Row:
    """Round by round, the means over the seeds: {"GBPO round 3 reward": 0.61, ...}"""
    return {
        f"{arm} round {turn} {name}": round(value, 5)
        for arm, seeds in results.items()
        for turn in range(len(seeds[0]))
        for name, value in mean_row(seeds, turn).items()
    }


def markdown(results: Results, setting: dict[str, str], note: str) -> str:
    """One table: rounds down, arms one below the other."""
    lines = ["# Post-training from the log, in a simulated loop", "", note, ""]
    lines.append("| arm | round | " + " | ".join(title for title, _ in COLUMNS.values()) + " |")
    lines.append("|---" * (len(COLUMNS) + 2) + "|")
    for arm, seeds in results.items():
        for turn in range(len(seeds[0])):
            row = mean_row(seeds, turn)
            cells = [form.format(row[name]) for name, (_, form) in COLUMNS.items()]
            lines.append(f"| {arm} | {turn} | " + " | ".join(cells) + " |")
    lines += ["", f"{setting['hardware']}; {setting['versions']}; commit {setting['commit']}; `{setting['command']}`."]
    return "\n".join(lines)


def earlier(path: Path | None, note: str) -> tuple[Results, dict[str, str]]:
    """(rows, commits) of the arms that the file holds of the same note."""
    if path is None or not path.is_file():
        return {}, {}
    content = json.loads(path.read_text(encoding="utf-8"))
    return (content["rows"], content["commits"]) if content["note"] == note else ({}, {})


def main() -> None:
    """Run every arm with every seed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=Loop().rounds)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1])
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS))
    parser.add_argument("--learning-rate", type=float, default=Loop().options.learning_rate)
    parser.add_argument("--quick", action="store_true", help="one seed, two rounds, two epochs: checks that it runs")
    parser.add_argument("--data", type=Path, default=ROOT / ".crossfade" / "data", help="where the data is kept")
    parser.add_argument("--out", type=Path, default=None, help="JSON; Markdown is written beside it")
    given = parser.parse_args()
    torch.set_num_threads(1)
    console, setting = Console(stderr=True), this_setting()
    split = leave_one_out(load_movielens(fetch_movielens(given.data, console.print)))
    options = replace(Loop().options, learning_rate=given.learning_rate)
    loop = Loop(rounds=2 if given.quick else given.rounds, options=options)
    seeds = given.seeds[:1] if given.quick else given.seeds
    results: Results = {arm: [] for arm in given.arms}
    columns = [TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn(), TextColumn("{task.fields[note]}")]
    with Progress(*columns, console=console) as progress, tempfile.TemporaryDirectory() as scratch:
        for seed in seeds:
            base, world = Path(scratch) / f"base-{seed}", World(split, seed)
            task = progress.add_task(f"training, seed {seed}", total=None, note="")
            trained(split, PRESETS["tiny"], seed, base, TrainOptions(epochs=2) if given.quick else None)
            progress.update(task, total=1, completed=1)
            for arm in given.arms:
                folder = Path(scratch) / f"{arm}-{seed}"
                folder.mkdir()
                task = progress.add_task(f"{arm}, seed {seed}", total=loop.rounds + 1, note="")

                def show(row: Row, task: TaskID = task) -> None:
                    progress.update(task, advance=1, note=f"reward {row['reward']:.4f}")

                own = replace(options, supervision=1.0) if arm == SUPERVISED else options
                simulation = Simulation(split, world, base, folder, replace(loop, options=own), seed)
                results[arm].append(run(simulation, loop.rounds, ARMS[arm], show))
                shutil.rmtree(folder)
    note = (
        f"MovieLens-100K, preset `tiny`, means over seeds {', '.join(map(str, seeds))}. In each round a quarter of the "
        f"users is shown {loop.requests} slates of {loop.k}; what they play goes through the SQL store and is learned "
        f"from in {options.epochs} epochs at a learning rate of {options.learning_rate:g}. Columns: reward "
        f"(mean liking, known, without noise) of fresh slates of another quarter; legal ids without the trie, "
        f"{loop.samples} drawn for each of {loop.probes} users and in beams of {loop.beams[0]} and {loop.beams[1]}; "
        "HR@10 and NDCG@10 of all users' held-out items, which know nothing of the simulated likings."
    )
    known, commits = earlier(given.out, note)
    results = {arm: (known | results)[arm] for arm in ARMS if arm in known | results}
    commits |= dict.fromkeys(given.arms, setting["commit"])
    text = markdown(results, setting, note)
    if older := [f"{arm} at {made}" for arm, made in commits.items() if made != setting["commit"]]:
        text += f" Kept from an earlier call: {', '.join(older)}."
    if given.out is not None:
        content = setting | {"commits": commits, "note": note, "numbers": flat(results), "rows": results}
        given.out.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
        given.out.with_suffix(".md").write_text(text + "\n", encoding="utf-8")
    print(text)
    print(json.dumps(flat(results)))


if __name__ == "__main__":
    main()
