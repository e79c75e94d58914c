"""Training on the next new item: every position of every history is a sample."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from model.config import OneRecConfig
from model.context import ContextKV
from model.errors import ModelError
from model.item_embeddings import item_embeddings
from model.onerec import OneRecV2
from model.semantic_ids import Tokenizer, TokenizerQuality, fit_tokenizer
from model.split import Split


@dataclass(frozen=True, slots=True)
class TrainOptions:
    """How long and how fast; the defaults are those of the tiny preset on MovieLens-100K."""

    epochs: int = 6
    batch_size: int = 512
    learning_rate: float = 3e-3
    weight_decay: float = 0.05  # on matrices and embeddings, not on norms and biases
    warmup_share: float = 0.05  # of all steps, linear; then a cosine down to zero
    clip_norm: float = 1.0
    threads: int = 1  # the tiny preset's operations are too small to share: two threads are slower than one

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "threads"):
            if getattr(self, name) < 1:
                raise ModelError(f"{name}: must be at least 1, got {getattr(self, name)}")
        if not self.learning_rate > 0.0:
            raise ModelError(f"learning_rate: must be positive, got {self.learning_rate}")


@dataclass(frozen=True, slots=True)
class Progress:
    """One report to the caller: steps done of all, and the smoothed loss (nats per token)."""

    step: int
    steps: int
    loss: float


@dataclass(frozen=True, slots=True, eq=False)
class TrainResult:
    """The trained model (float32, CPU, evaluation mode) with its tokenizer and what training showed."""

    model: OneRecV2
    tokenizer: Tokenizer
    quality: TokenizerQuality
    losses: tuple[float, ...]  # mean loss of each epoch
    duration_s: float


@dataclass(frozen=True, slots=True, eq=False)
class Samples:
    """All training positions of a split as flat arrays: no history is copied.

    items [n]: training items of all users one after the other; start [n]: where the user's history begins.
    Sample p has items[p] as target and items[start[p] : p] as history, empty for a user's first item.
    """

    items: Tensor
    start: Tensor

    @classmethod
    def of(cls, split: Split) -> Samples:
        """Every training item of every user is a target once."""
        lengths = np.array([history.shape[0] for history in split.train])
        begin = np.concatenate([[0], np.cumsum(lengths)[:-1]])
        items = np.concatenate(split.train)
        return cls(torch.from_numpy(items), torch.from_numpy(np.repeat(begin, lengths)))

    def __len__(self) -> int:
        return self.items.shape[0]

    def windows(self, sample: Tensor, length: int) -> tuple[Tensor, Tensor]:
        """Samples [B] -> (items [B, N] newest first, valid [B, N]); N is at most `length`."""
        back = sample[:, None] - 1 - torch.arange(length)
        valid = back >= self.start[sample][:, None]
        longest = max(1, int(valid.sum(1).max()))
        back, valid = back[:, :longest], valid[:, :longest]
        return self.items[back.clamp_min(0)], valid


def train(
    split: Split,
    config: OneRecConfig,
    seed: int,
    options: TrainOptions | None = None,
    progress: Callable[[Progress], None] | None = None,
) -> TrainResult:
    """Fit the tokenizer, then the model by AdamW on -log p of each training position's codes.

    Reproducible to the bit on one kind of machine. The process's torch thread count is changed meanwhile and put
    back afterwards. Raises ModelError when the codes are too few.
    """
    options = options or TrainOptions()
    began = time.perf_counter()
    with _threads(options.threads), torch.random.fork_rng(devices=[]):
        vectors = item_embeddings(split, seed=seed)
        tokenizer, quality = fit_tokenizer(vectors, config.levels, config.codebook_size, seed)
        torch.manual_seed(seed)
        model = OneRecV2(config)
        losses = _fit(
            model, tokenizer.codes, Samples.of(split), options, seed=seed, report=progress or (lambda _: None)
        )
    return TrainResult(model.eval(), tokenizer, quality, losses, time.perf_counter() - began)


@contextmanager
def _threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _fit(
    model: OneRecV2,
    codes: Tensor,
    samples: Samples,
    options: TrainOptions,
    *,
    seed: int,
    report: Callable[[Progress], None],
) -> tuple[float, ...]:
    """All epochs; returns each one's mean loss."""
    order_of = torch.Generator().manual_seed(seed)
    per_epoch = math.ceil(len(samples) / options.batch_size)
    steps = options.epochs * per_epoch
    optimizer = torch.optim.AdamW(_groups(model, options.weight_decay), lr=options.learning_rate, fused=True)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _warm_cosine(step, steps, options))
    losses: list[float] = []
    smooth = math.log(model.config.codebook_size)
    model.train()
    for epoch in range(options.epochs):
        total = 0.0
        order = torch.randperm(len(samples), generator=order_of)
        for index in range(per_epoch):
            batch = order[index * options.batch_size : (index + 1) * options.batch_size]
            loss = model.loss(_context(model, codes, samples, batch), codes[samples.items[batch]])
            optimizer.zero_grad(set_to_none=True)
            torch.autograd.backward(loss)
            nn.utils.clip_grad_norm_(model.parameters(), options.clip_norm)
            optimizer.step()
            schedule.step()
            value = loss.item()
            total += value * batch.shape[0]
            smooth += 0.02 * (value - smooth)
            report(Progress(epoch * per_epoch + index + 1, steps, smooth))
        losses.append(total / len(samples))
    return tuple(losses)


def _context(model: OneRecV2, codes: Tensor, samples: Samples, batch: Tensor) -> ContextKV:
    """Contexts of a batch; the whole catalogue is encoded once instead where that is less work."""
    items, valid = samples.windows(batch, model.config.context_len)
    if codes.shape[0] < items.numel():
        table = model.context.encode_items(codes)
        return model.context.assemble(nn.functional.embedding(items, table), valid)
    computed: ContextKV = model.context(codes[items], valid)
    return computed


def _groups(model: nn.Module, weight_decay: float) -> list[dict[str, object]]:
    matrices = [p for p in model.parameters() if p.ndim > 1]
    vectors = [p for p in model.parameters() if p.ndim <= 1]
    return [{"params": matrices, "weight_decay": weight_decay}, {"params": vectors, "weight_decay": 0.0}]


def _warm_cosine(step: int, steps: int, options: TrainOptions) -> float:
    warm = max(1, round(options.warmup_share * steps))
    if step < warm:
        return (step + 1) / warm
    return 0.5 * (1.0 + math.cos(math.pi * (step - warm) / max(1, steps - warm)))
