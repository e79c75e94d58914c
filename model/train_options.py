"""How to train, and what training says on the way."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from model.errors import ModelError
from model.stored_fields import stored_fields

PRECISIONS = ("float32", "bfloat16")
YOUNGER_FIELDS = ("encoding_dropout", "newest_targets", "average")
"""Younger than the first training states: left out of stored options where they have their default."""


@dataclass(frozen=True, slots=True)
class TrainOptions:
    """How long and how fast; the defaults are those of the tiny preset on MovieLens-100K.

    Raises ModelError naming the field for a value that cannot be.
    """

    epochs: int = 6
    batch_size: int = 512  # of one optimizer step, over all workers and all accumulated parts
    learning_rate: float = 3e-3
    weight_decay: float = 0.05  # on matrices and embeddings, not on norms and biases
    warmup_share: float = 0.05  # of all steps, linear; then a cosine down to zero
    clip_norm: float = 1.0
    threads: int = 1  # the tiny preset's operations are too small to share: two threads are slower than one
    accumulate: int = 1  # parts that a worker's share of a batch is computed in, to save memory
    patience: int = 0  # epochs without a lower validation loss before training stops; 0: never, and none is computed
    history_dropout: float = 0.0  # share of each history's items that are hidden, others each time it is read
    encoding_dropout: float = 0.0  # share of the numbers of each history item's encoding that are set to zero
    newest_targets: int = 0  # newest items of each user that are targets; the histories stay whole; 0: all items
    shuffle_instants: bool = False  # in each epoch, items that a user met at one time come in another random order
    average: float = 0.0  # decay per step of the exponential average of the weights that training ends with; 0: none
    bias_rate: float = 1e-3  # how far the experts' selection biases move in a step; DeepSeek-V3's own
    precision: str = "float32"  # of products and activations; weights and optimizer stay float32
    save_every: int = 0  # steps between two saved training states; 0: only after each epoch

    def __post_init__(self) -> None:
        for name, least in (("epochs", 1), ("batch_size", 1), ("threads", 1), ("accumulate", 1)):
            if getattr(self, name) < least:
                raise ModelError(f"{name}: must be at least {least}, got {getattr(self, name)}")
        for name in ("patience", "save_every", "newest_targets", "bias_rate", "weight_decay", "warmup_share"):
            if not getattr(self, name) >= 0:
                raise ModelError(f"{name}: must not be negative, got {getattr(self, name)}")
        for name in ("learning_rate", "clip_norm"):
            if not getattr(self, name) > 0.0:
                raise ModelError(f"{name}: must be positive, got {getattr(self, name)}")
        for name in ("history_dropout", "encoding_dropout", "average"):
            if not 0.0 <= getattr(self, name) < 1.0:
                raise ModelError(f"{name}: must be in [0, 1), got {getattr(self, name)}")
        if self.precision not in PRECISIONS:
            raise ModelError(f"precision: must be one of {', '.join(PRECISIONS)}, got {self.precision!r}")

    def to_dict(self) -> dict[str, Any]:
        """All fields as JSON values, `YOUNGER_FIELDS` at their default left out.

        So training states and results that were stored before those fields existed are still known as what they are.
        """
        return stored_fields(self, YOUNGER_FIELDS)

    def rate_at(self, step: int, steps: int) -> float:
        """The learning rate of step `step` (from 0) of `steps`: linear up to the peak, then a cosine down to zero."""
        warm = max(1, round(self.warmup_share * steps))
        if step < warm:
            return self.learning_rate * (step + 1) / warm
        return self.learning_rate * 0.5 * (1.0 + math.cos(math.pi * (step - warm) / max(1, steps - warm)))


PRESET_OPTIONS: dict[str, TrainOptions] = {
    "tiny": TrainOptions(),
    # chosen on MovieLens-100K's validation items, as the preset itself
    "small": TrainOptions(
        epochs=14, history_dropout=0.1, encoding_dropout=0.2, newest_targets=200, shuffle_instants=True, average=0.998
    ),
}
"""How the presets that a workstation can train are trained."""


@dataclass(frozen=True, slots=True)
class Progress:
    """One report to the caller: steps done of all, and the smoothed loss (nats per token)."""

    step: int
    steps: int
    loss: float
