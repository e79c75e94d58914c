"""From data to checkpoints: fetch, split, train, evaluate, quantise, compare. Each stage is done once and kept.

A stage's folder carries the digest of everything that it depends on, so that a changed input, seed or preset makes a
new one, and an interrupted stage leaves nothing that could be taken for its result.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from model.config import PRESETS
from model.data import Interactions, load_interactions
from model.errors import ModelError
from model.evaluate import Accuracy
from model.movielens import fetch_movielens, load_movielens
from model.split import Split, leave_one_out
from model.train_options import PRESET_OPTIONS
from quant.recipes import DEFAULT_RECIPE, FAULT_RECIPE, Fp8Recipe

if TYPE_CHECKING:
    from quant.report import QuantizationReport

PRESET = "tiny"
K = 10
PARITY_SAMPLES = 64
"""Histories that the layer report samples activations from."""

RANKER_SEED = 0

Say = Callable[[str], None]
Advance = Callable[[int, int, float], None]
"""(steps done, steps, loss) while the model trains."""


@dataclass(frozen=True, slots=True)
class Quality:
    """One row of the table of recommenders: accuracy on the same users and candidates."""

    name: str
    accuracy: Accuracy


@dataclass(frozen=True, slots=True)
class Prepared:
    """What a service needs to start, and what is known of it.

    checkpoints: variant name -> folder. quantization and parity are the JSON of quant's reports, by variant.
    """

    split: Split
    checkpoints: Mapping[str, Path]
    quality: tuple[Quality, ...]
    quantization: Mapping[str, Mapping[str, Any]]
    parity: Mapping[str, Mapping[str, Any]]


def prepare(
    home: Path,
    seed: int,
    say: Say,
    advance: Advance,
    *,
    data_path: Path | None = None,
    with_fault: bool = False,
    preset: str = PRESET,
) -> Prepared:
    """Everything up to the FP8 checkpoint, and the really damaged one with `with_fault`. preset: of PRESET_OPTIONS.

    A training that was interrupted goes on after its last whole epoch. Raises DataError, CheckpointError, ModelError or
    QuantError with the reason.
    """
    if preset not in PRESET_OPTIONS:
        raise ModelError(f"preset: no {preset!r} that is trained here; there are {', '.join(PRESET_OPTIONS)}")
    interactions = load_data(home, data_path, say)
    split = leave_one_out(interactions)
    root = home / "checkpoints"
    trained = root / f"{preset}-{_digest(interactions, preset, seed)}"
    plain = _trained(trained / "bf16", split, preset, seed, say, advance)
    recipes = {"fp8": DEFAULT_RECIPE} | ({"fp8-faulty": FAULT_RECIPE} if with_fault else {})
    checkpoints = {"bf16": plain}
    quantization, parities = {}, {}
    for name, recipe in recipes.items():
        checkpoints[name] = trained / name
        quantization[name] = _quantised(plain, trained / name, recipe, split, say)
        measure = partial(_parity, plain, trained / name, split, say)
        parities[name] = _kept(trained / f"parity-{name}.json", measure)
    baselines = _kept(trained / "baselines.json", lambda: _baselines(split, say))
    return Prepared(split, checkpoints, _quality(baselines, parities), quantization, parities)


def load_data(home: Path, path: Path | None, say: Say) -> Interactions:
    """Your own interactions, or MovieLens-100K, fetched once into the home."""
    interactions = load_movielens(fetch_movielens(home / "data", say)) if path is None else load_interactions(path)
    users, items = len(interactions.users), len(interactions.items)
    say(f"{len(interactions):,} interactions of {users:,} users with {items:,} items")
    return interactions


def quantise_and_analyse(
    checkpoint: Path, target: Path, recipe: Fp8Recipe, folder: Path, interactions: Interactions, say: Say
) -> QuantizationReport:
    """Quantise, and describe weights and activations in `folder`, beside a traditional ranker's on the same data.

    Raises ModelError for interactions with items that the checkpoint does not know, else as `quantize_checkpoint`.
    """
    from quant.analysis import Analysis, LayerAnalysis, write_analysis
    from quant.load import quantize_checkpoint
    from quant.ranker import ranker_analysis

    split = leave_one_out(interactions)
    layers: list[LayerAnalysis] = []
    report = quantize_checkpoint(
        checkpoint,
        target,
        recipe,
        histories=_histories(split),
        observe=lambda layer, inputs, found: layers.append(LayerAnalysis.of(layer, inputs, found)),
    )
    say("training a traditional ranker on the same data")
    write_analysis(folder, [Analysis(checkpoint.name, tuple(layers)), ranker_analysis(split, RANKER_SEED)])
    say(f"analysis: {folder / 'analysis.md'}")
    return report


def _histories(split: Split) -> list[list[str]]:
    """What activations are sampled from: histories of the first evaluated users, without their held-out items."""
    names = split.interactions.items
    users = split.evaluated_users()[:PARITY_SAMPLES]
    return [[names[item] for item in split.history(int(user), with_validation=False)] for user in users]


def _trained(folder: Path, split: Split, preset: str, seed: int, say: Say, advance: Advance) -> Path:
    if (folder / "SHA256SUMS").is_file():
        say(f"model: cached in {folder}")
        return folder
    import torch

    from model.catalogue import Catalogue
    from model.checkpoint import save
    from model.train import train
    from model.train_plot import plot_losses

    say(f"training OneRec-V2 {preset!r} with seed {seed}")
    config, state = PRESETS[preset], folder.with_name("training-state.safetensors")
    state.parent.mkdir(parents=True, exist_ok=True)
    result = train(
        split,
        config,
        seed,
        PRESET_OPTIONS[preset],
        lambda progress: advance(progress.step, progress.steps, progress.loss),
        state_path=state,
    )
    plot_losses(folder.with_name("losses.png"), result.step_losses, result.validation_losses)
    extra = {"preset": preset, "seed": seed, "losses": list(result.losses), "train_s": round(result.duration_s, 1)}
    catalogue = Catalogue.of(split.interactions)
    save(folder, result.model, config, catalogue, result.tokenizer, extra=extra, dtype=torch.bfloat16)
    state.unlink(missing_ok=True)
    say(f"trained in {result.duration_s:.0f} s, loss {result.losses[-1]:.3f} nats per token")
    return folder


def _quantised(plain: Path, folder: Path, recipe: str, split: Split, say: Say) -> dict[str, Any]:
    from quant.load import quantize_checkpoint
    from quant.recipes import recipe_named

    def quantise() -> dict[str, Any]:
        say(f"quantising by the recipe {recipe}")
        return quantize_checkpoint(plain, folder, recipe_named(recipe), histories=_histories(split)).to_dict()

    report = folder.parent / f"quantization-{folder.name}.json"
    if not (folder / "SHA256SUMS").is_file():
        report.unlink(missing_ok=True)
    return _kept(report, quantise)


def _parity(plain: Path, quantised: Path, split: Split, say: Say) -> dict[str, Any]:
    from quant.parity import parity

    say(f"comparing {quantised.name} with bf16 and fp32 on {split.evaluated_users().shape[0]} users")
    return parity(plain, quantised, split, K).to_dict()


def _baselines(split: Split, say: Say) -> dict[str, Any]:
    from model.baselines import item_knn, popularity
    from model.evaluate import evaluate

    say("measuring popularity and item-kNN on the same split")
    rankers = {"popularity": popularity(split), "item-kNN": item_knn(split)}
    return {name: asdict(evaluate(ranker, split, K)) for name, ranker in rankers.items()}


def _quality(baselines: Mapping[str, Any], parities: Mapping[str, Mapping[str, Any]]) -> tuple[Quality, ...]:
    """Baselines first, then each precision of the model; all on the test item of every evaluated user."""
    rows = [Quality(name, Accuracy(**fields)) for name, fields in baselines.items()]
    for variant, report in parities.items():
        for name, fields in report["accuracies"].items():
            label = variant if name == "fp8" else name
            if label not in {row.name for row in rows}:
                rows.append(Quality(label, Accuracy(**fields)))
    return tuple(rows)


def _kept(path: Path, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """The JSON of `path`, made first if it is not there."""
    if not path.is_file():
        content = make()
        path.parent.mkdir(parents=True, exist_ok=True)
        fresh = path.with_suffix(".new")
        fresh.write_text(json.dumps(content, indent=2), encoding="utf-8")
        fresh.replace(path)
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return found


def _digest(interactions: Interactions, preset: str, seed: int) -> str:
    """Of the data, the preset and the seed."""
    digest = hashlib.sha256(
        json.dumps([PRESETS[preset].to_dict(), seed, interactions.users, interactions.items]).encode()
    )
    for column in (interactions.user, interactions.item, interactions.timestamp):
        digest.update(np.ascontiguousarray(column).tobytes())
    return digest.hexdigest()[:12]
