from __future__ import annotations

import json

import pytest
from torch import nn

from model.onerec import OneRecV2
from quant.errors import RecipeError
from quant.recipes import DEFAULT_RECIPE, FAULT_RECIPE, RECIPES, YOUNGER, Fp8Recipe, recipe_named


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_survives_json(name: str) -> None:
    recipe = RECIPES[name]
    assert Fp8Recipe.from_dict(json.loads(json.dumps(recipe.to_dict()))) == recipe


def test_default_recipe_selects_what_the_paper_quantises(dense_model: OneRecV2) -> None:
    recipe = RECIPES[DEFAULT_RECIPE]
    chosen = {name for name, module in dense_model.named_modules() if recipe.selects(module, name)}
    parts = ("cross.wq", "cross.wo", "self_attn.wqkv", "self_attn.wo", "ffn.gate_up", "ffn.down")
    assert chosen == {f"decoder.blocks.{block}.{part}" for block in (0, 1) for part in parts}


def test_experts_are_selected_but_never_their_router(experts_model: OneRecV2) -> None:
    recipe = RECIPES[DEFAULT_RECIPE]
    chosen = {name for name, module in experts_model.named_modules() if recipe.selects(module, name)}
    assert "decoder.blocks.1.ffn" in chosen
    assert {"decoder.blocks.1.ffn.shared.gate_up", "decoder.blocks.1.ffn.shared.down"} <= chosen
    assert "decoder.blocks.1.ffn.router" not in chosen
    assert "decoder.blocks.0.ffn" not in chosen  # a dense feed-forward is quantised by its two Linear


def test_keep_takes_names_out_again() -> None:
    recipe = Fp8Recipe("x", keep=("decoder.blocks.0.*",))
    assert not recipe.selects(nn.Linear(2, 2), "decoder.blocks.0.cross.wq")
    assert recipe.selects(nn.Linear(2, 2), "decoder.blocks.1.cross.wq")
    assert not recipe.selects(nn.Linear(2, 2), "heads.0")
    assert not recipe.selects(nn.RMSNorm(2), "decoder.blocks.1.cross.wq")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("name", ""),
        ("name", 3),
        ("linears", "decoder.*"),
        ("experts", [""]),
        ("weight", "per_galaxy"),
        ("activation", "static"),
        ("overflow", "wrap"),
        ("expert_block", 0),
        ("expert_block", True),
        ("expert_scaling", "per_galaxy"),
        ("own_tokens", "fp4"),
        ("expert_results", "fp4"),
        ("context", "fp4"),
        ("min_capability", [9]),
        ("min_capability", ["9", "0"]),
        ("scale_multiplier", 0),
        ("scale_multiplier", float("nan")),
        ("scale_multiplier", "1"),
    ],
)
def test_a_wrong_field_is_refused_by_name(field: str, value: object) -> None:
    with pytest.raises(RecipeError, match=field):
        Fp8Recipe.from_dict(RECIPES[DEFAULT_RECIPE].to_dict() | {field: value})


def test_unknown_and_missing_fields_are_refused_by_name() -> None:
    raw = RECIPES[DEFAULT_RECIPE].to_dict()
    with pytest.raises(RecipeError, match="colour: unknown"):
        Fp8Recipe.from_dict(raw | {"colour": "red"})
    del raw["overflow"]
    with pytest.raises(RecipeError, match="overflow: missing"):
        Fp8Recipe.from_dict(raw)


def test_a_field_younger_than_the_first_checkpoints_may_be_missing() -> None:
    raw = RECIPES[DEFAULT_RECIPE].to_dict()
    for field in YOUNGER:
        del raw[field]
    assert Fp8Recipe.from_dict(raw) == RECIPES[DEFAULT_RECIPE]


def test_experts_have_tiles_or_rows() -> None:
    assert RECIPES[DEFAULT_RECIPE].tile == 128
    assert RECIPES["e4m3-engine"].tile is None


@pytest.mark.parametrize("field", ["own_tokens", "expert_results", "context"])
def test_only_what_the_engine_computes_rounds_more_than_the_paper_does(field: str) -> None:
    assert [name for name, recipe in RECIPES.items() if getattr(recipe, field) == "e4m3"] == ["e4m3-engine"]


def test_only_the_fault_recipe_says_that_it_is_faulty() -> None:
    assert [name for name, recipe in RECIPES.items() if recipe.is_faulty] == [FAULT_RECIPE]


def test_an_unknown_recipe_is_answered_with_the_known_ones() -> None:
    assert recipe_named(DEFAULT_RECIPE) is RECIPES[DEFAULT_RECIPE]
    with pytest.raises(RecipeError, match=FAULT_RECIPE):
        recipe_named("int3")
