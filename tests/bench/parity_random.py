"""Parity where nothing is trained: presets with random weights, and experts' scales per row or per tile."""

from __future__ import annotations

import copy
import statistics
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import nn

from model.catalogue import Catalogue
from model.checkpoint import load
from model.config import PRESETS, OneRecConfig
from model.experts import MixtureOfExperts
from model.onerec import OneRecV2
from model.recommender import Recommender
from model.semantic_ids import Tokenizer
from quant.control import in_other_kernels
from quant.convert import convert, quantise_layer
from quant.fidelity import fidelity
from quant.parity import KERNELS, agreement
from quant.recipes import RECIPES, Fp8Recipe
from quant.report import LayerReport, layer_report
from quant.sampling import InputSample, Positions
from quant.table import Table, table

N_ITEMS = 20_000
HISTORY = 100
RECIPE_NAMES = ("e4m3", "e4m3-engine")
MOE_SMALL = replace(
    PRESETS["moe-4b"], d_model=384, n_layers=4, n_heads=6, kv_groups=6, ffn_dim=1536, n_experts=16, expert_dim=384
)
"""The paper's mixture in small: on a CPU its four billion parameters would take hours."""

SCALINGS = {
    "128 × 128 tiles": Fp8Recipe("tiles"),
    "16 × 16 tiles": Fp8Recipe("small tiles", expert_block=16),
    "a scale per row": Fp8Recipe("rows", expert_scaling="per_row"),
}


def config_of(preset: str) -> OneRecConfig:
    """A preset's configuration."""
    return MOE_SMALL if preset == "moe-small" else PRESETS[preset]


def random_recommender(config: OneRecConfig, device: torch.device, dtype: torch.dtype = torch.bfloat16) -> Recommender:
    """Random weights as training begins with, made on the device, and N_ITEMS items with random semantic ids."""
    torch.manual_seed(0)
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device):
            model = OneRecV2(config)
    finally:
        torch.set_default_dtype(torch.float32)
    generator = torch.Generator().manual_seed(0)
    codes = torch.randint(config.codebook_size, (N_ITEMS, config.levels), generator=generator)
    codes[:, -1] = torch.arange(N_ITEMS) % config.codebook_size  # at most a few items share it: none share all
    ids = tuple(str(item) for item in range(N_ITEMS))
    centroids = torch.zeros(config.levels, config.codebook_size, 1)
    return Recommender(model, Catalogue(ids, ("",) * N_ITEMS, ((),) * N_ITEMS), Tokenizer(codes, centroids))


def quantised(plain: Recommender, recipe: Fp8Recipe) -> Recommender:
    """A copy whose model is quantised; what is not quantised is shared."""
    shared = {id(value): value for value in [*plain.model.parameters(), *plain.model.buffers()]}
    other = copy.copy(plain)
    other.model = copy.deepcopy(plain.model, shared)
    convert(other.model, recipe)
    return other


def random_parity(
    preset: str, device: torch.device, requests: int, width: int
) -> tuple[list[list[str]], dict[str, float]]:
    """Rows and numbers: FP8 by each recipe and BF16 in other kernels, each against BF16."""
    plain = random_recommender(config_of(preset), device)
    drawn = np.random.default_rng(0).integers(N_ITEMS, size=(requests, HISTORY)).tolist()
    positions = Positions.of(drawn[:16])
    expected = plain.rank(drawn, width)[0].cpu().numpy()
    rows: list[list[str]] = []
    numbers: dict[str, float] = {}
    for name in (*RECIPE_NAMES, KERNELS):
        variant = in_other_kernels(plain) if name == KERNELS else quantised(plain, RECIPES[name])
        label = KERNELS if name == KERNELS else f"fp8 ({name})"
        found = variant.rank(drawn, width)[0].cpu().numpy()
        near = fidelity(label, variant, plain, positions)
        figures = {
            "overlap": agreement(label, found[:, :10], expected[:, :10]).overlap,
            "beam_overlap": agreement(label, found, expected).overlap,
            "top1_changed": agreement(label, found, expected).top1_changed,
            "logit_error": near.logit_error,
        }
        lowest = min(near.layers.values())
        rows.append([preset, f"{requests} × {width}", label, *(f"{x:.1%}" for x in figures.values()), f"{lowest:.1f}"])
        numbers |= {f"random_{preset}_{name}_{figure}": value for figure, value in figures.items()}
        numbers[f"random_{preset}_{name}_lowest_db"] = lowest
        print(f"{preset}, {label}: done", flush=True)
        del variant
    return rows, numbers


def scaling(trained: Path | None, device: torch.device) -> tuple[Table, dict[str, float]]:
    """SQNR of experts' weights and outputs by scaling, means over the layers; `trained`: a checkpoint with experts."""
    models = {"random": random_recommender(MOE_SMALL, device, torch.float32)}
    if trained is not None:
        found = load(trained)
        models["trained"] = Recommender(found.model.float().to(device), found.files.catalogue, found.files.tokenizer)
    rows, numbers = [], {}
    for which, recommender in models.items():
        for scales, reports in _scaled(recommender).items():
            weight = statistics.mean(report.weight_sqnr_db for report in reports)
            output = statistics.mean(report.output_sqnr_db or 0.0 for report in reports)
            rows.append([which, scales, f"{weight:.2f}", f"{output:.2f}"])
            numbers[f"scaling_{which}_{scales}_weight_db"] = weight
            numbers[f"scaling_{which}_{scales}_output_db"] = output
    columns = ("weights", "experts have", "weight SQNR dB", "output SQNR dB")
    return table("Experts: a scale per row or per tile", columns, rows), numbers


def _scaled(recommender: Recommender) -> dict[str, list[LayerReport]]:
    layers: dict[str, nn.Module] = {
        name: module for name, module in recommender.model.named_modules() if isinstance(module, MixtureOfExperts)
    }
    drawn = np.random.default_rng(0).integers(len(recommender.catalogue), size=(32, 30)).tolist()
    with InputSample(recommender.model, layers) as sample:
        recommender.rank(drawn, 32)
    inputs = dict(sample.rows)
    return {
        scales: [
            layer_report(name, layer, quantise_layer(name, layer, recipe), inputs[name])
            for name, layer in layers.items()
        ]
        for scales, recipe in SCALINGS.items()
    }
