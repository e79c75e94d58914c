"""One model on one device, answering batches of histories: static buffers and a captured graph per bucket."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

import torch
from torch import Tensor

from model.beam import Beams
from model.engine.buckets import Bucket, bucket_for, ladder, most_requests, padded
from model.engine.context import History
from model.engine.decode import Decoder, Walk
from model.engine.prefixes import Prefixes
from model.signals import Request, signals_of

M = TypeVar("M")

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, eq=False)
class _Captured:
    """A bucket's graph with its own inputs and outputs; everything between them shares one pool with the others."""

    graph: torch.cuda.CUDAGraph
    asked: Tensor  # [B, context + seen] int32 on the host, pinned
    taken: torch.cuda.Event  # the device has read it
    inputs: Tensor  # the same on the device
    found: Beams


def _event() -> torch.cuda.Event:
    """Whoever waits for it sleeps, and leaves the core to the service."""
    return torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]  # torch leaves it untyped


class Session(Generic[M]):
    """A decoder with its histories' context and its trie. Safe to call from several threads: the device computes one
    batch after the other, and has the next one before it is done.

    On a CUDA device the way from item indices to recommended items is one graph per bucket, captured when the bucket
    is first asked for or by `warm_up`; on a CPU, under Triton's interpreter, the same code runs as it stands.
    """

    def __init__(self, decoder: Decoder[M], history: History, prefixes: Prefixes) -> None:
        self._decoder, self._history, self._prefixes = decoder, history, prefixes
        self._device = decoder.bos.device
        self._context_len = decoder.config.context_len
        self._captured: dict[Bucket, _Captured] = {}
        self._lock = threading.Lock()
        self._on_gpu = self._device.type == "cuda"
        if self._on_gpu:
            torch.cuda.synchronize(self._device)  # what was built on other streams is ready for ours
            self._stream = torch.cuda.Stream(self._device)  # type: ignore[no-untyped-call]  # torch leaves it untyped
            self._pool = torch.cuda.graph_pool_handle()

    @torch.inference_mode()
    def search(self, histories: Sequence[Request[int]], width: int, *, filter_seen: bool = True) -> Beams:
        """The best unseen items for each history (catalogue indices, oldest first) or all signals, `width` columns.

        As `model.beam.beam_search`, with the beam as wide as the next power of two. A batch of more than MOST_ROWS
        rows is answered in pieces. Raises ModelError for a width beyond MOST_BEAMS.
        """
        most = most_requests(width)
        parts = [
            self._answer(histories[start : start + most], width, filter_seen)
            for start in range(0, len(histories), most)
        ]
        return Beams(torch.cat([part.items for part in parts]), torch.cat([part.scores for part in parts]))

    @torch.inference_mode()
    def warm_up(self, most: int, widths: Sequence[int], longest: int = 0) -> None:
        """Capture every graph that batches up to `most` at these widths can ask for, so that no user waits for one.

        longest: items of the longest history; context_len at least.
        """
        name, began_s = self._decoder.arithmetic.name, time.monotonic()
        buckets = ladder(most, widths, max(longest, self._context_len))
        for number, bucket in enumerate(buckets, start=1):
            bucket_s = time.monotonic()
            self._run(bucket, padded(bucket, [], self._context_len))
            _log.info(
                "engine %s: graph %d of %d, batch %d, width %d, history %d: %.2f s",
                name, number, len(buckets), bucket.batch, bucket.width, bucket.history, time.monotonic() - bucket_s,
            )  # fmt: skip
        if self._on_gpu:
            torch.cuda.empty_cache()
        _log.info("engine %s: %d graphs ready after %.1f s", name, len(buckets), time.monotonic() - began_s)

    def _answer(self, histories: Sequence[Request[int]], width: int, filter_seen: bool) -> Beams:
        longest = max(max(len(one.history), len(one.met)) for one in map(signals_of, histories))
        bucket = bucket_for(len(histories), width, longest)
        found = self._run(bucket, padded(bucket, histories, self._context_len, filter_seen=filter_seen))
        count = len(histories)
        return Beams(found.items[:count, :width], found.scores[:count, :width])

    def _run(self, bucket: Bucket, asked: Tensor) -> Beams:
        if not self._on_gpu:
            return self._decode(bucket, asked)
        with self._lock, torch.cuda.device(self._device), torch.cuda.stream(self._stream):
            captured = self._captured.get(bucket)
            if captured is None:
                captured = self._captured[bucket] = self._capture(bucket, asked.shape[1])
            captured.taken.synchronize()
            captured.asked.copy_(asked)
            captured.inputs.copy_(captured.asked, non_blocking=True)
            captured.taken.record()
            captured.graph.replay()
            found = Beams(captured.found.items.clone(), captured.found.scores.clone())
            done = _event()
            done.record()
        done.synchronize()  # outside: the next batch may line up, or the device would wait for our threads in between
        return found

    def _capture(self, bucket: Bucket, columns: int) -> _Captured:
        asked = torch.full((bucket.batch, columns), -1, dtype=torch.int32, pin_memory=True)
        inputs = asked.to(self._device)
        self._decode(bucket, inputs)  # compiles the kernels, which a capture may not
        self._stream.synchronize()
        graph = torch.cuda.CUDAGraph()
        # thread_local: another thread may well use the device while we record
        with torch.cuda.graph(graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local"):
            found = self._decode(bucket, inputs)
        return _Captured(graph, asked, _event(), inputs, found)

    def _decode(self, bucket: Bucket, inputs: Tensor) -> Beams:
        """Item indices to recommended items, without a word to the host."""
        context = bucket.context(self._context_len)
        items, seen = inputs[:, :context], inputs[:, context:]
        lengths = (items >= 0).sum(1, dtype=torch.int32) + 1
        contexts = tuple(
            self._decoder.arithmetic.context(key, value, lengths)
            for key, value in self._history.keys_and_values(items, lengths)
        )
        decoded = self._decoder.decode(contexts, bucket.width, Walk(self._prefixes, self._prefixes.used(seen)))
        if decoded.items is None:
            raise TypeError("decoded: expected items, for a trie was given")
        return Beams(decoded.items, decoded.scores)
