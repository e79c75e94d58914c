"""The trie of valid items as the engine's kernels read it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from model.errors import ModelError
from model.trie import ItemTrie

_MOST_NODES = 2**31 - 2  # nodes are int32 and one more number means nobody


@dataclass(frozen=True, slots=True, eq=False)
class Prefixes:
    """An `ItemTrie` in int32 with one node more on each level, which has no children: where a lost beam goes.

    codes[l] [n_l], ascending among the children of a node; first[l] [n_(l-1) + 2]: node p's children are the nodes
    first[l][p] .. first[l][p+1]-1, none for p = n_(l-1); items_under[l] [n_l]; node_of_leaf[l] [items + 1]: the last
    one is n_l; leaf_of_item [items + 1]: index -1 finds the leaf that is no item; item_of_leaf [items + 1] int64:
    -1 for that leaf; fan_out[l]: the most children of a node; codebook: codes per level.
    """

    codes: tuple[Tensor, ...]
    first: tuple[Tensor, ...]
    items_under: tuple[Tensor, ...]
    node_of_leaf: tuple[Tensor, ...]
    leaf_of_item: Tensor
    item_of_leaf: Tensor
    fan_out: tuple[int, ...]
    codebook: int

    @property
    def levels(self) -> int:
        """Codes per item."""
        return len(self.codes)

    @classmethod
    def of(cls, trie: ItemTrie, codebook: int) -> Prefixes:
        """The same trie, on its device. Raises ModelError when a code does not fit the codebook."""
        if trie.n_items > _MOST_NODES:
            raise ModelError(f"trie: the engine knows at most {_MOST_NODES} items, got {trie.n_items}")
        if any(int(codes.max()) >= codebook for codes in trie.codes):
            raise ModelError(f"trie: a code is not below the codebook's size {codebook}")
        leaf_of_item = trie.node_of_item[-1]
        return cls(
            codes=tuple(part.to(torch.int32).contiguous() for part in trie.codes),
            first=tuple(torch.cat([part, part[-1:]]).to(torch.int32) for part in trie.first),
            items_under=tuple(part.to(torch.int32).contiguous() for part in trie.items_under),
            node_of_leaf=tuple(
                _with(trie.node_of_item[level][trie.item_of_leaf], codes.shape[0]).to(torch.int32)
                for level, codes in enumerate(trie.codes)
            ),
            leaf_of_item=_with(leaf_of_item, trie.n_items).to(torch.int32),
            item_of_leaf=_with(trie.item_of_leaf, -1),
            fan_out=trie.fan_out,
            codebook=codebook,
        )

    def roots(self, batch: int) -> Tensor:
        """The node that every request starts from [B, 1] int32."""
        return torch.zeros(batch, 1, dtype=torch.int32, device=self.item_of_leaf.device)

    def used(self, seen: Tensor) -> tuple[Tensor, ...]:
        """seen [B, M] item indices, padded with -1, none twice -> of each level their nodes [B, M] int32, ascending.

        Nodes are numbered in the items' lexicographic order on every level, so that one sort serves all. Padding
        comes last as n_l.
        """
        leaves = self.leaf_of_item[seen.long()].sort(dim=1).values.long()
        return tuple(nodes[leaves] for nodes in self.node_of_leaf)

    def items(self, leaves: Tensor) -> Tensor:
        """Nodes of the last level [B, W] -> item indices [B, W] int64, -1 for the node that is no item."""
        return self.item_of_leaf[leaves.long()]


def _with(values: Tensor, last: int) -> Tensor:
    return torch.cat([values, values.new_full((1,), last)])
