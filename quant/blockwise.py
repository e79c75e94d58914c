"""A model of which one decoder block at a time is in memory, and what flows through it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from model.checkpoint import require_shapes
from model.checkpoint_stream import CheckpointSource
from model.decoder import LazyDecoderBlock
from model.onerec import OneRecV2
from quant.sampling import Positions

BLOCKS = "decoder.blocks."


class Blockwise:
    """`model` in float32 on the CPU: embeddings, context processor and heads stay, blocks come from disk and go.

    A block that is not in memory is on the meta device. Raises CheckpointError when the tensors do not fit the model.
    """

    def __init__(self, source: CheckpointSource) -> None:
        self._tensors = source.tensors
        with torch.device("meta"):
            self.model = OneRecV2(source.about.config).eval().requires_grad_(False)
        require_shapes(self.model, {name: spec.shape for name, spec in source.tensors.specs.items()})
        self._load("")

    def _load(self, prefix: str) -> None:
        """Fill what lies below the prefix; below "" that is everything outside the blocks."""
        names = [
            name for name in self._tensors.specs if (name.startswith(prefix) if prefix else not name.startswith(BLOCKS))
        ]
        module = self.model.get_submodule(prefix.rstrip("."))
        state = {name.removeprefix(prefix): self._tensors.read(name).float() for name in names}
        module.load_state_dict(state, strict=False, assign=True)

    @contextmanager
    def block(self, layer: int) -> Iterator[LazyDecoderBlock]:
        """One block, in memory while entered."""
        prefix = f"{BLOCKS}{layer}."
        self._load(prefix)
        block = self.model.decoder.blocks[layer]
        try:
            yield block  # type: ignore[misc]  # a ModuleList does not know what it holds
        finally:
            block.to("meta")

    @torch.no_grad()
    def run(self, positions: Positions, codes: torch.Tensor) -> Iterator[str]:
        """Teacher forcing, block by block, as in training; codes [items, levels] are the items' semantic ids.

        Yields a prefix of names whenever the layers below it have run and are in memory: each block's, and at last ""
        for everything. The plain weights compute, so nothing depends on what the caller does with a layer it was given.
        """
        model, config = self.model, self.model.config
        items, valid = positions.windows(config.context_len)
        context = model.context(codes[items.clamp_min(0)], valid)
        target = codes[positions.targets]
        tokens = [model.bos.expand(target.shape[0], -1)]
        tokens += [table(target[:, level]) for level, table in enumerate(model.token_embed)]
        h = torch.stack(tokens, dim=1)[:, None]
        for layer in range(config.n_layers):
            index = config.kv_set_of(layer)
            with self.block(layer) as block:
                h, _ = block(h, context.keys[index], context.values[index], context.mask, None)
                yield f"{BLOCKS}{layer}."
        for level in range(config.levels):
            model.logits(h[:, 0, level], level)
        yield ""
