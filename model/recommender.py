"""From histories of item ids to ranked item ids: what a replica calls."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from model.beam import beam_search
from model.catalogue import Catalogue
from model.checkpoint import CheckpointFiles, build_model, read
from model.context import ContextKV
from model.errors import ModelError
from model.onerec import OneRecV2
from model.semantic_ids import Tokenizer
from model.trie import ItemTrie

DEFAULT_BEAM_WIDTH = 32
ITEM_TABLE_BYTES = 256 * 2**20
"""Item encodings are computed once and kept when they fit into this."""


@dataclass(frozen=True, slots=True)
class Scored:
    """A recommended item and its log probability under the model."""

    item_id: str
    score: float


class Recommender:
    """A model with its catalogue, trie and item encodings, ready to answer. Safe to call from several threads."""

    def __init__(
        self,
        model: OneRecV2,
        catalogue: Catalogue,
        tokenizer: Tokenizer,
        beam_width: int = DEFAULT_BEAM_WIDTH,
    ) -> None:
        self.model = model.eval().requires_grad_(False)
        self.catalogue = catalogue
        self.beam_width = beam_width
        self.config = model.config
        self.device = model.bos.device
        self.codes = tokenizer.codes.to(self.device)
        self.trie = ItemTrie.build(tokenizer.codes, self.device)
        self._encoded: Tensor | None = None
        size = tokenizer.n_items * self.config.context_width * model.bos.element_size()
        if size <= ITEM_TABLE_BYTES:
            with torch.inference_mode():
                self._encoded = model.context.encode_items(self.codes)

    @classmethod
    def load(
        cls,
        checkpoint_dir: Path | str,
        device: torch.device | str = "cpu",
        dtype: torch.dtype | None = None,
        beam_width: int = DEFAULT_BEAM_WIDTH,
        builder: Callable[[CheckpointFiles], OneRecV2] = build_model,
    ) -> Recommender:
        """Read, verify and place a checkpoint; `builder` makes the model (a quantiser passes its own).

        dtype None: the stored one, except that 16-bit weights compute in float32 on a CPU without 16-bit matrix
        units, where bfloat16 products are 7 to 20 times slower. Raises CheckpointError.
        """
        files = read(checkpoint_dir)
        model = builder(files)
        chosen = compute_dtype(model.bos.dtype, device) if dtype is None else dtype
        return cls(model.to(device=device, dtype=chosen), files.catalogue, files.tokenizer, beam_width)

    @torch.inference_mode()
    def recommend(
        self,
        histories: Sequence[Sequence[str]],
        k: int,
        beam_width: int | None = None,
        *,
        filter_seen: bool = True,
    ) -> list[list[Scored]]:
        """The k best items for each history (item ids, oldest first), best first.

        A history longer than context_len keeps its newest items as context; seen items are left out wherever
        they stand in it. An empty history is answered from the profile token alone. Fewer than k items come
        back only when fewer are unseen. Raises ModelError naming an unknown item, or k, or beam_width.
        """
        if not 1 <= k <= len(self.catalogue):
            raise ModelError(f"k: must be in 1..{len(self.catalogue)}, got {k}")
        if not histories:
            return []
        known = [self.catalogue.indices(history) for history in histories]
        items, scores = self.rank(known, max(k, beam_width or self.beam_width), filter_seen=filter_seen)
        ids = self.catalogue.ids
        return [
            [Scored(ids[item], score) for item, score in zip(row, values, strict=True) if item >= 0]
            for row, values in zip(items[:, :k].tolist(), scores[:, :k].tolist(), strict=True)
        ]

    @torch.inference_mode()
    def rank(
        self, histories: Sequence[Sequence[int]], width: int, *, filter_seen: bool = True
    ) -> tuple[Tensor, Tensor]:
        """Catalogue indices instead of ids: (items [B, width], -1 where none is left; log p [B, width])."""
        seen = self._padded([list(dict.fromkeys(history)) for history in histories]) if filter_seen else None
        beams = beam_search(self.model, self.context(histories), self.trie, width, seen)
        return beams.items, beams.scores

    def context(self, histories: Sequence[Sequence[int]]) -> ContextKV:
        """Keys and values of the newest context_len items of each history (indices, oldest first)."""
        newest = [list(history[-self.config.context_len :])[::-1] for history in histories]
        items = self._padded(newest)
        valid = items >= 0
        index = items.clamp_min(0)
        if self._encoded is not None:
            return self.model.context.assemble(self._encoded[index], valid)
        computed: ContextKV = self.model.context(self.codes[index], valid)
        return computed

    def _padded(self, rows: Sequence[Sequence[int]]) -> Tensor:
        longest = max(len(row) for row in rows)
        flat = [[*row, *([-1] * (longest - len(row)))] for row in rows]
        return torch.tensor(flat, dtype=torch.int64, device=self.device).view(len(rows), longest)


def compute_dtype(stored: torch.dtype, device: torch.device | str) -> torch.dtype:
    """The dtype to compute in: the stored one, or float32 where the CPU has no units for it."""
    if torch.device(device).type != "cpu" or stored not in (torch.bfloat16, torch.float16):
        return stored
    features = torch.cpu.get_capabilities()
    native = features.get("amx_bf16") or features.get("avx512_bf16")
    return stored if stored is torch.bfloat16 and native else torch.float32
