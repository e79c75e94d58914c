from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from model.errors import ModelError
from model.kmeans import kmeans, nearest, nearest_with_places, spread_start


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
    monkeypatch.setattr("model.kmeans.CHUNK_DISTANCES", 42)
    generator = torch.Generator().manual_seed(2)
    points, centroids = torch.randn(30, 4, generator=generator), torch.randn(6, 4, generator=generator)
    labels, distance = nearest(points, centroids)
    every = torch.cdist(points.double(), centroids.double()).square()
    assert torch.equal(labels, every.argmin(1))
    torch.testing.assert_close(distance.double(), every.min(1).values, atol=1e-4, rtol=1e-4)


_GROWTH = """
import resource, torch
from model.kmeans import nearest
torch.set_num_threads(1)
points, centroids = torch.randn(30_000, 16), torch.randn(8192, 16)
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
nearest(points[:512], centroids)
before = peak()
nearest(points, centroids)
print(peak() - before)
"""


def test_nearest_holds_one_chunk_of_distances_however_many_points_there_are() -> None:
    """Fifty-nine chunks of 16 MiB: a heap cut up by results that outlive them grew by most of a gigabyte."""
    done = subprocess.run([sys.executable, "-c", _GROWTH], capture_output=True, text=True, check=True)
    assert float(done.stdout) < 100.0  # MiB


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


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 60), st.integers(1, 8), st.integers(0, 3), st.integers(0, 10_000))
def test_nearest_with_places_is_a_stable_matching(n: int, k: int, spare: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    points, centroids = (torch.randint(-6, 7, (rows, 2), generator=generator).float() for rows in (n, k))
    places = -(-n // k) + spare
    labels, distance = nearest_with_places(points, centroids, places)
    every = torch.cdist(points.double(), centroids.double()).square()
    torch.testing.assert_close(distance.double(), every.gather(1, labels[:, None])[:, 0], atol=1e-4, rtol=1e-4)
    held = [[point for point in range(n) if labels[point] == cluster] for cluster in range(k)]
    assert max(len(members) for members in held) <= places
    for point in range(n):
        for cluster in range(k):
            if every[point, cluster] < every[point, labels[point]] - 1e-4:
                assert len(held[cluster]) == places, "a nearer cluster has a place left"
                worst = max(float(every[member, cluster]) for member in held[cluster])
                assert worst <= float(every[point, cluster]) + 1e-4, "a nearer cluster holds a farther point"


def test_nearest_with_places_refuses_more_points_than_places() -> None:
    with pytest.raises(ModelError, match="cannot hold 5 points"):
        nearest_with_places(torch.zeros(5, 1), torch.zeros(2, 1), 2)


def test_balanced_kmeans_evens_out_a_skewed_mixture_that_plain_kmeans_does_not() -> None:
    generator = torch.Generator().manual_seed(6)
    dense, sparse = torch.randn(180, 2, generator=generator), 30.0 * torch.randn(20, 2, generator=generator)
    points = torch.cat([dense, sparse])
    plain = kmeans(points, 8, torch.Generator().manual_seed(0))
    even = kmeans(points, 8, torch.Generator().manual_seed(0), balanced=True)
    assert torch.bincount(plain.labels, minlength=8).max() > 2 * 25
    assert torch.bincount(even.labels, minlength=8).tolist() == [25] * 8
    for cluster in range(8):
        torch.testing.assert_close(even.centroids[cluster], points[even.labels == cluster].mean(0), atol=1.0, rtol=0.1)


def test_kmeans_on_a_sample_labels_every_point_by_its_nearest_centroid() -> None:
    generator = torch.Generator().manual_seed(3)
    points = torch.randn(500, 3, generator=generator)
    found = kmeans(points, 8, torch.Generator().manual_seed(1), points_per_code=10)
    assert found.labels.shape == (500,)
    assert torch.equal(found.labels, nearest(points, found.centroids)[0])
    whole = kmeans(points, 8, torch.Generator().manual_seed(1))
    assert not torch.equal(found.centroids, whole.centroids)
    with pytest.raises(ModelError, match="points_per_code"):
        kmeans(points, 8, torch.Generator(), points_per_code=0)


def test_spread_start_drawn_many_at_once_still_reaches_every_planted_cluster() -> None:
    generator = torch.Generator().manual_seed(8)
    centres = 100.0 * torch.randn(300, 4, generator=generator)
    points = centres.repeat(10, 1) + 0.01 * torch.randn(3000, 4, generator=generator)
    starts = spread_start(points, 600, torch.Generator().manual_seed(0))
    assert starts.shape == (600, 4)
    assert nearest(starts, centres)[0].unique().numel() == 300
    at_random = points[torch.randint(3000, (600,), generator=generator)]
    assert nearest(at_random, centres)[0].unique().numel() < 290
