from __future__ import annotations

import dataclasses
import math

import pytest
import torch

from model.catalogue import Catalogue
from model.config import PRESETS
from model.data import Row, from_rows
from model.onerec import OneRecV2
from model.recommender import Recommender
from model.semantic_ids import Tokenizer
from model.split import Split, leave_one_out
from model.train import TrainOptions
from tests.bench.pathways import PATHWAYS, pathway_row, validation_nats

CONFIG = dataclasses.replace(PRESETS["tiny"], positive_len=4, profile_features=8, short_term=2)


@pytest.fixture
def split() -> Split:
    rows = [
        Row(f"u{user}", f"i{(3 * user + step) % 20}", 100.0 * step + user, 1.0 + (user + step) % 5)
        for user in range(9)
        for step in range(6)
    ]
    return leave_one_out(from_rows(rows, profiles={f"u{user}": {"parity": str(user % 2)} for user in range(9)}))


@torch.inference_mode()
def test_likelihood_is_that_of_the_validation_item_given_all_that_precedes_it(split: Split) -> None:
    torch.manual_seed(0)
    model = OneRecV2(CONFIG)
    torch.nn.init.normal_(model.context.features.weight)
    codes = torch.stack([torch.arange(20), torch.arange(20), torch.zeros(20, dtype=torch.int64)], 1)
    recommender = Recommender(model, Catalogue.of(split.interactions), Tokenizer(codes, torch.zeros(3, 64, 2)))
    total = 0.0
    for user in split.evaluated_users().tolist():
        context = recommender.context([split.signals(user, 4.0, with_validation=False)])
        wanted = codes[split.validation[user]][None]
        for level, logits in enumerate(model(context, wanted)):
            total -= math.log(torch.softmax(logits[0], -1)[wanted[0, level]].item())
    assert validation_nats(recommender, split) == pytest.approx(total / 9, rel=1e-5)


def test_row_is_the_mean_of_its_seeds(split: Split) -> None:
    options, shares = TrainOptions(epochs=1, batch_size=16), list[float]()
    alone = [pathway_row(CONFIG, split, options, (seed,), 8, shares.append) for seed in (1, 2)]
    both = pathway_row(CONFIG, split, options, (1, 2), 8, shares.append)
    for column in ("validation_nats", "hr", "ndcg"):
        assert both[column] == pytest.approx((alone[0][column] + alone[1][column]) / 2)
    assert both["seeds_apart"] == pytest.approx(abs(alone[0]["validation_nats"] - alone[1]["validation_nats"]))
    assert both["items"] == 24
    assert shares[-1] == 1.0


def test_a_longer_history_stands_beside_the_pathways() -> None:
    items = {label: config.context_items for label, config in PATHWAYS.items()}
    assert items["history of 40"] == items["history of 20 and 20 liked"] == 40
