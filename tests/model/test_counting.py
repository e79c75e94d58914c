from __future__ import annotations

import dataclasses

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from model.config import PRESETS, OneRecConfig
from model.counting import count_parameters, decode_flops, forward_flops, training_flops
from model.onerec import OneRecV2

LABELS = {"0.1B": 0.1, "0.2B": 0.2, "0.5B": 0.5, "1B": 1.0, "2B": 2.0, "4B": 4.0, "8B": 8.0, "moe-4b": 4.0}
PAPER_GFLOP = {"0.1B": 1.98, "0.5B": 9.55, "1B": 18.89}
"""arXiv 2508.20900v4, table 2: context of about 512 tokens."""

TOY_EXPERTS = {
    "n_experts": 6,
    "n_shared_experts": 2,
    "experts_per_token": 2,
    "expert_dim": 8,
    "dense_layers": 1,
}

TOY_PATHWAYS = {"short_term": 2, "positive_len": 3, "profile_features": 7}


def _loop_count_block(config: OneRecConfig, layer: int) -> tuple[int, int, int]:
    """(what every token uses, all routed experts, the routed experts that one token uses)."""
    shared = 3 * config.d_model  # three norms
    for _ in range(6):  # cross attention: q, o; self attention: q, k, v, o
        shared += config.d_model * config.d_model
    if not config.n_experts or layer < config.dense_layers:
        return shared + 3 * config.d_model * config.ffn_dim, 0, 0
    shared += config.n_experts * config.d_model  # router
    for _ in range(config.n_shared_experts):
        shared += 3 * config.d_model * config.expert_dim
    routed = 0
    for _ in range(config.n_experts):
        routed += 3 * config.d_model * config.expert_dim
    return shared, routed, config.experts_per_token * 3 * config.d_model * config.expert_dim


def _loop_count(config: OneRecConfig) -> dict[str, int]:
    """One by one, matrix after matrix, from the equations; knows nothing of the modules."""
    dh = config.d_model // config.n_heads
    width = 0
    for _ in range(config.kv_sets):
        for _ in range(config.kv_split):
            for _ in range(config.kv_groups):
                width += dh
    context = width + config.context_len * width  # profile token, recency
    context += config.positive_len * width + config.profile_features * width
    for marked in (config.short_term, config.positive_len):
        context += width if marked else 0
    for _ in range(config.levels):
        context += config.codebook_size * config.sid_embed_dim
    inner = config.levels * config.sid_embed_dim
    if config.encoder_dim:
        context += inner * config.encoder_dim + config.encoder_dim
        inner = config.encoder_dim
    context += inner * width
    for _ in range(config.kv_sets * config.kv_split):
        context += dh  # norm of one key or value set
    blocks = active = 0
    for layer in range(config.n_layers):
        shared, routed, chosen = _loop_count_block(config, layer)
        blocks += shared + routed
        active += shared + chosen
    embeddings = config.d_model
    for _ in range(config.levels - 1):
        embeddings += config.codebook_size * config.d_model
    heads = 0
    for _ in range(config.levels):
        heads += config.d_model + config.codebook_size * config.d_model
    return {
        "context": context,
        "embeddings": embeddings,
        "blocks": blocks,
        "heads": heads,
        "active_blocks": active,
    }


@pytest.mark.parametrize("name", PRESETS)
def test_parameters_of_every_preset_equal_a_count_by_loops(name: str) -> None:
    count = count_parameters(PRESETS[name])
    assert dataclasses.asdict(count) == _loop_count(PRESETS[name])
    assert count.total == count.context + count.embeddings + count.blocks + count.heads


@pytest.mark.parametrize(
    "change",
    [{"kv_sets": 3, "kv_split": 1}, {"kv_groups": 4}, {"encoder_dim": 0}, {"levels": 4}, TOY_EXPERTS, TOY_PATHWAYS],
)
def test_parameters_of_every_feature_equal_a_count_by_loops(change: dict[str, int], toy_config: OneRecConfig) -> None:
    config = dataclasses.replace(toy_config, **change)
    assert dataclasses.asdict(count_parameters(config)) == _loop_count(config)


@pytest.mark.parametrize("name", LABELS)
def test_blocks_of_every_preset_are_within_three_per_cent_of_the_label(name: str) -> None:
    assert count_parameters(PRESETS[name]).blocks == pytest.approx(LABELS[name] * 1e9, rel=0.03)


def _misses(name: str, ffn_dim: int) -> tuple[bool, float]:
    """What the rule compares: more than 5 % off the paper's operations, then the distance to the label."""
    config = dataclasses.replace(PRESETS[name], ffn_dim=ffn_dim)
    wanted = PAPER_GFLOP.get(name)
    too_far = wanted is not None and abs(training_flops(config, 512) / 1e9 / wanted - 1.0) > 0.05
    return too_far, abs(count_parameters(config).blocks - LABELS[name] * 1e9)


@pytest.mark.parametrize("name", [name for name in LABELS if not PRESETS[name].n_experts])
def test_dense_width_is_the_multiple_of_128_nearest_to_label_and_operations(name: str) -> None:
    chosen = PRESETS[name].ffn_dim
    assert chosen % 128 == 0
    assert min(range(chosen - 512, chosen + 513, 128), key=lambda width: _misses(name, width)) == chosen


def test_experts_preset_activates_half_a_billion_as_its_label_says() -> None:
    assert count_parameters(PRESETS["moe-4b"]).active_blocks == pytest.approx(0.5e9, rel=0.03)


@pytest.mark.parametrize(("name", "paper_gflop"), PAPER_GFLOP.items())
def test_training_flops_are_within_five_per_cent_of_the_papers_table(name: str, paper_gflop: float) -> None:
    assert training_flops(PRESETS[name], 512) / 1e9 == pytest.approx(paper_gflop, rel=0.05)


# arXiv 2508.20900v4, tables 3 and 4, GFLOP of the 1B model against its default of 18.89
@pytest.mark.parametrize(
    ("change", "paper_gflop"),
    [
        ({"kv_split": 2}, 19.19),
        ({"kv_sets": 3}, 19.49),
        ({"kv_sets": 9}, 21.27),
        ({"kv_sets": 18}, 23.95),
        ({"kv_groups": 7}, 18.74),
        ({"kv_groups": 2}, 18.64),
        ({"kv_groups": 1}, 18.62),
    ],
)
def test_training_flops_of_the_context_agree_with_the_papers_ablations(
    change: dict[str, int], paper_gflop: float
) -> None:
    plain, changed = PRESETS["1B"], dataclasses.replace(PRESETS["1B"], **change)
    added = (training_flops(changed, 512) - training_flops(plain, 512)) / 1e9
    assert added == pytest.approx(paper_gflop - 18.89, abs=0.02)


def test_training_flops_share_the_context_among_the_impressions_of_a_page() -> None:
    config = PRESETS["1B"]
    decoder = training_flops(config, 0)
    assert training_flops(config, 512, impressions=1) - decoder == pytest.approx(
        5 * (training_flops(config, 512) - decoder)
    )


def _measured_forward(config: OneRecConfig, history: int) -> int:
    """What torch's own counter sees on the meta device, where attention is spelt out as matrix products."""
    with torch.device("meta"):
        model = OneRecV2(config).eval()
        codes, valid = torch.zeros(1, history, 3, dtype=torch.int64), torch.ones(1, history, dtype=torch.bool)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(model.context(codes, valid), codes[:, 0])
    return counter.get_total_flops()


@pytest.mark.parametrize("name", ["tiny", "0.1B", "1B"])
@pytest.mark.parametrize("history", [1, 20])
def test_forward_flops_equal_torchs_own_counter(name: str, history: int) -> None:
    assert forward_flops(PRESETS[name], history) == _measured_forward(PRESETS[name], history)


def test_flops_of_all_pathways_are_those_of_their_items() -> None:
    plain = dataclasses.replace(PRESETS["0.1B"], context_len=512)
    config = dataclasses.replace(plain, context_len=384, short_term=20, positive_len=128, profile_features=1000)
    assert training_flops(config) == training_flops(plain)
    with torch.device("meta"):
        model = OneRecV2(config).eval()
        codes, valid = torch.zeros(1, 512, 3, dtype=torch.int64), torch.ones(1, 512, dtype=torch.bool)
        places, features = torch.arange(512), torch.zeros(1, 3, dtype=torch.int64)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(model.context(codes, valid, places, features), codes[:, 0])
    assert forward_flops(config, config.context_items) == counter.get_total_flops() == forward_flops(plain, 512)


@torch.no_grad()
def test_forward_flops_of_experts_equal_torchs_own_counter(toy_config: OneRecConfig) -> None:
    config = dataclasses.replace(toy_config, **TOY_EXPERTS)
    torch.manual_seed(0)
    model = OneRecV2(config).eval()
    codes, valid = torch.zeros(1, 4, 3, dtype=torch.int64), torch.ones(1, 4, dtype=torch.bool)
    with FlopCounterMode(display=False) as counter:
        model(model.context(codes, valid), codes[:, 0])
    attended = 2 * 2 * config.n_layers * 3 * (5 + 3) * config.d_model  # a fused kernel on the CPU: not seen by torch
    assert forward_flops(config, 4) == counter.get_total_flops() + attended


def _loop_count_decode(config: OneRecConfig, batch: int, width: int, context: int) -> int:
    """One row of one block after the other, from the equations; knows nothing of the code."""
    d, dh, total = config.d_model, config.d_model // config.n_heads, 0
    for level in range(config.levels):
        for _ in range(batch * (1 if level == 0 else width)):
            for layer in range(config.n_layers):
                for _ in range(6):  # cross attention: q, o; self attention: q, k, v, o
                    total += 2 * d * d
                for _ in range(config.n_heads):
                    for tokens in (context, level + 1):  # cross attention, self attention
                        total += 2 * dh * tokens + 2 * tokens * dh
                if not config.n_experts or layer < config.dense_layers:
                    total += 3 * 2 * d * config.ffn_dim
                    continue
                total += 2 * d * config.n_experts
                for _ in range(config.experts_per_token + config.n_shared_experts):
                    total += 3 * 2 * d * config.expert_dim
            total += 2 * d * config.codebook_size
    return total


@pytest.mark.parametrize("more", [{}, TOY_EXPERTS])
@pytest.mark.parametrize(("batch", "width", "context"), [(1, 1, 1), (3, 8, 20), (2, 5, 7)])
def test_decode_flops_are_those_counted_row_by_row(more: dict[str, int], batch: int, width: int, context: int) -> None:
    config = dataclasses.replace(PRESETS["tiny"], n_layers=3, **more)  # type: ignore[arg-type]
    assert decode_flops(config, batch, width, context) == _loop_count_decode(config, batch, width, context)


def test_a_query_of_the_mixture_is_about_a_teraflop() -> None:
    assert decode_flops(PRESETS["moe-4b"], 1, 512, 3072) == pytest.approx(1.3e12, rel=0.01)
