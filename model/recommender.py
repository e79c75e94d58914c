"""From what is known of users to ranked item ids: what a replica calls."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional

from model.beam import beam_search
from model.catalogue import Catalogue
from model.checkpoint import CheckpointFiles, build_model, read
from model.context import ContextKV
from model.context_cache import ContextCache, UserContext, batched
from model.context_tokens import UserTokens, packed, padded
from model.errors import ModelError
from model.onerec import OneRecV2
from model.semantic_ids import Tokenizer
from model.signals import Request, UserSignals, indexed, signals_of
from model.trie import ItemTrie

DEFAULT_BEAM_WIDTH = 32
ITEM_TABLE_BYTES = 256 * 2**20
"""Item encodings are computed once and kept when they fit into this."""
CONTEXT_CACHE_BYTES = 64 * 2**20
"""Contexts of users who are named are kept within this: 50 of the 0.1B preset at 512 items, 18,000 of tiny."""


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
        *,
        digest: str = "",
        cache_bytes: int = CONTEXT_CACHE_BYTES,
    ) -> None:
        self.model = model.eval().requires_grad_(False)
        self.catalogue = catalogue
        self.beam_width = beam_width
        self.config = model.config
        self.device = model.bos.device
        self.codes = tokenizer.codes.to(self.device)
        self.trie = ItemTrie.build(tokenizer.codes, self.device)
        self.contexts = ContextCache(cache_bytes)
        self._digest = digest
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
        cache_bytes: int = CONTEXT_CACHE_BYTES,
    ) -> Recommender:
        """Read, verify and place a checkpoint; `builder` makes the model (a quantiser passes its own).

        dtype None: the stored one, except that 16-bit weights compute in float32 on a CPU without 16-bit matrix
        units, where bfloat16 products are 7 to 20 times slower. Raises CheckpointError.
        """
        files = read(checkpoint_dir)
        model = builder(files)
        chosen = compute_dtype(model.bos.dtype, device) if dtype is None else dtype
        placed = model.to(device=device, dtype=chosen)
        return cls(placed, files.catalogue, files.tokenizer, beam_width, digest=files.digest, cache_bytes=cache_bytes)

    def recommend(
        self,
        histories: Sequence[Request[str]],
        k: int,
        beam_width: int | None = None,
        *,
        filter_seen: bool = True,
    ) -> list[list[Scored]]:
        """The k best items for each request (a history of item ids, oldest first, or all signals), best first.

        A history longer than context_len keeps its newest items as context; seen items, liked ones among them, are
        left out wherever they stand. An empty history is answered from the profile token alone. Fewer than k items
        come back only when fewer are unseen. Raises ModelError naming an unknown item, or k, or beam_width.
        """
        return self.best(list(map(self.indexed, histories)), k, beam_width, filter_seen=filter_seen)

    def indexed(self, history: Request[str]) -> UserSignals[int]:
        """A request with the catalogue's indices, ready for `best`. Raises ModelError naming an unknown item."""
        return indexed(signals_of(history), self.catalogue)

    @torch.inference_mode()
    def best(
        self, known: Sequence[Request[int]], k: int, beam_width: int | None = None, *, filter_seen: bool = True
    ) -> list[list[Scored]]:
        """As `recommend`, of requests that `indexed` has made."""
        if not 1 <= k <= len(self.catalogue):
            raise ModelError(f"k: must be in 1..{len(self.catalogue)}, got {k}")
        if not known:
            return []
        items, scores = self.rank(known, max(k, beam_width or self.beam_width), filter_seen=filter_seen)
        ids = self.catalogue.ids
        return [
            [Scored(ids[item], score) for item, score in zip(row, values, strict=True) if item >= 0]
            for row, values in zip(items[:, :k].tolist(), scores[:, :k].tolist(), strict=True)
        ]

    @torch.inference_mode()
    def rank(self, histories: Sequence[Request[int]], width: int, *, filter_seen: bool = True) -> tuple[Tensor, Tensor]:
        """Catalogue indices instead of ids: (items [B, width], -1 where none is left; log p [B, width])."""
        met = [signals_of(history).met for history in histories]
        seen = padded(met, self.device) if filter_seen else None
        beams = beam_search(self.model, self.context(histories), self.trie, width, seen)
        return beams.items, beams.scores

    def context(self, histories: Sequence[Request[int]]) -> ContextKV:
        """Keys and values of each request's pathways, only to be read; the valid tokens come first in each row.

        Those of a user who is named are computed when their signals are new and kept for the next time. The answers
        are the same to the bit where all items' encodings are kept; otherwise an item is encoded in another batch and
        may differ by rounding.
        """
        signals = [signals_of(history) for history in histories]
        users, names = [UserTokens.of(one, self.config) for one in signals], [one.user_id for one in signals]
        if not any(names) or not self.contexts.max_bytes:
            chunks, readable = self._computed(users)
            return self.model.context.keys_values(chunks, readable)
        found = self._kept(users, names)
        length = torch.tensor([context.tokens for context in found], device=self.device)
        chunks = batched(found)
        readable = torch.arange(chunks[0].shape[1], device=self.device) < length[:, None]
        return self.model.context.keys_values(chunks, readable)

    def _kept(self, users: Sequence[UserTokens], names: Sequence[str]) -> list[UserContext]:
        """From the cache, or computed and, of users who are named, put there."""
        stamps = [user.digest(self._digest) if name else b"" for name, user in zip(names, users, strict=True)]
        known = [self.contexts.get(name, stamp) if name else None for name, stamp in zip(names, stamps, strict=True)]
        fresh = [place for place, found in enumerate(known) if found is None]
        if fresh:
            chunks, _ = self._computed([users[place] for place in fresh])
            for row, place in enumerate(fresh):
                made = UserContext.row(chunks, row, 1 + len(users[place].items))
                known[place] = made
                if names[place]:
                    self.contexts.put(names[place], stamps[place], made)
        return [context for context in known if context is not None]

    def _computed(self, users: Sequence[UserTokens]) -> tuple[list[Tensor], Tensor]:
        """Chunks [B, N, G, dh], and which tokens are there [B, N]."""
        tokens = packed(users, self.config, self.device)
        context = self.model.context
        encoded = (
            context.encode_items(self.codes[tokens.items]) if self._encoded is None else self._encoded[tokens.items]
        )
        readable = functional.pad(tokens.valid, (1, 0), value=True)
        return context.chunks(encoded, tokens.places, tokens.features), readable


def compute_dtype(stored: torch.dtype, device: torch.device | str) -> torch.dtype:
    """The dtype to compute in: the stored one, or float32 where the CPU has no units for it."""
    if torch.device(device).type != "cpu" or stored not in (torch.bfloat16, torch.float16):
        return stored
    features = torch.cpu.get_capabilities()
    native = features.get("amx_bf16") or features.get("avx512_bf16")
    return stored if stored is torch.bfloat16 and native else torch.float32
