"""Run by test_distributed.py: trains on the toy data and writes what each worker ended with.

`torchrun train_as_workers.py FOLDER DROPOUT STOP_AT`, or the same with `ray` as fourth argument and no torchrun.
"""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file

from model.config import OneRecConfig
from model.data import Row, from_rows
from model.distributed import Worker, torchrun_worker
from model.distributed_ray import train_on_ray
from model.split import Split, leave_one_out
from model.train import Progress, TrainOptions, TrainResult, train

# 196 samples in batches of 39: shares of 20 and 19, and one sample in the last batch, where a worker has nothing to do
OPTIONS = TrainOptions(
    epochs=2, batch_size=39, clip_norm=0.5, learning_rate=3e-3, patience=2, accumulate=2, save_every=1
)
CONFIG = OneRecConfig(
    d_model=16,
    n_layers=2,
    n_heads=4,
    kv_groups=2,
    context_len=6,
    ffn_dim=24,
    sid_embed_dim=4,
    codebook_size=5,
    n_experts=4,
    n_shared_experts=1,
    experts_per_token=2,
    expert_dim=8,
    dense_layers=1,
)


def ring() -> Split:
    """30 users step along a ring of 20 items."""
    rows = [
        Row(f"u{user}", f"i{(7 * user + step) % 20}", 100.0 * step + user, float("nan"))
        for user in range(30)
        for step in range(6 + (user * 5) % 6 if user else 7)
    ]
    return leave_one_out(from_rows(rows))


def fit(worker: Worker, folder: Path, stop_at: int = 0, dropout: float = 0.0) -> TrainResult:
    """Train with the state kept in the folder; stop_at > 0 leaves by an exception after that step."""

    def progress(report: Progress) -> None:
        if report.step == stop_at:
            raise KeyboardInterrupt

    config = dataclasses.replace(CONFIG, dropout=dropout)
    return train(ring(), config, 0, OPTIONS, progress, state_path=folder / "state.safetensors", worker=worker)


def write(worker: Worker, folder: Path, stop_at: int, dropout: float) -> None:
    result = fit(worker, folder, stop_at, dropout)
    tensors = {name: value.contiguous() for name, value in result.model.state_dict().items()}
    tensors["step_losses"] = torch.tensor(result.step_losses, dtype=torch.float64)
    tensors["validation_losses"] = torch.tensor(result.validation_losses, dtype=torch.float64)
    save_file(tensors, folder / f"rank{worker.rank}.safetensors")


def by_torchrun(folder: Path, stop_at: int, dropout: float) -> None:
    with torchrun_worker("gloo") as worker:
        write(worker, folder, stop_at, dropout)


def by_ray(folder: Path, stop_at: int, dropout: float) -> None:
    import ray

    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False)
    try:
        train_on_ray(lambda worker: write(worker, folder, stop_at, dropout), 2, folder / "ray")
    finally:
        ray.shutdown()


if __name__ == "__main__":
    torch.set_num_threads(1)
    by = by_ray if sys.argv[4:] == ["ray"] else by_torchrun
    by(Path(sys.argv[1]), int(sys.argv[3]), float(sys.argv[2]))
