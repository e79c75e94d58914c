"""The decoder's weights as flat tensors, taken from a model or drawn at random in place."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import overload

import torch
from torch import Tensor

from model.config import OneRecConfig
from model.onerec import OneRecV2

Read = Callable[[str], Tensor]
"""The weight of a plain model's parameter of this name: 16 bit, or float32 where a checkpoint keeps it in E4M3."""


@dataclass(frozen=True, slots=True, eq=False)
class BlockWeights:
    """One block. Matrices are [out, in]; d is the model's width, I the inner width of the feed-forward.

    up [E, 2I, d] and down [E, d, I]: the feed-forward's experts, gate rows before up rows. A dense block is one
    expert that sees every row; in a mixture the `shared` experts, which see every row, come first.
    """

    norm_cross: Tensor
    norm_self: Tensor
    norm_ffn: Tensor
    cross_q: Tensor  # [d, d]
    cross_o: Tensor  # [d, d]
    self_qkv: Tensor  # [3d, d]
    self_o: Tensor  # [d, d]
    up: Tensor
    down: Tensor
    shared: int
    router: Tensor | None  # [routed experts, d]
    router_bias: Tensor | None  # [routed experts] float32, for the selection only


@dataclass(frozen=True, slots=True, eq=False)
class DecoderWeights:
    """Everything that decoding reads, on one device; blocks may be made when they are asked for."""

    config: OneRecConfig
    blocks: Sequence[BlockWeights]
    bos: Tensor  # [d]
    token_embed: tuple[Tensor, ...]  # [codebook, d] of each level but the last
    head_norms: tuple[Tensor, ...]  # [d] of each level
    heads: tuple[Tensor, ...]  # [codebook, d] of each level

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.bos.device


class ModelBlocks(Sequence[BlockWeights]):
    """The blocks of a model, each made anew when it is asked for, so that stacked or decoded copies live briefly."""

    def __init__(self, config: OneRecConfig, read: Read) -> None:
        self._config, self._read = config, read

    def __len__(self) -> int:
        return self._config.n_layers

    @overload
    def __getitem__(self, index: int) -> BlockWeights: ...

    @overload
    def __getitem__(self, index: slice) -> Sequence[BlockWeights]: ...

    def __getitem__(self, index: int | slice) -> BlockWeights | Sequence[BlockWeights]:
        layers = range(len(self))[index]
        if isinstance(layers, int):
            return _block(self._config, self._read, layers)
        return [_block(self._config, self._read, layer) for layer in layers]

    def __iter__(self) -> Iterator[BlockWeights]:
        return (self[layer] for layer in range(len(self)))


def weights_of(model: OneRecV2, read: Read | None = None) -> DecoderWeights:
    """The weights of a model; attention and embeddings share its storage, experts are stacked anew.

    `read` finds the weights of a model that is not plain; None: its own parameters.
    """
    config = model.config
    if read is None:
        read = model.state_dict().__getitem__
    levels = range(config.levels)
    return DecoderWeights(
        config=config,
        blocks=ModelBlocks(config, read),
        bos=read("bos"),
        token_embed=tuple(read(f"token_embed.{level}.weight") for level in levels[:-1]),
        head_norms=tuple(read(f"head_norms.{level}.weight") for level in levels),
        heads=tuple(read(f"heads.{level}.weight") for level in levels),
    )


def random_weights(
    config: OneRecConfig, device: torch.device, generator: torch.Generator, dtype: torch.dtype = torch.bfloat16
) -> DecoderWeights:
    """Weights with the variances of `OneRecV2.reset_parameters`, made where they are needed: no host copy."""

    def normal(*shape: int, std: float) -> Tensor:
        return torch.empty(*shape, dtype=dtype, device=device).normal_(std=std, generator=generator)

    def ones(width: int) -> Tensor:
        return torch.ones(width, dtype=dtype, device=device)

    d, residual = config.d_model, (3 * config.n_layers) ** -0.5
    blocks = []
    for layer in range(config.n_layers):
        moe = config.is_moe_layer(layer)
        shared = config.n_shared_experts if moe else 1
        experts, inner = (shared + config.n_experts, config.expert_dim) if moe else (1, config.ffn_dim)
        blocks.append(
            BlockWeights(
                norm_cross=ones(d),
                norm_self=ones(d),
                norm_ffn=ones(d),
                cross_q=normal(d, d, std=d**-0.5),
                cross_o=normal(d, d, std=residual * d**-0.5),
                self_qkv=normal(3 * d, d, std=d**-0.5),
                self_o=normal(d, d, std=residual * d**-0.5),
                up=normal(experts, 2 * inner, d, std=d**-0.5),
                down=normal(experts, d, inner, std=residual * inner**-0.5),
                shared=shared,
                router=normal(config.n_experts, d, std=d**-0.5) if moe else None,
                router_bias=torch.zeros(config.n_experts, device=device) if moe else None,
            )
        )
    return DecoderWeights(
        config=config,
        blocks=tuple(blocks),
        bos=normal(d, std=0.5),
        token_embed=tuple(normal(config.codebook_size, d, std=0.5) for _ in range(config.levels - 1)),
        head_norms=tuple(ones(d) for _ in range(config.levels)),
        heads=tuple(normal(config.codebook_size, d, std=0.02) for _ in range(config.levels)),
    )


def _block(config: OneRecConfig, read: Read, layer: int) -> BlockWeights:
    at, moe = f"decoder.blocks.{layer}.", config.is_moe_layer(layer)
    up, down, shared = _experts(config, read, layer)
    return BlockWeights(
        norm_cross=read(f"{at}norm_cross.weight"),
        norm_self=read(f"{at}norm_self.weight"),
        norm_ffn=read(f"{at}norm_ffn.weight"),
        cross_q=read(f"{at}cross.wq.weight"),
        cross_o=read(f"{at}cross.wo.weight"),
        self_qkv=read(f"{at}self_attn.wqkv.weight"),
        self_o=read(f"{at}self_attn.wo.weight"),
        up=up,
        down=down,
        shared=shared,
        router=read(f"{at}ffn.router.weight") if moe else None,
        router_bias=read(f"{at}ffn.bias").float() if moe else None,
    )


def _experts(config: OneRecConfig, read: Read, layer: int) -> tuple[Tensor, Tensor, int]:
    """Up [E, 2I, d], down [E, d, I] and how many of the experts, the first ones, see every row."""
    at = f"decoder.blocks.{layer}.ffn."
    if not config.is_moe_layer(layer):
        return read(f"{at}gate_up.weight")[None], read(f"{at}down.weight")[None], 1
    up, down = read(f"{at}gate_up"), read(f"{at}down")
    count, inner, d = config.n_shared_experts, config.expert_dim, config.d_model
    if not count:
        return up, down, 0
    # a SwiGLU of n·I is the sum of n SwiGLUs of I
    shared_up = read(f"{at}shared.gate_up.weight").view(2, count, inner, d).transpose(0, 1)
    shared_down = read(f"{at}shared.down.weight").view(d, count, inner).transpose(0, 1)
    return _stacked(shared_up.reshape(count, 2 * inner, d), up), _stacked(shared_down, down), count


def _stacked(shared: Tensor, routed: Tensor) -> Tensor:
    """One after the other; 16 bit unless both are wider, for what one launch multiplies has one format."""
    if shared.dtype != routed.dtype:
        narrow = min(shared.dtype, routed.dtype, key=lambda dtype: dtype.itemsize)
        shared, routed = shared.to(narrow), routed.to(narrow)
    return torch.cat([shared, routed])
