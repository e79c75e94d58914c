"""The definition of the engine's selection against the plain beam search, which knows nothing of it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from model.beam import beam_search
from model.config import OneRecConfig
from model.context import ContextKV
from model.engine import reference
from model.engine.prefixes import Prefixes
from model.onerec import OneRecV2
from model.trie import ItemTrie

CODES = 32


def context_of(model: OneRecV2, batch: int, seed: int) -> ContextKV:
    generator = torch.Generator().manual_seed(seed)
    codes = torch.randint(0, CODES, (batch, 4, 3), generator=generator)
    computed: ContextKV = model.context(codes, torch.arange(4) < torch.randint(0, 5, (batch, 1), generator=generator))
    return computed


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 9999), n_items=st.integers(1, 60), spread=st.integers(2, CODES), width=st.integers(1, 40))
@torch.no_grad()
def test_the_reference_finds_what_the_plain_beam_search_finds(
    seed: int, n_items: int, spread: int, width: int,
    make_model: Callable[..., OneRecV2], toy_config: OneRecConfig,
) -> None:  # fmt: skip
    """Few codes a level: shared prefixes, so that seen items close some; few items: beams that run dry."""
    model = make_model(dataclasses.replace(toy_config, codebook_size=CODES, n_layers=2), seed)
    generator = torch.Generator().manual_seed(seed)
    number = torch.randperm(spread**3, generator=generator)[:n_items]
    trie = ItemTrie.build(torch.stack([number // spread**2, number // spread % spread, number % spread], dim=1))
    seen = torch.full((3, trie.n_items), -1)
    for row, share in enumerate((0.0, 0.5, 1.0)):
        chosen = torch.randperm(trie.n_items, generator=generator)[: round(share * trie.n_items)]
        seen[row, : len(chosen)] = chosen
    context = context_of(model, 3, seed)
    expected = beam_search(model, context, trie, width, seen)
    found = reference.search(model, context, Prefixes.of(trie, CODES), width, seen)
    columns = expected.items.shape[1]
    assert found.items[:, :columns].tolist() == expected.items.tolist()
    torch.testing.assert_close(found.scores[:, :columns], expected.scores, rtol=0, atol=1e-5)
    assert bool((found.items[:, columns:] == -1).all())
    assert bool((found.scores[:, columns:] == -torch.inf).all())


def test_codes_are_packed_by_the_bit() -> None:
    legal = torch.zeros(1, 2, 64, dtype=torch.bool)
    legal[0, 0, 0] = legal[0, 0, 31] = legal[0, 1, 33] = True
    assert reference.packed(legal).tolist() == [[-(2**31) + 1, 0], [0, 2]]


def test_a_lost_beam_has_no_children_and_equal_scores_keep_their_order() -> None:
    prefixes = Prefixes.of(ItemTrie.build(torch.tensor([[0, 0, 0], [0, 3, 1], [5, 1, 1]])), CODES)
    nobody = torch.tensor([[2, 0]], dtype=torch.int32)
    legal = reference.legal_codes(prefixes, 1, nobody, None)
    assert legal[0].nonzero().tolist() == [[1, 0], [1, 3]]
    scores, beams, codes = reference.select(torch.zeros(2, CODES), torch.tensor([[-torch.inf, 0.0]]), 4, legal)
    assert scores[0, 2:].tolist() == [-torch.inf] * 2
    assert (beams[0, :2].tolist(), codes[0, :2].tolist()) == ([1, 1], [0, 3])
    assert reference.descend(prefixes, 1, nobody, scores, beams, codes).tolist() == [[0, 1, 3, 3]]
    assert prefixes.items(torch.tensor([[0, 1, 2, 3]])).tolist() == [[0, 1, 2, -1]]


@pytest.mark.parametrize("level", [0, 1, 2])
def test_used_nodes_ascend_and_padding_comes_last(level: int) -> None:
    trie = ItemTrie.build(torch.tensor([[3, 0, 0], [0, 3, 1], [3, 0, 1], [1, 1, 1]]))
    used = Prefixes.of(trie, CODES).used(torch.tensor([[2, -1, 0, 1], [-1, -1, -1, -1]]))[level]
    assert used[0].tolist() == sorted([*trie.node_of_item[level][[2, 0, 1]].tolist(), trie.codes[level].shape[0]])
    assert set(used[1].tolist()) == {trie.codes[level].shape[0]}
