"""What is measured and what is remembered; the clock itself is replaced, for only a GPU has one of this kind."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
import torch

from quant import crossover_timing
from quant.crossover import Timing
from quant.crossover_timing import CROSSOVER_FILE, crossover_for

GPU = torch.device("cuda")
SHAPES = ((64, 64), (64, 192))


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int, int]]:
    sizes: list[tuple[int, int, int]] = []

    def timed(size: tuple[int, int, int], _device: torch.device) -> Timing:
        sizes.append(size)
        return Timing(*size, fp8_us=2.0 if size[0] < 8 else 1.0, bf16_us=1.5)

    monkeypatch.setattr(crossover_timing, "timed", timed)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "a GPU")
    return sizes


def test_products_are_timed_once_and_read_from_the_file_afterwards(
    tmp_path: Path, measured: list[tuple[int, int, int]]
) -> None:
    first = crossover_for(tmp_path, GPU, (1, 8), SHAPES)
    assert len(measured) == 4
    assert (tmp_path / CROSSOVER_FILE).is_file()
    assert crossover_for(tmp_path, GPU, (1, 8), SHAPES) == first
    assert len(measured) == 4
    crossover_for(tmp_path, GPU, (1, 8, 16), SHAPES)
    assert measured[4:] == [(16, 64, 64), (16, 64, 192)]
    assert [first.takes_eight(rows, 64, 64) for rows in (1, 7, 8)] == [False, False, True]


def test_a_folder_that_cannot_be_written_costs_a_warning_only(
    tmp_path: Path, measured: list[tuple[int, int, int]], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        found = crossover_for(tmp_path / "missing", GPU, (1,), SHAPES)
    assert len(found.timings) == 2
    assert "cannot be kept" in caplog.text


def test_without_a_folder_nothing_is_kept(measured: list[tuple[int, int, int]]) -> None:
    assert crossover_for(None, GPU, (1,), SHAPES) == crossover_for(None, GPU, (1,), SHAPES)
    assert len(measured) == 4
