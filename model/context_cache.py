"""Contexts kept by user, within a bound of bytes."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from threading import Lock

from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from model.errors import ModelError

BYTES_PER_ENTRY = 1024
"""Beside the tensors, generously: keys, digests and Python's own objects."""


@dataclass(frozen=True, slots=True, eq=False)
class UserContext:
    """One user's normed chunks [tokens, G, dh], all of their tokens valid; see `ContextProcessor.chunks`."""

    chunks: tuple[Tensor, ...]

    @classmethod
    def row(cls, chunks: Sequence[Tensor], row: int, tokens: int) -> UserContext:
        """The first `tokens` of one row of a batch, copied: a view would keep the whole batch alive."""
        return cls(tuple(chunk[row, :tokens].clone() for chunk in chunks))

    @property
    def tokens(self) -> int:
        """The profile token and the items."""
        return self.chunks[0].shape[0]

    @property
    def size_bytes(self) -> int:
        """Memory of the tensors and what holds them."""
        return BYTES_PER_ENTRY + sum(chunk.numel() * chunk.element_size() for chunk in self.chunks)


def batched(contexts: Sequence[UserContext]) -> list[Tensor]:
    """Chunks [B, N, G, dh] of several users, padded with zeros; a single user's are not copied."""
    if len(contexts) == 1:
        return [chunk[None] for chunk in contexts[0].chunks]
    return [pad_sequence(list(same), batch_first=True) for same in zip(*(c.chunks for c in contexts), strict=True)]


class ContextCache:
    """The most recently used contexts of at most `max_bytes`, one per user. Safe to use from several threads.

    What is kept of a user is handed out only for the digest it was put in with, so that a history that has changed,
    by one item or by many, is a miss, and then replaces what was there. Nothing of the old keys could serve the new
    ones: with every new item all others become older by one place, whose vector is added before the norm. What is used
    again then are the items' encodings, which the recommender keeps for everybody.
    """

    def __init__(self, max_bytes: int) -> None:
        if max_bytes < 0:
            raise ModelError(f"cache_bytes: must not be negative, got {max_bytes}")
        self.max_bytes = max_bytes
        self.hits = self.misses = self.size_bytes = 0
        self._kept: OrderedDict[str, tuple[bytes, UserContext]] = OrderedDict()
        self._lock = Lock()

    def __len__(self) -> int:
        return len(self._kept)

    def get(self, user_id: str, digest: bytes) -> UserContext | None:
        """The user's context if it is still that of `digest`."""
        with self._lock:
            found = self._kept.get(user_id)
            if found is None or found[0] != digest:
                self.misses += 1
                return None
            self.hits += 1
            self._kept.move_to_end(user_id)
            return found[1]

    def put(self, user_id: str, digest: bytes, context: UserContext) -> None:
        """Keep it in place of the user's older one; one that is larger than the whole cache is not kept."""
        with self._lock:
            before = self._kept.pop(user_id, None)
            if before is not None:
                self.size_bytes -= before[1].size_bytes
            if context.size_bytes > self.max_bytes:
                return
            self._kept[user_id] = digest, context
            self.size_bytes += context.size_bytes
            while self.size_bytes > self.max_bytes:
                _, (_, dropped) = self._kept.popitem(last=False)
                self.size_bytes -= dropped.size_bytes
