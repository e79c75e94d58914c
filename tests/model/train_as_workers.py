"""Run by torchrun in test_distributed.py: trains on the toy data and writes what each worker ended with."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file

from model.config import OneRecConfig
from model.data import Row, from_rows
from model.distributed import Worker, torchrun_worker
from model.split import Split, leave_one_out
from model.train import Progress, TrainOptions, TrainResult, train

# 193 samples in batches of 48 leave one sample for the last batch: one of two workers has nothing to do there
OPTIONS = TrainOptions(epochs=2, batch_size=48, learning_rate=3e-3, patience=2, accumulate=2, save_every=1)
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
        for step in range(6 + (user * 5) % 6 if user else 4)
    ]
    return leave_one_out(from_rows(rows))


def fit(worker: Worker, folder: Path, stop_at: int = 0, dropout: float = 0.0) -> TrainResult:
    """Train with the state kept in the folder; stop_at > 0 leaves by an exception after that step."""

    def progress(report: Progress) -> None:
        if report.step == stop_at:
            raise KeyboardInterrupt

    config = dataclasses.replace(CONFIG, dropout=dropout)
    return train(ring(), config, 0, OPTIONS, progress, state_path=folder / "state.safetensors", worker=worker)


def main(folder: Path, dropout: float, stop_at: int) -> None:
    with torchrun_worker("gloo") as worker:
        result = fit(worker, folder, stop_at, dropout)
        tensors = {name: value.contiguous() for name, value in result.model.state_dict().items()}
        tensors["step_losses"] = torch.tensor(result.step_losses, dtype=torch.float64)
        tensors["validation_losses"] = torch.tensor(result.validation_losses, dtype=torch.float64)
        save_file(tensors, folder / f"rank{worker.rank}.safetensors")


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(Path(sys.argv[1]), float(sys.argv[2]), int(sys.argv[3]))
