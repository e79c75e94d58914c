from __future__ import annotations

import hashlib
import json
import math

import pytest
import torch

from model.config import PRESETS, OneRecConfig
from model.onerec import OneRecV2
from model.split import Split
from model.train import TrainOptions, train

CONTEXT_BEFORE = {
    "embed.0.weight",
    "embed.1.weight",
    "embed.2.weight",
    "hidden.bias",
    "hidden.weight",
    "norms.0.weight",
    "profile",
    "project.weight",
    "recency.weight",
}
BOS_SUM = 0.36564814671874046
LOSSES_BEFORE = (
    4.134527683258057,
    3.683610677719116,
    3.358954668045044,
    3.0992822647094727,
    2.9131014347076416,
    2.7820351123809814,
    2.7147457599639893,
)


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_is_built_on_the_meta_device(name: str) -> None:
    with torch.device("meta"):
        model = OneRecV2(PRESETS[name])
    assert all(parameter.is_meta for parameter in model.parameters())


@torch.no_grad()
def test_loss_is_the_mean_over_levels_of_minus_log_p(toy_model: OneRecV2) -> None:
    codes = torch.randint(0, 5, (4, 3), generator=torch.Generator().manual_seed(0))
    context = toy_model.context(torch.randint(0, 5, (4, 2, 3)), torch.ones(4, 2, dtype=torch.bool))
    logits = toy_model(context, codes)
    total = 0.0
    for row in range(4):
        for level in range(3):
            values = [math.exp(float(x)) for x in logits[level][row]]
            total -= math.log(values[int(codes[row, level])] / sum(values))
    assert float(toy_model.loss(context, codes)) == pytest.approx(total / 12, rel=1e-5)


@torch.no_grad()
def test_logits_of_a_level_depend_on_earlier_codes_only(toy_model: OneRecV2) -> None:
    context = toy_model.context(torch.zeros(1, 2, 3, dtype=torch.int64), torch.ones(1, 2, dtype=torch.bool))
    first = toy_model(context, torch.tensor([[1, 2, 3]]))
    other = toy_model(context, torch.tensor([[1, 4, 0]]))
    assert torch.equal(first[0], other[0])
    torch.testing.assert_close(first[1], other[1])
    assert not torch.allclose(first[2], other[2])


@torch.no_grad()
def test_decoding_code_by_code_equals_teacher_forcing(toy_model: OneRecV2) -> None:
    codes = torch.tensor([[1, 2, 3], [4, 0, 2]])
    context = toy_model.context(torch.ones(2, 3, 3, dtype=torch.int64), torch.ones(2, 3, dtype=torch.bool))
    whole = toy_model(context, codes)
    hidden, caches = toy_model.start(context)
    for level in range(3):
        torch.testing.assert_close(toy_model.logits(hidden, level)[:, 0], whole[level], atol=1e-5, rtol=1e-4)
        if level < 2:
            hidden, caches = toy_model.advance(codes[:, level : level + 1], level, context, caches)


def test_toy_and_tiny_models_are_small_and_finite(toy_config: OneRecConfig) -> None:
    model = OneRecV2(PRESETS["tiny"])
    assert sum(parameter.numel() for parameter in model.parameters()) < 500_000
    assert all(torch.isfinite(parameter).all() for parameter in OneRecV2(toy_config).parameters())


def test_tiny_is_what_it_was_before_there_were_pathways() -> None:
    """Names, number and draw of the weights, as recorded then; so old checkpoints load and old seeds mean the same."""
    torch.manual_seed(0)
    model = OneRecV2(PRESETS["tiny"])
    context = {name for name in model.state_dict() if name.startswith("context.")}
    assert context == {f"context.{name}" for name in CONTEXT_BEFORE}
    assert len(model.state_dict()) == 36
    assert sum(parameter.numel() for parameter in model.parameters()) == 142_768
    assert float(model.bos.detach().double().sum()) == pytest.approx(BOS_SUM, rel=1e-5)
    stored = json.dumps(PRESETS["tiny"].to_dict()).encode()
    assert hashlib.sha256(stored).hexdigest().startswith("ec3e1fd506fbb34c")


def test_tiny_trains_as_it_did_before_there_were_pathways(toy_split: Split) -> None:
    """The first steps' losses as recorded then; equal to the bit on the same CPU, and nearly so on others."""
    result = train(toy_split, PRESETS["tiny"], 0, TrainOptions(epochs=1, batch_size=32))
    assert result.step_losses == pytest.approx(LOSSES_BEFORE, rel=1e-4)
