from __future__ import annotations

import dataclasses
import json
import math

import pytest

from model.config import PRESETS, OneRecConfig
from model.errors import ModelError


@pytest.mark.parametrize("name", PRESETS)
def test_config_round_trips_through_json(name: str) -> None:
    config = PRESETS[name]
    assert OneRecConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"n_heads": 3}, "n_heads"),
        ({"kv_groups": 3}, "kv_groups"),
        ({"kv_split": 3}, "kv_split"),
        ({"kv_sets": 9}, "kv_sets"),
        ({"d_model": 0}, "d_model"),
        ({"codebook_size": 1}, "codebook_size"),
        ({"dropout": 1.0}, "dropout"),
        ({"norm_eps": 0.0}, "norm_eps"),
        ({"n_experts": 4, "experts_per_token": 5, "expert_dim": 8}, "experts_per_token"),
        ({"n_experts": 4, "experts_per_token": 2}, "expert_dim"),
        ({"n_layers": True}, "n_layers"),
        ({"n_layers": "2"}, "n_layers"),
        ({"short_term": 21}, "short_term"),
        ({"short_term": -1}, "short_term"),
        ({"positive_len": -1}, "positive_len"),
        ({"positive_len": 1.0}, "positive_len"),
        ({"positive_from": math.nan}, "positive_from"),
        ({"profile_features": -1}, "profile_features"),
        ({"profile_features": True}, "profile_features"),
    ],
)
def test_config_impossible_value_is_refused_by_name(change: dict[str, object], named: str) -> None:
    with pytest.raises(ModelError, match=named):
        dataclasses.replace(PRESETS["tiny"], **change)


def test_config_from_dict_refuses_unknown_missing_and_ill_typed_fields() -> None:
    raw = PRESETS["tiny"].to_dict()
    with pytest.raises(ModelError, match="colour"):
        OneRecConfig.from_dict(raw | {"colour": 1})
    with pytest.raises(ModelError, match="d_model"):
        OneRecConfig.from_dict({name: value for name, value in raw.items() if name != "d_model"})
    with pytest.raises(ModelError, match="dropout"):
        OneRecConfig.from_dict(raw | {"dropout": "0.1"})


def test_config_kv_set_index_is_floor_of_layer_times_sets_over_layers() -> None:
    config = dataclasses.replace(PRESETS["tiny"], n_layers=7, kv_sets=3)
    assert [config.kv_set_of(layer) for layer in range(7)] == [0, 0, 0, 1, 1, 2, 2]
    assert config.context_width == 3 * config.kv_groups * config.head_dim


def test_config_moe_preset_keeps_its_first_two_blocks_dense() -> None:
    config = PRESETS["moe-4b"]
    assert [config.is_moe_layer(layer) for layer in range(4)] == [False, False, True, True]
    assert not any(PRESETS["1B"].is_moe_layer(layer) for layer in range(18))


# arXiv 2508.20900v4, table 5: d_model, n_layers, n_heads, embed_dim
@pytest.mark.parametrize(
    ("name", "sizes"),
    [
        ("0.1B", (640, 12, 10, 32)),
        ("0.2B", (896, 12, 14, 45)),
        ("0.5B", (1408, 14, 11, 70)),
        ("1B", (1792, 18, 14, 90)),
        ("2B", (2304, 22, 18, 115)),
        ("4B", (2944, 26, 23, 147)),
        ("8B", (3584, 34, 28, 179)),
        ("moe-4b", (1408, 14, 11, 70)),
    ],
)
def test_config_presets_are_the_papers_sizes(name: str, sizes: tuple[int, ...]) -> None:
    config = PRESETS[name]
    assert (config.d_model, config.n_layers, config.n_heads, config.sid_embed_dim) == sizes
    assert (config.kv_sets, config.kv_split, config.kv_groups) == (1, 1, config.n_heads)


@pytest.mark.parametrize(("short", "positive"), [(0, 0), (5, 0), (20, 7), (0, 7)])
def test_config_pathways_together_are_the_tokens_of_the_context(short: int, positive: int) -> None:
    config = dataclasses.replace(PRESETS["tiny"], short_term=short, positive_len=positive)
    assert list(config.pathways.values()) == [1, short, 20 - short, positive]
    assert config.context_tokens == 1 + config.context_items == 21 + positive


def test_config_without_pathways_is_stored_as_it_was_before_there_were_any() -> None:
    plain, changed = PRESETS["tiny"], dataclasses.replace(PRESETS["tiny"], short_term=5, positive_from=3.5)
    assert not set(plain.to_dict()) & {"profile_features", "short_term", "positive_len", "positive_from"}
    assert changed.to_dict() == plain.to_dict() | {"short_term": 5, "positive_from": 3.5}
    assert OneRecConfig.from_dict(json.loads(json.dumps(changed.to_dict()))) == changed
    with pytest.raises(ModelError, match="positive_from"):
        OneRecConfig.from_dict(plain.to_dict() | {"positive_from": "4"})
