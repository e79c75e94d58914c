"""The fast path on a real GPU against the CPU reference: `pytest -m gpu`."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from quant.load import load_recommender, quantize_checkpoint
from quant.ops import fp8_linear, runs_on_tensor_cores
from quant.primitives import quantise, row_scale, sqnr_db
from quant.recipes import DEFAULT_RECIPE, RECIPES

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(1, 64, 64), (8, 64, 192), (257, 256, 64), (4096, 1408, 4224)])
def test_tensor_core_product_agrees_with_the_reference(shape: tuple[int, int, int], dtype: torch.dtype) -> None:
    rows, wide, out = shape
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(rows, wide, generator=generator).to(dtype)
    dense = torch.randn(out, wide, generator=generator) * wide**-0.5
    scale = row_scale(dense)
    codes = quantise(dense, scale)
    bias = torch.randn(out, generator=generator).to(dtype)
    here = [part.cuda() for part in (x, codes, scale, bias)]
    assert runs_on_tensor_cores(here[0], here[1])
    fast = fp8_linear(*here)
    assert fast.dtype == dtype
    assert sqnr_db(fp8_linear(x.float(), codes, scale, bias.float()), fast.float().cpu()) > 45.0


def test_widths_that_the_kernel_refuses_take_the_reference() -> None:
    x, dense = torch.randn(5, 40).cuda(), torch.randn(24, 40).cuda()
    scale = row_scale(dense)
    codes = quantise(dense, scale)
    assert not runs_on_tensor_cores(x, codes)
    expected = fp8_linear(x.cpu(), codes.cpu(), scale.cpu())
    torch.testing.assert_close(fp8_linear(x, codes, scale).cpu(), expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("which", ["dense_dir", "experts_dir"])
def test_a_checkpoint_answers_on_the_gpu_as_on_the_cpu(
    which: str, request: pytest.FixtureRequest, tmp_path: Path, histories: list[list[str]]
) -> None:
    quantize_checkpoint(request.getfixturevalue(which), tmp_path / "fp8", RECIPES[DEFAULT_RECIPE])
    answers = []
    for device, dtype in (("cpu", torch.float32), ("cuda", torch.float32), ("cuda", torch.bfloat16)):
        recommender = load_recommender(tmp_path / "fp8", device, dtype)
        answers.append([{item.item_id for item in row} for row in recommender.recommend(histories, 10)])
    cpu, gpu, half = answers
    shared = [sum(len(a & b) for a, b in zip(cpu, other, strict=True)) / (10 * len(cpu)) for other in (gpu, half)]
    assert shared[0] > 0.85
    assert shared[1] > 0.7
