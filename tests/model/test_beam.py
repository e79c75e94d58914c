from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from model.beam import beam_search
from model.config import OneRecConfig
from model.context import ContextKV
from model.errors import ModelError
from model.onerec import OneRecV2
from model.trie import ItemTrie

MakeModel = Callable[..., OneRecV2]


def _context(model: OneRecV2, batch: int, seed: int) -> ContextKV:
    generator = torch.Generator().manual_seed(seed)
    codes = torch.randint(0, model.config.codebook_size, (batch, 4, 3), generator=generator)
    valid = torch.arange(4) < torch.randint(0, 5, (batch, 1), generator=generator)
    computed: ContextKV = model.context(codes, valid)
    return computed


def _row(context: ContextKV, row: int) -> ContextKV:
    pick = slice(row, row + 1)
    return ContextKV(tuple(k[pick] for k in context.keys), tuple(v[pick] for v in context.values), context.mask[pick])


def _exhaustive(model: OneRecV2, context: ContextKV, row: int, codes: Tensor) -> list[float]:
    """log p of every item by teacher forcing on its whole id, without trie, beam or cache."""
    repeated = torch.full((codes.shape[0],), row)
    wide = ContextKV(
        tuple(k[repeated] for k in context.keys), tuple(v[repeated] for v in context.values), context.mask[repeated]
    )
    logits = model(wide, codes)
    steps = [torch.log_softmax(out.double(), 1).gather(1, codes[:, i, None])[:, 0] for i, out in enumerate(logits)]
    scores: list[float] = torch.stack(steps).sum(0).tolist()
    return scores


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
@torch.no_grad()
def test_beam_as_wide_as_the_trie_equals_exhaustive_search(
    data: st.DataObject, make_model: MakeModel, toy_config: OneRecConfig
) -> None:
    config = dataclasses.replace(toy_config, codebook_size=3, n_layers=2)
    ids = data.draw(st.sets(st.sampled_from(list(itertools.product(range(3), repeat=3))), min_size=1, max_size=20))
    codes = torch.tensor(data.draw(st.permutations(sorted(ids))))
    seed = data.draw(st.integers(0, 999))
    seen_items = data.draw(st.sets(st.integers(0, len(ids) - 1), max_size=len(ids)))
    model = make_model(config, seed)
    context = _context(model, 2, seed)
    seen = torch.tensor([[*sorted(seen_items), -1], [-1] * (len(seen_items) + 1)])
    beams = beam_search(model, context, ItemTrie.build(codes), 27, seen)
    for row, excluded in enumerate((seen_items, set())):
        scores = _exhaustive(model, context, row, codes)
        best = sorted((item for item in range(len(ids)) if item not in excluded), key=lambda item: -scores[item])
        assert sorted(i for i in beams.items[row].tolist() if i >= 0) == sorted(best)
        found = beams.scores[row][: len(best)].tolist()
        assert found == pytest.approx([scores[item] for item in best], abs=1e-4)
        by_item = dict(zip(beams.items[row].tolist(), beams.scores[row].tolist(), strict=True))
        assert all(by_item[item] == pytest.approx(scores[item], abs=1e-4) for item in best)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(width=st.integers(1, 40), seed=st.integers(0, 999), n_seen=st.integers(0, 20))
@torch.no_grad()
def test_beam_of_any_width_is_legal_exactly_scored_and_full(
    width: int, seed: int, n_seen: int, make_model: MakeModel, toy_config: OneRecConfig
) -> None:
    generator = torch.Generator().manual_seed(seed)
    picked = torch.randperm(125, generator=generator)[:20]
    codes = torch.stack([picked // 25, picked // 5 % 5, picked % 5], dim=1)
    seen_items = torch.randperm(20, generator=generator)[:n_seen]
    model = make_model(toy_config, seed)
    context = _context(model, 1, seed)
    beams = beam_search(model, context, ItemTrie.build(codes), width, seen_items[None])
    items = [item for item in beams.items[0].tolist() if item >= 0]
    assert len(items) == len(set(items)) == min(width, 20 - n_seen)
    assert not set(items) & set(seen_items.tolist())
    scores = _exhaustive(model, context, 0, codes)
    assert beams.scores[0][: len(items)].tolist() == pytest.approx([scores[item] for item in items], abs=1e-4)
    assert all(math.isinf(score) for score in beams.scores[0][len(items) :].tolist())


@torch.no_grad()
def test_beam_of_a_batch_equals_each_request_alone(toy_model: OneRecV2) -> None:
    picked = torch.randperm(125, generator=torch.Generator().manual_seed(0))[:40]
    trie = ItemTrie.build(torch.stack([picked // 25, picked // 5 % 5, picked % 5], dim=1))
    context = _context(toy_model, 5, 1)
    together = beam_search(toy_model, context, trie, 6)
    for row in range(5):
        alone = beam_search(toy_model, _row(context, row), trie, 6)
        assert together.items[row].tolist() == alone.items[0].tolist()
        torch.testing.assert_close(together.scores[row], alone.scores[0], atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_beam_narrower_than_the_trie_keeps_the_best_prefixes_of_each_step(toy_model: OneRecV2) -> None:
    codes = torch.tensor(list(itertools.product(range(5), repeat=3)))
    context = _context(toy_model, 1, 3)
    alive: list[tuple[int, ...]] = [()]
    for level in range(3):
        grown = [(*prefix, code) for prefix in alive for code in range(5)]

        def score(prefix: tuple[int, ...], level: int = level) -> float:
            padded = torch.tensor([[*prefix, *([0] * (2 - level))]])
            logits = toy_model(context, padded)
            return sum(float(torch.log_softmax(logits[i][0], 0)[prefix[i]]) for i in range(level + 1))

        alive = sorted(grown, key=lambda prefix: -score(prefix))[:4]
    beams = beam_search(toy_model, context, ItemTrie.build(codes), 4)
    assert [tuple(codes[item].tolist()) for item in beams.items[0]] == alive


def test_beam_without_width_is_refused(toy_model: OneRecV2) -> None:
    with pytest.raises(ModelError, match="beam_width"):
        beam_search(toy_model, _context(toy_model, 1, 0), ItemTrie.build(torch.tensor([[0, 0, 0]])), 0)
