from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from model.config import OneRecConfig
from model.context_tokens import ContextTokens
from model.distributed import Worker
from model.errors import ModelError
from model.experts import MixtureOfExperts
from model.onerec import OneRecV2
from model.split import Split
from model.train import Samples, TrainOptions, TrainResult, train
from model.train_loop import NextItemLoss, TrainLoop

pytestmark = pytest.mark.usefixtures("one_thread")

QUICK = TrainOptions(epochs=2, batch_size=32, learning_rate=1e-2)
EXPERTS = {"n_experts": 6, "n_shared_experts": 1, "experts_per_token": 2, "expert_dim": 8}


def _largest_difference(first: TrainResult, second: TrainResult) -> float:
    states = first.model.state_dict(), second.model.state_dict()
    return max(float((states[0][name] - states[1][name]).abs().max()) for name in states[0])


def test_accumulated_parts_equal_one_batch_within_float_error(toy_split: Split, toy_config: OneRecConfig) -> None:
    whole = train(toy_split, toy_config, seed=0, options=QUICK)
    parts = train(toy_split, toy_config, seed=0, options=dataclasses.replace(QUICK, accumulate=5))
    smaller = train(toy_split, toy_config, seed=0, options=dataclasses.replace(QUICK, batch_size=7))
    assert parts.step_losses == pytest.approx(whole.step_losses, rel=1e-4)
    assert _largest_difference(whole, parts) < 1e-3
    assert len(smaller.step_losses) > len(whole.step_losses), "a smaller batch is something else"
    assert _largest_difference(whole, smaller) > 1e-2


def test_accumulated_parts_may_outnumber_the_samples_of_a_batch(toy_split: Split, toy_config: OneRecConfig) -> None:
    single = train(toy_split, toy_config, seed=0, options=dataclasses.replace(QUICK, batch_size=3, accumulate=9))
    assert all(math.isfinite(loss) for loss in single.step_losses)


def test_first_step_equals_a_gradient_step_by_hand(toy_split: Split, toy_config: OneRecConfig) -> None:
    """AdamW's first step moves every parameter by the rate times the sign of its gradient (before the eps)."""
    options = TrainOptions(epochs=1, batch_size=10**6, weight_decay=0.0, warmup_share=0.0, accumulate=3)
    result = train(toy_split, toy_config, seed=0, options=options)
    torch.manual_seed(0)
    model = OneRecV2(toy_config)
    samples, codes = Samples.of(toy_split), result.tokenizer.codes
    items, valid = samples.windows(torch.arange(len(samples)), toy_config.context_len)
    loss = model.loss(model.context(codes[items], valid), codes[samples.items])
    assert result.step_losses[0] == pytest.approx(loss.item(), rel=1e-5)
    names, parameters = zip(*model.named_parameters(), strict=True)
    gradients = torch.autograd.grad(loss, parameters)
    norm = math.sqrt(sum(float((g.double() ** 2).sum()) for g in gradients))
    after = dict(result.model.named_parameters())
    for name, parameter, gradient in zip(names, parameters, gradients, strict=True):
        clipped = gradient * min(1.0, options.clip_norm / norm)
        expected = parameter - options.learning_rate * clipped / (clipped.abs() + 1e-8)
        clear = clipped.abs() > 1e-6  # below, rounding decides about the sign
        torch.testing.assert_close(after[name][clear], expected[clear], atol=3e-4, rtol=1e-4)


def test_bfloat16_products_learn_too_and_keep_float32_weights(toy_split: Split, toy_config: OneRecConfig) -> None:
    options = dataclasses.replace(QUICK, epochs=6, precision="bfloat16")
    result = train(toy_split, toy_config, seed=0, options=options)
    plain = train(toy_split, toy_config, seed=0, options=dataclasses.replace(options, precision="float32"))
    assert {parameter.dtype for parameter in result.model.parameters()} == {torch.float32}
    assert result.losses != plain.losses
    assert result.losses[-1] == pytest.approx(plain.losses[-1], rel=0.1)


def test_early_stop_keeps_the_best_epoch(toy_split: Split, toy_config: OneRecConfig) -> None:
    options = TrainOptions(epochs=60, batch_size=32, learning_rate=5e-2, patience=2)
    config = dataclasses.replace(toy_config, n_layers=1, kv_sets=1)
    result = train(toy_split, config, seed=0, options=options)
    validation = list(result.validation_losses)
    best = validation.index(min(validation))
    assert len(result.losses) == len(validation) == best + 3 < 60
    assert _validation_loss(result, toy_split) == pytest.approx(min(validation), rel=1e-5)
    assert _validation_loss(result, toy_split) < 0.999 * validation[-1], "the last epoch's weights would be worse"


@torch.no_grad()
def _validation_loss(result: TrainResult, split: Split) -> float:
    """One user at a time."""
    total, users = 0.0, split.evaluated_users()
    codes, length = result.tokenizer.codes, result.model.config.context_len
    for user in users:
        history = torch.from_numpy(split.train[user])[-length:].flip(0)
        context = result.model.context(codes[history][None], torch.ones(1, len(history), dtype=torch.bool))
        total += float(result.model.loss(context, codes[split.validation[user]][None]))
    return total / len(users)


def test_history_dropout_hides_its_share_of_items_in_training_only(toy_split: Split, toy_config: OneRecConfig) -> None:
    torch.manual_seed(0)
    model, samples = OneRecV2(toy_config), Samples.of(toy_split)
    codes = torch.stack([torch.arange(20) // 5, torch.arange(20) % 5, torch.zeros(20, dtype=torch.int64)], dim=1)
    objective, masks = NextItemLoss(model, codes, history_dropout=0.25), []
    hook = model.decoder.register_forward_pre_hook(lambda _, args: masks.append(args[1].mask[:, 0, 0]))
    tokens = samples.tokens(torch.arange(len(samples)), toy_config)
    valid = tokens.valid
    for training in (True, True, False):
        model.train(training)
        objective(tokens, samples.items)
    hook.remove()
    assert all(bool(mask[:, 0].all()) for mask in masks), "the profile token is always read"
    assert not any(bool((mask[:, 1:] & ~valid).any()) for mask in masks)
    kept = [float(mask[:, 1:].sum() / valid.sum()) for mask in masks]
    assert kept[:2] == pytest.approx([0.75, 0.75], abs=0.05)
    assert kept[2] == 1.0
    assert not torch.equal(masks[0], masks[1])


def test_encoding_dropout_zeroes_its_share_of_items_encodings_in_training_only(
    toy_split: Split, toy_config: OneRecConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    model, samples = OneRecV2(toy_config), Samples.of(toy_split)
    codes = torch.stack([torch.arange(20) // 5, torch.arange(20) % 5, torch.zeros(20, dtype=torch.int64)], dim=1)
    tokens, seen = samples.tokens(torch.arange(len(samples)), toy_config), list[torch.Tensor]()
    assemble = model.context.assemble
    monkeypatch.setattr(model.context, "assemble", lambda items, *rest: (seen.append(items), assemble(items, *rest))[1])
    for share, training in ((0.25, True), (0.25, True), (0.25, False), (0.0, True)):
        model.train(training)
        NextItemLoss(model, codes, encoding_dropout=share)(tokens, samples.items)
    whole = seen[3]
    assert torch.equal(seen[2], whole)
    for dropped in seen[:2]:
        kept = dropped != 0
        assert float(kept.float().mean()) == pytest.approx(0.75, abs=0.02)
        torch.testing.assert_close(dropped[kept], whole[kept] / 0.75)
        one_item = (tokens.items == tokens.items[-1, 0]) & tokens.valid
        assert len(torch.unique(kept[one_item], dim=0)) > 1, "one item is dropped otherwise in each history"
    assert not torch.equal(seen[0] != 0, seen[1] != 0)


def test_defaults_of_the_objective_draw_no_random_numbers(toy_split: Split, toy_config: OneRecConfig) -> None:
    """So that a training without these options is what it was before there were any."""
    model, samples = OneRecV2(toy_config).train(), Samples.of(toy_split)
    codes = torch.stack([torch.arange(20) // 5, torch.arange(20) % 5, torch.zeros(20, dtype=torch.int64)], dim=1)
    before = torch.get_rng_state()
    NextItemLoss(model, codes)(samples.tokens(torch.arange(9), toy_config), samples.items[:9])
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("shuffle_instants", [False, True])
def test_newest_targets_caps_what_is_trained_on_and_leaves_histories_whole(
    shuffle_instants: bool, toy_split: Split, toy_config: OneRecConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked, tokens = list[int](), Samples.tokens

    def noting(self: Samples, sample: torch.Tensor, config: OneRecConfig) -> ContextTokens:
        asked.extend(sample.tolist())
        return tokens(self, sample, config)

    monkeypatch.setattr(Samples, "tokens", noting)
    options = TrainOptions(epochs=1, batch_size=7, newest_targets=2, shuffle_instants=shuffle_instants)
    result = train(toy_split, toy_config, seed=0, options=options)
    ends = np.cumsum([len(history) for history in toy_split.train])
    expected = sorted(
        end - back
        for end, history in zip(ends, toy_split.train, strict=True)
        for back in (1, 2)
        if back <= len(history)
    )
    assert sorted(asked) == expected, "each once in an epoch"
    assert len(result.step_losses) == math.ceil(len(expected) / 7)
    sizes = [len(part) for part in torch.split(torch.arange(len(expected)), 7)]
    assert result.losses[0] == pytest.approx(float(np.average(result.step_losses, weights=sizes)))


def test_newest_targets_of_more_than_anybody_has_is_all_to_the_bit(toy_split: Split, toy_config: OneRecConfig) -> None:
    whole = train(toy_split, toy_config, seed=0, options=QUICK)
    capped = train(toy_split, toy_config, seed=0, options=dataclasses.replace(QUICK, newest_targets=1000))
    assert capped.step_losses == whole.step_losses
    assert _largest_difference(whole, capped) == 0.0


def _loop(split: Split, config: OneRecConfig, options: TrainOptions) -> tuple[OneRecV2, list[dict[str, torch.Tensor]]]:
    """The trained model, and its parameters after each step."""
    torch.manual_seed(0)
    model, after = OneRecV2(config), list[dict[str, torch.Tensor]]()
    TrainLoop(
        model,
        torch.stack([torch.arange(20) // 5, torch.arange(20) % 5, torch.zeros(20, dtype=torch.int64)], dim=1),
        Samples.of(split),
        Samples.with_validation(split),
        options,
        seed=0,
        worker=Worker(),
        report=lambda _: after.append({name: p.detach().clone() for name, p in model.named_parameters()}),
        state_path=None,
    ).run()
    return model, after


def test_average_equals_a_naive_mean_over_all_steps_and_leaves_training_alone(
    toy_split: Split, toy_config: OneRecConfig
) -> None:
    averaged, during = _loop(toy_split, toy_config, dataclasses.replace(QUICK, average=0.8))
    last, plain = _loop(toy_split, toy_config, QUICK)
    assert len(during) == len(plain) > 5
    for one, other in zip(during, plain, strict=True):
        assert [name for name in one if not torch.equal(one[name], other[name])] == []
    share = torch.tensor([0.8 ** (len(during) - 1 - step) for step in range(len(during))], dtype=torch.float64)
    for name, parameter in averaged.named_parameters():
        values = torch.stack([weights[name] for weights in during]).double()
        expected = (values * (share / share.sum()).view(-1, *[1] * parameter.ndim)).sum(0)
        torch.testing.assert_close(parameter.detach().double(), expected, atol=1e-6, rtol=1e-5, msg=name)
        assert torch.equal(dict(last.named_parameters())[name], during[-1][name]), "without: the last step's weights"


def test_patience_judges_and_keeps_the_averaged_weights(toy_split: Split, toy_config: OneRecConfig) -> None:
    options = TrainOptions(epochs=6, batch_size=32, learning_rate=5e-2, patience=6)
    averaged = train(toy_split, toy_config, seed=0, options=dataclasses.replace(options, average=0.9))
    plain = train(toy_split, toy_config, seed=0, options=options)
    assert averaged.step_losses == plain.step_losses, "judging puts the training's own weights back"
    assert averaged.validation_losses != plain.validation_losses
    assert _validation_loss(averaged, toy_split) == pytest.approx(min(averaged.validation_losses), rel=1e-5)


def test_no_early_stop_without_patience(toy_split: Split, toy_config: OneRecConfig) -> None:
    result = train(toy_split, toy_config, seed=0, options=QUICK)
    assert result.validation_losses == ()
    assert len(result.losses) == QUICK.epochs


def _load(result: TrainResult, split: Split) -> torch.Tensor:
    """How often each expert of the last block is chosen over all samples."""
    layer = result.model.decoder.blocks[-1].ffn
    assert isinstance(layer, MixtureOfExperts)
    loads: list[torch.Tensor] = []
    hook = layer.register_forward_hook(
        lambda _, args, __: loads.append(torch.bincount(layer.route(args[0].reshape(-1, 16))[0].flatten(), minlength=6))
    )
    samples, codes = Samples.of(split), result.tokenizer.codes
    items, valid = samples.windows(torch.arange(len(samples)), 6)
    with torch.no_grad():
        result.model.loss(result.model.context(codes[items], valid), codes[samples.items])
    hook.remove()
    return loads[0].float()


def test_training_moves_the_experts_biases_and_evens_out_their_load(toy_split: Split, toy_config: OneRecConfig) -> None:
    config = dataclasses.replace(toy_config, **EXPERTS)
    options = dataclasses.replace(QUICK, epochs=15, bias_rate=0.01)
    balanced = train(toy_split, config, seed=0, options=options)
    left_alone = train(toy_split, config, seed=0, options=dataclasses.replace(options, bias_rate=0.0))
    spread = [float((load := _load(result, toy_split)).max() / load.mean()) for result in (balanced, left_alone)]
    assert spread[0] < 1.25 < spread[1]
    for block in left_alone.model.decoder.blocks:
        assert not block.ffn.bias.any()


def test_expert_bias_after_one_step_is_the_rate_times_the_sign_of_the_load_error(
    toy_split: Split, toy_config: OneRecConfig
) -> None:
    config = dataclasses.replace(toy_config, n_layers=1, kv_sets=1, **EXPERTS)
    options = TrainOptions(epochs=1, batch_size=10**6, bias_rate=0.25, accumulate=4)
    result = train(toy_split, config, seed=0, options=options)
    torch.manual_seed(0)
    untrained = OneRecV2(config)
    load = _load(dataclasses.replace(result, model=untrained), toy_split).tolist()
    expected = [0.25 * ((sum(load) / 6 > one) - (sum(load) / 6 < one)) for one in load]
    assert result.model.decoder.blocks[0].ffn.bias.tolist() == expected
    assert any(expected)


def test_diverged_training_is_an_error_that_names_the_rate(toy_split: Split, toy_config: OneRecConfig) -> None:
    with pytest.raises(ModelError, match="learning_rate"):
        train(toy_split, toy_config, seed=0, options=dataclasses.replace(QUICK, epochs=9, learning_rate=1e30))


def test_learning_rate_rises_linearly_and_falls_as_a_cosine() -> None:
    options = TrainOptions(learning_rate=2.0, warmup_share=0.1)
    for step in range(100):
        cosine = 2.0 * (1 + math.cos(math.pi * (step - 10) / 90)) / 2
        expected = 2.0 * (step + 1) / 10 if step < 10 else cosine
        assert options.rate_at(step, 100) == pytest.approx(expected)
    assert options.rate_at(99, 100) < 1e-2


@pytest.mark.parametrize(
    "change",
    [
        {"accumulate": 0},
        {"patience": -1},
        {"save_every": -1},
        {"bias_rate": -0.1},
        {"bias_rate": math.nan},
        {"clip_norm": 0.0},
        {"weight_decay": -1.0},
        {"precision": "float8"},
        {"history_dropout": 1.0},
        {"history_dropout": -0.1},
        {"encoding_dropout": 1.0},
        {"encoding_dropout": math.nan},
        {"newest_targets": -1},
        {"average": 1.0},
        {"average": -0.1},
    ],
)
def test_train_options_of_the_loop_impossible_values_are_refused(change: dict[str, float]) -> None:
    with pytest.raises(ModelError, match=next(iter(change))):
        TrainOptions(**change)


@pytest.mark.gpu
def test_training_on_a_gpu_equals_the_cpu_within_float_error(
    toy_split: Split, toy_config: OneRecConfig, tmp_path: Path
) -> None:
    config, options = dataclasses.replace(toy_config, **EXPERTS), dataclasses.replace(QUICK, patience=1, accumulate=2)
    worker, path = Worker(device=torch.device("cuda")), tmp_path / "state.safetensors"
    cpu = train(toy_split, config, seed=0, options=options)
    gpu = train(toy_split, config, seed=0, options=options, worker=worker, state_path=path)
    assert gpu.step_losses == pytest.approx(cpu.step_losses, rel=1e-2)
    assert {parameter.device.type for parameter in gpu.model.parameters()} == {"cpu"}
    again = train(toy_split, config, seed=0, options=options, worker=worker, state_path=path)
    assert again.step_losses == gpu.step_losses
