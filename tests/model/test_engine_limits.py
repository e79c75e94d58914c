from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from model.config import PRESETS
from model.engine import limits
from model.engine.limits import unfit_device, unfit_model

FINE = PRESETS["moe-4b"]


@pytest.mark.parametrize("preset", ["0.1B", "0.2B", "0.5B", "1B", "2B", "4B", "8B", "moe-4b"])
@pytest.mark.parametrize("eight", [False, True])
def test_every_size_of_the_paper_fits(preset: str, eight: bool) -> None:
    assert unfit_model(PRESETS[preset], torch.bfloat16, eight=eight) == ()


def test_the_small_presets_fit_in_16_bit() -> None:
    assert unfit_model(PRESETS["tiny"], torch.bfloat16, eight=False) == ()
    assert unfit_model(PRESETS["small"], torch.bfloat16, eight=True) == ()
    assert unfit_model(PRESETS["tiny"], torch.bfloat16, eight=True) == (
        "the head width 16 is no power of two in 32..128",
    )


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"levels": 4}, "levels is 4"),
        ({"positive_len": 5}, "pathways beside the history"),
        ({"profile_features": 8}, "pathways beside the history"),
        ({"codebook_size": 8000}, "codebook_size 8000"),
        ({"codebook_size": 16}, "codebook_size 16"),
        ({"codebook_size": 65536}, "codebook_size 65536"),
        ({"d_model": 1056}, "head width 96"),
        ({"d_model": 2816}, "head width 256"),
        ({"n_heads": 176, "kv_groups": 1}, "head width 8"),
        ({"ffn_dim": 100}, "16 does not divide ffn_dim 100"),
        ({"expert_dim": 40}, "16 does not divide expert_dim 40"),
        ({"n_experts": 300}, "n_experts is 300"),
    ],
)
def test_what_the_kernels_cannot_run_is_named(change: dict[str, Any], reason: str) -> None:
    (found,) = unfit_model(replace(FINE, **change), torch.bfloat16, eight=True)
    assert reason in found


def test_other_types_and_several_reasons_are_named() -> None:
    found = unfit_model(replace(FINE, levels=4), torch.float32, eight=False)
    assert found[0] == "the weights are torch.float32, the engine computes in bfloat16"
    assert len(found) == 2


def test_devices_without_the_means_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = torch.device("cuda")
    assert unfit_device(torch.device("cpu")) == ("cpu is no CUDA device",)
    monkeypatch.setattr(limits, "find_spec", lambda _: None)
    assert unfit_device(gpu) == ("Triton is not installed",)
    monkeypatch.setattr(limits, "find_spec", lambda name: name)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (8, 9))
    assert unfit_device(gpu) == ("compute capability 8.9, the kernels need 9.0",)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (9, 0))
    monkeypatch.setattr(limits, "_driver_problem", lambda: "no C compiler")
    assert unfit_device(gpu) == ("Triton does not work here: no C compiler",)
    monkeypatch.setattr(limits, "_driver_problem", lambda: None)
    assert unfit_device(gpu) == ()
