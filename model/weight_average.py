"""The exponential average of a model's weights over the steps of its training."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class WeightAverage:
    """After step t each weight's average is the mean of its values after steps 1..t, that of step s weighing d^(t-s).

    d is the decay. The weights before the first step count nothing, so that a short training is averaged, too. Only
    parameters are averaged; a buffer stays what it is. Decay 0 averages nothing and changes nothing.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self._model, self._decay = model, decay
        self.weights: dict[str, Tensor] = {}  # by the parameter's name; empty before the first step and for decay 0

    @torch.no_grad()
    def step(self, count: int) -> None:
        """Take the weights after step `count` (from 1) in."""
        if not self._decay:
            return
        share = (1.0 - self._decay) / (1.0 - self._decay**count)  # the newest weights' part of the mean
        for name, parameter in self._model.named_parameters():
            if count == 1:
                self.weights[name] = parameter.detach().clone()
            else:
                self.weights[name].lerp_(parameter.detach(), share)

    def put(self) -> None:
        """Write the averages into the model."""
        self._write(self.weights)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """The model with its averages inside the block, with its own weights behind it."""
        own = {name: value.detach().clone() for name, value in self._model.named_parameters() if name in self.weights}
        self.put()
        try:
            yield
        finally:
            self._write(own)

    @torch.no_grad()
    def _write(self, weights: Mapping[str, Tensor]) -> None:
        for name, parameter in self._model.named_parameters():
            if name in weights:
                parameter.copy_(weights[name])

    def load(self, weights: Mapping[str, Tensor]) -> None:
        """Go on from stored `weights`."""
        device = {name: parameter.device for name, parameter in self._model.named_parameters()}
        self.weights = {name: value.to(device[name], copy=True) for name, value in weights.items()}
