"""FP8 checkpoints behind the engine on a GPU: `pytest -m gpu`.

On a machine without a GPU those that time nothing and capture no graph run with TRITON_INTERPRET=1.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

pytest.importorskip("triton")

from model.catalogue import Catalogue
from model.checkpoint import save
from model.config import OneRecConfig
from model.engine.norm import Rows
from model.engine.recommender import EngineRecommender
from model.onerec import OneRecV2
from model.semantic_ids import Tokenizer
from quant.crossover import Crossover, Timing
from quant.crossover_timing import CROSSOVER_FILE, timed
from quant.engine import engine_recommender
from quant.kernels.attention import LONGEST_KEY
from quant.kernels.eight_bit import EightBit
from quant.kernels.order import STORED_CODE
from quant.kernels.rows import round_rows_to_eight
from quant.kernels.stored import Stored
from quant.load import load_recommender, quantize_checkpoint
from quant.narrow import Narrow
from quant.primitives import quantise, row_scale, sqnr_db
from quant.recipes import DEFAULT_RECIPE, RECIPES
from tests.device import DEVICE, GPU, GPU_OR_INTERPRETER

pytestmark = GPU_OR_INTERPRETER

CONFIG = OneRecConfig(
    d_model=128, n_layers=2, n_heads=4, kv_groups=4, context_len=100 if GPU else 6, ffn_dim=192, sid_embed_dim=16,
    codebook_size=64, encoder_dim=48,
)  # fmt: skip
EXPERTS = replace(
    CONFIG, kv_split=2, n_experts=5, n_shared_experts=1, experts_per_token=2, expert_dim=96, dense_layers=1
)
ITEMS = 900


def checkpoint(folder: Path, config: OneRecConfig) -> Path:
    torch.manual_seed(0)
    model = OneRecV2(config).eval().requires_grad_(False)
    for head in model.heads:
        head.weight.mul_(12.0)  # type: ignore[operator]  # peaked answers: a random head ranks by rounding noise
    number = torch.randperm(64**3, generator=torch.Generator().manual_seed(1))[:ITEMS]
    codes = torch.stack([number // 4096, number // 64 % 64, number % 64], dim=1)
    catalogue = Catalogue(tuple(f"i{item}" for item in range(ITEMS)), ("",) * ITEMS, ((),) * ITEMS)
    save(folder, model, config, catalogue, Tokenizer(codes, torch.zeros(3, 64, 4)), dtype=torch.bfloat16)
    return folder


def always(eight: bool) -> Crossover:
    shapes = ((128, 128), (128, 384), (192, 128))
    return Crossover(tuple(Timing(1, *shape, 1.0 if eight else 2.0, 1.5) for shape in shapes))


def shared(found: torch.Tensor, expected: torch.Tensor) -> float:
    parts = [torch.isin(a, b).float().mean() for a, b in zip(found, expected, strict=True)]
    return float(torch.stack(parts).mean())


@pytest.mark.parametrize("narrow", [True, False])
@pytest.mark.parametrize("eight", [True, False])
@pytest.mark.parametrize("config", [CONFIG, EXPERTS] if GPU else [CONFIG])
def test_an_fp8_checkpoint_answers_as_its_plain_model_does(
    tmp_path: Path, config: OneRecConfig, eight: bool, narrow: bool
) -> None:
    quantize_checkpoint(checkpoint(tmp_path / "bf16", config), tmp_path / "fp8", RECIPES[DEFAULT_RECIPE])
    batch = [[1, 2, 3, 4, 5], [], [7] * 3, list(range(200, 300))][: 4 if GPU else 2]
    width = 32 if GPU else 4
    plain = load_recommender(tmp_path / "fp8", DEVICE, torch.bfloat16, engine=False)
    items, scores = plain.rank(batch, width)
    arithmetic = Stored(always(eight), (1, 2, 4, 128), Narrow(narrow, narrow, narrow))
    found, found_scores = engine_recommender(plain, arithmetic).rank(batch, width)
    assert shared(found, items) > (0.5 if GPU else 0.4)
    torch.testing.assert_close(found_scores[:, 0], scores[:, 0], rtol=0.1, atol=0.7)
    for row, history in zip(found.tolist(), batch, strict=True):
        assert min(row) >= 0
        assert not set(row) & set(history)


@pytest.mark.skipif(not GPU, reason="products are timed on a GPU only")
@pytest.mark.parametrize("recipe", [DEFAULT_RECIPE, "e4m3-linear-only"])
def test_a_folder_on_a_gpu_is_answered_by_the_engine_and_keeps_its_crossover(tmp_path: Path, recipe: str) -> None:
    plain_dir = checkpoint(tmp_path / "bf16", EXPERTS)
    quantize_checkpoint(plain_dir, tmp_path / "fp8", RECIPES[recipe])
    history = [["i1", "i2", "i3"], ["i9"]]
    answers = []
    for folder in (plain_dir, tmp_path / "fp8", tmp_path / "fp8"):
        recommender = load_recommender(folder, "cuda")
        assert isinstance(recommender, EngineRecommender)
        answers.append([{item.item_id for item in row} for row in recommender.recommend(history, 32)])
    assert not (plain_dir / CROSSOVER_FILE).exists()
    assert (tmp_path / "fp8" / CROSSOVER_FILE).is_file()
    assert answers[1] == answers[2]
    common = [len(a & b) / 32 for a, b in zip(answers[0], answers[1], strict=True)]
    assert sum(common) / len(common) > 0.4


def test_float32_weights_on_a_gpu_are_left_to_the_plain_model(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path / "bf16", CONFIG)
    assert not isinstance(load_recommender(folder, DEVICE, torch.float32), EngineRecommender)


@pytest.mark.skipif(not GPU, reason="products are timed on a GPU only")
def test_fp8_wins_where_it_should_and_a_timing_is_a_time() -> None:
    large = timed((8192, 1408, 5632), torch.device("cuda"))
    assert large.fp8_us < large.bf16_us
    small = timed((1, 1408, 1408), torch.device("cuda"))
    assert 0.5 < small.fp8_us < 100.0


def test_what_products_hold_has_codes_where_few_bits_change() -> None:
    weight = torch.randn(256, 256, device=DEVICE) * torch.logspace(-3, 3, 256, device=DEVICE)[:, None]
    key = torch.nn.functional.rms_norm(torch.randn(2, 2, 128, 128, device=DEVICE), (128,)).bfloat16() * 37.0
    lengths = torch.full((2,), 128, dtype=torch.int32, device=DEVICE)
    matrix, context = EightBit().matrix(weight), EightBit().context(key, key, lengths)
    rows, heads = matrix.weight.float(), context.key.float().flatten(2)
    for usual in (rows.square().mean(-1).sqrt(), heads.square().mean(-1).sqrt()):
        assert bool((usual / STORED_CODE).log2().abs().le(0.51).all())
    assert float(context.key.float().norm(dim=-1).max()) < 1.0625 * LONGEST_KEY


def test_a_key_far_longer_than_the_others_stays_within_the_scores_bound() -> None:
    key = torch.randn(1, 1, 128, 128, device=DEVICE).bfloat16()
    key[0, 0, 5] *= 1000.0
    context = EightBit().context(key, key, torch.full((1,), 128, dtype=torch.int32, device=DEVICE))
    assert float(context.key.float().norm(dim=-1).max()) < 1.0625 * LONGEST_KEY


@pytest.mark.parametrize("width", [96, 1408])
def test_rows_are_rounded_as_by_the_primitives(width: int) -> None:
    x = torch.randn(5, width, device=DEVICE).bfloat16()
    x[2] = 0.0
    rows = round_rows_to_eight(x)
    assert rows.scale is not None
    scale = row_scale(x.float())
    torch.testing.assert_close(rows.scale, scale[:, 0], rtol=1e-6, atol=0)
    expected = quantise(x, scale).float() * scale
    assert sqnr_db(expected, rows.values.float() * rows.scale[:, None]) > (
        50.0 if GPU else 20.0
    )  # interpreted, E4M3 cuts off


@pytest.mark.skipif(not GPU, reason="the row-wise product needs a GPU of this size")
@pytest.mark.parametrize("eight", [True, False])
def test_both_formats_multiply_the_same_stored_weights(eight: bool) -> None:
    x, weight = torch.randn(64, 128, device="cuda").bfloat16(), torch.randn(384, 128, device="cuda") * 128**-0.5
    scale = row_scale(weight)
    stored = quantise(weight, scale).float() * scale
    arithmetic = Stored(always(eight), (64,))
    matrix = arithmetic.matrix(stored)
    assert arithmetic.takes_eight(matrix, 64) is eight
    assert (matrix.sixteen is None) is eight
    exact = x.double() @ stored.double().t()
    given = round_rows_to_eight(x) if eight else Rows(x)
    assert sqnr_db(exact, arithmetic.product(given, matrix)) > (28.0 if eight else 40.0)
    assert sqnr_db(exact, arithmetic.product(round_rows_to_eight(x), matrix)) > 28.0
    plain = arithmetic.matrix(stored.bfloat16())
    assert plain.eight is None
    assert not arithmetic.takes_eight(plain, 4096)
    assert sqnr_db(exact, arithmetic.product(round_rows_to_eight(x), plain)) > 28.0
