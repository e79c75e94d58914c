"""Gradient-Bounded Policy Optimization: learn from what users did with what they were shown."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from model.context import ContextKV
from model.errors import ModelError
from model.onerec import OneRecV2


def gbpo_loss(log_prob: Tensor, old_log_prob: Tensor, advantage: Tensor) -> Tensor:
    """-mean(pi / pi'_old · A), the mean over all samples, those of advantage 0 included.

    pi'_old = max(pi_old, sg(pi)) where A >= 0, max(pi_old, 1 - sg(pi)) where A < 0; sg stops the gradient. Nothing is
    clipped, so every sample with A != 0 keeps its gradient. That gradient is bounded by the one of binary cross
    entropy: per sample |dL/d log pi| <= |A| for A > 0, and <= |A|·pi / (1 - pi) for A < 0, which vanishes with pi
    where a plain policy ratio's does not.

    All three are [n], or any one shape. log_prob carries the gradient. old_log_prob is that of the policy that showed
    the item, NaN where something else showed it: then pi_old = sg(pi), as in the paper. Computed in log space, so
    that probabilities of whole items, far below float32's smallest number, are no trouble.
    Source: arXiv 2508.20900, equation 11 and section 3.1.2.
    """
    if not log_prob.shape == old_log_prob.shape == advantage.shape:
        shapes = ", ".join(str(tuple(part.shape)) for part in (log_prob, old_log_prob, advantage))
        raise ModelError(f"advantage: log_prob, old_log_prob and advantage differ in shape: {shapes}")
    fixed = log_prob.detach()
    old = torch.where(old_log_prob.isnan(), fixed, old_log_prob.detach())
    floor = torch.where(advantage < 0, log_one_minus_exp(fixed), fixed)
    # a sample without advantage has no say, whatever its ratio: 0 · inf would be NaN
    ratio = (log_prob - torch.maximum(old, floor)).exp()
    return -torch.where(advantage == 0, 0.0, ratio * advantage).mean()


def log_one_minus_exp(log_prob: Tensor) -> Tensor:
    """log(1 - exp(x)) for x <= 0, accurate at both ends; -inf at 0."""
    return torch.where(
        log_prob > -math.log(2.0),
        (-torch.expm1(log_prob)).log(),
        torch.log1p(-log_prob.exp()),
    )


def item_log_probs(model: OneRecV2, context: ContextKV, codes: Tensor) -> Tensor:
    """log pi(item | user) [B] of items given by their codes [B, levels], one for each request of the context.

    It is the sum over the levels, the same as the beam's score.
    """
    levels = [
        -functional.cross_entropy(out.float(), codes[:, level], reduction="none")
        for level, out in enumerate(model(context, codes))
    ]
    return torch.stack(levels).sum(0)


@dataclass(frozen=True, slots=True, eq=False)
class Feedback:
    """A batch of shown items with what came of them.

    history [B, N, levels]: semantic ids newest first; valid [B, N]; shown [B, levels]: the item; old_log_prob [B]:
    under the policy that showed it, NaN where something else did; advantage [B]. places [N] and features [B, F] as in
    `ContextTokens`: behind the history's places stands what the user likes.
    """

    history: Tensor
    valid: Tensor
    shown: Tensor
    old_log_prob: Tensor
    advantage: Tensor
    places: Tensor | None = None
    features: Tensor | None = None


@dataclass(frozen=True, slots=True)
class AlignOptions:
    """How to post-train; supervision is the weight of the next-item loss on the histories' newest items.

    The paper keeps its supervised stage running beside the reinforcement, to stay near the pretrained model, without
    saying how the two are weighed: open, so a field here. A history's newest item, given those before it, is what a
    user went on to, as in pretraining. batch_size: shown items of one optimizer step, among which
    the best quarter is positive. Raises ModelError naming the field.
    """

    epochs: int = 3
    batch_size: int = 512
    learning_rate: float = 1e-4
    supervision: float = 0.0
    clip_norm: float = 1.0

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size"):
            if getattr(self, name) < 1:
                raise ModelError(f"{name}: must be at least 1, got {getattr(self, name)}")
        for name in ("learning_rate", "clip_norm"):
            if not getattr(self, name) > 0.0:
                raise ModelError(f"{name}: must be positive, got {getattr(self, name)}")
        if not self.supervision >= 0.0:
            raise ModelError(f"supervision: must not be negative, got {self.supervision}")


Objective = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(log_prob, old_log_prob, advantage) -> loss; `gbpo_loss` is one."""


@dataclass(frozen=True, slots=True)
class AlignStep:
    """The loss of one batch before its step, and how far the policy has moved from the one that showed the items:
    mean log(pi / pi_old) of what was liked and of what was disliked, NaN where the batch had none of known pi_old."""

    loss: float
    liked: float
    disliked: float


class Aligner:
    """Post-trains a model, one optimizer step per batch of feedback. objective: another loss, for comparison."""

    def __init__(self, model: OneRecV2, options: AlignOptions | None = None, objective: Objective = gbpo_loss) -> None:
        self._model, self._objective = model, objective
        self._options = options or AlignOptions()
        self._optimizer = torch.optim.AdamW(model.parameters(), lr=self._options.learning_rate, weight_decay=0.0)

    def step(self, feedback: Feedback) -> AlignStep:
        """Learn from one batch. The model is left in evaluation mode."""
        model, options = self._model, self._options
        model.train()
        context = model.context(feedback.history, feedback.valid, feedback.places, feedback.features)
        log_prob = item_log_probs(model, context, feedback.shown)
        loss = self._objective(log_prob, feedback.old_log_prob, feedback.advantage)
        liked = feedback.advantage > 0
        if options.supervision and bool(feedback.valid[:, 0].any()):
            loss = loss + options.supervision * _next_item_loss(model, feedback)
        self._optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(loss)
        nn.utils.clip_grad_norm_(model.parameters(), options.clip_norm)
        self._optimizer.step()
        model.eval()
        moved = log_prob.detach() - feedback.old_log_prob
        return AlignStep(loss.item(), _mean(moved[liked]), _mean(moved[feedback.advantage < 0]))


def _next_item_loss(model: OneRecV2, feedback: Feedback) -> Tensor:
    """The pretraining objective on the newest item of each history that has one, told nothing of that item."""
    known = feedback.valid[:, 0]
    history, valid, places = feedback.history[known], feedback.valid[known], feedback.places
    target, before, there = history[:, 0], history[:, 1:], valid[:, 1:]
    if places is not None:
        of_history = places[1:] < model.config.context_len
        places = places[1:] - of_history.long()  # each item of the history moves up by one place
        there = there & (of_history | (before != target[:, None]).any(-1))  # it may be among what is liked
    features = None if feedback.features is None else feedback.features[known]
    return model.loss(model.context(before, there, places, features), target)


def _mean(values: Tensor) -> float:
    return values[~values.isnan()].mean().item()
