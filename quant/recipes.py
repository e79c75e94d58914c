"""What is quantised and how: frozen recipes that travel inside a checkpoint's quantization_config."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from fnmatch import fnmatchcase
from typing import Any, Literal

from torch import nn

from model.experts import MixtureOfExperts
from quant.errors import RecipeError

WeightScaling = Literal["per_channel", "per_tensor"]
Overflow = Literal["saturate", "zero"]
ExpertScaling = Literal["block", "per_row"]
WorkingFormat = Literal["bf16", "e4m3"]

DECODER_LINEARS = (
    "decoder.blocks.*.cross.wq",
    "decoder.blocks.*.cross.wo",
    "decoder.blocks.*.self_attn.wqkv",
    "decoder.blocks.*.self_attn.wo",
    "decoder.blocks.*.ffn.gate_up",
    "decoder.blocks.*.ffn.down",
    "decoder.blocks.*.ffn.shared.gate_up",
    "decoder.blocks.*.ffn.shared.down",
)
"""What the FP8 paper quantises. Norms, softmax, router, embeddings, heads and context projections stay 16/32 bit."""


@dataclass(frozen=True, slots=True)
class Fp8Recipe:
    """E4M3 post-training quantisation by max-abs scales, without calibration (arXiv 2603.11486).

    A Linear is quantised when its fully-qualified name matches a pattern of `linears`, a mixture of experts when
    its name matches one of `experts`; `keep` takes names out again. Patterns are shell-style, and `*` also
    matches dots. Raises RecipeError naming the field.
    """

    name: str
    linears: tuple[str, ...] = DECODER_LINEARS
    experts: tuple[str, ...] = ("decoder.blocks.*.ffn",)
    keep: tuple[str, ...] = ()
    weight: WeightScaling = "per_channel"  # one scale per output channel keeps an outlier channel to itself
    activation: Literal["per_token_dynamic"] = "per_token_dynamic"  # no calibration set can be wrong or stale
    expert_block: int = 128  # experts: weights in block × block tiles, activations in 1 × block runs
    expert_scaling: ExpertScaling = "block"  # or "per_row": experts like Linear layers, as the GPU engine has them
    own_tokens: WorkingFormat = "bf16"  # "e4m3": queries, keys and values of generated tokens in 8 bits, too
    expert_results: WorkingFormat = "bf16"  # "e4m3": what each expert gives, before it is weighed and summed, too
    context: WorkingFormat = "bf16"  # "e4m3": queries, context keys, values and attention weights in 8 bits, too
    min_capability: tuple[int, int] = (8, 9)  # first CUDA compute capability with FP8 tensor cores
    scale_multiplier: float = 1.0  # of the weights' max-abs scale; anything but 1 is a fault put in on purpose
    overflow: Overflow = "saturate"  # of weights beyond ±448; "zero" is what a kernel that flushes NaN makes of them

    def __post_init__(self) -> None:
        if not self.name:
            raise RecipeError("name: must not be empty")
        for field in ("linears", "experts", "keep"):
            value = getattr(self, field)
            if not isinstance(value, tuple) or not all(isinstance(pattern, str) and pattern for pattern in value):
                raise RecipeError(f"{field}: must be a tuple of name patterns, got {value!r}")
        self._one_of("weight", ("per_channel", "per_tensor"))
        self._one_of("activation", ("per_token_dynamic",))
        self._one_of("overflow", ("saturate", "zero"))
        self._one_of("expert_scaling", ("block", "per_row"))
        for field in ("own_tokens", "expert_results", "context"):
            self._one_of(field, ("bf16", "e4m3"))
        if isinstance(self.expert_block, bool) or not isinstance(self.expert_block, int) or self.expert_block < 1:
            raise RecipeError(f"expert_block: must be a positive integer, got {self.expert_block!r}")
        capability = self.min_capability
        if not isinstance(capability, tuple) or [type(part) for part in capability] != [int, int]:
            raise RecipeError(f"min_capability: must be (major, minor), got {capability!r}")
        multiplier = self.scale_multiplier
        if isinstance(multiplier, bool) or not isinstance(multiplier, int | float) or not 0 < multiplier < 2.0**16:
            raise RecipeError(f"scale_multiplier: must be in (0, 65536), got {multiplier!r}")

    def _one_of(self, field: str, allowed: tuple[str, ...]) -> None:
        if getattr(self, field) not in allowed:
            raise RecipeError(f"{field}: must be one of {', '.join(allowed)}, got {getattr(self, field)!r}")

    @property
    def tile(self) -> int | None:
        """Side of the experts' tiles, None where they have a scale per row."""
        return None if self.expert_scaling == "per_row" else self.expert_block

    @property
    def narrow_results(self) -> bool:
        """Whether what experts give is rounded."""
        return self.expert_results == "e4m3"

    @property
    def is_faulty(self) -> bool:
        """Whether this recipe damages a model on purpose."""
        return self.scale_multiplier != 1.0 or self.overflow != "saturate"

    def selects(self, module: nn.Module, name: str) -> bool:
        """The filter: whether the module of this fully-qualified name is quantised."""
        if isinstance(module, nn.Linear):
            wanted = self.linears
        elif isinstance(module, MixtureOfExperts):
            wanted = self.experts
        else:
            return False
        return _matches(name, wanted) and not _matches(name, self.keep)

    def to_dict(self) -> dict[str, Any]:
        """All fields as JSON values."""
        return {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()}

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any]) -> Fp8Recipe:
        """The inverse of `to_dict`; an unknown, missing or ill-typed field raises RecipeError.

        A field of YOUNGER may be missing: checkpoints written before it existed mean its default.
        """
        known = {field.name for field in fields(cls)}
        for field in sorted(set(raw) - known):
            raise RecipeError(f"{field}: unknown field of a recipe")
        for field in sorted(known - set(raw) - YOUNGER):
            raise RecipeError(f"{field}: missing from the recipe")
        if not isinstance(raw["name"], str):
            raise RecipeError(f"name: must be text, got {raw['name']!r}")
        values: dict[str, Any] = {key: tuple(value) if isinstance(value, list) else value for key, value in raw.items()}
        return cls(**values)


def _matches(name: str, patterns: tuple[str, ...]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)


YOUNGER = {"expert_scaling", "own_tokens", "expert_results", "context"}
"""Fields that the first quantised checkpoints do not have."""

DEFAULT_RECIPE = "e4m3"
FAULT_RECIPE = "faulty-per-tensor-overflow"

RECIPES: dict[str, Fp8Recipe] = {
    recipe.name: recipe
    for recipe in (
        # The FP8 paper: Linear per output channel × per token, experts in 128 × 128 blocks.
        Fp8Recipe(DEFAULT_RECIPE),
        # The paper without the experts, for telling the two shares of the error apart.
        Fp8Recipe("e4m3-linear-only", experts=()),
        # A scale per row for experts, too: no tiles for a kernel to follow.
        Fp8Recipe("e4m3-rows", expert_scaling="per_row"),
        # What the GPU engine computes (quant/kernels/eight_bit.py): rows everywhere, and what attention reads and
        # experts give in E4M3.
        Fp8Recipe("e4m3-engine", expert_scaling="per_row", own_tokens="e4m3", expert_results="e4m3", context="e4m3"),
        # For rehearsing a rollback: one scale per tensor, far too small, and whatever overflows is lost.
        Fp8Recipe(FAULT_RECIPE, weight="per_tensor", scale_multiplier=2.0**-5, overflow="zero"),
    )
}


def recipe_named(name: str) -> Fp8Recipe:
    """A recipe of RECIPES; raises RecipeError listing them."""
    try:
        return RECIPES[name]
    except KeyError:
        raise RecipeError(f"recipe: no recipe {name!r}; there are {', '.join(RECIPES)}") from None
