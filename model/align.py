"""Post-training over a log of feedback: epochs of shuffled batches through `Aligner`."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from model.errors import ModelError
from model.gbpo import Aligner, AlignOptions, AlignStep, Objective, gbpo_loss
from model.lessons import Lessons
from model.onerec import OneRecV2


@dataclass(frozen=True, slots=True)
class AlignResult:
    """Every step, and how many items of the last epoch were positive and negative."""

    steps: tuple[AlignStep, ...]
    liked: int
    disliked: int


def align(
    model: OneRecV2,
    codes: Tensor,
    lessons: Lessons,
    options: AlignOptions,
    seed: int,
    progress: Callable[[int, int, AlignStep], None] | None = None,
    objective: Objective = gbpo_loss,
) -> AlignResult:
    """Change `model` by what users did with what they were shown; it ends in evaluation mode.

    codes [items, levels] of the catalogue, on the model's device. progress: (steps done, steps, this one). The same
    seed gives the same model on one kind of CPU and number of threads. Raises ModelError without anything to learn,
    or when the loss is no number.
    """
    if bool(np.isnan(lessons.score).all()) and not bool(lessons.disliked.any()):
        raise ModelError("lessons: no shown item has a score or a dislike: there is nothing to learn")
    aligner = Aligner(model, options, objective)
    order = torch.Generator().manual_seed(seed)
    parts = -(-len(lessons) // options.batch_size)
    steps: list[AlignStep] = []
    gpus = [codes.device] if codes.device.type == "cuda" else []
    with torch.random.fork_rng(devices=gpus):
        torch.manual_seed(seed)  # of dropout
        for _ in range(options.epochs):
            liked = disliked = 0
            for rows in torch.randperm(len(lessons), generator=order).tensor_split(parts):
                feedback = lessons.batch(rows, codes, model.config.context_len, model.config.positive_len)
                steps.append(aligner.step(feedback))
                if not math.isfinite(steps[-1].loss):
                    raise ModelError(f"learning_rate: the loss of step {len(steps)} is {steps[-1].loss}")
                liked += int((feedback.advantage > 0).sum())
                disliked += int((feedback.advantage < 0).sum())
                if progress is not None:
                    progress(len(steps), parts * options.epochs, steps[-1])
    return AlignResult(tuple(steps), liked, disliked)
