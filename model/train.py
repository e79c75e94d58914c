"""Training on the next new item: every position of every history is a sample."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from model.config import OneRecConfig
from model.distributed import Worker
from model.item_embeddings import item_embeddings
from model.onerec import OneRecV2
from model.semantic_ids import Tokenizer, TokenizerQuality, fit_tokenizer
from model.split import Split
from model.threads import torch_threads
from model.train_loop import TrainLoop
from model.train_options import Progress, TrainOptions
from model.train_samples import Samples

__all__ = ["Progress", "Samples", "TrainOptions", "TrainResult", "train"]


@dataclass(frozen=True, slots=True, eq=False)
class TrainResult:
    """The trained model (float32, CPU, evaluation mode) with its tokenizer and what training showed."""

    model: OneRecV2
    tokenizer: Tokenizer
    quality: TokenizerQuality
    losses: tuple[float, ...]  # mean loss of each epoch
    duration_s: float  # of this call alone, where training was resumed
    step_losses: tuple[float, ...]  # mean loss of each optimizer step
    validation_losses: tuple[float, ...]  # after each epoch; empty without `patience`


def train(
    split: Split,
    config: OneRecConfig,
    seed: int,
    options: TrainOptions | None = None,
    progress: Callable[[Progress], None] | None = None,
    *,
    state_path: Path | None = None,
    worker: Worker | None = None,
) -> TrainResult:
    """Fit the tokenizer, then the model by AdamW on -log p of each training position's codes.

    Reproducible to the bit on one kind of CPU, also when it was interrupted: with `state_path` the training state is
    kept in that file, and a call with the same arguments goes on from there (a finished training returns at once). On
    a GPU the same holds within rounding, whose kernels add in any order. Several processes train together where each
    passes its own `worker`; all of them return the same model, and only the first one calls `progress` and writes. The
    process's torch thread count and random state are put back afterwards. Raises ModelError when the codes are too few
    or training diverges, CheckpointError for a state that is damaged or foreign.
    """
    options, worker = options or TrainOptions(), worker or Worker()
    began = time.perf_counter()
    gpus = [worker.device] if worker.device.type == "cuda" else []
    with torch_threads(options.threads), torch.random.fork_rng(devices=gpus):
        vectors = item_embeddings(split, seed=seed)
        tokenizer, quality = fit_tokenizer(vectors, config.levels, config.codebook_size, seed)
        torch.manual_seed(seed)
        model = OneRecV2(config)
        end = TrainLoop(
            model,
            tokenizer.codes,
            Samples.of(split, config),
            Samples.with_validation(split, config),
            options,
            seed=seed,
            worker=worker,
            report=progress or (lambda _: None),
            state_path=state_path,
        ).run()
    return TrainResult(
        model=model.cpu(),
        tokenizer=tokenizer,
        quality=quality,
        losses=tuple(end.losses),
        duration_s=time.perf_counter() - began,
        step_losses=tuple(end.step_losses),
        validation_losses=tuple(end.validation_losses),
    )
