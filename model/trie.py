"""The prefix trie of all valid semantic ids, as flat device tensors."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from model.errors import ModelError


@dataclass(frozen=True, slots=True, eq=False)
class ItemTrie:
    """Nodes of level l are the distinct prefixes of l+1 codes, numbered in lexicographic order.

    codes[l] [n_l]: last code of each node; first[l] [n_(l-1) + 1]: the children of node p are the nodes
    first[l][p] .. first[l][p+1]-1 of level l (level 0 hangs on one root); items_under[l] [n_l]; fan_out[l]: the
    most children that any node has there; item_of_leaf [items]; node_of_item [levels, items].
    """

    codes: tuple[Tensor, ...]
    first: tuple[Tensor, ...]
    items_under: tuple[Tensor, ...]
    fan_out: tuple[int, ...]
    item_of_leaf: Tensor
    node_of_item: Tensor

    @property
    def levels(self) -> int:
        """Codes per item."""
        return len(self.codes)

    @property
    def n_items(self) -> int:
        """Leaves."""
        return self.item_of_leaf.shape[0]

    @classmethod
    def build(cls, codes: Tensor, device: torch.device | str = "cpu") -> ItemTrie:
        """codes [items, levels], no two rows equal. Raises ModelError otherwise."""
        if codes.ndim != 2 or codes.shape[0] == 0:
            raise ModelError(f"trie: expected codes [items, levels], got {tuple(codes.shape)}")
        codes = codes.to(torch.int64)
        order = _lexicographic(codes)
        ranked = codes[order]
        fresh = torch.zeros(codes.shape[0], dtype=torch.bool, device=codes.device)
        fresh[0] = True
        parent_of_row = torch.zeros(codes.shape[0], dtype=torch.int64, device=codes.device)
        n_parents = 1
        last, first, under, fan, nodes = [], [], [], [], []
        for level in range(codes.shape[1]):
            fresh[1:] |= ranked[1:, level] != ranked[:-1, level]
            node_of_row = fresh.cumsum(0) - 1
            heads = fresh.nonzero()[:, 0]
            children = torch.bincount(parent_of_row[heads], minlength=n_parents)
            first.append(torch.cat([children.new_zeros(1), children.cumsum(0)]))
            last.append(ranked[heads, level])
            under.append(torch.bincount(node_of_row))
            fan.append(int(children.max()))
            nodes.append(torch.empty_like(order).index_copy_(0, order, node_of_row))
            parent_of_row, n_parents = node_of_row, heads.shape[0]
        if n_parents != codes.shape[0]:
            raise ModelError("trie: two items share one semantic id")
        return cls(
            codes=tuple(part.to(device) for part in last),
            first=tuple(part.to(device) for part in first),
            items_under=tuple(part.to(device) for part in under),
            fan_out=tuple(fan),
            item_of_leaf=order.to(device),
            node_of_item=torch.stack(nodes).to(device),
        )


def _lexicographic(codes: Tensor) -> Tensor:
    """Row order by first code, then second, ...; stable sorts from the last level to the first."""
    order = torch.arange(codes.shape[0], device=codes.device)
    for level in range(codes.shape[1] - 1, -1, -1):
        order = order[torch.argsort(codes[order, level], stable=True)]
    return order
