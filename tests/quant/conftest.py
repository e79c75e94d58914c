"""A small random model whose answers depend on its context, as recommender, checkpoint and mixture of experts."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from model.catalogue import Catalogue
from model.checkpoint import save
from model.checkpoint_folder import Description
from model.checkpoint_stream import new_checkpoint
from model.config import OneRecConfig
from model.onerec import OneRecV2
from model.semantic_ids import Tokenizer
from model.tensor_file import TensorSpec
from model.threads import torch_threads

N_ITEMS = 400
DENSE = OneRecConfig(
    d_model=64,
    n_layers=2,
    n_heads=4,
    kv_groups=4,
    context_len=12,
    ffn_dim=128,
    sid_embed_dim=16,
    codebook_size=16,
    encoder_dim=32,
)
EXPERTS = replace(DENSE, n_experts=4, n_shared_experts=1, experts_per_token=2, expert_dim=48, dense_layers=1)


def random_model(config: OneRecConfig, seed: int = 0) -> OneRecV2:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = OneRecV2(config).eval().requires_grad_(False)
    for head in model.heads:
        head.weight.mul_(12.0)  # type: ignore[operator]  # peaked answers: a random head ranks by rounding noise
    return model


def random_catalogue(seed: int = 0) -> tuple[Catalogue, Tokenizer]:
    generator = torch.Generator().manual_seed(seed)
    number = torch.randperm(16**3, generator=generator)[:N_ITEMS]
    codes = torch.stack([number // 256, number // 16 % 16, number % 16], dim=1)
    ids = tuple(f"item-{index}" for index in range(N_ITEMS))
    return Catalogue(ids, ("",) * N_ITEMS, ((),) * N_ITEMS), Tokenizer(codes, torch.zeros(3, 16, 4))


def random_histories(count: int, seed: int = 0) -> list[list[str]]:
    generator = torch.Generator().manual_seed(seed)
    return [[f"item-{int(i)}" for i in torch.randint(N_ITEMS, (10,), generator=generator)] for _ in range(count)]


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> Iterator[None]:
    """Matrices of this size run slower on several threads, and far slower where others compute too."""
    with torch_threads(1):
        yield


@pytest.fixture(scope="session")
def dense_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A plain bfloat16 checkpoint."""
    folder = tmp_path_factory.mktemp("dense") / "bf16"
    save(folder, random_model(DENSE), DENSE, *random_catalogue(), extra={"note": "kept"}, dtype=torch.bfloat16)
    return folder


@pytest.fixture(scope="session")
def experts_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with experts in its second block."""
    folder = tmp_path_factory.mktemp("experts") / "bf16"
    save(folder, random_model(EXPERTS), EXPERTS, *random_catalogue(), dtype=torch.bfloat16)
    return folder


@pytest.fixture
def deep_dir(tmp_path: Path) -> Path:
    """Many times a block: 24 blocks of 4.7 million random weights, never in memory together."""
    config = replace(DENSE, d_model=512, n_layers=24, n_heads=8, kv_groups=8, ffn_dim=2048)
    with torch.device("meta"):
        state = OneRecV2(config).state_dict()
    about = Description(config, *random_catalogue(), None, {})
    specs = {name: TensorSpec(torch.bfloat16, tuple(value.shape)) for name, value in state.items()}
    generator = torch.Generator().manual_seed(0)
    with new_checkpoint(tmp_path / "deep", about, specs) as target:
        for name, spec in specs.items():
            value = torch.ones(spec.shape) if "norm" in name else torch.randn(spec.shape, generator=generator) * 0.04
            target.put(name, value.bfloat16())
    return tmp_path / "deep"


@pytest.fixture
def dense_model() -> OneRecV2:
    return random_model(DENSE)


@pytest.fixture
def experts_model() -> OneRecV2:
    return random_model(EXPERTS)


@pytest.fixture(scope="session")
def histories() -> list[list[str]]:
    return random_histories(40)
