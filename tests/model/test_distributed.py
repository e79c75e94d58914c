from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from model.distributed import Worker, torchrun_worker
from model.distributed_ray import train_on_ray
from model.errors import ModelError
from model.train import Samples

SCRIPT = Path(__file__).with_name("train_as_workers.py")
ROOT = Path(__file__).parents[2]


def _script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("train_as_workers", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _run(command: list[str], *arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *command, str(SCRIPT), *map(str, arguments)],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )


def _torchrun(folder: Path, dropout: float = 0.0, stop_at: int = 0) -> int:
    command = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    done = _run(command, folder, dropout, stop_at)
    if stop_at == 0:
        assert done.returncode == 0, done.stderr[-3000:]
    return done.returncode


def _ends(folder: Path) -> list[dict[str, Tensor]]:
    return [load_file(folder / f"rank{rank}.safetensors") for rank in range(2)]


@pytest.mark.integration
@pytest.mark.parametrize("launcher", ["torchrun", "ray"])
def test_two_workers_equal_one_with_the_same_global_batch_within_float_error(launcher: str, tmp_path: Path) -> None:
    script = _script()
    assert len(Samples.of(script.ring())) % script.OPTIONS.batch_size == 1, "a worker without a sample must occur"
    if launcher == "ray":
        done = _run([], tmp_path, 0.0, 0, "ray")
        assert done.returncode == 0, done.stderr[-3000:]
    else:
        _torchrun(tmp_path)
    alone = script.fit(Worker(), tmp_path / "alone")
    first, second = _ends(tmp_path)
    assert [name for name in first if not torch.equal(first[name], second[name])] == [], "the workers drifted apart"
    assert first["step_losses"].tolist() == pytest.approx(list(alone.step_losses), rel=1e-4)
    assert first["validation_losses"].tolist() == pytest.approx(list(alone.validation_losses), rel=1e-4)
    for name, value in alone.model.state_dict().items():
        torch.testing.assert_close(first[name], value, atol=1e-4, rtol=1e-3, msg=name)
    assert first["decoder.blocks.1.ffn.bias"].any(), "the experts' load is balanced over the workers"


@pytest.mark.integration
def test_two_workers_interrupted_and_resumed_equal_uninterrupted_to_the_bit(tmp_path: Path) -> None:
    whole, parted = tmp_path / "whole", tmp_path / "parted"
    whole.mkdir()
    parted.mkdir()
    _torchrun(whole, dropout=0.3)
    assert _torchrun(parted, dropout=0.3, stop_at=7) != 0
    assert not (parted / "rank0.safetensors").exists()
    _torchrun(parted, dropout=0.3)
    for expected, got in zip(_ends(whole), _ends(parted), strict=True):
        assert [name for name in expected if not torch.equal(expected[name], got[name])] == []


def test_shares_of_all_workers_are_the_batch() -> None:
    batch = torch.arange(11)
    shares = [Worker(rank, 3).share(batch).tolist() for rank in range(3)]
    assert sorted(row for share in shares for row in share) == batch.tolist()
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_single_worker_sends_nothing_and_needs_no_process_group() -> None:
    alone = Worker()
    value = torch.tensor([1.0, 2.0])
    alone.wait()
    assert alone.sum(value) is value
    assert torch.equal(alone.gather(value), value[None])


@pytest.mark.parametrize(("workers", "storage", "named"), [(0, "/storage", "workers"), (2, "x", "storage")])
def test_train_on_ray_impossible_arguments_are_refused(workers: int, storage: str, named: str) -> None:
    with pytest.raises(ModelError, match=named):
        train_on_ray(lambda _: None, workers, Path(storage))


def test_torchrun_worker_outside_of_torchrun_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(ModelError, match="torchrun"), torchrun_worker():
        pass
