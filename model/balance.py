"""Load balancing of experts in training, without an auxiliary loss."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from model.distributed import Worker
from model.experts import MixtureOfExperts


class ExpertBalancer:
    """Counts the tokens of every routed expert while a model trains, and moves the selection biases after each step.

    DeepSeek-V3 (arXiv 2412.19437, section 2.1.2): after a step over the whole batch, an overloaded expert's bias falls
    by `rate` and an underloaded one's rises by it. With several workers the load is that of all of them, so that their
    biases stay equal. Without experts, or with rate 0, it does nothing.
    """

    def __init__(self, model: nn.Module, rate: float, worker: Worker) -> None:
        self._rate = rate
        self._worker = worker
        layers = [module for module in model.modules() if isinstance(module, MixtureOfExperts)] if rate else []
        self._loads = {layer: torch.zeros_like(layer.bias, dtype=torch.int64) for layer in layers}
        self._hooks = [layer.register_forward_hook(self._count) for layer in layers]

    @torch.no_grad()
    def _count(self, layer: nn.Module, args: tuple[Any, ...], _output: Any) -> None:
        if layer.training and isinstance(layer, MixtureOfExperts):
            x: Tensor = args[0]
            chosen, _ = layer.route(x.reshape(-1, x.shape[-1]))
            self._loads[layer] += torch.bincount(chosen.flatten(), minlength=layer.bias.shape[0])

    def forget(self) -> None:
        """Drop what was counted since the last step."""
        for load in self._loads.values():
            load.zero_()

    def step(self) -> None:
        """Move all biases by what was counted, and start counting anew."""
        for layer, load in self._loads.items():
            layer.rebalance(self._worker.sum(load), self._rate)
        self.forget()

    def close(self) -> None:
        """Take the counting hooks off the model."""
        for hook in self._hooks:
            hook.remove()
