"""SASRec, the self-attentive sequential recommender that a generative model has to beat (Kang, McAuley; ICDM 2018).

The network is the paper's (arXiv 1808.09781, section III) with its authors' settings: two blocks, one head, learned
positions counted from the newest item, item embeddings shared by input and output, the newest 200 items of each user
as one sequence, Adam with beta2 = 0.98. Two losses: the paper's binary cross-entropy against one sampled negative, and
softmax over the whole catalogue, which Klenitskiy and Vasilev (arXiv 2309.07602) found to be much stronger.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from model.data import IntArray
from model.errors import ModelError
from model.evaluate import evaluate
from model.split import Split

Loss = Literal["softmax", "bce"]


@dataclass(frozen=True, slots=True)
class SASRecOptions:
    """Sizes and training of SASRec; the defaults are those that validate best on MovieLens-100K."""

    width: int = 64
    blocks: int = 2
    heads: int = 1
    max_len: int = 200  # newest items of a user; the authors' value for MovieLens
    dropout: float = 0.2  # the authors' value for MovieLens
    loss: Loss = "softmax"
    epochs: int = 200  # at most
    patience: int = 20  # epochs without a better NDCG@10 on the validation items, after which training ends
    batch_size: int = 128  # users
    learning_rate: float = 1e-3

    def __post_init__(self) -> None:
        for name in ("width", "blocks", "heads", "max_len", "epochs", "patience", "batch_size"):
            if getattr(self, name) < 1:
                raise ModelError(f"{name}: must be at least 1, got {getattr(self, name)}")
        if self.width % self.heads:
            raise ModelError(f"heads: {self.heads} does not divide width {self.width}")
        if not 0.0 <= self.dropout < 1.0:
            raise ModelError(f"dropout: must be in [0, 1), got {self.dropout}")
        if self.loss not in ("softmax", "bce"):
            raise ModelError(f"loss: must be softmax or bce, got {self.loss!r}")
        if not self.learning_rate > 0.0:
            raise ModelError(f"learning_rate: must be positive, got {self.learning_rate}")


class SASRecBlock(nn.Module):
    """x + Dropout(attention(LayerNorm(x))), then the same around a point-wise two-layer network (equation 6)."""

    def __init__(self, options: SASRecOptions) -> None:
        super().__init__()
        d = options.width
        self.norm_attention, self.norm_ffn = nn.LayerNorm(d, eps=1e-8), nn.LayerNorm(d, eps=1e-8)
        self.qkv, self.out = nn.Linear(d, 3 * d), nn.Linear(d, d)
        self.up, self.down = nn.Linear(d, d), nn.Linear(d, d)
        self.heads, self.dropout = options.heads, nn.Dropout(options.dropout)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """x [B, T, d] and mask [B, 1, T, T], True where a position (row) may read another (column)."""
        batch, length, width = x.shape
        q, k, v = self.qkv(self.norm_attention(x)).view(batch, length, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        p = self.dropout.p if self.training else 0.0
        read = functional.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=p)
        x = x + self.dropout(self.out(read.transpose(1, 2).reshape(batch, length, width)))
        inner = self.dropout(functional.relu(self.up(self.norm_ffn(x))))
        added: Tensor = x + self.dropout(self.down(inner))
        return added


class SASRec(nn.Module):
    """Items so far -> a vector per position, whose products with the item embeddings score the next item."""

    def __init__(self, n_items: int, options: SASRecOptions) -> None:
        super().__init__()
        self.options = options
        self.items = nn.Embedding(n_items, options.width)
        self.positions = nn.Embedding(options.max_len, options.width)
        self.blocks = nn.ModuleList(SASRecBlock(options) for _ in range(options.blocks))
        self.norm = nn.LayerNorm(options.width, eps=1e-8)
        self.dropout = nn.Dropout(options.dropout)
        for parameter in self.parameters():
            if parameter.ndim > 1:
                nn.init.xavier_normal_(parameter)

    def forward(self, items: Tensor) -> Tensor:
        """items [B, T], oldest first, padded in front with -1, T at most max_len -> [B, T, d]."""
        length, width = items.shape[1], self.options.width
        valid = items >= 0
        places = self.positions.weight[self.options.max_len - length :]
        x = self.dropout(self.items(items.clamp_min(0)) * width**0.5 + places)
        causal = torch.ones(length, length, dtype=torch.bool, device=items.device).tril()
        itself = torch.eye(length, dtype=torch.bool, device=items.device)  # padding reads itself: no row is empty
        mask = (causal & valid[:, None, :]) | itself
        for block in self.blocks:
            x = block(x, mask[:, None])
        out: Tensor = self.norm(x)
        return out

    def loss(self, items: Tensor, targets: Tensor, negatives: Tensor) -> Tensor:
        """Mean over the positions with a target. items, targets, negatives [B, T], -1 where there is none.

        negatives are read by the binary cross-entropy only.
        """
        known = targets >= 0
        state, wanted = self(items)[known], targets[known]
        if self.options.loss == "softmax":
            return functional.cross_entropy(state @ self.items.weight.T, wanted)
        good = (state * self.items(wanted)).sum(-1)
        bad = (state * self.items(negatives[known])).sum(-1)
        return -(functional.logsigmoid(good) + functional.logsigmoid(-bad)).mean()


@dataclass(frozen=True, slots=True, eq=False)
class SASRecRanker:
    """A trained SASRec as a ranker; without any history every user gets the items of the highest training count."""

    network: SASRec
    prior: Tensor
    epochs: int  # trained, including those after the best one
    duration_s: float

    @torch.inference_mode()
    def __call__(self, histories: list[IntArray], k: int) -> IntArray:
        """The k best unseen items of each history [users, k], -1 where none is left."""
        out = np.full((len(histories), k), -1, dtype=np.int64)
        for begin in range(0, len(histories), 256):
            batch = histories[begin : begin + 256]
            state = self.network(_padded(batch, self.network.options.max_len))[:, -1]
            scores = state @ self.network.items.weight.T
            for row, history in enumerate(batch):
                if not history.shape[0]:
                    scores[row] = self.prior
                scores[row, torch.from_numpy(history)] = -torch.inf
            best = scores.topk(min(k, scores.shape[1]))
            ranked = torch.where(best.values.isfinite(), best.indices, -1)
            out[begin : begin + len(batch), : ranked.shape[1]] = ranked.numpy()
        return out


def sasrec(
    split: Split,
    seed: int,
    options: SASRecOptions | None = None,
    progress: Callable[[int, int, float], None] | None = None,
) -> SASRecRanker:
    """Train on the training items, stop by the validation items, keep the best epoch; CPU, float32.

    progress is told (epoch, epochs at most, loss). The caller's random state is left alone. Raises ModelError when no
    user has two training items.
    """
    options = options or SASRecOptions()
    began = time.perf_counter()
    histories = [history for history in split.train if history.shape[0] >= 2]
    if not histories:
        raise ModelError("split: no user has two training items, so there is no next item to learn")
    prior = torch.bincount(torch.from_numpy(np.concatenate(split.train)), minlength=split.n_items).float()
    report = progress or (lambda *_: None)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = SASRec(split.n_items, options)
        optimizer = torch.optim.Adam(network.parameters(), lr=options.learning_rate, betas=(0.9, 0.98), fused=True)
        best, kept, best_epoch, epoch = -1.0, network.state_dict(), 0, 0
        for epoch in range(1, options.epochs + 1):
            loss = _epoch(network.train(), optimizer, histories, split.n_items)
            found = evaluate(SASRecRanker(network.eval(), prior, epoch, 0.0), split, validation=True).ndcg
            if found > best:
                best, best_epoch, kept = found, epoch, copy.deepcopy(network.state_dict())
            report(epoch, options.epochs, loss)
            if epoch - best_epoch >= options.patience:
                break
        network.load_state_dict(kept)
    return SASRecRanker(network.eval(), prior, epoch, time.perf_counter() - began)


def _epoch(network: SASRec, optimizer: torch.optim.Optimizer, histories: list[IntArray], n_items: int) -> float:
    """One pass over the users in random order; returns the mean loss of its batches."""
    total, size = 0.0, network.options.batch_size
    order = torch.randperm(len(histories)).tolist()
    batches = range(0, len(order), size)
    for begin in batches:
        batch = [histories[user] for user in order[begin : begin + size]]
        sequences = _padded(batch, network.options.max_len + 1)
        targets = torch.where(sequences[:, :-1] >= 0, sequences[:, 1:], -1)
        sampled = network.options.loss == "bce"
        negatives = _negatives(batch, n_items, targets.shape[1]) if sampled else targets
        loss = network.loss(sequences[:, :-1], targets, negatives)
        optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(loss)
        optimizer.step()
        total += loss.item()
    return total / len(batches)


def _padded(histories: list[IntArray], max_len: int) -> Tensor:
    """The newest max_len items of each history [B, T], padded in front with -1; T is at least 1."""
    newest = [history[-max_len:] for history in histories]
    out = np.full((len(newest), max([1, *(row.shape[0] for row in newest)])), -1, dtype=np.int64)
    for row, history in enumerate(newest):
        if history.shape[0]:
            out[row, -history.shape[0] :] = history
    return torch.from_numpy(out)


def _negatives(histories: list[IntArray], n_items: int, length: int) -> Tensor:
    """Uniform items [B, length] that the user has not met; any item for a user who has met them all."""
    allowed = torch.ones(len(histories), n_items)
    for row, history in enumerate(histories):
        allowed[row, torch.from_numpy(history)] = 0.0
    allowed[allowed.sum(1) == 0] = 1.0
    return torch.multinomial(allowed, length, replacement=True)
