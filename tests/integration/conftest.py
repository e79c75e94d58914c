"""One real service for all integration tests: Ray Serve, HAProxy, PostgreSQL, Valkey, two variants of a small model."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import psutil
import pytest
import torch

from experiment.store.engine import create_engine
from experiment.store.events_sql import SqlEventLog
from model.catalogue import Catalogue
from model.checkpoint import save
from model.config import OneRecConfig
from model.onerec import OneRecV2
from model.semantic_ids import Tokenizer
from quant.load import quantize_checkpoint
from quant.recipes import recipe_named
from serving.cluster import Cluster
from serving.settings import Settings
from tests.postgres import PostgresServer, free_port

ITEMS = 60
SMALL = OneRecConfig(
    d_model=32,
    n_layers=1,
    n_heads=2,
    kv_groups=2,
    context_len=8,
    ffn_dim=64,
    sid_embed_dim=8,
    codebook_size=8,
    encoder_dim=16,
)


@dataclass(frozen=True)
class Service:
    """A running service and the servers behind it. `sent` counts what the tests' events were answered with."""

    cluster: Cluster
    postgres: PostgresServer
    home: Path

    @property
    def log(self) -> SqlEventLog:
        return SqlEventLog(create_engine(self.cluster.settings.sql_url))

    def http(self, token: str | None = "events") -> httpx.Client:
        headers = {} if token is None else {"Authorization": f"Bearer {self.cluster.tokens[token]}"}
        return httpx.Client(base_url=self.cluster.url, headers=headers, timeout=20)

    def replica(self, application: str) -> psutil.Process:
        """The process of an application's only replica."""
        for process in psutil.Process().children(recursive=True):
            if f"ServeReplica:{application}:" in " ".join(_command(process)):
                return process
        raise LookupError(application)


def _command(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:
        return []


@pytest.fixture(scope="session")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """The service, for the whole session; it is stopped cleanly at the end and must leave nothing running."""
    home = tmp_path_factory.mktemp("service")
    variants = _variants(home / "checkpoints")
    before = set(psutil.Process().children(recursive=True))
    with PostgresServer("-c", "fsync=off") as postgres:
        settings = Settings(home=home, port=free_port(), database_url=postgres.url)
        with Cluster(settings, variants) as cluster:
            yield Service(cluster, postgres, home)
    left = [_command(process) for process in psutil.Process().children(recursive=True) if process not in before]
    # Python's own tracker of shared memory, which a test with a process pool starts, lives as long as pytest itself.
    left = [command for command in left if "multiprocessing.resource_tracker" not in " ".join(command)]
    assert not left, left


@pytest.fixture(scope="session")
def eventually() -> Callable[..., None]:
    """Wait until something holds; the last failure is the test's failure."""

    def wait(holds: Callable[[], bool], what: str, limit_s: float = 30.0) -> None:
        deadline = time.monotonic() + limit_s
        while not holds():
            assert time.monotonic() < deadline, f"not within {limit_s:g} s: {what}"
            time.sleep(0.1)

    return wait


def _variants(folder: Path) -> dict[str, Path]:
    torch.manual_seed(0)
    model = OneRecV2(SMALL).eval().requires_grad_(False)
    number = torch.randperm(SMALL.codebook_size**3)[:ITEMS]
    codes = torch.stack([number // 64, number // 8 % 8, number % 8], dim=1)
    names = tuple(f"item-{index}" for index in range(ITEMS))
    catalogue = Catalogue(names, ("",) * ITEMS, ((),) * ITEMS)
    save(folder / "bf16", model, SMALL, catalogue, Tokenizer(codes, torch.zeros(3, 8, 2)), dtype=torch.bfloat16)
    quantize_checkpoint(folder / "bf16", folder / "fp8", recipe_named("e4m3"))
    return {"bf16": folder / "bf16", "fp8": folder / "fp8"}
