"""The baseline of `decode_plain.py` with torchao's dynamic FP8 on its Linear layers, as its documentation recommends.

Weights and activations in E4M3 with a scale per row
(`Float8DynamicActivationFloat8WeightConfig(granularity=PerRow())`), then torch.compile and one CUDA graph as for the
16-bit baseline. Quantised is what this project's FP8 quantises: the projections of both attentions, the dense
feed-forward and the shared experts. torchao 0.17 has no grouped product for inference, so the routed experts stay in
BF16 `torch._grouped_mm`, and so do context, heads and router. torchao's own settings of the compiler are left out: they
search tilings by coordinate descent, which took longer than the four minutes that an arm has.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from torch import Tensor, nn

from model.engine.weights import BlockWeights, DecoderWeights

Convert = Callable[[Tensor], Tensor]


@dataclass(frozen=True, slots=True, eq=False)
class Stack:
    """What `BlockWeights.up` and `.down` are asked for: the first experts one by one, all the others in one slice."""

    first: tuple[Tensor, ...]
    rest: Tensor

    def __getitem__(self, at: int | slice) -> Tensor:
        return self.rest if isinstance(at, slice) else self.first[at]


def eight_bit(weight: Tensor) -> Tensor:
    """A Linear's weight as torchao stores it. Raises ImportError without torchao."""
    from torchao.quantization import Float8DynamicActivationFloat8WeightConfig, PerRow, quantize_

    linear = nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")
    linear.weight = nn.Parameter(weight, requires_grad=False)
    config = Float8DynamicActivationFloat8WeightConfig(granularity=PerRow(), set_inductor_config=False)
    quantize_(nn.Sequential(linear), config)
    return linear.weight


def with_torchao(weights: DecoderWeights, convert: Convert = eight_bit) -> DecoderWeights:
    """The same weights with every Linear of the blocks converted."""
    return replace(weights, blocks=tuple(_block(block, convert) for block in weights.blocks))


def _block(block: BlockWeights, convert: Convert) -> BlockWeights:
    names = ("cross_q", "cross_o", "self_qkv", "self_o")
    stacks = {name: _stack(getattr(block, name), block.shared, convert) for name in ("up", "down")}
    return replace(block, **{name: convert(getattr(block, name)) for name in names}, **stacks)  # type: ignore[arg-type]


def _stack(experts: Tensor, shared: int, convert: Convert) -> Stack:
    return Stack(tuple(convert(weight.contiguous()) for weight in experts[:shared]), experts[shared:])
