from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch
from torch import Tensor

from model.data import Row, from_rows
from model.errors import ModelError
from model.evaluate import evaluate
from model.sasrec import SASRec, SASRecOptions, sasrec
from model.split import Split, leave_one_out

SMALL = SASRecOptions(width=8, blocks=2, heads=2, max_len=6, epochs=3)
QUICK = SASRecOptions(width=16, max_len=10, dropout=0.0, epochs=60, batch_size=16, learning_rate=1e-2)


def _network(seed: int = 0, **change: object) -> SASRec:
    torch.manual_seed(seed)
    network = SASRec(9, SASRecOptions(**{"width": 8, "blocks": 2, "heads": 2, "max_len": 6, **change})).eval()  # type: ignore[arg-type]
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return network


def _normed(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    centred = x - x.mean()
    return centred / (centred.square().mean() + 1e-8).sqrt() * weight + bias


def _by_loops(network: SASRec, history: list[int]) -> list[Tensor]:
    """The published equations for one unpadded history, one position and one head at a time."""
    options = network.options
    head = options.width // options.heads
    first = options.max_len - len(history)
    x = [
        network.items.weight[item] * math.sqrt(options.width) + network.positions.weight[first + place]
        for place, item in enumerate(history)
    ]
    for block in network.blocks:
        w = dict(block.named_parameters())
        normed = [_normed(v, w["norm_attention.weight"], w["norm_attention.bias"]) for v in x]
        qkv = [w["qkv.weight"] @ v + w["qkv.bias"] for v in normed]
        mixed = []
        for place in range(len(x)):
            parts = []
            for h in range(options.heads):
                q = qkv[place][h * head : (h + 1) * head]
                keys = [row[options.width + h * head : options.width + (h + 1) * head] for row in qkv[: place + 1]]
                values = [row[2 * options.width + h * head :][:head] for row in qkv[: place + 1]]
                weights = [math.exp(float(q @ key) / math.sqrt(head)) for key in keys]
                parts.append(sum(a / sum(weights) * v for a, v in zip(weights, values, strict=True)))
            mixed.append(x[place] + w["out.weight"] @ torch.cat(parts) + w["out.bias"])  # type: ignore[arg-type]
        x = []
        for v in mixed:
            inner = (w["up.weight"] @ _normed(v, w["norm_ffn.weight"], w["norm_ffn.bias"]) + w["up.bias"]).clamp_min(0)
            x.append(v + w["down.weight"] @ inner + w["down.bias"])
    return [_normed(v, network.norm.weight, network.norm.bias) for v in x]


@torch.no_grad()
@pytest.mark.parametrize("history", [[3], [0, 8, 8, 2], [1, 2, 3, 4, 5, 6]])
def test_sasrec_equals_the_published_equations_by_loops(history: list[int]) -> None:
    network = _network()
    out = network(torch.tensor([history]))[0]
    for place, expected in enumerate(_by_loops(network, history)):
        torch.testing.assert_close(out[place], expected, atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_sasrec_padding_changes_nothing_and_the_future_is_not_read() -> None:
    network = _network()
    alone = network(torch.tensor([[4, 1, 7]]))[0]
    padded = network(torch.tensor([[-1, -1, -1, 4, 1, 7], [0, 1, 2, 3, 4, 5]]))[0, 3:]
    torch.testing.assert_close(alone, padded)
    changed = network(torch.tensor([[4, 1, 8]]))[0]
    torch.testing.assert_close(alone[:2], changed[:2])
    assert not torch.allclose(alone[2], changed[2])


@torch.no_grad()
@pytest.mark.parametrize("loss", ["softmax", "bce"])
def test_sasrec_loss_equals_its_formula_by_loops(loss: str) -> None:
    network = _network(loss=loss)
    items = torch.tensor([[-1, 4, 1], [2, 2, 5]])
    targets = torch.tensor([[-1, 1, 7], [2, 5, -1]])
    negatives = torch.tensor([[0, 3, 2], [1, 8, 6]])
    states, terms = network(items), []
    for row, column in (targets >= 0).nonzero().tolist():
        scores = [float(states[row, column] @ vector) for vector in network.items.weight]
        good, bad = scores[targets[row, column]], scores[negatives[row, column]]
        if loss == "softmax":
            terms.append(math.log(sum(math.exp(score) for score in scores)) - good)
        else:
            terms.append(math.log1p(math.exp(-good)) + math.log1p(math.exp(bad)))
    assert float(network.loss(items, targets, negatives)) == pytest.approx(sum(terms) / len(terms), rel=1e-4)


@pytest.mark.parametrize("loss", ["softmax", "bce"])
def test_sasrec_learns_the_planted_next_item(toy_split: Split, loss: str) -> None:
    reports: list[float] = []
    options = SASRecOptions(width=16, max_len=10, dropout=0.0, batch_size=8, learning_rate=1e-2, loss=loss)  # type: ignore[arg-type]
    ranker = sasrec(toy_split, seed=0, options=options, progress=lambda *report: reports.append(report[2]))
    assert len(reports) == ranker.epochs
    assert reports[-1] < 0.5 * reports[0]
    assert evaluate(ranker, toy_split, k=1).hit_rate > 0.8


def test_sasrec_stops_by_patience_and_keeps_the_best_epoch(toy_split: Split) -> None:
    patient = sasrec(toy_split, seed=0, options=QUICK)
    hasty = sasrec(toy_split, seed=0, options=dataclasses.replace(QUICK, patience=1))
    assert hasty.epochs < patient.epochs
    found = [evaluate(ranker, toy_split, validation=True).ndcg for ranker in (hasty, patient)]
    assert found[0] <= found[1]


def test_sasrec_repeats_with_its_seed_and_leaves_the_callers_randomness_alone(toy_split: Split) -> None:
    torch.manual_seed(7)
    before = torch.rand(1)
    torch.manual_seed(7)
    histories = [toy_split.train[user] for user in range(5)]
    first, again, other = (sasrec(toy_split, seed, SMALL)(histories, 20) for seed in (1, 1, 2))
    assert torch.equal(torch.rand(1), before)
    assert (first == again).all()
    assert (first != other).any()


def test_sasrec_answers_an_empty_history_by_popularity_and_a_nearly_complete_one(toy_split: Split) -> None:
    ranker = sasrec(toy_split, 0, SMALL)
    ranked = ranker([np.array([], dtype=np.int64), np.arange(19)], 3)
    counts = np.bincount(np.concatenate(toy_split.train), minlength=20)
    assert sorted(counts[ranked[0]]) == sorted(np.sort(counts)[-3:])
    assert ranked[1].tolist() == [19, -1, -1]


@pytest.mark.parametrize(
    "change",
    [{"epochs": 0}, {"heads": 3}, {"dropout": 1.0}, {"loss": "hinge"}, {"learning_rate": 0.0}, {"max_len": 0}],
)
def test_sasrec_options_impossible_values_are_refused_by_name(change: dict[str, object]) -> None:
    with pytest.raises(ModelError, match=next(iter(change))):
        SASRecOptions(**change)  # type: ignore[arg-type]


def test_sasrec_without_a_next_item_to_learn_is_refused() -> None:
    split = leave_one_out(from_rows([Row("a", item, float(time), 1.0) for time, item in enumerate("xyz")]))
    with pytest.raises(ModelError, match="two training items"):
        sasrec(split, 0)
