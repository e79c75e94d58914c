from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from model.checkpoint import FILES, SUMS, build_model, read, write
from model.checkpoint_stream import open_checkpoint
from model.decoder import CrossAttention
from model.errors import CheckpointError
from model.recommender import Recommender
from quant.convert import convert
from quant.cross_attention import Fp8CrossAttention
from quant.errors import DeviceError, NonFiniteError, QuantError
from quant.experts import Fp8Experts
from quant.linear import Fp8Linear
from quant.load import load_recommender, quantize_checkpoint, require_capability
from quant.primitives import E4M3
from quant.recipes import DEFAULT_RECIPE, FAULT_RECIPE, RECIPES, Fp8Recipe
from quant.report import QuantizationReport

RECIPE = RECIPES[DEFAULT_RECIPE]
LAYER = "decoder.blocks.0.cross.wq"


@pytest.fixture(scope="module")
def quantised(dense_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, QuantizationReport]:
    folder = tmp_path_factory.mktemp("fp8") / "fp8"
    return folder, quantize_checkpoint(dense_dir, folder, RECIPE)


def rewritten(source: Path, target: Path, change: Callable[[dict[str, Tensor], dict[str, Any]], None]) -> Path:
    """A copy whose tensors or quantization_config were changed, with digests that fit: damage that only we can see."""
    files = read(source)
    quantization = json.loads(json.dumps(files.quantization))
    change(files.tensors, quantization)
    write(target, files.tensors, files.config, files.catalogue, files.tokenizer, quantization=quantization)
    return target


def bits(value: Tensor) -> Tensor:
    return value.contiguous().view(torch.uint8)


@pytest.mark.parametrize("which", ["dense_dir", "experts_dir"])
def test_round_trip_through_the_checkpoint_is_bit_exact(
    which: str, request: pytest.FixtureRequest, tmp_path: Path, histories: list[list[str]]
) -> None:
    source: Path = request.getfixturevalue(which)
    quantize_checkpoint(source, tmp_path / "fp8", RECIPE)
    files = read(source)
    model = build_model(files).float()
    convert(model, RECIPE)
    direct = Recommender(model, files.catalogue, files.tokenizer)
    loaded = load_recommender(tmp_path / "fp8", dtype=torch.float32)
    state, expected = loaded.model.state_dict(), model.state_dict()
    assert state.keys() == expected.keys()
    for name, value in expected.items():
        assert state[name].dtype == value.dtype, name
        assert torch.equal(bits(state[name]), bits(value)), name
    assert loaded.recommend(histories, 10) == direct.recommend(histories, 10)


@pytest.mark.parametrize("which", ["dense_dir", "experts_dir"])
@pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES)
def test_written_layer_by_layer_the_bytes_are_those_of_converting_at_once(
    which: str, recipe: Fp8Recipe, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    source: Path = request.getfixturevalue(which)
    report = quantize_checkpoint(source, tmp_path / "stream", recipe)
    files = read(source)
    model = build_model(files)
    names = convert(model, recipe)
    quantization = {"quant_method": "crossfade-fp8", "recipe": recipe.to_dict(), "modules": list(names)}
    digest = write(
        tmp_path / "once",
        model.state_dict(),
        files.config,
        files.catalogue,
        files.tokenizer,
        quantization=quantization,
        extra=files.extra,
    )
    assert report.digest == digest
    for name in (*FILES, SUMS):
        assert (tmp_path / "stream" / name).read_bytes() == (tmp_path / "once" / name).read_bytes(), name


PEAK = """
import re, sys, torch
from pathlib import Path
from quant.load import quantize_checkpoint
from quant.recipes import RECIPES

def peak():  # not ru_maxrss, which a child inherits from its parent
    return 1024 * int(re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1])

torch.set_num_threads(1)
small, large, target = sys.argv[1:]
histories = [["item-1", "item-2"]]
quantize_checkpoint(small, target, RECIPES["e4m3"], histories=histories)
peaks = [peak()]
quantize_checkpoint(large, target, RECIPES["e4m3"], lambda *_: peaks.append(peak()), histories)
print(*peaks)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="peak memory is read from /proc")
def test_memory_is_that_of_a_few_layers_however_many_there_are(dense_dir: Path, deep_dir: Path, tmp_path: Path) -> None:
    """24 blocks, 226 MB on disk: the first takes a few times its 19 MB in float32, all others together no more.

    glibc keeps freed pieces below 32 MB for itself, which is more than a whole block here and less than any layer
    of a model that does not fit into memory: so it is told to give back those above 256 kB.
    """
    done = subprocess.run(
        [sys.executable, "-c", PEAK, str(dense_dir), str(deep_dir), str(tmp_path / "fp8")],
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(__file__).parents[2],
        env=os.environ | {"PYTHONPATH": ".", "MALLOC_MMAP_THRESHOLD_": str(2**18)},
    )
    specs = open_checkpoint(deep_dir).tensors.specs.items()
    block = 4 * sum(math.prod(spec.shape) for name, spec in specs if name.startswith("decoder.blocks.0."))
    size = sum(spec.nbytes for _, spec in specs)
    peaks = [int(word) for word in done.stdout.split()]
    assert peaks[-1] - peaks[0] < 5 * block < size / 2
    assert peaks[-1] - peaks[6] < block < size / 10


def test_layers_outside_the_blocks_can_be_quantised_too(dense_dir: Path, tmp_path: Path) -> None:
    recipe = Fp8Recipe("all", linears=("*",))
    report = quantize_checkpoint(dense_dir, tmp_path / "fp8", recipe)
    by_name = {layer.layer: layer for layer in report.layers}
    assert {"heads.2", "context.project", "context.hidden"} <= by_name.keys()
    assert all(layer.output_sqnr_db is not None and layer.output_sqnr_db > 20.0 for layer in report.layers)
    load_recommender(tmp_path / "fp8")


def test_checkpoints_from_before_a_field_still_load(
    quantised: tuple[Path, QuantizationReport], tmp_path: Path, histories: list[list[str]]
) -> None:
    def older(_: dict[str, Tensor], quantization: dict[str, Any]) -> None:
        for field in ("expert_scaling", "context"):
            del quantization["recipe"][field]

    old = load_recommender(rewritten(quantised[0], tmp_path / "old", older))
    assert old.recommend(histories, 10) == load_recommender(quantised[0]).recommend(histories, 10)


def test_the_engines_recipe_comes_back_from_the_checkpoint(
    experts_dir: Path, tmp_path: Path, histories: list[list[str]]
) -> None:
    quantize_checkpoint(experts_dir, tmp_path / "fp8", RECIPES["e4m3-engine"])
    model = load_recommender(tmp_path / "fp8").model
    kinds = [type(module) for module in model.modules()]
    assert (kinds.count(Fp8CrossAttention), kinds.count(CrossAttention)) == (2, 0)
    experts = model.get_submodule("decoder.blocks.1.ffn")
    assert isinstance(experts, Fp8Experts)
    assert experts.gate_up_scale.shape == (4, 96, 1)
    plain = top(load_recommender(experts_dir), histories)
    close = top(load_recommender(tmp_path / "fp8"), histories)
    assert sum(len(a & b) for a, b in zip(plain, close, strict=True)) / 400 > 0.7


def test_nan_inside_the_model_names_the_layer_that_it_reached(dense_dir: Path, tmp_path: Path) -> None:
    files = read(dense_dir)
    files.tensors["decoder.blocks.1.norm_ffn.weight"][0] = torch.nan
    write(tmp_path / "nan", files.tensors, files.config, files.catalogue, files.tokenizer)
    with pytest.raises(NonFiniteError, match=r"decoder\.blocks\.1\.ffn\.gate_up \(input\)"):
        quantize_checkpoint(tmp_path / "nan", tmp_path / "out", RECIPE)
    assert [path.name for path in tmp_path.iterdir()] == ["nan"]


def test_stored_codes_are_eight_bit_and_everything_else_is_as_it_was(
    dense_dir: Path, quantised: tuple[Path, QuantizationReport]
) -> None:
    before, after = read(dense_dir), read(quantised[0])
    assert after.quantization is not None
    assert after.quantization["recipe"] == RECIPE.to_dict()
    assert after.extra == before.extra
    for name in after.quantization["modules"]:
        assert after.tensors[f"{name}.weight"].dtype == E4M3
        assert after.tensors[f"{name}.weight_scale"].dtype == torch.float32
    same = before.tensors.keys() - {f"{name}.weight" for name in after.quantization["modules"]}
    assert all(torch.equal(before.tensors[name], after.tensors[name]) for name in same)
    assert quantised[1].bytes_after < quantised[1].bytes_before
    assert quantised[1].digest == after.digest


def test_plain_and_quantised_checkpoints_load_through_one_door(
    dense_dir: Path, quantised: tuple[Path, QuantizationReport], histories: list[list[str]]
) -> None:
    plain, fp8 = load_recommender(dense_dir), load_recommender(quantised[0])
    assert not any(isinstance(layer, Fp8Linear) for layer in plain.model.modules())
    assert sum(isinstance(layer, Fp8Linear) for layer in fp8.model.modules()) == 12
    assert plain.recommend(histories, 5) == Recommender.load(dense_dir).recommend(histories, 5)
    assert len(fp8.recommend(histories, 5)) == len(histories)


def top(recommender: Recommender, histories: list[list[str]]) -> list[set[str]]:
    return [{scored.item_id for scored in row} for row in recommender.recommend(histories, 10)]


def test_the_fault_recipe_really_damages_the_answers(
    dense_dir: Path, quantised: tuple[Path, QuantizationReport], tmp_path: Path, histories: list[list[str]]
) -> None:
    report = quantize_checkpoint(dense_dir, tmp_path / "bad", RECIPES[FAULT_RECIPE])
    plain = top(load_recommender(dense_dir), histories)
    shares = [
        sum(len(a & b) for a, b in zip(plain, top(load_recommender(folder), histories), strict=True)) / 400
        for folder in (quantised[0], tmp_path / "bad")
    ]
    assert shares[0] > 0.7
    assert shares[1] < 0.3
    assert all(layer.weight_sqnr_db < 3.0 and layer.lost > 0.5 for layer in report.layers)


def _zero_scale(tensors: dict[str, Tensor], _: dict[str, Any]) -> None:
    tensors[f"{LAYER}.weight_scale"][3] = 0.0


def _nan_scale(tensors: dict[str, Tensor], _: dict[str, Any]) -> None:
    tensors[f"{LAYER}.weight_scale"][3] = torch.nan


def _negative_scale(tensors: dict[str, Tensor], _: dict[str, Any]) -> None:
    tensors[f"{LAYER}.weight_scale"].neg_()


def _short_scale(tensors: dict[str, Tensor], _: dict[str, Any]) -> None:
    tensors[f"{LAYER}.weight_scale"] = tensors[f"{LAYER}.weight_scale"][:1]


def _half_scale(tensors: dict[str, Tensor], _: dict[str, Any]) -> None:
    tensors[f"{LAYER}.weight_scale"] = tensors[f"{LAYER}.weight_scale"].half()


def _missing_scale(tensors: dict[str, Tensor], _: dict[str, Any]) -> None:
    del tensors[f"{LAYER}.weight_scale"]


def _nan_code(tensors: dict[str, Tensor], _: dict[str, Any]) -> None:
    tensors[f"{LAYER}.weight"].view(torch.uint8)[0, 0] = 0x7F


def _wide_weight(tensors: dict[str, Tensor], _: dict[str, Any]) -> None:
    tensors[f"{LAYER}.weight"] = tensors[f"{LAYER}.weight"].float()


def _unknown_tensor(tensors: dict[str, Tensor], _: dict[str, Any]) -> None:
    tensors["decoder.extra"] = torch.zeros(1)


def _nan_norm(tensors: dict[str, Tensor], _: dict[str, Any]) -> None:
    tensors["head_norms.0.weight"][0] = torch.nan


def _unlisted_module(_: dict[str, Tensor], quantization: dict[str, Any]) -> None:
    quantization["modules"].remove(LAYER)


def _foreign_module(_: dict[str, Tensor], quantization: dict[str, Any]) -> None:
    quantization["modules"].append("decoder.blocks.7.cross.wq")


def _no_modules(_: dict[str, Tensor], quantization: dict[str, Any]) -> None:
    quantization["modules"] = []


def _other_method(_: dict[str, Tensor], quantization: dict[str, Any]) -> None:
    quantization["quant_method"] = "gptq"


def _no_recipe(_: dict[str, Tensor], quantization: dict[str, Any]) -> None:
    quantization["recipe"] = None


def _bad_recipe(_: dict[str, Tensor], quantization: dict[str, Any]) -> None:
    quantization["recipe"]["weight"] = "per_galaxy"


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (_zero_scale, rf"{LAYER}.weight_scale' has 1 scales that are not positive"),
        (_nan_scale, rf"{LAYER}.weight_scale' has 1 scales"),
        (_negative_scale, rf"{LAYER}.weight_scale' has 64 scales"),
        (_short_scale, rf"{LAYER}.weight_scale' has shape \(1, 1\), expected \(64, 1\)"),
        (_half_scale, rf"{LAYER}.weight_scale' is torch.float16"),
        (_missing_scale, rf"missing tensor '{LAYER}.weight_scale'"),
        (_nan_code, rf"{LAYER}.weight' holds NaN"),
        (_wide_weight, rf"{LAYER}.weight' is torch.float32"),
        (_unknown_tensor, "unknown tensor 'decoder.extra'"),
        (_nan_norm, "head_norms.0.weight' holds NaN"),
        (_unlisted_module, rf"unknown tensor '{LAYER}.weight_scale'"),
        (_foreign_module, "no layer 'decoder.blocks.7.cross.wq'"),
        (_no_modules, "modules must list"),
        (_other_method, "not of the method"),
        (_no_recipe, "recipe is missing"),
        (_bad_recipe, "weight: must be one of"),
    ],
)
def test_damage_is_refused_with_the_reason(
    quantised: tuple[Path, QuantizationReport],
    tmp_path: Path,
    change: Callable[[dict[str, Tensor], dict[str, Any]], None],
    reason: str,
) -> None:
    folder = rewritten(quantised[0], tmp_path / "damaged", change)
    with pytest.raises(CheckpointError, match=reason):
        load_recommender(folder)


def test_an_untouched_rewrite_loads(quantised: tuple[Path, QuantizationReport], tmp_path: Path) -> None:
    load_recommender(rewritten(quantised[0], tmp_path / "same", lambda *_: None))


def test_bytes_damaged_on_disk_are_refused(quantised: tuple[Path, QuantizationReport], tmp_path: Path) -> None:
    folder = rewritten(quantised[0], tmp_path / "flipped", lambda *_: None)
    content = bytearray((folder / "model.safetensors").read_bytes())
    content[-5] ^= 1
    (folder / "model.safetensors").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"model\.safetensors is damaged"):
        load_recommender(folder)


def test_quantising_onto_the_source_or_twice_is_refused(
    dense_dir: Path, quantised: tuple[Path, QuantizationReport], tmp_path: Path
) -> None:
    with pytest.raises(QuantError, match="must not replace its source"):
        quantize_checkpoint(dense_dir, dense_dir, RECIPE)
    with pytest.raises(CheckpointError, match="quantised already"):
        quantize_checkpoint(quantised[0], tmp_path / "again", RECIPE)


def test_a_source_with_nan_names_the_layer_and_writes_nothing(dense_dir: Path, tmp_path: Path) -> None:
    files = read(dense_dir)
    files.tensors["decoder.blocks.1.ffn.down.weight"][0, 0] = torch.nan
    write(tmp_path / "nan", files.tensors, files.config, files.catalogue, files.tokenizer)
    with pytest.raises(NonFiniteError, match=r"decoder\.blocks\.1\.ffn\.down"):
        quantize_checkpoint(tmp_path / "nan", tmp_path / "out", RECIPE)
    assert not (tmp_path / "out").exists()


def test_loading_onto_a_gpu_that_is_too_old_is_refused(
    quantised: tuple[Path, QuantizationReport], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (7, 5))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "an old GPU")
    with pytest.raises(DeviceError, match=r"e4m3 needs .* 8\.9 or more; an old GPU has 7\.5"):
        load_recommender(quantised[0], "cuda")


def test_a_gpu_below_the_recipes_minimum_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    require_capability(RECIPE, torch.device("cpu"))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(DeviceError, match="finds no CUDA device"):
        require_capability(RECIPE, torch.device("cuda"))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (8, 0))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "an older GPU")
    with pytest.raises(
        DeviceError, match=r"e4m3 needs a GPU of compute capability 8\.9 or more; an older GPU has 8\.0"
    ):
        require_capability(RECIPE, torch.device("cuda"))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (9, 0))
    require_capability(RECIPE, torch.device("cuda"))
