from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from random_checkpoints import make_pair

from model.config import PRESETS
from serving.errors import InvalidRequestError
from serving.serve_variants import verify


@pytest.fixture
def pair(tmp_path: Path) -> dict[str, Path]:
    return make_pair(tmp_path, PRESETS["tiny"], 100, torch.device("cpu"))


def test_whole_checkpoints_pass_together(pair: dict[str, Any]) -> None:
    verify(pair.values())
    verify([])


@pytest.mark.parametrize("which", ["bf16", "fp8"])
def test_one_flipped_bit_of_any_is_refused(pair: dict[str, Path], which: str) -> None:
    weights = pair[which] / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    with pytest.raises(InvalidRequestError, match=rf"{which}: model.safetensors is damaged"):
        verify(pair.values())


def test_a_folder_that_is_none_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequestError, match="no such checkpoint folder"):
        verify([tmp_path / "nowhere"])
