from __future__ import annotations

import math
from collections import Counter

import pytest
import torch

from model.semantic_ids_quality import measure


def test_quality_equals_its_definitions_by_loops() -> None:
    generator = torch.Generator().manual_seed(0)
    points, centroids = torch.randn(12, 3, generator=generator), torch.randn(2, 4, 3, generator=generator)
    wanted, codes = (torch.randint(0, 3, (12, 2), generator=generator) for _ in range(2))
    found = measure(points, wanted, codes, centroids)
    mean = points.mean(0)
    spread = sum(float((point - mean).square().sum()) for point in points)
    for level in range(2):
        rows = zip(points, wanted.tolist(), strict=True)
        left = [point - sum(centroids[i][row[i]] for i in range(level + 1)) for point, row in rows]
        assert found.reconstruction_by_level[level] == pytest.approx(
            sum(float(rest.square().sum()) for rest in left) / spread, rel=1e-5
        )
        counts = Counter(codes[:, level].tolist())
        assert found.utilisation[level] == len(counts) / 4
        assert found.entropy_bits[level] == pytest.approx(-sum(c / 12 * math.log2(c / 12) for c in counts.values()))
        prefixes = Counter(tuple(row[: level + 1]) for row in codes.tolist())
        assert found.largest_group[level] == max(prefixes.values()) / 12
    assert found.reconstruction == found.reconstruction_by_level[-1]
    moved = sum(a != b for a, b in zip(wanted.tolist(), codes.tolist(), strict=True))
    assert found.collision_rate == moved / 12
    as_assigned = [p - centroids[0][row[0]] - centroids[1][row[1]] for p, row in zip(points, codes, strict=True)]
    expected = sum(float(rest.square().sum()) for rest in as_assigned) / spread
    assert found.reconstruction_assigned == pytest.approx(expected, rel=1e-5)


def test_quality_as_markdown_has_a_row_for_every_level() -> None:
    codes = torch.tensor([[0, 0], [0, 1], [1, 0]])
    text = measure(torch.randn(3, 2), codes, codes, torch.zeros(2, 2, 2)).to_markdown()
    assert "| 1 | " in text
    assert "| 2 | " in text
    assert "| 100.0% | 0.92 | 66.667% |" in text
