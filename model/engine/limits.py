"""What the engine cannot run, known before anything is built. Importing this needs neither Triton nor a GPU."""

from __future__ import annotations

import subprocess
from importlib.util import find_spec

import torch

from model.config import OneRecConfig

MOST_LEVELS = 3
"""Tokens that the self attention kernel looks back on, the new one included."""

MOST_BEAMS = 1024
"""Beams that one program puts in order at the end of a level."""

MOST_ROWS = 32768
"""Decoder rows of one launch, batch times beams; a larger batch is answered in pieces."""

WORD = 32
"""Codes of a word of the mask, and the least size of a codebook."""

_MOST_CODES = 32768  # one program holds a row of logits
_MOST_EXPERTS = 256  # one program holds a logit of every expert for 16 rows
_HEAD_DIMS = (16, 128)  # tensor cores want 16; keys and values of 256 pass a multiprocessor's shared memory
_LEAST_EIGHT_HEAD_DIM = 32  # depth of the E4M3 tensor cores
_CAPABILITY = (9, 0)  # Hopper: bulk tensor copies, and what the kernels were tuned on


def power_of_two(number: int) -> bool:
    """1, 2, 4, ..."""
    return number >= 1 and not number & (number - 1)


def unfit_model(config: OneRecConfig, dtype: torch.dtype, *, eight: bool) -> tuple[str, ...]:
    """Why the kernels cannot decode a model of this shape; `eight`: with E4M3 matrices. Empty when they can."""
    reasons = []
    if dtype is not torch.bfloat16:
        reasons.append(f"the weights are {dtype}, the engine computes in bfloat16")
    if config.profile_features or config.short_term or config.positive_len:
        reasons.append("the context has pathways beside the history, the engine makes the history's alone")
    if config.levels > MOST_LEVELS:
        reasons.append(f"levels is {config.levels}, at most {MOST_LEVELS} are looked back on")
    if not (power_of_two(config.codebook_size) and WORD <= config.codebook_size <= _MOST_CODES):
        reasons.append(f"codebook_size {config.codebook_size} is no power of two in {WORD}..{_MOST_CODES}")
    least = _LEAST_EIGHT_HEAD_DIM if eight else _HEAD_DIMS[0]
    if not (power_of_two(config.head_dim) and least <= config.head_dim <= _HEAD_DIMS[1]):
        reasons.append(f"the head width {config.head_dim} is no power of two in {least}..{_HEAD_DIMS[1]}")
    widths = {"d_model": config.d_model}
    if any(not config.is_moe_layer(layer) for layer in range(config.n_layers)):
        widths["ffn_dim"] = config.ffn_dim
    if config.n_experts:
        widths["expert_dim"] = config.expert_dim
    reasons += [f"16 does not divide {name} {value}" for name, value in widths.items() if value % 16]
    if config.n_experts > _MOST_EXPERTS:
        reasons.append(f"n_experts is {config.n_experts}, at most {_MOST_EXPERTS} are routed to")
    return tuple(reasons)


def unfit_device(device: torch.device) -> tuple[str, ...]:
    """Why the kernels cannot run on this device. Empty when they can."""
    if device.type != "cuda":
        return (f"{device.type} is no CUDA device",)
    if find_spec("triton") is None:
        return ("Triton is not installed",)
    found = torch.cuda.get_device_capability(device)
    if found < _CAPABILITY:
        wanted, have = (".".join(map(str, pair)) for pair in (_CAPABILITY, found))
        return (f"compute capability {have}, the kernels need {wanted}",)
    problem = _driver_problem()
    return () if problem is None else (f"Triton does not work here: {problem}",)


def _driver_problem() -> str | None:
    """Triton compiles a small C module before its first launch; a host without a compiler or Python.h cannot."""
    from triton.runtime import driver

    try:
        driver.active.get_current_target()
    except (RuntimeError, OSError, subprocess.SubprocessError) as error:
        return str(error)
    return None
