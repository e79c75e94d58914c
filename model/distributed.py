"""One of several processes that train one model together, each on its share of every batch."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor
from torch import distributed as dist

from model.errors import ModelError


@dataclass(frozen=True, slots=True)
class Worker:
    """Rank `rank` of `size` processes; the default is the only one, and then nothing is ever sent."""

    rank: int = 0
    size: int = 1

    @property
    def is_first(self) -> bool:
        """Whether this process reports and writes."""
        return self.rank == 0

    def share(self, batch: Tensor) -> Tensor:
        """Every size-th row: the shares of all ranks are the batch, and differ by at most one row."""
        return batch[self.rank :: self.size]

    def sum(self, value: Tensor) -> Tensor:
        """The sum over all ranks, in place."""
        if self.size > 1:
            dist.all_reduce(value)
        return value

    def gather(self, value: Tensor) -> Tensor:
        """The values of all ranks, stacked: [size, ...]."""
        if self.size == 1:
            return value[None].clone()
        parts = [torch.empty_like(value) for _ in range(self.size)]
        dist.all_gather(parts, value)
        return torch.stack(parts)

    def wait(self) -> None:
        """Until every rank is here."""
        if self.size > 1:
            dist.barrier()


@contextmanager
def torchrun_worker(backend: str = "gloo") -> Iterator[Worker]:
    """Join the processes that `torchrun` started; torch itself reads the rank that torchrun left for it.

    gloo is for CPUs, nccl for NVIDIA GPUs. Raises ModelError outside of torchrun.
    """
    try:
        dist.init_process_group(backend)
    except (ValueError, RuntimeError) as error:
        raise ModelError(f"torchrun: this process cannot join the others: {error}") from error
    try:
        yield Worker(dist.get_rank(), dist.get_world_size())
    finally:
        dist.destroy_process_group()
