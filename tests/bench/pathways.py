"""The table `Pathways` of the ablations: what short-term marks, positive feedback and profiles bring.

Other than the other tables it is about the preset `tiny` trained in full, on validation items only, over several seeds.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import torch

from model.catalogue import Catalogue
from model.config import PRESETS, OneRecConfig
from model.counting import count_parameters
from model.evaluate import evaluate_signals
from model.recommender import Recommender
from model.split import Split
from model.train import TrainOptions, train

TINY = PRESETS["tiny"]
K = 10
SEEDS = (1, 2)
Row = dict[str, float]
Advance = Callable[[float], None]

PATHWAYS: dict[str, OneRecConfig] = {
    "history of 20": TINY,
    "history of 20 and 20 liked": replace(TINY, positive_len=20),
    "history of 20 and profile": replace(TINY, profile_features=1024),
    "history of 40": replace(TINY, context_len=40),
    "history of 20, 5 marked, 20 liked, profile": replace(TINY, short_term=5, positive_len=20, profile_features=1024),
    "history of 20, the newest 5 marked": replace(TINY, short_term=5),
}
"""A history of 40 has as many items as the second row, so that a pathway is not praised for its length."""


@torch.inference_mode()
def validation_nats(recommender: Recommender, split: Split) -> float:
    """Mean of -log p(validation item), in nats, given all signals before it."""
    users, least = split.evaluated_users(), recommender.config.positive_from
    targets = recommender.codes[torch.from_numpy(split.validation[users])]
    total = 0.0
    for rows in np.array_split(np.arange(users.shape[0]), min(16, users.shape[0])):
        context = recommender.context([split.signals(int(users[row]), least, with_validation=False) for row in rows])
        wanted = targets[torch.from_numpy(rows)]
        for level, logits in enumerate(recommender.model(context, wanted)):
            total += float(torch.nn.functional.cross_entropy(logits, wanted[:, level], reduction="sum"))
    return total / users.shape[0]


def pathway_row(
    config: OneRecConfig, split: Split, options: TrainOptions, seeds: Sequence[int], beam_width: int, advance: Advance
) -> Row:
    """Train once per seed; means over the seeds, and how far their likelihoods are apart."""
    nats, hits, gains = [], [], []
    for number, seed in enumerate(seeds):
        done = train(split, config, seed, options, lambda at, n=number: advance((n + at.step / at.steps) / len(seeds)))
        recommender = Recommender(done.model, Catalogue.of(split.interactions), done.tokenizer, beam_width)
        found = evaluate_signals(recommender, split, K, validation=True)
        nats.append(validation_nats(recommender, split))
        hits.append(found.hit_rate)
        gains.append(found.ndcg)
    return {
        "validation_nats": statistics.mean(nats),
        "seeds_apart": max(nats) - min(nats),
        "hr": statistics.mean(hits),
        "ndcg": statistics.mean(gains),
        "parameters": float(count_parameters(config).total),
        "items": float(config.context_items),
    }
