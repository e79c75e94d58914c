"""The parts of CUDA's front that need no GPU."""

from __future__ import annotations

import re

import pytest
import torch

from model.engine.cuda_module import CudaError, hopper_source, is_hopper, product_source, tensor_map


@pytest.mark.parametrize("in_registers", [False, True])
@pytest.mark.parametrize("columns", [64, 128, 240])
def test_a_products_operands_are_numbered_in_their_order(columns: int, in_registers: bool) -> None:
    text = product_source("product", columns, a_in_registers=in_registers)
    numbers = [int(found) for found in re.findall(r"%(\d+)", text)]
    last = columns // 2 + (4 if in_registers else 1) + 1  # results, first operand, second operand, flag
    assert sorted(set(numbers)) == list(range(last + 1))
    assert f"m64n{columns}k32" in text
    assert text.count('"+f"') == columns // 2
    assert text.count("{") == text.count("}")


def test_kernels_need_no_headers() -> None:
    assert "#include" not in hopper_source()


def test_a_cpu_is_no_hopper() -> None:
    assert not is_hopper(torch.device("cpu"))


@pytest.mark.parametrize(
    "matrix", [torch.zeros(4, 24, dtype=torch.uint8), torch.zeros(4, 16), torch.zeros(16, 32, dtype=torch.uint8).t()]
)
def test_a_matrix_that_cannot_be_copied_in_boxes_is_refused(matrix: torch.Tensor) -> None:
    with pytest.raises(CudaError, match="tensor map"):
        tensor_map(matrix, 64)
