"""The walk over the trie against its definition in plain torch: `pytest -m gpu`.

On a machine without a GPU the same tests run, slowly and in small, with TRITON_INTERPRET=1 where Triton is installed.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton")

from model.engine import reference
from model.engine.legality import descend, legal_bits
from model.engine.prefixes import Prefixes
from model.engine.select import select_beams
from model.trie import ItemTrie
from tests.device import DEVICE, GPU, GPU_OR_INTERPRETER

pytestmark = GPU_OR_INTERPRETER

SIZES = [(3, 32, 32, 400), (1, 8, 64, 5)]
if GPU:
    SIZES += [(28, 512, 8192, 1_000_000), (4, 512, 8192, 2000), (2, 1024, 128, 100_000)]


def items_of(codebook: int, count: int) -> Tensor:
    """Distinct triples; a quarter of them crowd under eight first codes, so that some nodes have many children."""
    generator = torch.Generator().manual_seed(count)
    codes = torch.randint(0, codebook, (2 * count, 3), generator=generator)
    codes[: count // 2, 0] %= 8
    distinct = codes.unique(dim=0)
    return distinct[torch.randperm(distinct.shape[0], generator=generator)[:count]]


def seen_items(batch: int, items: int) -> Tensor:
    """None, a few, most, all, ... of the items, as far as 4000 columns go."""
    seen = torch.full((batch, min(items, 4000)), -1)
    for row in range(batch):
        count = (0, 7, seen.shape[1] - 1, seen.shape[1])[row % 4]
        seen[row, :count] = torch.randperm(items)[:count]
    return seen.to(DEVICE, torch.int32)


@pytest.mark.parametrize(("batch", "width", "codebook", "count"), SIZES)
@pytest.mark.parametrize("with_seen", [False, True])
def test_a_search_by_the_kernels_is_the_references_at_every_level(
    batch: int, width: int, codebook: int, count: int, with_seen: bool
) -> None:
    torch.manual_seed(0)
    trie = ItemTrie.build(items_of(codebook, count), DEVICE)
    prefixes = Prefixes.of(trie, codebook)
    used = prefixes.used(seen_items(batch, trie.n_items)) if with_seen else None
    nodes, scores = prefixes.roots(batch), torch.zeros(batch, 1, device=DEVICE)
    for level in range(3):
        here = None if used is None else used[level]
        bits = legal_bits(prefixes, level, nodes, here)
        for row in range(0, batch, 9):  # the reference takes much memory
            mine = None if here is None else here[row : row + 1]
            legal = reference.legal_codes(prefixes, level, nodes[row : row + 1], mine)
            beams = nodes.shape[1]
            assert torch.equal(bits[row * beams : (row + 1) * beams], reference.packed(legal))
        logits = torch.randn(batch * nodes.shape[1], codebook, device=DEVICE)
        kept = min(width, nodes.shape[1] * codebook)
        best = select_beams(logits, scores, kept, bits)
        assert_selected(logits, scores, bits, best.scores, best.beams, best.codes)
        found = descend(prefixes, level, nodes, best)
        assert torch.equal(found, reference.descend(prefixes, level, nodes, best.scores, best.beams, best.codes))
        nodes, scores = found, best.scores
    items = prefixes.items(nodes)
    assert torch.equal(items >= 0, scores.isfinite())


def assert_selected(logits: Tensor, scores: Tensor, bits: Tensor, best: Tensor, beams: Tensor, codes: Tensor) -> None:
    """The k best legal candidates, best first, each once; -inf where there are no more."""
    batch, rows = scores.shape
    k = best.shape[1]
    legal = ((bits[..., None] >> torch.arange(32, device=bits.device)) & 1).bool().view(batch, rows, -1)
    for row in range(0, batch, 9):
        some = slice(row * rows, (row + 1) * rows)
        exact, _, _ = reference.select(logits[some], scores[row : row + 1], k, legal[row : row + 1])
        torch.testing.assert_close(best[row], exact[0], rtol=1e-5, atol=1e-5)
        alive = best[row] > -torch.inf
        assert bool(legal[row, beams[row], codes[row]][alive].all())
        assert (beams[row] * legal.shape[2] + codes[row]).unique().numel() == k


def test_equal_scores_keep_the_order_of_beams_and_codes() -> None:
    prefixes = Prefixes.of(ItemTrie.build(items_of(32, 200), DEVICE), 32)
    nodes = torch.arange(8, dtype=torch.int32, device=DEVICE)[None]
    bits = legal_bits(prefixes, 1, nodes, None)
    logits, scores = torch.zeros(8, 32, device=DEVICE), torch.zeros(1, 8, device=DEVICE)
    best = select_beams(logits, scores, 16, bits)
    _, beams, codes = reference.select(logits, scores, 16, reference.legal_codes(prefixes, 1, nodes, None))
    assert torch.equal(best.beams, beams)
    assert torch.equal(best.codes, codes)


def test_nothing_is_left_when_everything_was_seen() -> None:
    trie = ItemTrie.build(items_of(32, 40), DEVICE)
    prefixes = Prefixes.of(trie, 32)
    used = prefixes.used(torch.arange(40, dtype=torch.int32, device=DEVICE)[None])
    assert not bool(legal_bits(prefixes, 0, prefixes.roots(1), used[0]).any())
