from __future__ import annotations

import pytest
import torch

from model.engine.prefixes import Prefixes
from model.errors import ModelError
from model.trie import ItemTrie

ITEMS = torch.tensor([[3, 0, 0], [0, 3, 1], [3, 0, 1], [1, 1, 1]])


def test_every_level_has_one_more_node_without_children() -> None:
    trie = ItemTrie.build(ITEMS)
    prefixes = Prefixes.of(trie, 32)
    assert prefixes.levels == 3
    for level, first in enumerate(prefixes.first):
        parents = 1 if level == 0 else trie.codes[level - 1].shape[0]
        assert first.shape == (parents + 2,)
        assert int(first[parents]) == int(first[parents + 1]) == trie.codes[level].shape[0]
        assert prefixes.codes[level].dtype == first.dtype == torch.int32


def test_items_and_leaves_are_each_others_inverse() -> None:
    prefixes = Prefixes.of(ItemTrie.build(ITEMS), 32)
    leaves = prefixes.leaf_of_item[torch.arange(4)]
    assert prefixes.items(leaves[None]).tolist() == [[0, 1, 2, 3]]
    assert int(prefixes.leaf_of_item[-1]) == 4
    assert prefixes.items(torch.tensor([[4]], dtype=torch.int32)).tolist() == [[-1]]


def test_a_code_beyond_the_codebook_is_refused() -> None:
    with pytest.raises(ModelError, match="not below the codebook's size 3"):
        Prefixes.of(ItemTrie.build(ITEMS), 3)
