"""How large a model is and how much it computes, from its configuration alone: nothing is allocated.

Counts of operations are kept apart. `training_flops` is the paper's own (arXiv 2508.20900, appendix B), made to
be compared with its tables: rough on purpose. `forward_flops` counts every matrix product that the code performs.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from model.config import OneRecConfig
from model.onerec import OneRecV2

IMPRESSIONS_PER_REQUEST = 5
"""Items shown at once, which share one context in the paper's training batches (appendix B: k = 5)."""


@dataclass(frozen=True, slots=True)
class ParameterCount:
    """Trainable parameters by part; the paper's labels ("1B") name `blocks`."""

    context: int  # item encoder, projection, places, pathway marks, profile and norms
    embeddings: int  # the decoder's code embeddings and BOS
    blocks: int  # all decoder blocks
    heads: int  # one norm and one matrix per level
    active_blocks: int  # the part of `blocks` that one token goes through: k of the routed experts

    @property
    def total(self) -> int:
        """Everything that is trained."""
        return self.context + self.embeddings + self.blocks + self.heads


def count_parameters(config: OneRecConfig) -> ParameterCount:
    """Build the model on the meta device, which takes no memory, and count."""
    with torch.device("meta"):
        model = OneRecV2(config)
    blocks = _size(model.decoder)
    expert = 3 * config.d_model * config.expert_dim
    moe_layers = sum(config.is_moe_layer(layer) for layer in range(config.n_layers))
    idle = moe_layers * expert * (config.n_experts - config.experts_per_token)
    return ParameterCount(
        context=_size(model.context),
        embeddings=_size(model.token_embed) + model.bos.numel(),
        blocks=blocks,
        heads=_size(model.heads) + _size(model.head_norms),
        active_blocks=blocks - idle,
    )


def _size(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def training_flops(
    config: OneRecConfig,
    context_tokens: int | None = None,
    impressions: int = IMPRESSIONS_PER_REQUEST,
) -> float:
    """Operations to train on one target item, forward and backward, as the paper counts them.

    Six per parameter and token: two for a multiplication with its addition, thrice for one forward and two backward
    products. The decoder's blocks and heads see `levels` tokens; the item encoder sees context_tokens / impressions,
    because the items of one page share their context. Left out, as in the paper: attention scores (which the paper
    calls orders of magnitude smaller), norms, embedding look-ups, and that each head needs one token only.

    With 512 context tokens this gives 2.07, 9.80 and 19.15 GFLOP at 0.1B, 0.5B and 1B; the paper's table 2 says
    1.98, 9.55 and 18.89. What key/value sets and groups add (tables 3 and 4) agrees to the paper's last digit.
    context_tokens None takes the most items of all pathways together. Source: arXiv 2508.20900, appendix B.
    """
    tokens = config.context_items if context_tokens is None else context_tokens
    heads = config.levels * config.codebook_size * config.d_model
    decoder = sum(_block_weights(config, layer) for layer in range(config.n_layers)) + heads
    return 6.0 * (decoder * config.levels + _encoder_weights(config) * tokens / impressions)


def forward_flops(config: OneRecConfig, items: int) -> int:
    """Operations of every matrix product of one teacher-forced forward pass of one sample, two per multiplication.

    items: of all pathways, without the profile token, which is not encoded but is attended to. Counted are the item
    encoder, all linear layers of the decoder on `levels` tokens, the chosen experts, scores and mixing of both
    attentions (the masked half of the causal one is computed, so it is counted), and each head on its one token.
    """
    tokens, d = config.levels, config.d_model
    weights = sum(_block_weights(config, layer) for layer in range(config.n_layers))
    attended = config.n_layers * tokens * (items + 1 + tokens) * 2 * d
    heads = config.levels * config.codebook_size * d
    return 2 * (weights * tokens + attended + heads + _encoder_weights(config) * items)


def decode_flops(config: OneRecConfig, batch: int, width: int, context: int) -> int:
    """Operations of every matrix product of one beam search for `batch` requests, two per multiplication.

    width: beams kept after every level, so the first level has one row a request and the others `width`. context: keys
    that each row attends to. Counted are all linear layers of the blocks, the router and the chosen experts, scores and
    mixing of both attentions (over the l + 1 tokens of level l in the self attention), and the head of each level. Not
    counted: the context itself, which is made once a request, norms, softmax and the selection of beams.
    """
    weights = sum(_block_weights(config, layer) for layer in range(config.n_layers))
    head = config.codebook_size * config.d_model
    total = 0
    for level in range(config.levels):
        rows = batch * (width if level else 1)
        attended = config.n_layers * 2 * (context + level + 1) * config.d_model
        total += 2 * rows * (weights + attended + head)
    return total


def _block_weights(config: OneRecConfig, layer: int) -> int:
    """Matrix elements of a block that one token is multiplied with."""
    d = config.d_model
    attention = 2 * d * d + 4 * d * d  # cross: query and output; self: query, key, value, output
    if not config.is_moe_layer(layer):
        return attention + 3 * d * config.ffn_dim
    experts = config.experts_per_token + config.n_shared_experts
    return attention + d * config.n_experts + experts * 3 * d * config.expert_dim


def _encoder_weights(config: OneRecConfig) -> int:
    """Matrix elements that one context item is multiplied with."""
    concat = config.levels * config.sid_embed_dim
    if not config.encoder_dim:
        return concat * config.context_width
    return (concat + config.context_width) * config.encoder_dim
