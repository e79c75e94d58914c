from __future__ import annotations

import pytest
import torch
from torch import nn

from model.weight_average import WeightAverage


@pytest.fixture
def layer() -> nn.Linear:
    return nn.Linear(1, 1)


def _set(layer: nn.Linear, value: float) -> None:
    with torch.no_grad():
        layer.weight.fill_(value)
        layer.bias.fill_(-value)


def test_average_weighs_step_by_step_less_and_forgets_the_start(layer: nn.Linear) -> None:
    _set(layer, 1000.0)
    average = WeightAverage(layer, 0.5)
    for count, value in enumerate((4.0, 2.0, 8.0), start=1):
        _set(layer, value)
        average.step(count)
    average.put()
    assert layer.weight.item() == pytest.approx((4.0 * 1 + 2.0 * 2 + 8.0 * 4) / 7)
    assert layer.bias.item() == pytest.approx(-layer.weight.item())


def test_average_is_applied_inside_its_block_only_also_when_that_raises(layer: nn.Linear) -> None:
    average = WeightAverage(layer, 0.5)
    for count, value in enumerate((0.0, 3.0), start=1):
        _set(layer, value)
        average.step(count)
    inside = list[float]()

    def look() -> None:
        with average.applied():
            inside.append(layer.weight.item())
            raise LookupError

    with pytest.raises(LookupError):
        look()
    assert inside == [pytest.approx(2.0)]
    assert layer.weight.item() == 3.0


def test_average_loaded_goes_on_with_a_copy(layer: nn.Linear) -> None:
    stored = {"weight": torch.tensor([[0.0]]), "bias": torch.tensor([0.0])}
    average = WeightAverage(layer, 0.5)
    average.load(stored)
    _set(layer, 3.0)
    average.step(2)
    assert average.weights["weight"].item() == pytest.approx(2.0)
    assert stored["weight"].item() == 0.0


def test_no_decay_keeps_and_changes_nothing(layer: nn.Linear) -> None:
    average = WeightAverage(layer, 0.0)
    _set(layer, 3.0)
    average.step(1)
    average.put()
    with average.applied():
        assert layer.weight.item() == 3.0
    assert average.weights == {}
