"""Several training processes by Ray Train, on one machine or on a cluster."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from model.distributed import Worker, process_group_worker
from model.errors import ModelError


def train_on_ray(fit: Callable[[Worker], None], workers: int, storage: Path, *, gpus: bool = False) -> None:
    """Call `fit` in `workers` processes that Ray Train starts, each with its own `Worker`, and wait for all of them.

    `fit` and what it refers to are sent to the processes by cloudpickle; what it returns is dropped, so the first
    worker writes its result to a file. With gpus each process gets one GPU and they talk through nccl, else through
    gloo. storage: an absolute folder, shared by all machines, for Ray Train's own records. Ray is started if it does
    not run. Raises ModelError for an impossible argument, and Ray's TrainingFailedError where `fit` raises.
    """
    if workers < 1:
        raise ModelError(f"workers: must be at least 1, got {workers}")
    if not storage.is_absolute():
        raise ModelError(f"storage: must be an absolute folder, got {storage}")
    from ray.train import RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    def loop() -> None:
        fit(process_group_worker())

    TorchTrainer(
        loop,
        torch_config=TorchConfig(backend="nccl" if gpus else "gloo"),
        scaling_config=ScalingConfig(
            num_workers=workers, use_gpu=gpus, resources_per_worker={"CPU": 1, "GPU": 1} if gpus else {"CPU": 1}
        ),
        run_config=RunConfig(name="crossfade-train", storage_path=str(storage)),
    ).fit()
