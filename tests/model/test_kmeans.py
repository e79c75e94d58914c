from __future__ import annotations

import pytest
import torch

from model.errors import ModelError
from model.kmeans import kmeans, nearest


def test_kmeans_finds_planted_clusters() -> None:
    generator = torch.Generator().manual_seed(1)
    centres = torch.tensor([[0.0, 0.0], [10.0, 0.0], [0.0, 10.0]])
    truth = torch.arange(90) % 3
    points = centres[truth] + 0.1 * torch.randn(90, 2, generator=generator)
    found = kmeans(points, 3, generator)
    for cluster in range(3):
        assert found.labels[truth == cluster].unique().numel() == 1
    torch.testing.assert_close(found.centroids[found.labels], centres[truth], atol=0.2, rtol=0.0)


def test_nearest_agrees_with_all_pairs_over_several_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("model.kmeans.CHUNK", 7)
    generator = torch.Generator().manual_seed(2)
    points, centroids = torch.randn(30, 4, generator=generator), torch.randn(6, 4, generator=generator)
    labels, distance = nearest(points, centroids)
    every = torch.cdist(points.double(), centroids.double()).square()
    assert torch.equal(labels, every.argmin(1))
    torch.testing.assert_close(distance.double(), every.min(1).values, atol=1e-4, rtol=1e-4)


def test_kmeans_uses_every_cluster_while_there_are_distinct_points() -> None:
    points = torch.cat([torch.zeros(50, 1), torch.arange(1.0, 8.0)[:, None]])
    found = kmeans(points, 8, torch.Generator().manual_seed(0))
    assert found.labels.unique().numel() == 8


def test_kmeans_of_equal_points_and_more_clusters_than_points_ends() -> None:
    found = kmeans(torch.ones(3, 2), 5, torch.Generator().manual_seed(0))
    torch.testing.assert_close(found.centroids[found.labels], torch.ones(3, 2))


def test_kmeans_repeats_with_its_seed_and_needs_points() -> None:
    points = torch.randn(40, 3, generator=torch.Generator().manual_seed(4))
    first, again = (kmeans(points, 4, torch.Generator().manual_seed(9)) for _ in range(2))
    assert torch.equal(first.labels, again.labels)
    with pytest.raises(ModelError, match="points"):
        kmeans(torch.empty(0, 3), 2, torch.Generator())
