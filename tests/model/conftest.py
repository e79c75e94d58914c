"""Toy data and models, small enough to be trained within a test."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch

from model.catalogue import Catalogue
from model.config import OneRecConfig
from model.data import Interactions, Row, from_rows
from model.onerec import OneRecV2
from model.semantic_ids import Tokenizer
from model.split import Split, leave_one_out
from model.threads import torch_threads

TOY = OneRecConfig(
    d_model=16,
    n_layers=3,
    n_heads=4,
    kv_groups=2,
    kv_sets=2,
    kv_split=2,
    context_len=6,
    ffn_dim=24,
    sid_embed_dim=4,
    codebook_size=5,
    encoder_dim=8,
)


PATHWAYS = dataclasses.replace(TOY, short_term=2, positive_len=3, profile_features=7)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Toy tensors are too small to share between threads, which only get in each other's way: every test here."""
    with torch_threads(1):
        yield


@pytest.fixture
def toy_config() -> OneRecConfig:
    return TOY


@pytest.fixture
def pathway_config() -> OneRecConfig:
    """All four pathways."""
    return PATHWAYS


@pytest.fixture
def toy_interactions() -> Interactions:
    """20 items on a ring; 30 users step along it, so the next item is the last one plus one."""
    rng = np.random.default_rng(5)
    rows = []
    for user in range(30):
        begin = int(rng.integers(20))
        steps = range(int(rng.integers(6, 12)))
        rows += [Row(f"u{user}", f"i{(begin + step) % 20}", 100.0 * step + user, float("nan")) for step in steps]
    titles = {f"i{item}": f"Item {item}" for item in range(20)}
    genres = {f"i{item}": ("low",) if item < 10 else ("high",) for item in range(20)}
    return from_rows(rows, titles, genres)


@pytest.fixture
def toy_split(toy_interactions: Interactions) -> Split:
    return leave_one_out(toy_interactions)


@pytest.fixture
def toy_tokenizer() -> Tokenizer:
    """20 items with distinct triples of 5 codes, drawn once."""
    picked = torch.randperm(125, generator=torch.Generator().manual_seed(3))[:20]
    codes = torch.stack([picked // 25, picked // 5 % 5, picked % 5], dim=1)
    return Tokenizer(codes, torch.zeros(3, 5, 2))


@pytest.fixture
def toy_catalogue() -> Catalogue:
    names = tuple(f"i{item}" for item in range(20))
    return Catalogue(names, tuple(f"Item {item}" for item in range(20)), ((),) * 20)


@pytest.fixture
def toy_model() -> OneRecV2:
    return _random_model(TOY)


@pytest.fixture
def make_model() -> Callable[..., OneRecV2]:
    return _random_model


def _random_model(config: OneRecConfig, seed: int = 0) -> OneRecV2:
    """Weights large enough that scores differ clearly."""
    torch.manual_seed(seed)
    model = OneRecV2(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim == 1:
                parameter.add_(0.3 * torch.randn_like(parameter))
            elif name.startswith("heads"):
                parameter.copy_(torch.randn_like(parameter) * 0.5)
            elif name == "context.features.weight":
                parameter.copy_(torch.randn_like(parameter))
    return model
