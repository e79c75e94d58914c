"""Everything that training needs to go on to the bit, in one safetensors file; never pickle."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as save_tensors
from torch import Tensor, nn

from model.errors import CheckpointError

FORMAT = "crossfade-training-state"


@dataclass(slots=True)
class Position:
    """Where training stands: `index` steps into epoch `epoch`, with what was seen on the way."""

    epoch: int = 0
    index: int = 0
    total: float = 0.0  # of this epoch: the sum of all samples' losses
    smooth: float = 0.0  # the loss shown to the caller
    losses: list[float] = field(default_factory=list)  # mean of each finished epoch
    validation_losses: list[float] = field(default_factory=list)
    step_losses: list[float] = field(default_factory=list)
    best: float | None = None  # the lowest validation loss so far
    worse: int = 0  # epochs since then
    stopped: bool = False


@dataclass(frozen=True, slots=True, eq=False)
class TrainingState:
    """A position with the tensors that belong to it.

    tensors: "model.*", the optimizer's "moment1.*", "moment2.*" and "count.*" by parameter, "best.*" where there is a
    best epoch, "average.*" where the weights are averaged, "order_rng" from which this epoch's orders were drawn,
    "rng" [workers, bytes] of dropout.
    """

    position: Position
    tensors: dict[str, Tensor]

    def part(self, prefix: str) -> dict[str, Tensor]:
        """The tensors named `prefix.*`, without the prefix."""
        start = f"{prefix}."
        return {name.removeprefix(start): value for name, value in self.tensors.items() if name.startswith(start)}


def save_state(path: Path, state: TrainingState, fingerprint: str) -> None:
    """Write beside and then in place of an older file, so that a crash leaves the one or the other."""
    tensors = {name: value.detach().cpu().contiguous() for name, value in state.tensors.items()}
    position = json.dumps(asdict(state.position))
    meta = {"format": FORMAT, "fingerprint": fingerprint, "position": position, "sha256": _digest(tensors, position)}
    part = path.with_name(path.name + ".part")
    path.parent.mkdir(parents=True, exist_ok=True)
    with part.open("wb") as handle:
        handle.write(save_tensors(tensors, metadata=meta))
        handle.flush()
        os.fsync(handle.fileno())
    part.replace(path)


def load_state(path: Path, fingerprint: str) -> TrainingState:
    """Read and verify. Raises CheckpointError when the file is damaged or of another training."""
    try:
        with safe_open(path, framework="pt") as handle:
            meta: dict[str, str] = handle.metadata() or {}
            # cloned: in the file a tensor may lie at any byte, and torch reads a random state as 8-byte words
            tensors: dict[str, Tensor] = {name: handle.get_tensor(name).clone() for name in handle.keys()}  # noqa: SIM118 - it has no iterator
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path}: not a readable training state: {error}") from error
    if meta.get("format") != FORMAT:
        raise CheckpointError(f"{path}: not a training state")
    position = meta.get("position", "")
    if meta.get("sha256") != _digest(tensors, position):
        raise CheckpointError(f"{path}: the training state is damaged: its sha256 is not the one it names")
    if meta.get("fingerprint") != fingerprint:
        raise CheckpointError(
            f"{path}: the training state belongs to other data, options, model, seed or number of workers;"
            " remove it to start anew"
        )
    return TrainingState(Position(**json.loads(position)), tensors)


def fingerprint_of(settings: Mapping[str, Any], data: Mapping[str, Tensor]) -> str:
    """The sha256 of everything that decides how training goes: JSON settings and tensors."""
    return _digest(data, json.dumps(settings, sort_keys=True))


def optimizer_tensors(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Adam's two moments and step count of every parameter, by the parameter's name."""
    out: dict[str, Tensor] = {}
    for name, parameter in model.named_parameters():
        state = optimizer.state.get(parameter)
        if state:
            out |= {
                f"moment1.{name}": state["exp_avg"],
                f"moment2.{name}": state["exp_avg_sq"],
                f"count.{name}": state["step"],
            }
    return out


def restore_optimizer(model: nn.Module, optimizer: torch.optim.Optimizer, state: TrainingState) -> None:
    """The inverse of `optimizer_tensors`."""
    first, second, count = (state.part(name) for name in ("moment1", "moment2", "count"))
    for name, parameter in model.named_parameters():
        if name in first:
            optimizer.state[parameter] = {
                "exp_avg": first[name].to(parameter.device),
                "exp_avg_sq": second[name].to(parameter.device),
                "step": count[name].to(parameter.device),
            }


def _digest(tensors: Mapping[str, Tensor], text: str) -> str:
    digest = hashlib.sha256(text.encode())
    for name in sorted(tensors):
        value = tensors[name].detach().cpu().contiguous()
        digest.update(f"\n{name} {value.dtype} {tuple(value.shape)}\n".encode())
        digest.update(value.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
