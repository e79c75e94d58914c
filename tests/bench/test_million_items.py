from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch

from model.config import PRESETS
from model.semantic_ids import fit_tokenizer
from model.trie import ItemTrie
from tests.bench.million_items import report, request_ms, synthetic_items, trie_mib


def test_a_small_catalogue_goes_through_the_whole_benchmark() -> None:
    vectors = synthetic_items(400, 8, seed=0)
    assert np.array_equal(vectors, synthetic_items(400, 8, seed=0))
    tokenizer, quality = fit_tokenizer(vectors, 3, 16, seed=0, points_per_code=8, max_rounds=3)
    trie = ItemTrie.build(tokenizer.codes)
    assert 0 < trie_mib(trie) < 1
    config = replace(PRESETS["tiny"], codebook_size=16)
    found, legal = request_ms(config, tokenizer.codes, trie, width=8, batch=2, requests=1)
    assert found > 0
    assert legal == 1.0
    numbers = {"items": 400.0, "codes": 16.0, "beam": 8.0, "trie_mib": 0.5, "request_tiny_batch2_ms": found}
    numbers |= {"trie_s": 1.0, "trie_cpu_s": 0.5, "trie_peak_gib": 0.1}
    text = report(numbers, quality, {"hardware": "h", "versions": "v", "commit": "c", "command": "x"})
    assert "| trie | 1.0 | 0.5 | 0.10 |" in text
    assert "| tiny, random weights | 2 |" in text


def test_synthetic_groups_follow_a_power_law_so_that_plain_clusters_are_uneven() -> None:
    vectors = torch.from_numpy(synthetic_items(5000, 8, seed=1))
    nearest = torch.cdist(vectors, vectors[:50]).argmin(1)
    counts = torch.bincount(nearest, minlength=50).sort(descending=True).values
    assert int(counts[0]) > 4 * int(counts[25])
