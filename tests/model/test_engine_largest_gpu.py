"""The k largest keys against a sort: `pytest -m gpu`, or with TRITON_INTERPRET=1 where Triton is and no GPU."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton")

from model.engine.largest import largest
from tests.device import DEVICE, GPU, GPU_OR_INTERPRETER

pytestmark = GPU_OR_INTERPRETER

LEAST = -(2**31)
LOST = -2139095041
SIZES = [(1, 1), (16, 16), (64, 64), (300, 100), (9000, 700)]
if GPU:
    SIZES += [(32_768, 768), (98_304, 768), (262_144, 1024), (300_000, 512)]  # of the last no kernel in CUDA has room


def keys_of(scores: Tensor) -> Tensor:
    """As `select.ordered` makes them."""
    bits = scores.view(torch.int32)
    return bits ^ ((bits >> 31) & 0x7FFFFFFF)


def by_sorting(keys: list[int], k: int) -> tuple[list[int], int]:
    alive = sorted((place for place, key in enumerate(keys) if key > LOST), key=lambda place: (-keys[place], place))[:k]
    lost = [place for place, key in enumerate(keys) if key <= LOST][: k - len(alive)]
    return sorted(alive) + lost, keys[alive[-1]] if len(alive) == k else LEAST


@pytest.mark.parametrize(("n", "k"), SIZES)
@pytest.mark.parametrize("kind", ["any", "ties", "equal", "few", "none"])
@pytest.mark.parametrize("bounded", [False, True])
def test_places_are_those_of_a_sort(n: int, k: int, kind: str, bounded: bool) -> None:
    generator = torch.Generator().manual_seed(n)
    scores = torch.randn(3, n, generator=generator) * 3 - 5
    if kind == "ties":
        scores = scores.round()
    if kind == "equal":
        scores = torch.full_like(scores, -2.0)
    if kind in {"few", "none"}:
        scores[torch.rand(3, n, generator=generator) < (0.97 if kind == "few" else 2.0)] = -torch.inf
    keys = keys_of(scores)
    expected = [by_sorting(row.tolist(), k) for row in keys]
    bound = torch.tensor([kth for _, kth in expected], dtype=torch.int32, device=DEVICE) if bounded else None
    places, kth = largest(keys.to(DEVICE), k, bound)
    assert places.tolist() == [wanted for wanted, _ in expected]
    assert kth.tolist() == [one for _, one in expected]
