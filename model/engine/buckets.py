"""The sizes that graphs are captured for: whatever is asked is padded up to the next one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from model.engine.limits import MOST_BEAMS, MOST_ROWS
from model.errors import ModelError
from model.signals import Request, signals_of

LEAST_HISTORY = 64
_HISTORY_STEP = 8  # tokens behind a history's end are cheap, another graph is not


@dataclass(frozen=True, slots=True, order=True)
class Bucket:
    """One graph's static sizes. The context holds min(history, context_len) items, `history` seen ones are left out."""

    batch: int  # requests, the dummies included
    width: int  # beams kept after every level, a power of two
    history: int  # items of the longest history

    @property
    def rows(self) -> tuple[int, int]:
        """Decoder rows of the first level and of the others."""
        return self.batch, self.batch * self.width

    def context(self, context_len: int) -> int:
        """Items of a history that the context holds, N."""
        return min(self.history, context_len)


def bucket_for(batch: int, width: int, longest: int) -> Bucket:
    """The smallest bucket that holds `batch` requests of histories up to `longest` items.

    Batches keep their three leading bits (1..8, 10, 12, 14, 16, 20, ...): at most a quarter is padding. Raises
    ModelError for a width beyond MOST_BEAMS.
    """
    return Bucket(batch_size(batch), beam_width(width), history_size(longest))


def batch_size(batch: int) -> int:
    """`batch` rounded up to three leading bits."""
    step = 1 << max(0, (batch - 1).bit_length() - 3)
    return -(-batch // step) * step


def beam_width(width: int) -> int:
    """The next power of two; a wider beam finds what a narrower one finds, or better."""
    if not 1 <= width <= MOST_BEAMS:
        raise ModelError(f"beam_width: the engine answers 1..{MOST_BEAMS}, got {width}")
    return 1 << (width - 1).bit_length()


def history_size(longest: int) -> int:
    """64, 512, 4096, ..."""
    size = LEAST_HISTORY
    while size < longest:
        size *= _HISTORY_STEP
    return size


def padded(bucket: Bucket, histories: Sequence[Request[int]], context_len: int, *, filter_seen: bool = True) -> Tensor:
    """What a graph reads: [B, N + M] int32 of the newest N items, newest first, and all M = `history` once.

    histories: item indices, oldest first, or all signals, at most B of at most M items. Each part is padded with -1,
    and requests without a history fill the batch. Without `filter_seen` the second part is padding alone.
    """
    context = bucket.context(context_len)
    asked = np.full((bucket.batch, context + bucket.history), -1, dtype=np.int32)
    for row, signals in enumerate(map(signals_of, histories)):
        newest = signals.history[-context:][::-1]
        asked[row, : len(newest)] = newest
        if filter_seen:
            seen = signals.met
            asked[row, context : context + len(seen)] = seen
    return torch.from_numpy(asked)


def most_requests(width: int) -> int:
    """Requests of one launch with so many beams each."""
    return MOST_ROWS // beam_width(width)


def ladder(most: int, widths: Sequence[int], longest: int) -> tuple[Bucket, ...]:
    """Every bucket that batches up to `most` of histories up to `longest` can need, the largest first."""
    histories = {history_size(length) for length in (*_powers_up_to(longest), longest)}
    return tuple(
        sorted(
            {
                Bucket(batch_size(batch), beam_width(width), history)
                for width in widths
                for batch in range(1, min(most, most_requests(width)) + 1)
                for history in histories
            },
            key=lambda bucket: (bucket.batch * bucket.width, bucket.history),
            reverse=True,
        )
    )


def served_rows(most: int, widths: Sequence[int]) -> tuple[int, ...]:
    """The decoder rows of every bucket of batches up to `most` at these widths, ascending."""
    return tuple(sorted({rows for bucket in ladder(most, widths, 1) for rows in bucket.rows}))


def _powers_up_to(limit: int) -> list[int]:
    return [1 << bit for bit in range(limit.bit_length()) if 1 << bit <= limit]
