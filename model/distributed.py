"""One of several processes that train one model together, each on its share of every batch."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch import distributed as dist

from model.errors import ModelError


@dataclass(frozen=True, slots=True)
class Worker:
    """Rank `rank` of `size` processes; the default is the only one, and then nothing is ever sent."""

    rank: int = 0
    size: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))  # where this process computes

    @property
    def is_first(self) -> bool:
        """Whether this process reports and writes."""
        return self.rank == 0

    def share(self, batch: Tensor) -> Tensor:
        """Every size-th row: the shares of all ranks are the batch, and differ by at most one row."""
        return batch[self.rank :: self.size]

    def sum(self, value: Tensor) -> Tensor:
        """The sum over all ranks, in place; `value` lies on the device."""
        if self.size > 1:
            dist.all_reduce(value)
        return value

    def gather(self, value: Tensor) -> Tensor:
        """The values of all ranks, stacked: [size, ...], on the CPU."""
        if self.size == 1:
            return value[None].cpu().clone()
        mine = value.to(self.device)
        parts = [torch.empty_like(mine) for _ in range(self.size)]
        dist.all_gather(parts, mine)
        return torch.stack(parts).cpu()

    def random_state(self) -> Tensor:
        """The state of the generator that dropout draws from on this device [bytes]."""
        return torch.cuda.get_rng_state(self.device) if self.device.type == "cuda" else torch.get_rng_state()

    def set_random_state(self, state: Tensor) -> None:
        """The inverse of `random_state`."""
        if self.device.type == "cuda":
            torch.cuda.set_rng_state(state, self.device)
        else:
            torch.set_rng_state(state)

    def wait(self) -> None:
        """Until every rank is here."""
        if self.size > 1:
            dist.barrier()


def process_group_worker() -> Worker:
    """This process as a member of the process group that somebody has initialised; nccl computes on its own GPU."""
    device = torch.device("cpu")
    if dist.get_backend() == "nccl":
        device = torch.device("cuda", dist.get_node_local_rank(fallback_rank=dist.get_rank()))
        torch.cuda.set_device(device)
    return Worker(dist.get_rank(), dist.get_world_size(), device)


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
        yield process_group_worker()
    finally:
        dist.destroy_process_group()
