"""The traditional ranker beside OneRec-V2: its layers' spread, and what eight bits do to it."""

from __future__ import annotations

import copy

import torch
from torch import nn

from model.dlrm import DLRMOptions, TrainedDLRM, train_dlrm
from model.split import Split
from quant.analysis import Analysis, LayerAnalysis
from quant.convert import convert, quantise_layer
from quant.recipes import Fp8Recipe
from quant.report import layer_report
from quant.sampling import InputSample

RECIPE = Fp8Recipe("ranker", linears=("bottom.*", "top.*"), experts=())
"""Every Linear of a DLRM, by the rules that the decoder's are quantised by."""

NAME = "traditional ranker (DLRM)"


def ranker_analysis(split: Split, seed: int, options: DLRMOptions | None = None) -> Analysis:
    """Train a DLRM on the same data and analyse it on its held-out impressions; seconds, on one CPU."""
    return analyse_ranker(train_dlrm(split, seed, options))


def analyse_ranker(trained: TrainedDLRM) -> Analysis:
    """Each Linear with the activations that it met, and the areas under the curve in 32, 16 and 8 bits."""
    network = trained.network
    names = [name for name, module in network.named_modules() if isinstance(module, nn.Linear)]
    with InputSample(network, names) as sample:
        single = trained.auc()
    layers = []
    for name in names:
        layer, inputs = network.get_submodule(name), sample.rows[name]
        report = layer_report(name, layer, quantise_layer(name, layer, RECIPE), inputs)
        layers.append(LayerAnalysis.of(layer, inputs, report))
    half = trained.auc(copy.deepcopy(network).bfloat16(), torch.bfloat16)
    eight = copy.deepcopy(network)
    convert(eight, RECIPE)
    remark = (
        f"Area under the curve on held-out clicks among drawn items: {single:.4f} in float32, {half:.4f} in bfloat16, "
        f"{trained.auc(eight):.4f} with every Linear in E4M3. Its dense features come unscaled, the standardisation "
        "it was trained with is folded into its first layer."
    )
    return Analysis(NAME, tuple(layers), (remark,))
