"""The decoder's weights as flat tensors, taken from a model or drawn at random in place."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from model.config import OneRecConfig
from model.onerec import OneRecV2


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
    """Everything that decoding reads, in one dtype on one device."""

    config: OneRecConfig
    blocks: tuple[BlockWeights, ...]
    bos: Tensor  # [d]
    token_embed: tuple[Tensor, ...]  # [codebook, d] of each level but the last
    head_norms: tuple[Tensor, ...]  # [d] of each level
    heads: tuple[Tensor, ...]  # [codebook, d] of each level

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.bos.device


def weights_of(model: OneRecV2) -> DecoderWeights:
    """The weights of a plain model; attention and embeddings share its storage, experts are stacked anew."""
    config, state = model.config, model.state_dict()
    levels = range(config.levels)
    return DecoderWeights(
        config=config,
        blocks=tuple(_block(config, state, layer) for layer in range(config.n_layers)),
        bos=state["bos"],
        token_embed=tuple(state[f"token_embed.{level}.weight"] for level in levels[:-1]),
        head_norms=tuple(state[f"head_norms.{level}.weight"] for level in levels),
        heads=tuple(state[f"heads.{level}.weight"] for level in levels),
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


def _block(config: OneRecConfig, state: Mapping[str, Tensor], layer: int) -> BlockWeights:
    at, moe = f"decoder.blocks.{layer}.", config.is_moe_layer(layer)
    up, down, shared = _experts(config, state, layer)
    return BlockWeights(
        norm_cross=state[f"{at}norm_cross.weight"],
        norm_self=state[f"{at}norm_self.weight"],
        norm_ffn=state[f"{at}norm_ffn.weight"],
        cross_q=state[f"{at}cross.wq.weight"],
        cross_o=state[f"{at}cross.wo.weight"],
        self_qkv=state[f"{at}self_attn.wqkv.weight"],
        self_o=state[f"{at}self_attn.wo.weight"],
        up=up,
        down=down,
        shared=shared,
        router=state[f"{at}ffn.router.weight"] if moe else None,
        router_bias=state[f"{at}ffn.bias"].float() if moe else None,
    )


def _experts(config: OneRecConfig, state: Mapping[str, Tensor], layer: int) -> tuple[Tensor, Tensor, int]:
    """Up [E, 2I, d], down [E, d, I] and how many of the experts, the first ones, see every row."""
    at = f"decoder.blocks.{layer}.ffn."
    if not config.is_moe_layer(layer):
        return state[f"{at}gate_up.weight"][None], state[f"{at}down.weight"][None], 1
    routed = state[f"{at}gate_up"], state[f"{at}down"]
    count, inner, d = config.n_shared_experts, config.expert_dim, config.d_model
    if not count:
        return *routed, 0
    # a SwiGLU of n·I is the sum of n SwiGLUs of I
    up = state[f"{at}shared.gate_up.weight"].view(2, count, inner, d).transpose(0, 1).reshape(count, 2 * inner, d)
    down = state[f"{at}shared.down.weight"].view(d, count, inner).transpose(0, 1)
    return torch.cat([up, routed[0]]), torch.cat([down, routed[1]]), count
