"""A traditional ranker, DLRM in small (Naumov et al., arXiv 1906.00091): what OneRec-V2 replaces.

Embeddings of categories; a bottom network over dense features; dot products of every pair of these vectors; a top
network over all of it gives the log odds of a click. The dense features come as they are (seconds since 1970, counters,
sums). Training needs them standardised, so a mean and a deviation are learnt from the data, and afterwards folded into
the first layer, as a batch norm of the inputs is when a ranker goes into production.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional

from model.dlrm_features import DENSE, FeatureLog, Impressions, heldout_impressions, training_impressions
from model.errors import ModelError
from model.split import Split


@dataclass(frozen=True, slots=True)
class DLRMOptions:
    """Sizes and training."""

    width: int = 16  # of every embedding, and of the bottom network's output
    bottom: int = 64  # hidden units
    top: tuple[int, int] = (64, 32)
    negatives: int = 2  # drawn items per click in training
    heldout_negatives: int = 50  # in the measurement
    epochs: int = 2  # a third one only learns the users by heart
    batch_size: int = 1024
    learning_rate: float = 2e-3

    def __post_init__(self) -> None:
        for name in ("width", "bottom", "negatives", "heldout_negatives", "epochs", "batch_size"):
            if getattr(self, name) < 1:
                raise ModelError(f"{name}: must be at least 1, got {getattr(self, name)}")
        if not self.learning_rate > 0.0:
            raise ModelError(f"learning_rate: must be positive, got {self.learning_rate}")


class DLRM(nn.Module):
    """dense [B, F] and categories [B, C] -> log odds of a click [B]."""

    def __init__(self, dense: int, cardinalities: tuple[int, ...], options: DLRMOptions) -> None:
        super().__init__()
        width, vectors = options.width, len(cardinalities) + 1
        self.tables = nn.ModuleList(nn.Embedding(size, width) for size in cardinalities)
        self.bottom = nn.Sequential(
            nn.Linear(dense, options.bottom), nn.ReLU(), nn.Linear(options.bottom, width), nn.ReLU()
        )
        first, second = options.top
        pairs = vectors * (vectors - 1) // 2
        self.top = nn.Sequential(
            nn.Linear(width + pairs, first), nn.ReLU(), nn.Linear(first, second), nn.ReLU(), nn.Linear(second, 1)
        )
        for table in self.tables:
            nn.init.normal_(table.weight, std=0.1)  # type: ignore[arg-type]

    def forward(self, dense: Tensor, categories: Tensor) -> Tensor:
        """The log odds."""
        base = self.bottom(dense)
        vectors = torch.stack([base, *(table(categories[:, i]) for i, table in enumerate(self.tables))], dim=1)
        row, column = torch.tril_indices(vectors.shape[1], vectors.shape[1], offset=-1)
        dots = (vectors @ vectors.transpose(1, 2))[:, row, column]
        out: Tensor = self.top(torch.cat([base, dots], dim=1))
        return out[:, 0]

    @torch.no_grad()
    def fold(self, mean: Tensor, deviation: Tensor) -> None:
        """Let the first layer take unscaled features: W' = W / deviation, b' = b - W'·mean; in double precision."""
        stored, bias = self.bottom.get_parameter("0.weight"), self.bottom.get_parameter("0.bias")
        weight = stored.double() / deviation.double()
        bias.copy_(bias.double() - weight @ mean.double())
        stored.copy_(weight)


@dataclass(frozen=True, slots=True, eq=False)
class TrainedDLRM:
    """The ranker for unscaled features, what it was measured on, and its losses (mean of each epoch)."""

    network: DLRM
    heldout: Impressions
    losses: tuple[float, ...]

    def auc(self, network: nn.Module | None = None, dtype: torch.dtype = torch.float32) -> float:
        """Of this network, or of a variant of it, on the held-out impressions."""
        return auc(self.scores(network or self.network, dtype), self.heldout.clicked)

    @torch.no_grad()
    def scores(self, network: nn.Module, dtype: torch.dtype = torch.float32) -> npt.NDArray[np.float64]:
        """Log odds of the held-out impressions [n]."""
        dense = torch.from_numpy(self.heldout.dense).to(dtype)
        found = network(dense, torch.from_numpy(self.heldout.categories))
        out: npt.NDArray[np.float64] = found.double().numpy()
        return out


def train_dlrm(
    split: Split,
    seed: int,
    options: DLRMOptions | None = None,
    progress: Callable[[int, int, float], None] | None = None,
) -> TrainedDLRM:
    """Clicks against drawn items, by cross-entropy and Adam, on one CPU. progress is told (step, steps, loss).

    The caller's random state is left alone.
    """
    options = options or DLRMOptions()
    rng = np.random.default_rng(seed)
    log = FeatureLog(split.interactions)
    seen = training_impressions(log, split, options.negatives, rng)
    heldout = heldout_impressions(log, split, options.heldout_negatives, rng)
    mean, deviation = seen.dense.mean(axis=0), seen.dense.std(axis=0).clip(min=1e-12)
    dense = torch.from_numpy(((seen.dense - mean) / deviation).astype(np.float32))
    categories, clicked = torch.from_numpy(seen.categories), torch.from_numpy(seen.clicked)
    report = progress or (lambda *_: None)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = DLRM(len(DENSE), log.cardinalities, options)
        optimizer = torch.optim.Adam(network.parameters(), lr=options.learning_rate)
        losses: list[float] = []
        per_epoch = -(-clicked.shape[0] // options.batch_size)
        for epoch in range(options.epochs):
            total = 0.0
            for step, batch in enumerate(torch.split(torch.randperm(clicked.shape[0]), options.batch_size), 1):
                loss = functional.binary_cross_entropy_with_logits(
                    network(dense[batch], categories[batch]), clicked[batch]
                )
                optimizer.zero_grad(set_to_none=True)
                torch.autograd.backward(loss)
                optimizer.step()
                total += loss.item()
                report(epoch * per_epoch + step, options.epochs * per_epoch, loss.item())
            losses.append(total / per_epoch)
    network.fold(torch.from_numpy(mean), torch.from_numpy(deviation))
    return TrainedDLRM(network.eval().requires_grad_(False), heldout, tuple(losses))


def auc(scores: npt.NDArray[np.float64], clicked: npt.NDArray[np.float32]) -> float:
    """The chance that a clicked impression scores above another, ties counting half (Mann and Whitney's U).

    Raises ModelError unless there are both.
    """
    positives = int(clicked.sum())
    if not 0 < positives < clicked.shape[0]:
        raise ModelError("clicked: an area under the curve needs clicks and others")
    _, place, count = np.unique(scores, return_inverse=True, return_counts=True)
    rank = (np.cumsum(count) - (count - 1) / 2)[place]  # from 1, the mean among ties
    above = rank[clicked > 0].sum() - positives * (positives + 1) / 2
    return float(above / (positives * (clicked.shape[0] - positives)))
