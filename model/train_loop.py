"""The training loop: shares, accumulates, balances, saves, and stops early."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from model.balance import ExpertBalancer
from model.context import ContextKV
from model.context_tokens import ContextTokens
from model.distributed import Worker
from model.errors import ModelError
from model.onerec import OneRecV2
from model.train_options import Progress, TrainOptions
from model.train_samples import Samples
from model.training_state import (
    Position,
    TrainingState,
    fingerprint_of,
    load_state,
    optimizer_tensors,
    restore_optimizer,
    save_state,
)
from model.weight_average import WeightAverage

Validation = tuple[Samples, Tensor]
"""Samples, and which of them are the validation targets."""


class NextItemLoss(nn.Module):
    """The objective as one module, so that DistributedDataParallel can wrap it."""

    def __init__(
        self, model: OneRecV2, codes: Tensor, history_dropout: float = 0.0, encoding_dropout: float = 0.0
    ) -> None:
        super().__init__()
        self.model = model
        self.history_dropout, self.encoding_dropout = history_dropout, encoding_dropout
        self.register_buffer("codes", codes, persistent=False)

    def forward(self, tokens: ContextTokens, target: Tensor) -> Tensor:
        """Contexts of B samples, target [B] -> the batch's mean loss."""
        codes = self.get_buffer("codes")
        if self.model.training and self.history_dropout:
            kept = torch.rand(tokens.valid.shape, device=tokens.valid.device) >= self.history_dropout
            tokens = replace(tokens, valid=tokens.valid & kept)
        return self.model.loss(self._context(codes, tokens), codes[target])

    def _context(self, codes: Tensor, tokens: ContextTokens) -> ContextKV:
        """The whole catalogue is encoded once instead of each item where that is less work."""
        context, items = self.model.context, tokens.items
        if codes.shape[0] < items.numel():
            encoded = nn.functional.embedding(items, context.encode_items(codes))
        else:
            encoded = context.encode_items(codes[items])
        if self.model.training and self.encoding_dropout:
            encoded = nn.functional.dropout(encoded, self.encoding_dropout)
        return context.assemble(encoded, tokens.valid, tokens.places, tokens.features)


class TrainLoop:
    """All epochs of one training, from the start or from a saved state."""

    def __init__(
        self,
        model: OneRecV2,
        codes: Tensor,
        samples: Samples,
        validation: Validation,
        options: TrainOptions,
        *,
        seed: int,
        worker: Worker,
        report: Callable[[Progress], None],
        state_path: Path | None,
    ) -> None:
        self._model, self._samples, self._validation, self._options = model, samples, validation, options
        self._worker, self._report, self._state_path = worker, report, state_path
        self._order = torch.Generator().manual_seed(seed)
        self._targets = samples.newest(options.newest_targets)
        self._per_epoch = math.ceil(len(self._targets) / options.batch_size)
        objective = NextItemLoss(model, codes, options.history_dropout, options.encoding_dropout)
        self._plain = objective.to(worker.device)
        self._optimizer = torch.optim.AdamW(_groups(model, options.weight_decay), lr=options.learning_rate, fused=True)
        # every rank starts from the same seed and moves its own biases alike: nothing but gradients is sent
        self._objective: nn.Module = (
            self._plain if worker.size == 1 else DistributedDataParallel(self._plain, broadcast_buffers=False)
        )
        self._balancer = ExpertBalancer(model, options.bias_rate, worker)
        self._average = WeightAverage(model, options.average)
        self._best: dict[str, Tensor] = {}
        self.position = Position(smooth=math.log(model.config.codebook_size))
        settings = {
            "model": model.config.to_dict(),
            "options": options.to_dict(),
            "seed": seed,
            "workers": worker.size,
        }
        data = {"codes": codes, "targets": validation[1]} | samples.tensors()
        data |= {"instant": samples.instant} if options.shuffle_instants else {}
        self._fingerprint = fingerprint_of(settings, data) if state_path is not None else ""
        if worker.rank:
            torch.manual_seed(seed + 7919 * worker.rank)  # dropout differs between workers

    @property
    def _steps(self) -> int:
        return self._options.epochs * self._per_epoch

    def run(self) -> Position:
        """Train to the end; the model is then in evaluation mode, with its best epoch's weights if one was kept.

        With an average of the weights, every epoch is judged by its average, and training ends with one.
        """
        if self._state_path is not None and self._state_path.exists():
            self._restore(load_state(self._state_path, self._fingerprint))
        try:
            while self.position.epoch < self._options.epochs and not self.position.stopped:
                self._epoch()
        finally:
            self._balancer.close()
        if self._best:
            self._model.load_state_dict(self._best)
        else:
            self._average.put()
        self._model.eval()
        return self.position

    def _epoch(self) -> None:
        at, options = self.position, self._options
        drawn_from = self._order.get_state()
        samples = self._samples.reordered(self._order) if options.shuffle_instants else self._samples
        order = self._targets[torch.randperm(len(self._targets), generator=self._order)]
        self._model.train()
        for index in range(at.index, self._per_epoch):
            batch = order[index * options.batch_size : (index + 1) * options.batch_size]
            self._note(self._step(samples, batch, at.epoch * self._per_epoch + index), batch.shape[0])
            if options.save_every and len(at.step_losses) % options.save_every == 0 and at.index < self._per_epoch:
                self._save(drawn_from)
        at.losses.append(at.total / len(self._targets))
        at.epoch, at.index, at.total = at.epoch + 1, 0, 0.0
        if options.patience:
            with self._average.applied():
                self._judge(self._validation_loss())
        self._save(self._order.get_state())

    def _note(self, loss: float, count: int) -> None:
        at = self.position
        at.index += 1
        at.total += loss * count
        at.smooth += 0.02 * (loss - at.smooth)
        at.step_losses.append(loss)
        if self._worker.is_first:
            self._report(Progress(len(at.step_losses), self._steps, at.smooth))

    def _step(self, samples: Samples, batch: Tensor, step: int) -> float:
        """One optimizer step on the whole batch [B]; returns its mean loss. Raises ModelError if that is not finite."""
        share = self._worker.share(batch)
        # a share may be empty in the last batch of an epoch: then one sample goes through with weight 0, since all
        # workers must meet in the backward pass
        parts = [part for part in share.tensor_split(self._options.accumulate) if len(part)] or [batch[:1]]
        self._optimizer.zero_grad(set_to_none=True)
        total = torch.zeros((), dtype=torch.float64, device=self._worker.device)
        for number, part in enumerate(parts):
            with self._unsynchronised() if number + 1 < len(parts) else nullcontext():
                loss = self._loss(self._objective, samples, part)
                weight = len(part) / len(batch) if len(share) else 0.0
                torch.autograd.backward(loss * (weight * self._worker.size))  # the workers' gradients are averaged
            total += loss.item() * weight
        mean = float(self._worker.sum(total))
        if not math.isfinite(mean):
            raise ModelError(f"learning_rate: the loss is {mean} at step {step}, training has diverged")
        if not len(share):
            self._balancer.forget()
        nn.utils.clip_grad_norm_(self._model.parameters(), self._options.clip_norm)
        for group in self._optimizer.param_groups:
            group["lr"] = self._options.rate_at(step, self._steps)
        self._optimizer.step()
        self._balancer.step()
        self._average.step(step + 1)
        return mean

    def _unsynchronised(self) -> AbstractContextManager[None]:
        if isinstance(self._objective, DistributedDataParallel):
            manager: AbstractContextManager[None] = self._objective.no_sync()
            return manager
        return nullcontext()

    def _loss(self, objective: nn.Module, samples: Samples, part: Tensor) -> Tensor:
        tokens, device = samples.tokens(part, self._model.config), self._worker.device
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=self._options.precision == "bfloat16"):
            loss: Tensor = objective(tokens.to(device), samples.items[part].to(device))
        return loss

    @torch.no_grad()
    def _validation_loss(self) -> float:
        """Mean loss of the validation items, shared out over the workers."""
        samples, targets = self._validation
        self._model.eval()
        total = torch.zeros((), dtype=torch.float64, device=self._worker.device)
        for part in torch.split(self._worker.share(targets), self._options.batch_size):
            total += self._loss(self._plain, samples, part).item() * len(part)
        return float(self._worker.sum(total)) / len(targets)

    def _judge(self, loss: float) -> None:
        """Keep the best epoch's weights; stop after `patience` epochs that were no better."""
        at = self.position
        at.validation_losses.append(loss)
        if at.best is None or loss < at.best:
            at.best, at.worse = loss, 0
            self._best = {name: value.clone() for name, value in self._model.state_dict().items()}
        else:
            at.worse += 1
            at.stopped = at.worse >= self._options.patience

    def _save(self, order_rng: Tensor) -> None:
        if self._state_path is None:
            return
        rng = self._worker.gather(self._worker.random_state())
        if self._worker.is_first:
            tensors = {f"model.{name}": value for name, value in self._model.state_dict().items()}
            tensors |= {f"best.{name}": value for name, value in self._best.items()}
            tensors |= {f"average.{name}": value for name, value in self._average.weights.items()}
            tensors |= optimizer_tensors(self._model, self._optimizer)
            tensors |= {"order_rng": order_rng, "rng": rng}
            save_state(self._state_path, TrainingState(self.position, tensors), self._fingerprint)
        self._worker.wait()

    def _restore(self, state: TrainingState) -> None:
        self.position = state.position
        self._model.load_state_dict(state.part("model"))
        self._best = state.part("best")
        self._average.load(state.part("average"))
        restore_optimizer(self._model, self._optimizer, state)
        self._order.set_state(state.tensors["order_rng"])
        self._worker.set_random_state(state.tensors["rng"][self._worker.rank].clone())


def _groups(model: nn.Module, weight_decay: float) -> list[dict[str, object]]:
    matrices = [p for p in model.parameters() if p.ndim > 1]
    vectors = [p for p in model.parameters() if p.ndim <= 1]
    return [{"params": matrices, "weight_decay": weight_decay}, {"params": vectors, "weight_decay": 0.0}]
