from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from model.errors import ModelError
from model.trie import ItemTrie

codes_of_items = st.sets(st.tuples(*[st.integers(0, 3)] * 3), min_size=1, max_size=30).flatmap(
    lambda ids: st.permutations(sorted(ids))
)


@settings(max_examples=60, deadline=None)
@given(codes_of_items)
def test_trie_walk_from_the_root_reaches_exactly_the_items(ids: list[tuple[int, ...]]) -> None:
    trie = ItemTrie.build(torch.tensor(ids))
    reached = {}

    def walk(level: int, node: int, prefix: tuple[int, ...]) -> int:
        if level == 3:
            reached[prefix] = int(trie.item_of_leaf[node])
            return 1
        begin, end = int(trie.first[level][node]), int(trie.first[level][node + 1])
        assert 1 <= end - begin <= trie.fan_out[level]
        leaves = 0
        for child in range(begin, end):
            below = walk(level + 1, child, (*prefix, int(trie.codes[level][child])))
            assert below == int(trie.items_under[level][child])
            leaves += below
        return leaves

    assert walk(0, 0, ()) == trie.n_items == len(ids)
    assert reached == {code: item for item, code in enumerate(ids)}


@settings(max_examples=30, deadline=None)
@given(codes_of_items)
def test_trie_knows_the_node_of_every_item_at_every_level(ids: list[tuple[int, ...]]) -> None:
    trie = ItemTrie.build(torch.tensor(ids))
    for level in range(3):
        prefixes = sorted({code[: level + 1] for code in ids})
        expected = [prefixes.index(code[: level + 1]) for code in ids]
        assert trie.node_of_item[level].tolist() == expected


def test_trie_refuses_shared_ids_and_no_items() -> None:
    with pytest.raises(ModelError, match="share"):
        ItemTrie.build(torch.tensor([[1, 2], [1, 2]]))
    with pytest.raises(ModelError, match="codes"):
        ItemTrie.build(torch.empty(0, 3))
