"""data, train, evaluate, recommend, quantize: the model without a service."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from serving.commands.options import DEFAULT_HOME, Data, Home, Seed, plain_errors

MOST_ITEMS = 20_000
"""Legality is summed up over every item, up to so many."""

Checkpoint = Annotated[Path, typer.Argument(help="folder of a checkpoint")]


def data(home: Home = DEFAULT_HOME, path: Data = None) -> None:
    """Bring MovieLens-100K (or check your own interactions) and say what is in it."""
    with plain_errors():
        from model.split import leave_one_out
        from serving.pipeline import load_data

        interactions = load_data(home, path, typer.echo)
        split = leave_one_out(interactions)
        lengths = sorted(len(history) for history in split.train)
        typer.echo(
            f"training histories: shortest {lengths[0]}, median {lengths[len(lengths) // 2]}, longest {lengths[-1]}; "
            f"{split.evaluated_users().shape[0]:,} users are evaluated on their last item"
        )


def train(
    home: Home = DEFAULT_HOME,
    path: Data = None,
    seed: Seed = 0,
    with_fault: Annotated[bool, typer.Option(help="also make the really damaged FP8 variant")] = False,
    preset: Annotated[str, typer.Option(help="tiny (a minute) or small (five minutes, a little better)")] = "tiny",
) -> None:
    """Train OneRec-V2, quantise it, and compare both with baselines; nothing is done twice, and an interrupted training
    goes on where it was."""
    with plain_errors():
        from serving import terminal
        from serving.pipeline import prepare

        out = terminal.console()
        with terminal.progress_bar(out) as bar:
            task = bar.add_task("training", total=None, note="")

            def advance(step: int, steps: int, loss: float) -> None:
                bar.update(task, completed=step, total=steps, note=f"loss {loss:.3f}")

            prepared = prepare(home, seed, out.print, advance, data_path=path, with_fault=with_fault, preset=preset)
        out.print(terminal.quality(prepared))
        for name, folder in prepared.checkpoints.items():
            out.print(f"{name}: {folder}", soft_wrap=True)


def evaluate(
    checkpoint: Checkpoint,
    home: Home = DEFAULT_HOME,
    path: Data = None,
    k: Annotated[int, typer.Option(min=1, max=100)] = 10,
) -> None:
    """HR@k, NDCG@k, coverage and legality of a checkpoint, leave-one-out over the whole catalogue."""
    with plain_errors():
        from model.errors import DataError
        from model.evaluate import evaluate_signals, legality
        from model.split import leave_one_out
        from quant.load import load_recommender
        from serving.pipeline import load_data

        interactions = load_data(home, path, typer.echo)
        recommender = load_recommender(checkpoint)
        if recommender.catalogue.ids != interactions.items:
            raise DataError(f"{checkpoint}: was trained on another catalogue than that of the data")
        split = leave_one_out(interactions)
        found = evaluate_signals(recommender, split, k)
        typer.echo(f"HR@{k} {found.hit_rate:.4f}  NDCG@{k} {found.ndcg:.4f}  users {found.users:,}")
        typer.echo(f"recommended to anyone: {found.coverage:.1%} of the {split.n_items:,} items")
        if split.n_items <= MOST_ITEMS:
            free = legality(recommender, split)
            typer.echo(f"answers that are items: 100 %, by the trie; ids drawn freely would be in {free:.1%} of cases")


def recommend(
    checkpoint: Checkpoint,
    history: Annotated[list[str] | None, typer.Argument(help="item ids, oldest first")] = None,
    k: Annotated[int, typer.Option(min=1, max=100)] = 10,
    liked: Annotated[list[str] | None, typer.Option(help="id of a liked item, oldest first; may be repeated")] = None,
    profile: Annotated[list[str] | None, typer.Option(help="key=value of the user; may be repeated")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="for programs")] = False,
) -> None:
    """What a checkpoint recommends after a history, to somebody with that profile who liked those items."""
    with plain_errors():
        from model.recommender import Recommender
        from model.signals import UserSignals
        from quant.load import load_recommender

        signals = UserSignals(history or [], liked or [], _profile(profile or []))
        recommender: Recommender = load_recommender(checkpoint)
        for option, given, known in (
            ("--liked", signals.liked, recommender.config.positive_len),
            ("--profile", signals.profile, recommender.config.profile_features),
        ):
            if given and not known:
                typer.echo(f"{option}: this checkpoint has no such pathway and does not read it", err=True)
        items = recommender.recommend([signals], k)[0]
        if as_json:
            typer.echo(json.dumps([{"item_id": item.item_id, "score": item.score} for item in items]))
            return
        for place, item in enumerate(items, start=1):
            title = recommender.catalogue.title(item.item_id)
            typer.echo(f"{place:>3}  {item.item_id:<12} {item.score:8.3f}  {title}")


def _profile(pairs: Sequence[str]) -> dict[str, str]:
    found = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not (equals and name and value):
            raise typer.BadParameter(f"--profile: expected key=value, got {pair!r}")
        found[name] = value
    return found


def quantize(
    checkpoint: Checkpoint,
    target: Annotated[Path, typer.Argument(help="folder of the new checkpoint")],
    recipe: Annotated[str, typer.Option(help="how to quantise")] = "e4m3",
    analysis: Annotated[
        Path | None,
        typer.Option(help="also describe weights and activations here, beside a traditional ranker's on the same data"),
    ] = None,
    home: Home = DEFAULT_HOME,
    path: Data = None,
) -> None:
    """Make the FP8 variant of a BF16 checkpoint, and report on every layer. One block at a time is in memory."""
    with plain_errors():
        from quant.load import quantize_checkpoint
        from quant.recipes import recipe_named
        from serving import terminal

        out = terminal.console()
        if analysis is None:
            report = quantize_checkpoint(checkpoint, target, recipe_named(recipe))
        else:
            from serving.pipeline import load_data, quantise_and_analyse

            interactions = load_data(home, path, out.print)
            report = quantise_and_analyse(checkpoint, target, recipe_named(recipe), analysis, interactions, out.print)
        out.print(terminal.quantization(target.name, report.to_dict()))
        saved = f"{report.bytes_before:,} → {report.bytes_after:,} bytes of weights"
        out.print(f"{target}: {saved}", soft_wrap=True)
