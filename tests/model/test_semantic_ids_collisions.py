from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from model.errors import ModelError
from model.semantic_ids_collisions import misfits, radix_keys, resolve_collisions


def test_collisions_move_the_worse_fitting_item_to_the_nearest_free_last_code() -> None:
    centroids = torch.tensor([[[0.0], [10.0]], [[0.0], [1.0]]])
    points = torch.tensor([[0.3], [0.1]])
    codes = resolve_collisions(points, torch.tensor([[0, 0], [0, 0]]), centroids)
    assert codes.tolist() == [[0, 1], [0, 0]]


def test_collisions_leave_the_prefix_only_when_it_is_full() -> None:
    centroids = torch.tensor([[[0.0], [10.0]], [[0.0], [1.0]]])
    points = torch.tensor([[0.1], [0.2], [0.3]])
    codes = resolve_collisions(points, torch.zeros(3, 2, dtype=torch.int64), centroids)
    assert codes[0].tolist() == [0, 0]
    assert codes[1].tolist() == [0, 1]
    assert int(codes[2, 0]) == 1


def _by_loops(points: Tensor, wanted: Tensor, centroids: Tensor, taken: Tensor) -> list[tuple[int, ...]]:
    """The same rule item by item: prefixes from long to short, codes below them depth first from the nearest."""
    levels, size, _ = centroids.shape
    used = {tuple(row) for row in taken.tolist()}
    misfit = misfits(points, wanted, centroids)
    order = sorted(range(points.shape[0]), key=lambda item: (float(misfit[item]), item))
    out: dict[int, tuple[int, ...]] = {}
    for item in order:
        key = tuple(wanted[item].tolist())
        if key not in used:
            used.add(key)
            out[item] = key

    def below(point: Tensor, prefix: tuple[int, ...]) -> list[tuple[int, ...]]:
        if len(prefix) == levels:
            return [prefix]
        rest = point - sum((centroids[i][code] for i, code in enumerate(prefix)), torch.zeros_like(point))
        away = (centroids[len(prefix)] - rest).square().sum(-1).tolist()
        nearest = sorted(range(size), key=lambda code: away[code])
        return list(itertools.chain.from_iterable(below(point, (*prefix, code)) for code in nearest))

    for item in order:
        if item not in out:
            key = tuple(wanted[item].tolist())
            choices = [code for keep in range(levels - 1, -1, -1) for code in below(points[item], key[:keep])]
            out[item] = next(code for code in choices if code not in used)
            used.add(out[item])
    return [out[item] for item in range(points.shape[0])]


@pytest.mark.parametrize("tried", [1, 64])
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(n=st.integers(1, 14), older=st.integers(0, 12), seed=st.integers(0, 10_000))
def test_collisions_are_resolved_as_by_loops(
    tried: int, n: int, older: int, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("model.semantic_ids_collisions.NEAREST", tried)
    generator = torch.Generator().manual_seed(seed)
    centroids = torch.randn(3, 3, 2, generator=generator, dtype=torch.float64)
    points = torch.randn(n, 2, generator=generator, dtype=torch.float64)
    wanted = torch.randint(0, 2, (n, 3), generator=generator)
    every = torch.tensor(list(itertools.product(range(3), repeat=3)))
    taken = every[torch.randperm(27, generator=generator)[:older]]
    codes = resolve_collisions(points, wanted, centroids, taken)
    assert [tuple(row) for row in codes.tolist()] == _by_loops(points, wanted, centroids, taken)
    assert not {tuple(row) for row in codes.tolist()} & {tuple(row) for row in taken.tolist()}


def test_collisions_without_a_free_id_are_refused() -> None:
    with pytest.raises(ModelError, match="every semantic id is taken"):
        resolve_collisions(torch.zeros(3, 1), torch.zeros(3, 1, dtype=torch.int64), torch.zeros(1, 2, 1))


def test_radix_keys_number_ids_in_lexicographic_order_and_refuse_what_does_not_fit() -> None:
    every = torch.tensor(list(itertools.product(range(3), repeat=3)))
    assert radix_keys(every, 3).tolist() == list(range(27))
    with pytest.raises(ModelError, match="63 bits"):
        radix_keys(torch.zeros(1, 5, dtype=torch.int64), 8192)
